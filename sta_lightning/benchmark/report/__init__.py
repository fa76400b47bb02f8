"""The report of a benchmark: a page, Markdown, tables and figures of what the numbers say."""

from sta_lightning.benchmark.report.board import write_board
from sta_lightning.benchmark.report.document import console, write_report
from sta_lightning.benchmark.report.summary import handed_out

__all__ = ["console", "handed_out", "write_board", "write_report"]
