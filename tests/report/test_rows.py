"""Joining: every mask is measured against the best bound of any source; failures and lies lend nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import make_rows
import numpy as np
import pytest

from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.problems import collections
from fwbench.report import rows, summary
from fwbench.result import Certificate, Proof, StageRecord, Status, Verdict
from fwbench.store import Store

result = make_rows.result


def bound_of(value, proof=Proof.VERIFIED, solver="fw", relaxation="plain", **fields):
    stage = StageRecord("fw", "relax", 1.0, relaxed_error=0.5, lower_bound=value, relaxation=relaxation)
    return result(solver=solver, lower_bound=value, proof=proof, stages=(stage,), **fields)


def test_the_columns_of_the_design():
    wanted = """
    problem, collection, solver, status, verdict, reason, pattern, rows, n, error, relative_error, ratio_to_wanda,
    relaxed_error, rounding_error, lower_bound, gap, proof, gap_to_best_known, seconds, iterations, lmo_calls,
    gram_products, seed, device, mask_sha256"""
    (row,) = rows.join([result(counters={"lmo_calls": 7})])
    assert {name.strip() for name in wanted.split(",")} <= set(row)
    assert row["lmo_calls"] == 7
    assert row["iterations"] is None


def test_a_bound_counts_for_every_mask_of_its_problem():
    joined = rows.join(
        [result(solver="swap", error=0.8), bound_of(0.4), bound_of(0.6, solver="x", relaxation="shared")]
    )
    assert [row["lower_bound"] for row in joined] == [0.6] * 3
    assert [row["gap"] for row in joined] == pytest.approx([0.25, 0.4, 0.4])
    assert joined[0]["bounds"] == {"plain": 0.4, "shared diagonal": 0.6}
    assert joined[0]["bound_source"] == "x"
    assert [row["gap_to_best_known"] for row in joined] == pytest.approx([0, 0.25, 0.25])


def test_a_verified_bound_below_zero_stays_and_a_claimed_one_says_zero():
    """Of a problem with a target no error is proved to be at least 0; a claim needs no proof for that."""
    (verified,) = rows.join([bound_of(-0.5)])
    assert (verified["lower_bound"], verified["gap"], verified["proof"]) == (-0.5, 1.5, "verified")
    assert verified["bounds"] == {"plain": -0.5}
    (claimed,) = rows.join([bound_of(-0.5, Proof.CLAIMED)])
    assert (claimed["lower_bound"], claimed["gap"], claimed["proof"]) == (0.0, 1.0, "claimed")
    assert claimed["bounds"] == {"plain": 0.0}


def test_verified_before_claimed():
    claimed = bound_of(0.9, Proof.CLAIMED, solver="gurobi")
    (first, _) = rows.join([claimed, bound_of(0.5)])
    assert (first["lower_bound"], first["proof"], first["claimed_lower_bound"]) == (0.5, "verified", 0.9)
    (alone,) = rows.join([claimed])
    assert (alone["lower_bound"], alone["proof"]) == (0.9, "claimed")


def test_bounds_of_certificates_and_of_the_registry():
    one = result()
    certificate = rows.Bound(one.problem_hash, 0.5, Proof.VERIFIED, "shared diagonal", "fw(convexify=shared)")
    entry = SimpleNamespace(upper=0.9, verified=0.7)
    assert rows.join([one], [certificate])[0]["gap"] == 0.5
    (row,) = rows.join([one], [certificate], {one.problem_hash: entry})
    assert row["gap"] == pytest.approx(0.3)
    assert row["best_known"] == 0.9
    assert row["gap_to_best_known"] == pytest.approx(1 / 9)
    assert row["bounds"] == {"registry": 0.7, "shared diagonal": 0.5}


def test_a_bound_above_an_error_is_flagged_and_not_hidden():
    good, _ = rows.join([result(error=0.5), bound_of(0.8, Proof.VERIFIED)])
    assert "verified lower bound 0.8 of fw exceeds the judged error 0.5" in good["contradiction"]
    assert good["gap"] < 0
    (claim, _) = rows.join([result(error=0.5), bound_of(0.8, Proof.CLAIMED)])
    assert "claimed" in claim["contradiction"]
    (tight,) = rows.join([bound_of(1.0 + 1e-9)])
    assert (tight["contradiction"], tight["gap"]) == ("", 0.0)


def test_a_refuted_run_has_no_error_and_lends_no_bound():
    liar = bound_of(5.0, Proof.CLAIMED, status=Status.FAILED, verdict=Verdict.ERROR_MISMATCH, solver="liar", error=0.1)
    honest, failed = rows.join([result(), liar])
    assert (honest["lower_bound"], honest["contradiction"], honest["gap_to_best_known"]) == (None, "", 0.0)
    assert failed["error"] is failed["ratio_to_wanda"] is failed["gap"] is None
    assert not failed["solved"]


def test_changed_weights_have_no_bound_and_are_no_best_mask():
    mask, weights = rows.join([bound_of(0.6), result(solver="sparsegpt", error=0.3, updates_weights=True)])
    assert mask["gap_to_best_known"] == 0
    assert weights["gap"] is weights["lower_bound"] is weights["gap_to_best_known"] is None
    assert weights["proof"] == "none"
    assert weights["contradiction"] == ""


def test_the_latest_of_two_runs_with_one_key_on_one_machine():
    old, new = result(error=1.0, created="2026-01-01"), result(error=0.5, created="2026-01-02")
    assert [row["error"] for row in rows.join([new, old])] == [0.5]
    elsewhere = result(error=0.7, machine={"cpu": "another"})
    assert len(rows.join([new, old, elsewhere])) == 2


def test_drift_is_marked():
    def timed(before, after, **fields):
        return result(timing={"reference_before": before, "reference_after": after}, **fields)

    steady, changed = timed(1.0, 1.1), timed(1.0, 2.0, solver="fw")
    slow = timed(2.0, 2.0, solver="swap")  # steady itself, but not at the pace of the others
    said = result(timing={"drifted": 1.0}, solver="ria")
    joined = rows.join([steady, timed(1.0, 1.0, solver="greedy"), changed, slow, said])
    assert [row["drifted"] for row in joined] == [False, False, True, True, True]


def test_writers_hold_whatever_the_rows_hold():
    joined = rows.join([*make_rows.hostile(), *make_rows.many()[:20]])
    lines = rows.to_json(joined).splitlines()

    def refuse(token):
        raise AssertionError(token)

    assert [json.loads(line, parse_constant=refuse) for line in lines] == joined
    table = list(csv.DictReader(io.StringIO(rows.to_csv(joined))))
    assert len(table) == len(joined)
    assert table[0]["solver"] == joined[0]["solver"]
    assert table[1]["error"] == ""
    assert rows.to_json([]) == ""
    assert rows.to_csv([]).startswith("problem,collection,solver")


def test_numpy_values_become_plain():
    assert rows.plain({"a": np.float64(nan := math.nan), "b": np.int64(3), "c": (np.float32(0.5), Status.FAILED)}) == {
        "a": None,
        "b": 3,
        "c": [0.5, "failed"],
    }
    assert math.isnan(nan)


def test_load_reads_stores_and_their_certificates(tmp_path):
    problem = Problem("tiny", np.ones((1, 4)), np.eye(4), "0.5")
    one = result(problem_hash=problem.hash)
    with Store(tmp_path / "a.db") as store:
        store.add(one)
        arrays = {"e": np.zeros(4), "u": np.full((1, 4), 0.5, np.float32)}
        store.add_certificate(Certificate(problem.hash, 0.5, "diagonal", arrays, "fw"), 0.25)
    with Store(tmp_path / "b.db") as store:
        store.add(result(solver="magnitude"))
    (row,) = rows.load(tmp_path / "a.db")
    assert (row["lower_bound"], row["proof"], row["gap"]) == (0.25, "verified", 0.75)
    assert len(rows.load([tmp_path / "a.db", tmp_path / "b.db"])) == 2


def test_a_failure_costs_more_than_any_honest_answer():
    blank = {"error": None, "ratio_to_wanda": None, "relative_error": None}
    failure = result("b", "bad", status=Status.FAILED, verdict=Verdict.NONE, **blank, seconds=0.1)
    found = [
        result("a", "good"), result("b", "good", ratio_to_wanda=2.0, error=2.0, relative_error=0.5),
        result("a", "bad"), failure,
    ]  # fmt: skip
    good, bad = summary.solvers(rows.join(found))
    assert (good.solver, good.ratio) == ("good", pytest.approx(2**0.5))
    assert bad.ratio == pytest.approx(2)  # sqrt(1 * 4): pruning everything costs 2 / 0.5 there
    assert (bad.failures, bad.solved, bad.wins, good.wins) == (1, 1, 1, 2)
    assert bad.seconds == pytest.approx(good.seconds)  # charged the longest run, 0.5


def test_the_budget_adds_up():
    stages = (
        StageRecord("wanda", "start", 0.1, error=2.0),
        StageRecord("fw", "relax", 1.0, relaxed_error=0.9, lower_bound=0.5),
        StageRecord("round", "round", 0.1, error=1.6),
        StageRecord("swap", "refine", 0.1, error=1.2),
    )
    ours = result(solver="fw+swap", error=1.2, ratio_to_wanda=0.6, stages=stages)
    better = result(solver="qp", error=1.8, ratio_to_wanda=0.9, relaxed_error=0.8)
    budget = summary.budgets(rows.join([ours, better]))[0]
    steps = (budget.optimum, budget.iterate, budget.rounded, budget.final)
    assert steps == pytest.approx((0.4, 0.45, 0.8, 0.6))


def test_headline_counts():
    main = summary.headline(rows.join(make_rows.many()))
    assert (main.runs, main.problems, main.solvers, main.failures, main.skipped) == (187, 17, 11, 1, 7)
    assert main.best.complete
    assert len(main.gaps) == 17


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("fw", "plain"),
        ("fw(convexify=shared)", "shared diagonal"),
        ("fw(convexify=row)", "Shor"),
        ("wanda+bound(kind=shared)", "shared diagonal"),
        ("wanda+bound(kind=shor)", "Shor"),
        ("wanda+bound(kind=dnn)", "doubly nonnegative"),
        ("wanda+bound(kind=mccormick)", "McCormick"),
        ("wanda+bound(kind=triangles,iterations=80)", "triangles"),
        ("wanda+bound(kind=pentagons,iterations=80)", "pentagons"),
        ("wanda+bound", "pentagons"),  # whose default climbs them all; once drawn as the shared diagonal
        ("bnb", "branch and bound"),
    ],
)
def test_a_bound_is_filed_under_the_relaxation_that_its_proof_holds(spec, kind, tmp_path):
    _, problem = next(collections.load("mini/n096.o_proj*"))
    problem = replace(problem, W=problem.W[:1, :48], G=problem.G[:48, :48])
    outcome = pipeline.run(problem, pipeline.resolve(spec), threads=1)
    assert outcome.result.stages[-1 if "fw" not in spec else 1].relaxation == outcome.certificate.relaxation
    with Store(tmp_path / "s.sqlite") as store:
        store.add(outcome, problem=problem)
    (row,) = rows.load(tmp_path / "s.sqlite")
    assert max(row["bounds"], key=row["bounds"].get) == kind
    assert list(row["bounds"])[:1] == [kind]
