"""The study of swaps a row: limits, and what the page makes of them."""

import pytest
from layers import random_layer

from benchmarks.convergence import page, swaps
from fwbench import pipeline


def test_errors_fall_with_the_limit_down_to_that_of_swaps():
    problem = random_layer("0.5", rows=4, n=24, seed=2)
    lines = {line.limit: line for line in swaps.limited("toy", problem, "magnitude")}
    assert list(lines) == list(swaps.LIMITS)
    values = [line.over_start for line in lines.values()]
    assert values == sorted(values, reverse=True)
    assert lines[1].swaps <= 1
    start, wanda, end = (
        problem.error(pipeline.run(problem, spec, threads=1).keep) for spec in ("magnitude", "wanda", "magnitude+swap")
    )
    assert lines[0].over_start == pytest.approx(end / start, rel=1e-5)
    assert lines[0].over_wanda == pytest.approx(end / wanda, rel=1e-5)


def test_cells_are_geometric_means_of_layers_and_swaps_those_to_the_end():
    lines = [
        swaps.Limited(layer, 1, 4, "wanda", limit, made, value, value)
        for layer, made, value in (("a", 10.0, 0.25), ("b", 20.0, 1.0))
        for limit in swaps.LIMITS
    ]
    text = "\n".join(page._swaps(lines))
    assert "| `wanda` | " + " | ".join(["0.500"] * len(swaps.LIMITS)) + " | 15.0 |" in text
    assert "| a | " + " | ".join(["0.250"] * len(swaps.LIMITS)) + " | 10.0 |" in text
