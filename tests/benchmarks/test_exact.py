"""What the exact solvers' study says of a solved row: the optimum by enumeration, the proof by the checker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from brute import best_mask
from layers import random_layer

from benchmarks.exact import frontier, page, rows


def test_an_optimum_and_the_distances_of_the_methods():
    problem = random_layer("0.5", rows=1, n=12, seed=3)
    line, certificate = rows.solve(problem, 0, "bnb", 60, start="best")
    assert (line.status, line.variables) == ("optimal", 12)
    found = frontier.optimum(problem, line, certificate)
    least = best_mask(problem)[0]
    assert found.optimum == pytest.approx(least, rel=1e-9)
    assert found.proved == pytest.approx(least, rel=1e-6)
    assert all(getattr(found, name) >= least * (1 - 1e-12) for name in frontier.METHODS)
    assert found.best == pytest.approx(least, rel=1e-9)
    text = page.page([line], [line], [replace(found, wanda=1.5 * found.optimum)])
    cells = text.splitlines()[-1].split(" | ")
    assert cells[7] == "50.0 %"


def test_a_proof_that_the_checker_refuses_ends_the_study():
    problem = random_layer("0.5", rows=1, n=12, seed=3)
    line, certificate = rows.solve(problem, 0, "bnb", 60)
    other = random_layer("0.5", rows=1, n=12, seed=4)
    with pytest.raises(ValueError, match="another problem"):
        frontier.optimum(other, line, certificate)
