"""Rows of a store -> tables, figures, pages."""

from fwbench.report.page import write
from fwbench.report.rows import COLUMNS, join, load, to_csv, to_json

__all__ = ["COLUMNS", "join", "load", "to_csv", "to_json", "write"]
