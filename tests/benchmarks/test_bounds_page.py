"""The page of the bound study: its figures are those that one computes by hand from the lines of a small CSV."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from benchmarks.bounds import branching, layers, tables, worlds, worlds_page
from benchmarks.bounds import page as bounds_page
from benchmarks.bounds.branching import Branched
from benchmarks.bounds.methods import Method
from benchmarks.bounds.rows import Measured
from benchmarks.bounds.worlds import WorldStep
from benchmarks.shared import csv_lines
from fwbench.patterns import parse
from fwbench.problem import Problem
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.semidefinite.ladder import RUNGS
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import shor

ROWS = 100
CHOSEN = chosen_rows(tables.SAMPLE, ROWS)


def line(block: str, row: int, kind: str, lower: float, layer: str = "q_proj", upper: float = 1.0) -> Measured:
    gap = 1 - lower / upper
    return Measured(f"toy.{block}.{layer}", "0" * 12, row, 576, kind, upper, lower, gap, 2.0, True, "wanda+swap")


@pytest.fixture
def page(monkeypatch, tmp_path):
    """A function from lines to the page, through the CSV files."""
    monkeypatch.setattr(tables, "row_count", lambda name: ROWS)
    monkeypatch.setattr(tables, "row_length", lambda name: 576)
    monkeypatch.setattr(tables, "condition", lambda name: 1000.0)

    def write(lines: list[Measured], sizes: tuple[Measured, ...] = (), methods: tuple[Method, ...] = ()) -> str:
        csv_lines.append(tmp_path / "rows.csv", lines)
        csv_lines.write(tmp_path / "sizes.csv", sizes)
        csv_lines.write(tmp_path / "methods.csv", methods)
        return bounds_page.page(bounds_page.read_study(tmp_path))

    return write


def cells(page: str, *start: str) -> list[str]:
    """The cells of the one line of a table that begins with ``start``."""
    found = [text for text in page.splitlines() if text.startswith("| " + " | ".join(start) + " |")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_all_lines_of_a_row_are_held_against_its_best_mask():
    worse, better, other = line("03", 1, "dnn", 0.9), line("03", 1, "shor", 0.8, upper=0.95), line("03", 2, "shor", 0.7)
    found = tables.by_best_masks([worse, replace(better, masks="best"), other])
    assert [one.upper for one in found] == [0.95, 0.95, 1.0]
    assert [one.masks for one in found] == ["best", "best", "wanda+swap"]
    assert [one.lower for one in found] == [0.9, 0.8, 0.7]
    assert [one.gap for one in found] == pytest.approx([1 - 0.9 / 0.95, 1 - 0.8 / 0.95, 0.3])


def test_medians_are_of_the_sampled_rows_alone(page):
    lines = [line("03", row, "shor", 0.9 if row in CHOSEN else 0.5) for row in range(ROWS)]
    text = page(lines)
    assert cells(text, "q_proj", "03", "shor", "24")[4:] == ["10.0 % (10.0 % to 10.0 %)", "2.00", "1000"]
    # of all rows: 24 of 0.1 and 76 of 0.5, whose sum is (24 · 0.1 + 76 · 0.5) / 100 = 0.404; 200 s are 0.0556 h
    assert cells(text, "q_proj", "03", "shor", "100 of 100")[4:] == ["50.0 % (50.0 % to 50.0 %)", "40.4 %", "0.056"]


def test_gap_of_a_whole_layer_is_that_of_the_sums(page):
    lines = [line("03", row, "shor", 2.0, upper=4.0) for row in range(50)]
    lines += [line("03", row, "shor", 1.0, upper=1.0) for row in range(50, 100)]
    assert cells(page(lines), "q_proj", "03", "shor", "100 of 100")[5] == "40.0 %"  # 1 - 150 / 250


def test_aims_give_blocks_equal_weight(page):
    lines = [line("03", row, "shor", 0.94) for row in CHOSEN[:20]]  # of all rows the median is 6 %
    lines += [line("13", row, "shor", 0.80) for row in CHOSEN[:3]]
    text = page(lines)
    found = cells(text, "q_proj", "Shor")[2:]
    assert found == ["9.0 %", "13.0 %", "6.0 %", "03: 6.0 % of 20, 13: 20.0 % of 3", "missed"]
    assert "0 of the 1 aims are met" in text


def test_best_bound_counts_rows_with_all_its_rungs(page):
    first, second, third = CHOSEN[:3]
    lines = [line("13", first, kind, lower) for kind, lower in (("shor", 0.8), ("dnn", 0.97), ("mccormick", 0.96))]
    lines += [line("13", second, kind, lower) for kind, lower in (("shor", 0.8), ("dnn", 0.98), ("mccormick", 0.99))]
    lines += [line("13", third, "shor", 0.5)]  # no McCormick bound yet: not in the best bound's median
    text = page(lines)
    found = cells(text, "q_proj", "up to McCormick")[2:]
    assert found == ["4.5 %", "2.0 %", "2.0 %", "13: 2.0 % of 2", "met"]  # of 3 % and 1 %
    assert cells(text, "q_proj", "Shor")[3] == "20.0 %"
    assert "1 of the 2 aims are met" in text
    text = page([*lines, line("13", first, "triangles", 0.99)])
    assert cells(text, "q_proj", "with triangles")[2:] == ["4.5 %", "1.0 %", "1.0 %", "13: 1.0 % of 1", "met"]
    assert "2 of the 3 aims are met" in text


def test_powers_of_n(page):
    sizes = tuple(
        Measured("toy.07.v_proj", "0" * 12, 0, n, "shor", 1.0, 1 - n / 1000, n / 1000, n**2 / 1e4, True, "wanda")
        for n in (100, 200, 400)
    )
    found = cells(page([line("03", CHOSEN[0], "shor", 0.9)], sizes), "v_proj", "shor", "100 to 400")
    assert found[3:] == ["10.0 % to 40.0 %", "1.00", "1.00 to 16.0", "2.00"]


def test_header_counts(page):
    lines = [line("03", row, kind, 0.9) for row in (1, 2, 3) for kind in ("shor", "dnn")]
    lines += [line("13", 1, "shor", 0.9, layer="o_proj")]
    text = page(lines)
    assert "4 rows of 2 layers" in text
    assert "0 of 7 interior points" in text
    assert "three-worlds" not in text  # no figure in its folder


# --- the three worlds ------------------------------------------------------------------------------------------------

POINTS = [
    WorldStep("toy.r2", "mask", "wanda", 0.001, 1.0),
    WorldStep("toy.r2", "mask", "swap", 0.5, 0.8),
    WorldStep("toy.r2", "relaxation", "fw", 0.1, 0.3),
    WorldStep("toy.r2", "relaxation", "fw", 0.2, 0.4),
    WorldStep("toy.r2", "ladder", "bound", 1.0, 0.5),
    WorldStep("toy.r2", "ladder", "bound", 9.0, 0.6),
]


def test_the_three_worlds_on_the_page(page, tmp_path):
    csv_lines.write(tmp_path / worlds.WORLDS_CSV, POINTS)
    text = page([line("03", CHOSEN[0], "shor", 0.9)])
    assert "(figures/three-worlds.svg)" in text
    assert "`swap`, has 0.8000 after 0.5 CPU seconds" in text
    assert "`fw`, proves 0.4000 after 0.2, the ladder 0.6000 after 9: a gap of 25.0 %" in text


def test_the_three_worlds_are_drawn():
    svg = worlds_page.draw(POINTS)
    assert "25.0 %" in svg
    assert svg == worlds_page.draw(POINTS)


def test_steps_hold_their_value():
    run = [point for point in POINTS if point.world == "ladder"]
    np.testing.assert_equal(worlds_page.steps(run, np.array([0.5, 1.0, 5.0, 9.0, 20.0])), [np.nan, 0.5, 0.5, 0.6, 0.6])


def test_best_so_far_drops_what_is_no_better():
    points = [(0.0, 3.0), (1.0, 3.0), (2.0, 4.0), (3.0, 2.0)]
    assert worlds.best_so_far(points, np.minimum) == [(0.0, 3.0), (3.0, 2.0)]
    assert worlds.best_so_far(points, np.maximum) == [(0.0, 3.0), (2.0, 4.0)]


def test_methods_lie_between_the_best_mask_known_and_the_best_bound(page):
    lines = []
    for name, row, lower, upper in (("03", 0, 0.5, 1.0), ("03", 1, 0.8, 1.0), ("13", 0, 0.8, 0.8)):
        lines += [line(name, row, kind, lower, upper=upper) for kind in RUNGS]
    lines += [line("13", 9, "shor", 0.1)]  # without McCormick's bound: not of these rows
    found = {("03", 0): 1.0, ("03", 1): 2.0, ("13", 0): 1.6}
    methods = [Method(f"toy.{block}.q_proj", row, "wanda", error) for (block, row), error in found.items()]
    methods += [Method("toy.03.q_proj", 1, "best", 0.8)]  # better than the line's own mask, on one layer only
    text = page(lines, methods=tuple(methods))
    # above the best known: 1, 2.5 and 2 times it, above the bound: 2, 2.5 and 2 times; layers weigh the same
    least, most = (np.sqrt(np.sqrt(a * 2.5) * 2) - 1 for a in (1, 2))
    assert cells(text, "`wanda`")[1:] == [f"{100 * least:.1f} % to {100 * most:.1f} %"] * 2
    assert "`best` |" not in text
    assert "On the 3 rows" in text


def test_whole_layers_by_one_diagonal():
    W = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 1.0, 2.0]], np.float32)
    problem = Problem("toy.03.q_proj", W, np.eye(4), parse("0.5"))
    # min Σ w² u², Σ u = 2, u ≤ 1: u = 1 where w = 1, the others in proportion to 1 / w²
    relaxed = 1 + 1 / (1 / 4 + 1 / 9 + 1 / 16)
    found = layers.solve(problem, "plain", np.array([5.0, 10.0]))
    assert (found.rows, found.n, found.upper, found.kind) == (2, 4, 15.0, "plain")
    assert found.lower == pytest.approx(2 * relaxed, rel=1e-3)
    assert found.lower <= 2 * relaxed
    assert found.median == pytest.approx(1 - (relaxed / 5 + relaxed / 10) / 2, rel=1e-2)
    line = replace(found, median=0.25, low=0.2, high=0.3, upper=4.0, lower=3.0, seconds=2.0)
    text = tables.diagonals([line])
    assert cells(text, "q_proj", "03", "plain", "2", "4")[5:] == ["25.0 % (20.0 % to 30.0 %)", "25.0 %", "2.00"]
    assert tables.diagonals([]) == ""


def test_branching_covers_every_mask_and_raises_the_bound(monkeypatch):
    A = np.random.default_rng(0).normal(size=(9, 9))
    form = RowForm(A @ A.T, np.array([4]))

    def optimum(of: RowForm) -> float:
        linear = np.zeros(len(of.Q)) if of.linear is None else of.linear
        chosen = map(list, combinations(range(len(of.Q)), int(of.counts[0])))
        return min(of.constant + linear[S].sum() + of.Q[np.ix_(S, S)].sum() for S in chosen)

    first = [branching.child(form, 3, pruned) for pruned in (True, False)]
    second = [branching.child(of, 5, pruned) for of in first for pruned in (True, False)]
    for leaves in (first, second):
        assert min(map(optimum, leaves)) == pytest.approx(optimum(form))
    assert optimum(first[0]) != pytest.approx(optimum(first[1]))
    monkeypatch.setattr(branching, "BOUNDS", {"shor": (shor, 2)})
    nodes, lower, _ = zip(*branching.bounds(form, "shor"), strict=True)
    assert nodes == (1, 3, 7)
    assert lower[0] < lower[1] < lower[2] <= optimum(form)
    lines = [Branched("toy.03.q_proj", 0, kind, n, 0.25, 2.0) for kind in ("triangles", "shor") for n in nodes]
    text = tables.branching(lines)
    assert cells(text, "toy.03.q_proj", "0", "shor", "3")[4:] == ["25.0 %", "2.00"]
    assert text.index("| shor | 7 |") < text.index("| triangles | 1 |")
    assert tables.branching([]) == ""


def test_no_section_without_methods(page):
    assert "How far each method" not in page([line("03", 0, kind, 0.5) for kind in RUNGS])
