"""The study of the whole field: its driver on a small layer, its boards from lines that one computes by hand."""

import numpy as np
import pytest
from layers import random_layer

from benchmarks.field import boards, page, study
from benchmarks.field.methods import MASKS, METHODS, OTHER, REGROUPED, UPDATES, Method
from benchmarks.shared.csv_lines import read
from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.solvers.start.channels import regrouped

BY_SPEC = {method.spec: method for method in METHODS}


def small(pattern, rows=6, n=24):
    layer = random_layer(pattern, rows=rows, n=n, seed=3)
    return Problem("smollm2.07.q_proj.r6." + pattern, layer.W, layer.G, layer.pattern)


def line(spec, model, ratio, seconds=0.24, refit=0.5, layer="q_proj", pattern="0.5", rows="1 2"):
    return study.Line(model, layer, pattern, 24, spec, ratio, ratio, rows, seconds, refit, 0.24, spec, "0" * 12)


def lines(spec, one, other, **more):
    return [line(spec, "smollm2", one, **more), line(spec, "gemma3", other, **more)]


def test_masks_and_updates_are_what_they_say():
    assert len(BY_SPEC) == len(METHODS)
    assert not [m.spec for m in MASKS if pipeline.resolve(m.plain).updates_weights]
    assert not [m.spec for m in UPDATES if not pipeline.resolve(m.plain).updates_weights]
    assert set(OTHER) | set(page.CHOSEN) <= set(BY_SPEC)
    assert all(text and "nothing known" not in text for m in METHODS for text in (m.source, m.faithful, m.differs))


def test_one_run_gives_the_mask_and_its_common_refit():
    problem = small("0.5")
    error, ratio, rows, seconds, refit, more, solver = study.measured(problem, BY_SPEC["admm"])
    answers = {spec: pipeline.run(problem, spec, threads=1) for spec in ("wanda", "admm", "admm+refit")}
    assert error == pytest.approx(answers["admm"].error)
    assert ratio == pytest.approx(error / answers["wanda"].error)
    assert refit == pytest.approx(answers["admm+refit"].error / answers["wanda"].error)
    assert np.array(rows.split(), dtype=float) == pytest.approx(problem.mask_errors(answers["admm"].keep)[:4])
    assert min(seconds, more) >= 0
    assert solver == pipeline.resolve("admm").full


def test_regrouped_inputs_are_judged_by_the_same_outputs(monkeypatch):
    problem = small("2:4", n=32)
    monkeypatch.setattr(study, "one", lambda name: (name, problem))
    error, ratio, rows, *_ = study.measured(problem, BY_SPEC[f"ria{REGROUPED}"])
    assert error == pytest.approx(pipeline.run(regrouped(problem), "ria", threads=1).error)
    assert ratio == pytest.approx(error / pipeline.run(problem, "wanda", threads=1).error)
    assert rows == ""  # no bound of the layer's own groups holds for it


def test_a_method_without_an_answer_ends_the_study():
    with pytest.raises(SystemExit, match="bnb failed"):
        study.measured(small("0.5", rows=1, n=512), Method("bnb", "", "", ""))


def test_a_run_keeps_what_it_has(monkeypatch, tmp_path):
    problem = small("0.5", rows=4)
    monkeypatch.setattr(study, "problems", lambda *given: [("q_proj", problem)])
    for specs in (["wanda"], ["wanda", "greedy"]):
        study.methods(tmp_path / "methods.csv", "smollm2", "0.5", [BY_SPEC[spec] for spec in specs])
        study.bounds(tmp_path / "bounds.csv", "smollm2", "0.5")
    found = read(tmp_path / "methods.csv", study.Line)
    assert [(x.problem, x.spec) for x in found] == [(("smollm2", "q_proj", "0.5"), s) for s in ("wanda", "greedy")]
    proved = read(tmp_path / "bounds.csv", study.Bound)
    assert [bound.row for bound in proved] == [0, 1, 2, 3]
    gaps = boards.distances(found, proved)
    assert all(0 <= gap < 1 for gap in gaps["greedy", "smollm2"])
    assert np.mean(gaps["greedy", "smollm2"]) < np.mean(gaps["wanda", "smollm2"])


def test_what_is_measured_where():
    assert study.chosen(BY_SPEC["best"], "0.6")
    assert not study.chosen(BY_SPEC["thanos"], "4:8")
    assert study.chosen(BY_SPEC["alps"], "4:8")
    assert not study.chosen(BY_SPEC[f"ria{REGROUPED}"], "0.5")
    assert study.chosen(BY_SPEC[f"ria{REGROUPED}"], "2:4")


def test_memory_is_what_a_run_adds():
    problem = small("0.5", rows=8, n=256)
    assert problem.G.nbytes / 4 < study.peak(problem, "admm") < 400 * problem.G.nbytes


def test_a_board_has_the_means_of_what_ran_everywhere():
    last = UPDATES[-1].spec
    found = [
        line for spec in ("wanda", last) for layer in ("q_proj", "o_proj") for line in lines(spec, 1, 1, layer=layer)
    ]
    found += [*lines("wanda", 1, 1, pattern="2:4"), *lines(last, 1, 1, pattern="2:4")]  # not on all layers: no board's
    found += [*lines("greedy", 0.2, 0.5), *lines("greedy", 0.8, 0.5, layer="o_proj", seconds=0.72)]
    found += lines("ria", 0.1, 0.1)
    board = boards.masks(found)
    assert [entry.spec for entry in board] == ["greedy", "wanda"]
    assert board[0].error("smollm2") == pytest.approx(0.4)
    assert board[0].error(layer="q_proj") == pytest.approx(np.sqrt(0.1))
    assert board[0].seconds == pytest.approx({"smollm2": 0.02, "gemma3": 0.02})  # of 0.24 and 0.72 s, 48 rows
    again = boards.refitted(found)
    assert boards.patterns(found) == ["0.5"]
    assert {entry.error() for entry in again} == {0.5}
    assert {entry.spec: round(entry.seconds["gemma3"], 3) for entry in again} == {
        "greedy": 0.03,
        "wanda": 0.02,
        last: 0.02,
    }
    assert "ria" in boards.unfinished(found, board)
    assert not {"wanda", f"ria{REGROUPED}"} & set(boards.unfinished(found, board))


def board_of(**given):
    """Entries by (errors of the models, seconds)."""
    return [
        boards.Entry(
            name,
            {("smollm2", "q_proj", "0.5"): a, ("gemma3", "q_proj", "0.5"): b},
            {"smollm2": seconds, "gemma3": seconds},
        )
        for name, (a, b, seconds) in given.items()
    ]


def test_the_front_holds_what_nothing_as_cheap_beats():
    board = board_of(a=(0.50, 0.7, 9), b=(0.503, 0.7, 3), c=(0.6, 0.6, 4), d=(1, 1, 1), e=(1.1, 0.9, 1))
    assert [entry.spec for entry in boards.front(board, "smollm2")] == ["d", "b", "a"]
    assert [entry.spec for entry in boards.front(board, "gemma3")] == ["e", "b", "c"]
    assert boards.cheapest(board[:2], 1.01).spec == "b"
    assert boards.cheapest(board[:2], 1.001).spec == "a"


def test_the_models_agree_but_for_pairs_that_are_named():
    board = board_of(a=(0.5, 0.6, 1), b=(0.6, 0.5, 1), c=(0.9, 0.905, 1), d=(0.905, 0.9, 1))
    assert [(x.spec, y.spec) for x, y in boards.swapped(board)] == [("a", "b")]
    assert boards.agreement(board) == pytest.approx(1 - 6 * 4 / (4 * 15))  # two neighbours change places, twice
    assert "| `a` against `b` | 0.833 | 1.200 |" in page.order("Masks alone", board)


def test_the_distance_is_what_a_better_mask_could_save():
    bounds = [study.Bound(model, "q_proj", "0.5", 1, 1.5, True, 1.0) for model in ("smollm2", "gemma3")]
    assert boards.distances(lines("wanda", 1, 1), bounds) == {("wanda", m): [0.25] for m in ("smollm2", "gemma3")}


def test_the_page_answers_from_its_lines():
    found = [*lines("wanda", 1.0, 1.0), *lines("SparseSwaps", 0.5, 0.6, refit=0.4), *lines("admm", 0.3, 0.4)]
    found += lines(UPDATES[-1].spec, 0.9, 0.9)
    bounds = [
        study.Bound(model, "q_proj", "0.5", row, 1.5 if row else 0.75, True, 1.0)
        for model in ("smollm2", "gemma3")
        for row in range(study.BOUNDED)
    ]
    assert boards.bounded(found, bounds, "0.5")
    assert not boards.bounded(found, bounds[1:], "0.5")
    text = page.page(found, bounds, [study.Peak("admm", 24, 1536, 3 * 2**20, 1)])
    assert (
        "- **Masks alone**: `SparseSwaps` has the least error, 0.5 and 0.6 of Wanda's (half of the bounded rows "
        "can lose at most 25 and 25 % of it), for 10 and 10 ms a row."
    ) in text
    assert "- **With weight update**: `admm` has the least error, 0.3 and 0.4 of Wanda's, for 10 and 10 ms" in text
    assert "- **After one common refit**: `SparseSwaps` has the least error, 0.4 and 0.4 of Wanda's" in text
    assert "| `admm` | 0.300 | 0.400 | 0.300 | 0.400 | **10** | **10** | 3 |" in text
    assert text.count("](field.svg)") == 1
