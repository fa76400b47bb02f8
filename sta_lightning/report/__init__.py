"""Drawings, tables and pages from recorded numbers, without models or training."""
