"""The mask study's driver and report on a layer small enough to check by hand."""

import numpy as np
import pytest
from layers import random_layer

from benchmarks.masks import cells, grid
from benchmarks.shared import samples
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.store import Store


@pytest.fixture
def measured(tmp_path):
    layer = random_layer("0.5", rows=12, n=40)
    part = samples.sample(Problem("smollm2.03.o_proj", layer.W, layer.G, layer.pattern), 6)
    problem = Problem(f"{part.name}.0.5", part.W, part.G, part.pattern)
    with Store(tmp_path / "masks.sqlite") as store:
        for spec in ("wanda", "wanda+swap", "fw+swap"):
            assert grid.solve(problem, pipeline.resolve(spec), store)
            assert grid.solve(problem, pipeline.resolve(spec), store) == ""  # resumed: nothing to do
    return problem, cells.read(tmp_path / "masks.sqlite", [problem])


def test_a_sample_is_seeded_by_the_layer_and_keeps_its_rows():
    layer = random_layer("0.5", rows=30, n=8)
    parts = [samples.sample(layer, 10) for _ in range(2)]
    chosen = [int(row) for row in parts[0].meta["sampled_rows"].split()]
    assert parts[0].hash == parts[1].hash
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert np.array_equal(parts[0].W, layer.W[chosen])
    assert samples.sample(layer, 30) is layer


def test_errors_of_rows_come_from_the_stored_masks(measured):
    problem, found = measured
    assert set(found) == {"wanda", "wanda+swap", "fw+swap"}
    for by_problem in found.values():
        cell = by_problem[problem.name]
        assert cell.errors.sum() == pytest.approx(cell.result.error, rel=1e-12)
        assert min(ratio for _, ratio in cell.trace()) == pytest.approx(cell.ratio, rel=1e-9)
    least = cells.best_of_rows(found)[problem.name]
    assert all((least <= by_problem[problem.name].errors).all() for by_problem in found.values())
    ratio, count = cells.against(found, "wanda+swap", "wanda")
    assert count == 1
    assert ratio == pytest.approx(found["wanda+swap"][problem.name].result.ratio_to_wanda)
    assert cells.complete(found, ["greedy", "fw+swap"]) == ["fw+swap"]


def test_names_of_the_report():
    assert samples.place("smollm2.13.o_proj.r24.2:4") == ("13", "o_proj", "2:4")
    assert cells.resolved("sparsefw") == "SparseFW"
    assert cells.resolved("fw(variant=dicg,gap=0.0,steps=500)+swap") == "fw(variant=dicg)+swap"
    assert cells.resolved("no such solver") == "no such solver"
