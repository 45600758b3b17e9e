"""The study of weight updates: its driver on a small layer, its page from lines that one computes by hand."""

import pytest
from layers import random_layer

from benchmarks.shared.csv_lines import read
from benchmarks.updates import page, study
from fwbench import pipeline
from fwbench.problem import Problem


def line(layer, spec, ratio, error=1.0, pattern="0.5"):
    return study.Line("03", layer, pattern, 24, spec, error, ratio, 2.4, spec, "0" * 12)


def test_the_page_means_over_layers_and_counts_the_least():
    lines = [line("o_proj", "admm", 0.2, 2.0), line("q_proj", "admm", 0.8, 1.0)]
    lines += [line("o_proj", "admm+reswap", 0.1, 1.0), line("q_proj", "admm+reswap", 0.4, 1.5)]
    lines += [line("o_proj", "sparsegpt", 0.5)]
    text = page.page(lines)
    table = [row for row in text.splitlines() if row.startswith("| `")]
    assert table == [
        "| `admm+reswap` | 0.200 | 0.200 | – | – | 0.100 | – | – | 1 of 2 | 100 |",
        "| `admm` | 0.400 | 0.400 | – | – | 0.200 | – | – | 1 of 2 | 100 |",
    ]
    assert "Not yet run on all problems: sparsegpt." in text


def test_a_run_keeps_what_it_has(monkeypatch, tmp_path):
    layer = random_layer("0.5", rows=4, n=24)
    problem = Problem("smollm2.03.o_proj.r4.0.5", layer.W, layer.G, layer.pattern)
    monkeypatch.setattr(study, "sampled", lambda *given: iter([problem]))
    for specs in (["admm"], ["admm", "wanda+reswap"]):
        study.run(tmp_path, "3", "0.5", 4, specs)
    found = read(tmp_path / "updates.csv", study.Line)
    assert [row.spec for row in found] == ["admm", "wanda+reswap"]
    outcome = pipeline.run(problem, pipeline.resolve("wanda+reswap"), threads=1)
    assert found[1].error == pytest.approx(problem.error_of_weights(outcome.weights), rel=1e-5)
