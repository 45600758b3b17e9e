"""The study of the second model: its driver on a small layer, its page from figures that one computes by hand."""

import pytest
from layers import random_layer

from benchmarks.models import page, study
from benchmarks.prune import boards
from benchmarks.shared.csv_lines import append, append_row, read
from fwbench.problem import Problem
from fwbench.problems.collections import MODELS


def test_a_run_keeps_what_it_has(tmp_path):
    layer = random_layer("0.5", rows=4, n=24)
    problem = Problem("gemma3.02.o_proj.r4.0.5", layer.W, layer.G, layer.pattern)
    for specs in (["wanda+swap"], ["wanda+swap", "admm"]):
        study.methods(tmp_path / "methods.csv", [problem], "gemma3", specs)
    found = read(tmp_path / "methods.csv", study.Line)
    assert [line.key for line in found] == [("gemma3", "02", "o_proj", "0.5", spec) for spec in ("wanda+swap", "admm")]
    for count in (1, 2):
        study.bounds(tmp_path / "bounds.csv", [problem], "gemma3", count)
    proved = read(tmp_path / "bounds.csv", study.Bound)
    assert [line.row for line in proved] == [0, 1]
    assert all(0 < line.lower <= line.upper * (1 + 1e-9) for line in proved)


def test_the_blocks_lie_at_the_same_depths():
    depths = [[int(block) / MODELS[model].blocks for block in study.BLOCKS[model].split(",")] for model in MODELS]
    assert depths[0] == pytest.approx(depths[1], abs=0.02)


def test_the_plan_begins_with_what_all_else_is_measured_against():
    plan = study.plan()
    assert plan[0] == ("dense", "", "dense")
    assert len(set(plan)) == len(plan)


@pytest.fixture
def files(tmp_path):
    """Reports of both models with two matrices; of SmolLM2 as other studies write them."""
    reports, out = tmp_path / "reports", tmp_path / "reports" / "models"
    for layer, ratio in (("o_proj", 0.4), ("q_proj", 0.6)):
        for spec, own in (("wanda", 1.0), ("wanda+swap", ratio), ("push(rounds=20)+swap", ratio * 0.9)):
            row = {"block": "03", "layer": layer, "pattern": "0.5", "solver": spec, "ratio_to_wanda": own}
            append_row(reports / "masks" / "problems.csv", row, tuple(row))
        for spec, own in (("wanda", 1.0), ("wanda+swap", ratio * 1.5), ("fast", ratio * 1.5 * 0.8)):
            append(out / "methods.csv", [study.Line("gemma3", "02", layer, "0.5", 24, spec, 1, own, 1, spec, "")])
    append(
        out / "bounds.csv", [study.Bound("gemma3", "02", "o_proj", row, 1024, 1, 0.9, 0.1, True, 1) for row in (0, 1)]
    )
    row = {"problem": "smollm2.03.o_proj", "row": 5, "method": "fast", "error": 2.0}
    append_row(reports / "bounds" / "methods.csv", row, tuple(row))
    row = {"problem": "smollm2.03.o_proj", "row": 5, "kind": "shor", "lower": 1.5}
    append_row(reports / "bounds" / "rows.csv", row, tuple(row))

    def prune(folder, mode, pattern, method, first, second):
        row = {"mode": mode, "pattern": pattern, "method": method, "lee-heldout": first, "wikipedia": second}
        append_row(folder / boards.RESULTS_CSV, row, tuple(row))

    prune(reports / "prune", "dense", "", "dense", 32, 24)
    prune(out, "dense", "", "dense", 20, 10)
    prune(reports / "prune", "sequential", "0.5", "admm, correct=0.3", 48, 48)
    prune(out, "sequential", "0.5", "admm, tokens=8192, correct=0.3", 30, 15)
    prune(out, "sequential", "0.5", "admm, tokens=8192", 40, 10)
    return reports, out


def test_the_page_sets_both_models_side_by_side(files):
    text = page.page(*files)
    shown = text.splitlines()
    assert "- masks, SmolLM2-135M: `fast` < `SparseSwaps` < `wanda`" in shown
    assert "- masks, Gemma 3 270M: `fast` < `SparseSwaps` < `wanda`" in shown
    assert "| swaps after Wanda | −60.0 % | −40.0 % | −40.0 % | −10.0 % |" in shown
    assert "| `fast` in place of SparseSwaps | −10.0 % | −10.0 % | −20.0 % | −20.0 % |" in shown
    assert "| SparseFW in place of SparseSwaps | – | – | – | – |" in shown
    [swaps] = [line for line in shown if line.startswith("| `SparseSwaps` |")]
    assert swaps.startswith("| `SparseSwaps` | 0.490 | 0.735 | 0.490 | 0.735 | – | – |")
    assert "| o_proj | 25.0 % | 1 | 10.0 % | 2 |" in shown
    assert "| – | dense | 32.00 | 24.00 | 20.00 | 10.00 |" in shown
    assert (
        "| 0.5 | `admm`, correct=0.3, sequential | 48.00 (1.50) | 48.00 (2.00) | 30.00 (1.50) | 15.00 (1.50) |" in shown
    )
    assert "| 0.5 | `admm` | – | – | −25.0 % | +50.0 % |" in shown
    assert (
        f"Of the {len(study.plan())} lines that the study plans, {len(study.plan()) - 3} are not measured yet." in shown
    )
