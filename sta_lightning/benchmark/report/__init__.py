"""The report of a benchmark: what the numbers say, in sentences, tables and figures, as a page, Markdown and CSV."""

from sta_lightning.benchmark.report.document import figures, write_report

__all__ = ["figures", "write_report"]
