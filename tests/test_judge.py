"""The judge's verdicts, each with its reason."""

import numpy as np
import pytest
from layers import PATTERNS, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason, judge
from fwbench.problem import Problem
from fwbench.result import Verdict

PROBLEM = integer_layer("0.5")
MASK = ~PROBLEM.pattern.prune(np.random.default_rng(0).random(PROBLEM.shape))
ERROR = PROBLEM.error(MASK)


def flipped(*places: tuple[int, int]) -> np.ndarray:
    keep = MASK.copy()
    for place in places:
        keep[place] = not keep[place]
    return keep


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_right_count_is_feasible(pattern):
    for problem in [random_layer(pattern), integer_layer(pattern), *hostile_layers(pattern)]:
        keep = ~problem.pattern.prune(np.random.default_rng(0).random(problem.shape))
        found = judge(problem, keep, claimed=problem.error(keep))
        assert (found.verdict, found.error, found.reason) == (Verdict.FEASIBLE, problem.error(keep), ""), problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_weight_more_or_less_is_infeasible(pattern):
    problem = random_layer(pattern)
    keep = ~problem.pattern.prune(np.random.default_rng(0).random(problem.shape))
    for place in np.ndindex(problem.shape):
        wrong = keep.copy()
        wrong[place] = not wrong[place]
        found = judge(problem, wrong)
        assert (found.verdict, found.error) == (Verdict.INFEASIBLE, None)
        assert "wrong count in 1 of" in found.reason


def test_the_right_total_in_the_wrong_rows_is_infeasible():
    row_0, row_1 = np.flatnonzero(MASK[0])[0], np.flatnonzero(~MASK[1])[0]
    found = judge(PROBLEM, flipped((0, row_0), (1, row_1)))
    assert found.verdict is Verdict.INFEASIBLE
    assert found.reason == "wrong count in 2 of 4 groups of pattern 0.5: group 0 prunes 7, not 6"
    assert not count_reason(PROBLEM.with_pattern("unstructured:0.5"), flipped((0, row_0), (1, row_1)))


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (MASK.astype(int), "dtype int64, not bool"),
        (MASK.astype(float), "dtype float64, not bool"),
        (np.where(MASK, 1.0, np.nan), "dtype float64"),
        (MASK[:3], "shape (3, 12), not (4, 12)"),
        (MASK.T, "shape (12, 4)"),
        (MASK.ravel(), "shape (48,)"),
        (np.array(True), "shape ()"),
    ],
)
def test_what_is_no_mask_is_infeasible(keep, reason):
    found = judge(PROBLEM, keep)
    assert (found.verdict, found.error) == (Verdict.INFEASIBLE, None)
    assert reason in found.reason


def test_no_mask():
    found = judge(PROBLEM, None)
    assert (found.verdict, found.error, found.reason) == (Verdict.NONE, None, "the solver returned no mask")


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [ERROR, ERROR * (1 + 1e-4), ERROR * (1 - 1e-4)])
def test_an_honest_claim_passes(claim):
    assert judge(PROBLEM, MASK, claimed=claim).verdict is Verdict.FEASIBLE


@pytest.mark.parametrize("claim", [0.0, ERROR / 2, ERROR * 0.99, ERROR * 1.01, -ERROR, np.nan, np.inf, -np.inf])
def test_a_lie_is_a_mismatch(claim):
    found = judge(PROBLEM, MASK, claimed=claim)
    assert (found.verdict, found.error) == (Verdict.ERROR_MISMATCH, ERROR)
    assert f"the judge finds {ERROR:.6g}" in found.reason


def test_a_claim_where_the_error_is_zero():
    problem = Problem("free", [[0.0, 1.0]], np.eye(2), "0.5")
    keep = np.array([[False, True]])
    assert judge(problem, keep, claimed=1e-16).verdict is Verdict.FEASIBLE  # rounding beside a total of 1
    assert judge(problem, keep, claimed=1e-3).verdict is Verdict.ERROR_MISMATCH


# --- changed weights -------------------------------------------------------------------------------------------------

KEPT = np.where(MASK, PROBLEM.W, 0)


def test_unchanged_weights_are_the_mask():
    assert judge(PROBLEM, MASK, KEPT).error == ERROR
    assert judge(PROBLEM, MASK, KEPT.astype(np.float64)).error == ERROR


def test_changed_weights_are_judged_by_the_outputs():
    root = np.linalg.cholesky(PROBLEM.G + 1e-9 * np.eye(12))
    weights = np.where(MASK, np.random.default_rng(0).integers(-2, 3, MASK.shape), 0)
    assert judge(PROBLEM, MASK, weights).error == pytest.approx((((PROBLEM.W - weights) @ root) ** 2).sum(), rel=1e-7)


@pytest.mark.parametrize(
    ("weights", "verdict", "reason"),
    [
        (PROBLEM.W, Verdict.INFEASIBLE, "pruned weights are not zero"),
        (np.where(MASK, KEPT, 1e-30), Verdict.INFEASIBLE, "24 pruned weights are not zero"),
        (KEPT[:3], Verdict.INFEASIBLE, "the weights have shape (3, 12)"),
        (np.where(MASK, np.nan, 0), Verdict.NONFINITE, "not finite"),
        (np.where(MASK, 0, np.nan), Verdict.NONFINITE, "not finite"),
        (np.where(MASK, np.inf, 0), Verdict.NONFINITE, "not finite"),
        (np.where(MASK, 1e200, 0), Verdict.NONFINITE, "the error is not finite"),
    ],
)
def test_bad_weights(weights, verdict, reason):
    found = judge(PROBLEM, MASK, weights)
    assert (found.verdict, found.error) == (verdict, None)
    assert reason in found.reason


def test_inputs_are_not_written_to():
    keep, weights = MASK.copy(), KEPT.copy()
    judge(PROBLEM, keep, weights, ERROR)
    assert np.array_equal(keep, MASK)
    assert np.array_equal(weights, KEPT)
