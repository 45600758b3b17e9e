"""The files of the study of whole models, as a reader of them finds the numbers."""

import csv
import math

import numpy as np
import pytest
from layers import random_layer

from benchmarks.prune import allocation, boards, page
from benchmarks.shared.command import REPORTS
from benchmarks.shared.csv_lines import append_row
from fwbench import pipeline
from fwbench.patterns import parse
from fwbench.problems import collections
from fwbench.solvers.start.scores import Wanda
from fwbench.solvers.weight_update.reswap import Reswap
from fwbench.stage import Context, State


def test_rows_stand_in_the_order_of_the_header(tmp_path):
    path = tmp_path / "layers.csv"
    first = {"mode": "one-shot", "pattern": "0.5", "method": "wanda", "m.00.down_proj": "1", "m.00.q_proj": "2"}
    second = {"mode": "sequential", "pattern": "0.5", "method": "wanda", "m.00.q_proj": "4", "m.00.down_proj": "3"}
    for row in (first, second):
        append_row(path, row, tuple(row))
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [first, second]
    assert boards.read(path)["sequential", "0.5", "wanda"]["m.00.q_proj"] == "4"


def test_a_row_that_the_file_has_no_column_for_is_refused(tmp_path):
    append_row(tmp_path / "layers.csv", {"mode": "x", "a": "1"}, ("mode", "a"))
    with pytest.raises(ValueError, match="no column b"):
        append_row(tmp_path / "layers.csv", {"mode": "x", "b": "1"}, ("mode", "b"))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("wanda+refit", "refit"),
        ("wanda+swap+admm", "admm"),
        ("wanda+swap", None),
        ("mirror+round", None),
        ("fast", None),
    ],
)
def test_which_stages_update_weights(name, stage):
    found = boards._last_update(pipeline.resolve(name))
    assert (found and found.name) == stage


def test_methods_stand_on_the_board_of_their_kind():
    rows = {
        ("one-shot", "0.5", "dense"): {},
        **{("one-shot", "0.5", method): {} for method in ("faster", "wanda+dsnot", "mirror+round", "admm")},
        ("sequential", "0.5", "wanda+swap, correct=0.3"): {},
        ("sequential", "0.5", "sparsegpt, shrink=0.1"): {},
    }
    assert page.masks_of(rows) == {"faster", "wanda+dsnot", "mirror+round", "wanda+swap, correct=0.3"}


def test_of_a_method_made_good_in_several_ways_the_defaults_stands_on_its_board():
    plain, stream = "admm, correct=0.3", "admm, correct=0.3, residual=0.3"
    turn = f"{stream}, true sequential"
    both = {("sequential", "0.5", method): {} for method in (plain, f"{plain}, true sequential", stream, turn)}
    for updating, expected in ((True, [turn]), (False, [plain])):
        assert [key[2] for key in both if page._as_by_default(key, both, updating)] == expected
    alone = {("sequential", "0.5", plain): {}}
    assert all(page._as_by_default(key, alone, True) for key in alone)


def test_the_committed_layers_are_those_of_the_committed_errors():
    """Their sum is the error; and by name they go with Wanda's, as numbers in another order would not."""
    layers, results = (boards.read(REPORTS / "prune" / name) for name in (boards.LAYERS_CSV, boards.RESULTS_CSV))
    names = [name for name in layers["one-shot", "0.5", "wanda"] if name.startswith("smollm2")]
    assert len(names) == 210

    def logarithms(row):
        return np.log([float(row[name]) for name in names])

    wanda = logarithms(layers["one-shot", "0.5", "wanda"])
    for key, row in layers.items():
        found = logarithms(row)
        assert np.exp(found).sum() == pytest.approx(float(results[key]["error"]), rel=1e-4), key
        assert np.corrcoef(found, wanda)[0, 1] > 0.8, key
        assert np.corrcoef(np.roll(found, 1), wanda)[0, 1] < 0.5, key


def test_an_updated_layer_is_held_until_its_row_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(boards.resources, "cache_folder", lambda: tmp_path)
    problem = random_layer("0.5", rows=4, n=12)
    keep = Wanda().run(problem, State(), Context()).keep
    solver = pipeline.resolve("wanda+swap+reswap")
    first = boards.updated(problem, solver, Reswap(), keep)
    assert first["path"].is_file()
    monkeypatch.setattr(Reswap, "run", None)  # it is not run again
    again = boards.updated(problem, solver, Reswap(), keep)
    for name in ("keep", "weights", "cpu", "wall"):
        assert np.array_equal(again[name], first[name])
    assert not np.array_equal(first["keep"], keep)


def test_the_committed_allocations_have_the_same_zeros():
    rows, layers = (allocation.read(REPORTS / "prune" / name) for name in ("allocation.csv", "allocation_layers.csv"))
    assert rows.keys() == layers.keys()
    shapes = {
        name: collections.SHAPES[name.rpartition(".")[2]] for name in collections.MODELS["smollm2"].names("smollm2")
    }
    for key, row in layers.items():
        pruned = sum(float(row[name]) * math.prod(shape) for name, shape in shapes.items())
        budget = sum(int(parse(key[1]).counts(shape).sum()) for shape in shapes.values())
        assert pruned == pytest.approx(budget, rel=1e-5), key
