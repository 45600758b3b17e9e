"""A study's CSV files, appended line by line as they are measured, so that a killed study goes on.

A line is a frozen dataclass, or a row by column names where those are no names of Python's.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

Line = TypeVar("Line")
TYPES = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}


def read(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a file; one that a kill cut short is left out, and no file has none."""
    if not path.exists():
        return []
    makers = [TYPES[str(item.type)] for item in fields(kind)]
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(makers)][1:]
    return [kind(*(make(text) for make, text in zip(makers, line, strict=True))) for line in lines]


def required(path: Path, kind: type[Line], study: str) -> list[Line]:
    """The lines of a file that a command cannot do without, and that the module ``study`` measures.

    Raises:
        SystemExit: there are none.
    """
    if not (lines := read(path, kind)):
        raise SystemExit(f"{path}: no lines; measure some: python -m {study}")
    return lines


def append(path: Path, lines: Sequence[Any]) -> None:
    """Add lines of one kind, under a head where the file is new, and see them on the disk."""
    if lines:
        _append(path, [item.name for item in fields(lines[0])], [astuple(line) for line in lines])


def write(path: Path, lines: Sequence[Any]) -> None:
    """Put lines in the place of the file's own, all or none; without lines no file is left."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(".partial.csv")
    partial.unlink(missing_ok=True)
    append(partial, lines)
    partial.replace(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file as texts by column; no file has none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Add a row in the order of the file's own head, or of ``columns`` where the file is new; what it lacks is empty.

    Raises:
        ValueError: the row has a column that the file has not.
    """
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.exists() else ""
    head = first.split(",") if first else list(columns)
    if unknown := set(row) - set(head):
        raise ValueError(f"{path}: no column {', '.join(sorted(unknown))}; take it out or begin another file")
    _append(path, head, [[row.get(name, "") for name in head]])


def _append(path: Path, head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_bytes() if path.exists() else b""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not text:
            writer.writerow(head)
        elif not text.endswith(b"\n"):
            file.write("\n")
        writer.writerows(lines)
        file.flush()
        os.fsync(file.fileno())
