"""The study of speeds: what is older runs from another folder, and the page's figures by hand."""

import io
import subprocess

import pytest

from benchmarks.shared.csv_lines import read
from benchmarks.speed import page, study
from fwbench.problems.collections import SHAPES


def line(layer, spec, code, seconds, error=1.0, n=576, rows=128):
    return study.Line(layer, "0.5", n, rows, spec, code, seconds, error)


def test_the_page_compares_whole_blocks_and_marginal_rows():
    lines = []
    for name, (rows, n) in SHAPES.items():
        per = 128 / rows  # so that a whole layer takes one unit
        lines += [line(name, "admm", "now", per, n=n), line(name, study.RESWAP, "before", 20 * per, 2.0, n)]
        lines += [line(name, study.RESWAP, "now", 5 * per, 2.2 if name == "o_proj" else 2.0, n)]
        for spec, seconds in ((study.FAST, 24.0), (study.UNIT, 1.0), (study.FASTER, 5.0)):
            lines.append(line(name, spec, "now", seconds * per, n=n))
        lines += [line(name, spec, "now", per, n=n, rows=0) for spec, per in ((study.UNIT, 2.0), (study.FASTER, 7.0))]
    for n, per_row in ((576, 1e-3), (1152, 4e-3)):
        lines += [line("", study.RESWAP, "now", 7 + rows * per_row, n=n, rows=rows) for rows in (16, 48)]
    text = page.page(lines)
    assert "| `fast` | `faster` | 0.5 | `SparseSwaps` | 7.0 | 168.0 | 35.0 | 24.0 | 5.0 | 1.0000 |" in text
    assert "| 0.5 | 14.0 | 49.0 | 3.5 |" in text
    mean = (1.1) ** (1 / 7)
    [whole] = [row for row in text.splitlines() if "before" in row and "(o_proj)" in row]
    assert whole.endswith(f"| 0.5 | `admm` | 7.0 | 140.0 | 35.0 | 20.0 | 5.0 | {mean:.4f} | 1.1000 (o_proj) |")
    [growth] = [row for row in text.splitlines() if row.endswith("| 2.00 | 2.00 |")]
    assert growth == "| `SparseSwaps+reswap` | 1.00 | 4.00 | – | – | 2.00 | 2.00 |"


def test_every_cell_of_older_code_has_one_of_todays_behind_it():
    cells = study.cells()
    assert len(set(cells)) == len(cells)
    for place, cell in enumerate(cells):
        if cell.code == "before":
            assert cells[place + 1] == study.Cell(cell.layer, cell.pattern, cell.n, cell.rows, cell.spec, "now")


def test_a_commits_package_lies_in_one_folder(tmp_path):
    try:
        folder = study.unpacked("HEAD", tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("no git here")
    for name in ("__init__.py", "problems/collections.py", "solvers/weight_update/reswap.py"):
        assert (folder / "fwbench" / name).is_file()


def test_what_the_file_holds_is_not_measured_again(tmp_path, monkeypatch):
    class Process:
        def __init__(self, *paths):
            self.stdin, self.asked = io.StringIO(), 0
            self.stdout = self

        def readline(self):
            self.asked += 1
            return '{"seconds": 1.5, "error": 2.0, "rows": 4}'

        def communicate(self):
            pass

    made = []
    monkeypatch.setattr(study, "started", lambda *paths: made.append(Process()) or made[-1])
    monkeypatch.setattr(study, "unpacked", lambda commit, folder: folder)
    monkeypatch.setattr(study, "cells", lambda: [study.Cell("q_proj", "0.5", 576, 4, "admm", code) for code in CODES])
    study.run(tmp_path, "HEAD")
    study.run(tmp_path, "HEAD")
    assert [process.asked for process in made] == [1, 1, 0, 0]
    assert [found.code for found in read(tmp_path / study.SPEED_CSV, study.Line)] == list(CODES)


CODES = ("before", "now")
