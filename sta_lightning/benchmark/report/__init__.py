"""The report of a benchmark: a page, Markdown, tables and figures of what the numbers say."""

from sta_lightning.benchmark.report.document import console, figures, write_report

__all__ = ["console", "figures", "write_report"]
