"""A study's CSV files: what a kill leaves, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks.shared.csv_lines import append, append_row, read, read_rows, required, write


@dataclass(frozen=True)
class Line:
    name: str
    count: int
    value: float
    good: bool


LINES = [Line("a, b", 1, 0.1, True), Line("c", 2, 1e-300, False)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    append(path, [])
    assert read(path, Line) == []
    append(path, LINES)
    whole = path.read_text()
    path.write_text(whole[:-12])
    assert read(path, Line) == LINES[:1]
    append(path, LINES[1:])
    assert read(path, Line) == LINES


def test_lines_in_place_of_others(tmp_path):
    path = tmp_path / "rows.csv"
    append(path, LINES)
    write(path, LINES[1:])
    assert read(path, Line) == LINES[1:]
    write(path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_needs_lines_says_what_measures_them(tmp_path):
    with pytest.raises(SystemExit, match=r"rows.csv: no lines; measure some: python -m benchmarks.bounds.rows"):
        required(tmp_path / "rows.csv", Line, "benchmarks.bounds.rows")
    append(tmp_path / "rows.csv", LINES)
    assert required(tmp_path / "rows.csv", Line, "benchmarks.bounds.rows") == LINES


def test_rows_by_columns(tmp_path):
    path = tmp_path / "rows.csv"
    assert read_rows(path) == []
    append_row(path, {"lee-heldout": 1.5, "tool": "a"}, ("tool", "lee-heldout", "peak"))
    append_row(path, {"tool": "b, c"}, ("tool",))
    assert path.read_text() == 'tool,lee-heldout,peak\na,1.5,\n"b, c",,\n'
    assert read_rows(path)[1] == {"tool": "b, c", "lee-heldout": "", "peak": ""}
