"""The study of methods on bounded rows: which rows, and that an error belongs to its row."""

import pytest
from layers import random_layer

from benchmarks.bounds import methods
from benchmarks.bounds.rows import Measured
from fwbench import pipeline


def line(problem: str, row: int, kind: str) -> Measured:
    return Measured(problem, "0" * 12, row, 12, kind, 1.0, 0.5, 0.5, 1.0, True, "best")


def test_rows_are_those_with_the_last_bound_of_the_ladder():
    lines = [line("a.0.q", row, kind) for row, kind in ((5, "mccormick"), (2, "mccormick"), (3, "shor"), (5, "dnn"))]
    lines += [line("b.0.q", 1, "dnn")]
    assert methods.bounded_rows(lines) == {"a.0.q": [2, 5]}


@pytest.mark.parametrize("method", ["wanda", "wanda+swap", "fast"])
def test_errors_are_those_of_the_same_rows_in_the_whole_layer(method, monkeypatch):
    layer = random_layer("0.5", rows=5, n=12)
    monkeypatch.setattr(methods, "one", lambda selector: ("toy", layer))
    whole = layer.row_errors(~pipeline.run(layer, pipeline.resolve(method), threads=1).keep)
    found = methods.solve("toy.0.q", [4, 1], method)
    assert [(x.problem, x.row, x.method) for x in found] == [("toy.0.q", 4, method), ("toy.0.q", 1, method)]
    assert [x.error for x in found] == pytest.approx([whole[4], whole[1]], rel=1e-6)
