"""A study's CSV file: one frozen dataclass a line, appended as it is measured, so that a killed study goes on."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TypeVar

Line = TypeVar("Line")
TYPES = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}


def read(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a file; one that a kill cut short is left out, and no file has none."""
    if not path.exists():
        return []
    makers = [TYPES[str(item.type)] for item in fields(kind)]  # type: ignore[arg-type]
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(makers)][1:]
    return [kind(*(make(text) for make, text in zip(makers, line, strict=True))) for line in lines]


def append(path: Path, lines: Sequence[Line]) -> None:
    """Add lines, under a head where the file is new, and see them on the disk."""
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_bytes() if path.exists() else b""
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not text:
            writer.writerow([item.name for item in fields(lines[0])])  # type: ignore[arg-type]
        elif not text.endswith(b"\n"):
            file.write("\n")
        writer.writerows(astuple(line) for line in lines)  # type: ignore[call-overload]
        file.flush()
        os.fsync(file.fileno())
