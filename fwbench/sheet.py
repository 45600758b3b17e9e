"""Tables as CSV. A text in a cell that a spreadsheet would run as a formula gets an apostrophe before it.

Names of problems, models and people come from outside, and ``=HYPERLINK(...)`` is a name too (OWASP, CSV injection).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")  # what a cell must not begin with; the last so that it can be undone


def write(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """CSV with a header line and ``\\n`` at the line ends; None is empty, numbers are written as they are."""
    return "".join(map(_line, [columns, *rows]))


def read(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and lines of what :func:`write` wrote, texts as they were. Raises ValueError for an uneven line."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has not as many cells as the header")
        rows.append({key: value.removeprefix("'") for key, value in row.items()})
    return list(reader.fieldnames or ()), rows


def _line(row: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(map(_cell, row))  # of its own line end's letters, \r and \n, csv quotes those in cells
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(RUNS) else value
