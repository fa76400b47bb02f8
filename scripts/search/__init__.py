"""Searches for better merges: a script each, and in ``log.md`` what was run and what it gave."""
