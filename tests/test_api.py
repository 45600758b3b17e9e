"""The public interface: what a notebook does, in the names that ``import fwbench`` offers."""

import math

import numpy as np
import pandas as pd
import pytest
from brute import best_mask
from layers import random_layer

import fwbench as fwb
from fwbench.report.frame import COLUMNS
from fwbench.result import Verdict

PROBLEM = random_layer("0.5", rows=2, n=10)


def test_every_public_name_is_there_and_nothing_else():
    assert sorted(dir(fwb)) == sorted(fwb.__all__)
    for name in fwb.__all__:
        assert getattr(fwb, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'slove'; its names: Answer, "):
        fwb.slove  # noqa: B018


def test_arrays_of_ones_own_are_solved_and_bounded():
    W, G = PROBLEM.W, PROBLEM.G
    problem = fwb.Problem("mine", W, G, "0.5")
    answer = fwb.solve(problem, "wanda+swap", seconds=60)
    optimum, _ = best_mask(problem)
    assert answer.error == pytest.approx(problem.error(answer.keep))
    assert answer.error >= optimum * (1 - 1e-9)
    proof = fwb.bound(problem, "pentagons", seconds=30)
    assert proof.value <= optimum * (1 + 1e-9)
    assert proof.check() == proof.value
    assert 0 <= answer.gap(proof) <= 1
    assert answer.gap(proof) == pytest.approx((answer.error - proof.value) / answer.error)
    assert answer.gap() is None  # swaps bring no bound
    exact = fwb.solve(problem, "bnb")
    assert exact.error == pytest.approx(optimum)
    assert exact.result.verdict is Verdict.OPTIMAL
    assert exact.gap() == pytest.approx(0, abs=1e-9)


def test_a_proof_that_was_tampered_with_does_not_hold(tmp_path):
    proof = fwb.bound(PROBLEM, "shor")
    again = fwb.Certificate.read(proof.save(tmp_path / "proof.npz"))
    assert again.bound == proof.value
    forged = {**again.arrays, "d": again.arrays["d"] + 1e3}
    false = fwb.ProvedBound(PROBLEM, proof.value, (), fwb.Certificate(again.problem, again.bound, "rows", forged), 0.0)
    with pytest.raises(ValueError, match="does not hold"):
        false.check()


def test_what_has_no_bound_says_why():
    with pytest.raises(ValueError, match="needs a pattern whose rows are independent"):
        fwb.bound(PROBLEM.with_pattern("unstructured:0.5"), "shor")
    with pytest.raises(ValueError, match="unknown kind 'best2'"):
        fwb.bound(PROBLEM, "best2")


def test_an_answer_is_read_in_four_lines():
    lines = repr(fwb.solve(PROBLEM, "fw+swap")).splitlines()
    assert len(lines) == 4
    assert "wanda+fw+round+swap" in lines[0]
    assert "times Wanda's" in lines[1]
    assert "(verified)" in lines[2]
    odd = fwb.Problem("<b>&", PROBLEM.W, PROBLEM.G, "0.5")
    assert "&lt;b&gt;&amp;" in fwb.solve(odd, "wanda")._repr_html_()
    failed = repr(fwb.solve(PROBLEM, "scip(largest=3)"))
    assert "skipped: scip" in failed
    assert len(failed.splitlines()) == 2
    assert fwb.solve(PROBLEM, "refit").gap(0.0) is None  # bounds are of masks with the given weights


def test_who_watches_hears_the_trace(capsys):
    heard = []
    answer = fwb.solve(PROBLEM, "fw(convexify=shared)+tabu(iterations=50)", progress=lambda *point: heard.append(point))
    told = [point for _, point in heard]
    assert set(answer.trace) <= set(told)
    assert [stage for stage, _ in heard][-1] == "tabu"
    assert told[-1].upper == pytest.approx(answer.error)
    fwb.solve(PROBLEM, "fw", progress=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].split() == ["seconds", "stage", "iteration", "primal", "dual", "gap"]
    assert {line.split()[1] for line in shown[1:]} == {"wanda", "fw", "round"}


def test_loading_selects_and_repatterns():
    [problem] = fwb.load("mini/n016.v_proj*", "0.25")
    assert str(problem.pattern) == "0.25"
    known = fwb.best_known(fwb.load("mini/n016.v_proj*")[0])
    assert known.gap == pytest.approx(0, abs=1e-9)
    assert fwb.best_known(problem) is None


def test_a_grid_becomes_a_table_and_a_report(tmp_path):
    store = tmp_path / "runs.sqlite"
    results = fwb.run(["mini/n016.v_proj*", "mini/n016.o_proj.top*"], ["wanda", "wanda+swap"], store=store)
    assert repr(results) == "Results of 4 runs: 4 solved, 0 failed"
    table = results.to_frame()
    assert list(table.columns) == list(COLUMNS)
    for name, (kind, _) in COLUMNS.items():
        assert str(table[name].dtype) == kind, name
    means = table.groupby("solver").ratio_to_wanda.mean()
    assert means["wanda"] == pytest.approx(1)
    assert means["wanda+swap"] <= 1
    assert (table.gap_to_best_known >= 0).all()
    assert results.report(tmp_path / "page").read_text().startswith("<!doctype html>")
    again = fwb.run("mini/n016.v_proj*", "wanda", store=store).to_frame()
    assert again.created.equals(table.created)  # reused, not run


def test_an_empty_table_keeps_its_types():
    table = fwb.Results([]).to_frame()
    assert table.empty
    assert str(table.error.dtype) == "Float64"


def test_what_is_not_known_is_na(tmp_path):
    results = fwb.run("mini/n016.v_proj*", "scip(largest=3)")
    [row] = results.to_frame().itertuples()
    assert row.status == "skipped"
    assert row.error is pd.NA
    assert math.isfinite(row.best_known)
    assert np.array_equal(results.to_frame().solved, [False])
