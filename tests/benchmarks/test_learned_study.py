"""The study of learned diagonals on small layers: every bound below the optimum, a row's own diagonal by itself."""

from dataclasses import replace

import numpy as np
import pytest
from brute import best_mask
from layers import random_layer

from benchmarks.learned import study
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State


def layer(rows, pattern="0.5"):
    return replace(random_layer(pattern, rows=rows, n=16), name=f"smollm2.15.o_proj.r{rows}")


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_bounds_are_below_the_optimum(pattern):
    problem = layer(3, pattern)
    lines = {line.method: line for line in study.measured(problem)}
    assert tuple(lines) == study.ALL
    swapped = problem.error(Swap().run(problem, Wanda().run(problem, State(), Context()), Context()).keep)
    bounds = {name: line.bound * swapped for name, line in lines.items() if name != study.SHOR}
    assert max(bounds.values()) <= best_mask(problem)[0] * (1 + 1e-9)
    assert bounds["none"] <= bounds[study.OWN]


def test_of_one_row_its_own_diagonal_is_the_layers():
    found = {line.method: line for line in study.measured(layer(1), ("learned", study.OWN))}
    assert found["learned"].bound == pytest.approx(found[study.OWN].bound, rel=1e-6)
    assert found["learned"].slope == pytest.approx(found[study.OWN].slope)


def test_of_more_rows_it_is_that_of_each():
    problem = layer(3)
    u = np.random.default_rng(0).uniform(size=problem.shape)
    e = study.learned_rows(problem, u)
    for row in range(3):
        np.testing.assert_array_equal(e[row], study.learned_e(problem.part([row]), u[row : row + 1]))
    assert not np.allclose(e[0], e[1])
    assert study.slope(problem, u, e) == pytest.approx((problem.W.astype(float) ** 2 * u * (1 - u) * e).sum())
