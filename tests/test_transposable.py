"""Transposable N:M, everywhere: oracle, judge, proof, local search, and every stage, against enumeration and HiGHS."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from brute import best_mask, transposable_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import arriving, hostile_layers, hostile_targets, integer_layer, random_layer
from oracles import exactly, linear_minimum, relaxed_minimum

from fwbench import bounds, pipeline, verify
from fwbench.judge import count_reason, judge
from fwbench.patterns import NM, PatternError, Transposable, parse, project, transport
from fwbench.presets import PRESETS
from fwbench.problem import Problem
from fwbench.result import Proof, Status, Verdict
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.stage import Context, Role, State, registry
from fwbench.verify import rounding

pipeline.load_solvers()
TWO_OF_FOUR = "transposable:2:4"
LAYERS = [
    ("transposable:2:4", 4, 8),
    ("transposable:1:4", 4, 8),
    ("transposable:3:4", 4, 4),
    ("transposable:1:2", 4, 6),
]
SHAPES = [*LAYERS, ("transposable:2:3", 6, 9), ("transposable:4:8", 8, 16), ("transposable:5:8", 16, 8)]


def of_both_ways(problem: Problem, keep: np.ndarray) -> bool:
    """Whether the mask and its transpose are N:M."""
    pattern = problem.pattern
    both = NM(pattern.kept, pattern.of)
    G = np.eye(problem.rows)
    return not (
        count_reason(problem.with_pattern(both), keep)
        or count_reason(Problem("transposed", problem.W.T, G, both), keep.T)
    )


def relaxed(problem: Problem) -> State:
    return FrankWolfe("vanilla", steps=200).run(problem, Wanda().run(problem, State(), Context()), Context())


# --- the pattern -----------------------------------------------------------------------------------------------------


def test_text_and_fit():
    pattern = parse(" transposable:2:4 ")
    assert pattern == Transposable(2, 4) == parse(str(pattern))
    assert not pattern.separable
    assert not pattern.grouped
    assert pattern.counts((4, 8)).tolist() == [2] * 8
    assert pattern.row_counts((4, 8)).tolist() == [4] * 4
    with pytest.raises(PatternError, match="4 does not divide the 6 inputs"):
        pattern.counts((4, 6))
    with pytest.raises(PatternError, match="4 does not divide the 6 rows"):
        pattern.prune(np.zeros((6, 4)))
    with pytest.raises(PatternError, match="N must not exceed M"):
        parse("transposable:5:4")
    with pytest.raises(PatternError, match="unknown pattern"):
        parse("transposable:0.5")


def test_it_is_another_problem_than_its_groups_say():
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    others = {problem.with_pattern(text).hash for text in ("2:4", "transposable:1:4", "transposable:1:2")}
    assert len({problem.hash, *others}) == 4


@pytest.mark.parametrize(("size", "count", "number"), [(4, 2, 90), (4, 1, 24), (4, 3, 24), (3, 1, 6), (2, 1, 2)])
def test_how_many_masks_a_block_has(size, count, number):
    """Known numbers: of 0/1 matrices with equal sums (OEIS A001499 has 90), and of permutations."""
    assert len(transport.masks(size, count)) == len(np.unique(transport.masks(size, count), axis=0)) == number


# --- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "rows", "n"), SHAPES)
def test_the_oracle_is_the_linear_programme(text, rows, n):
    pattern, rng = parse(text), np.random.default_rng(0)
    for score in (rng.standard_normal((rows, n)), rng.integers(-1, 2, (rows, n)).astype(float), np.zeros((rows, n))):
        pruned = pattern.prune(score)
        assert not pattern.excess(pruned).any()
        assert score[pruned].sum() == pytest.approx(linear_minimum(pattern, score)[0], abs=1e-12)
        assert np.array_equal(pruned, pattern.prune(score))
        for kind in (torch.float64, torch.float32):
            given = torch.tensor(score, dtype=kind)
            found = pattern.prune(given)
            assert found.dtype == torch.bool
            assert float(given[found].double().sum()) == pytest.approx(score[pruned].sum(), abs=1e-5)


def test_ties_go_to_the_lower_index():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    for score in (np.zeros((4, 4)), torch.zeros(4, 4), np.ones((4, 4), np.int64)):
        assert parse(TWO_OF_FOUR).prune(score).tolist() == np.array(expected, bool).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(4, 1), (4, 2), (5, 2), (8, 3)]), st.integers(0, 3))
def test_duals_show_that_the_mask_is_least(seed, block, digits):
    """Both ways of the oracle find one value, and any duals bound it, these tightly."""
    size, count = block
    rng = np.random.default_rng(seed)
    costs = np.round(rng.standard_normal((3, size, size)), digits) * 10.0 ** rng.integers(-200, 200)
    pruned, a, b = transport.solved(costs, count)
    value = np.where(pruned, costs, 0).sum(axis=(1, 2))
    np.testing.assert_array_equal(pruned.sum(axis=1), count)
    np.testing.assert_array_equal(pruned.sum(axis=2), count)
    rest = np.minimum(0, costs - a[:, :, None] - b[:, None, :]).sum(axis=(1, 2))
    scale = np.abs(costs).max() * size**2
    np.testing.assert_allclose(count * (a.sum(1) + b.sum(1)) + rest, value, atol=1e-14 * scale, rtol=0)
    other = np.where(transport.least(costs, count), costs, 0).sum(axis=(1, 2))
    np.testing.assert_allclose(other, value, atol=1e-14 * scale, rtol=0)


@pytest.mark.parametrize("text", [TWO_OF_FOUR, "transposable:4:8"])
def test_infinite_scores_come_first(text):
    """What must stay and what must go, as Frank-Wolfe's faces ask for it, where some mask does so."""
    pattern, rng = parse(text), np.random.default_rng(0)
    mask = pattern.prune(rng.standard_normal((8, 8)))
    score = rng.standard_normal((8, 8))
    known = rng.random((8, 8)) < 0.5
    score[known] = np.where(mask, -np.inf, np.inf)[known]
    for found in (pattern.prune(score), pattern.prune(torch.tensor(score)).numpy()):
        assert np.array_equal(found[known], mask[known])
        assert not pattern.excess(found).any()


def test_the_nearest_weights():
    """Of all masks the one that loses least in squares, which need not be the one of the least sum."""
    pattern, differ = parse(TWO_OF_FOUR), 0
    masks = transposable_masks(pattern, (4, 4))
    for seed in range(20):
        w = np.random.default_rng(seed).standard_normal((4, 4))
        pruned = pattern.nearest(torch.tensor(w)).numpy()
        assert (w[pruned] ** 2).sum() == pytest.approx(min((w[mask] ** 2).sum() for mask in masks), rel=1e-12)
        differ += not np.array_equal(pruned, pattern.prune(np.abs(w)))
    assert differ
    assert np.array_equal(parse("2:4").nearest(w), parse("2:4").prune(np.abs(w)))


def test_a_share_of_the_counts():
    pattern, score = parse("transposable:4:8"), np.random.default_rng(0).standard_normal((8, 8))
    for share, count in ((0, 0), (0.25, 1), (0.5, 2), (1, 4)):
        assert (pattern.prune(score, share).sum(axis=0) == count).all()
        assert (pattern.prune(score, share).sum(axis=1) == count).all()


def test_projection():
    """Sums and box hold, feasible points stay, and no point of the polytope is nearer (variational inequality)."""
    pattern, rng = parse(TWO_OF_FOUR), np.random.default_rng(0)
    for scale in (0.0, 0.3, 3.0):
        u = 0.5 + scale * rng.standard_normal((8, 8))
        near = project(pattern, u)
        assert np.abs(pattern.excess(near)).max() < 1e-8
        assert near.min() >= 0
        assert near.max() <= 1
        np.testing.assert_allclose(project(pattern, near, 1e-8), near, atol=1e-12)
        assert ((near - u) * (pattern.prune(near - u) - near)).sum() > -1e-6


# --- judge and checker -----------------------------------------------------------------------------------------------


def test_the_judge_counts_rows_and_columns():
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    by_row = ~problem.with_pattern("2:4").pattern.prune(np.zeros((4, 8)))
    found = judge(problem, by_row)
    assert found.verdict is Verdict.INFEASIBLE
    assert found.reason == ("wrong count in 8 of 16 groups of pattern transposable:2:4: column group 0 prunes 4, not 2")
    masks = {keep.tobytes() for keep in ~transposable_masks(problem.pattern, (4, 8))}
    rng = np.random.default_rng(0)
    for keep in [*~transposable_masks(problem.pattern, (4, 8))[::500], *(rng.random((50, 4, 8)) < 0.5), by_row]:
        feasible = judge(problem, keep).verdict is Verdict.FEASIBLE
        assert feasible == (keep.tobytes() in masks) == of_both_ways(problem, keep)


@pytest.mark.parametrize(("text", "rows", "n"), LAYERS)
def test_bounds_are_below_every_mask_and_proved(text, rows, n):
    for problem in (random_layer(text, rows, n), integer_layer(text, rows, n), arriving(text, rows, n)[0]):
        best, keep = best_mask(problem)
        e = 0.9 * max(np.linalg.eigvalsh(problem.G)[0], 0.0) * np.ones(n)
        for u in (~keep, project(problem.pattern, np.random.default_rng(0).random(problem.shape))):
            certificate = bounds.certificate(problem, u, e)
            checked = verify.check(problem, certificate)
            assert checked.ok, checked.reason
            assert checked.bound <= best + problem.rounding()
            assert checked.bound == pytest.approx(certificate.bound, rel=1e-9, abs=problem.rounding())


def test_what_is_proved_of_a_block_holds_in_exact_arithmetic():
    """The terms sum to no more than the least sum of any mask, in rational numbers."""
    problem = random_layer(TWO_OF_FOUR, 4, 4)
    masks = transposable_masks(problem.pattern, (4, 4))
    rng = np.random.default_rng(0)
    for size in (1.0, 1e-300, 1e300):
        low = rng.standard_normal((4, 4)) * size
        least = min(sum(exactly(low[mask]), Fraction(0)) for mask in masks)
        proved = sum(map(Fraction, rounding.least(problem, low).ravel().tolist()), Fraction(0))
        assert proved <= least
        assert float(least - proved) <= 1e-13 * size + 1e-305


def test_untrusted_duals_prove_less_but_nothing_false(monkeypatch):
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    certificate = relaxed(problem).certificate
    honest = transport.solved

    def wrong(blocks: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pruned, a, b = honest(blocks, count)
        return ~pruned, a + 3, b - 1

    monkeypatch.setattr(transport, "solved", wrong)
    checked = verify.check(problem, replace(certificate, bound=-1e3))
    assert checked.ok
    assert checked.bound < certificate.bound <= best_mask(problem)[0]


def test_forgeries_are_refused():
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    best, keep = best_mask(problem)
    certificate = bounds.certificate(problem, ~keep)
    for forged, reason in (
        (replace(certificate, bound=best * 1.01), "can be proved"),
        (replace(certificate, problem=problem.with_pattern("2:4").hash), "another problem"),
        (replace(certificate, kind="rows"), "rows are independent"),
        (replace(certificate, kind="tree"), "groups with a count"),
    ):
        checked = verify.check(problem, forged)
        assert not checked.ok
        assert reason in checked.reason
    huge = {**certificate.arrays, "e": np.full(8, -1e308)}
    checked = verify.check(problem, replace(certificate, arrays=huge, bound=0.0))
    assert checked.bound in (0.0, -math.inf)  # it ends, and proves nothing


def test_a_claim_of_rows_alone_is_weaker():
    """N:M asks for less, so its optimum is no bound that a transposable mask reaches, and its masks are refused."""
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    free, keep = best_mask(problem.with_pattern("2:4"))
    assert free < best_mask(problem)[0]
    assert judge(problem, keep).verdict is Verdict.INFEASIBLE


# --- local search ----------------------------------------------------------------------------------------------------


def exchanges(problem: Problem, pruned: np.ndarray):
    """Every mask that two rows and two columns of a block lead to, and the change of the error."""
    of, before = problem.pattern.of, problem.row_errors(pruned).sum()
    for r, i in np.argwhere(pruned):
        for s, j in np.argwhere(pruned):
            if r < s and r // of == s // of and i // of == j // of and not (pruned[r, j] or pruned[s, i]):
                other = pruned.copy()
                other[[r, s], [i, j]], other[[r, s], [j, i]] = False, True
                yield problem.row_errors(other).sum() - before, other


@pytest.mark.parametrize(("text", "rows", "n"), [*LAYERS, ("transposable:3:8", 8, 16)])
def test_swap_is_steepest_descent_by_definition(text, rows, n):
    layers = [random_layer(text, rows, n), integer_layer(text, rows, n), arriving(text, rows, n)[0]]
    for problem in layers:
        for state in (Wanda().run(problem, State(), Context()), Random().run(problem, State(), Context(seed=1))):
            found = Swap().run(problem, state, Context())
            assert count_reason(problem, found.mask) == ""
            slack = problem.rounding()
            assert min(change for change, _ in exchanges(problem, ~found.mask)) >= -slack
            assert problem.error(found.mask) <= problem.error(state.mask) + slack
            one = Swap(limit=1).run(problem, state, Context())
            assert problem.error(one.mask) <= problem.error(state.mask) + slack


def test_the_first_exchange_is_the_best_one():
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    state = Random().run(problem, State(), Context(seed=1))
    best, other = min(exchanges(problem, ~state.mask), key=lambda item: item[0])
    assert best < 0
    first = Swap(limit=1).run(problem, state, Context())
    assert problem.error(first.mask) <= problem.error(~other) + problem.rounding()


def test_bands_descend_as_if_alone_whatever_the_threads():
    problem = random_layer(TWO_OF_FOUR, 72, 16)
    state = Random().run(problem, State(), Context(seed=1))
    whole = Swap().run(problem, state, Context()).mask
    assert np.array_equal(whole, Swap().run(problem, state, Context(threads=2)).mask)
    for band in (slice(0, 4), slice(68, 72)):
        alone = Swap().run(problem.part(band), State(keep=state.mask[band]), Context())
        assert np.array_equal(alone.mask, whole[band])


@pytest.mark.parametrize(
    "layer", [*hostile_layers(TWO_OF_FOUR, 4), *hostile_targets(TWO_OF_FOUR, 4)], ids=lambda p: p.name
)
def test_hostile_layers(layer):
    best, _ = best_mask(layer)
    for spec in ("wanda+swap", "push(rounds=3,steps=5)+round+swap", "fw(variant=vanilla,steps=30)+round", "admm+refit"):
        answer = pipeline.run(layer, pipeline.resolve(spec), threads=1)
        found = answer.result
        assert count_reason(layer, answer.keep) == found.reason == "", (spec, found.reason)
        if answer.weights is None:
            assert found.error >= best - layer.rounding()
        if found.lower_bound is not None:
            assert found.lower_bound <= best + layer.rounding() + 1e-6 * abs(best)


# --- every stage -----------------------------------------------------------------------------------------------------

SHORT = {  # the others' defaults are short
    "momentum": "momentum(steps=20)",
    "push": "push(rounds=4,steps=5)",
    "round": "push(rounds=4,steps=5)+round",
    "bound": "bound(seconds=1)",
    "learned_bound": "learned_bound(plain_steps=20,steps=20)",
    "SparseFW": "wanda+fw(alpha=0.9,step=open,steps=50,variant=vanilla)+round",
    "SparseFW_RIA": "ria+fw(alpha=0.9,fixed=ria,step=open,steps=50,variant=vanilla)+round",
}
WORK = {
    *("magnitude", "wanda", "ria", "random", "momentum", "push", "round", "splitting", "resplit", "swap"),
    *("safeguard", "fast", "faster"),
    *("bound", "learned_bound", "refit", "admm", "alps", "iht", "alternate", "fistapruner", "sparsegpt"),
    *("SparseFW", "SparseFW_RIA", "SparseSwaps", "SparseSwaps100"),
}


@pytest.mark.parametrize("name", sorted({*registry, *PRESETS}))
def test_every_stage_gives_a_mask_or_declines(name):
    problem = random_layer(TWO_OF_FOUR, 8, 8)
    answer = pipeline.run(problem, pipeline.resolve(SHORT.get(name, name)), threads=1)
    found = answer.result
    if name in WORK:
        assert found.status in (Status.FEASIBLE, Status.TIMEOUT), found.reason
        assert found.verdict in (Verdict.FEASIBLE, Verdict.CERTIFIED)
        assert of_both_ways(problem, answer.keep)
    else:
        assert found.status is Status.SKIPPED, found.reason
        assert "works on groups with a count each, and transposable:2:4" in found.reason or "installed" in found.reason


@pytest.mark.parametrize(("text", "rows", "n"), [(TWO_OF_FOUR, 4, 8), (TWO_OF_FOUR, 8, 12), ("transposable:4:8", 8, 8)])
def test_frank_wolfe_ends_at_the_relaxed_minimum(text, rows, n):
    """Of one band and of several, whose steps are their own."""
    problem = random_layer(text, rows, n)
    least, _ = relaxed_minimum(problem)
    after = relaxed(problem)
    assert after.certificate.bound <= least * (1 + 1e-6)
    assert after.certificate.bound >= 0.97 * least
    assert problem.row_errors(after.relaxed).sum() == pytest.approx(least, rel=0.02)
    assert after.trace[-1].relaxed == pytest.approx(problem.row_errors(after.relaxed).sum(), rel=1e-4)


@pytest.mark.parametrize("role", [Role.RELAX, Role.BOUND])
def test_bounds_of_stages_are_proved(role):
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    best, _ = best_mask(problem)
    specs = {
        Role.RELAX: ("fw(variant=vanilla,convexify=shared,steps=100)", "fw(variant=dicg,steps=50)"),
        Role.BOUND: ("bound(kind=shared,seconds=1)", "learned_bound(steps=50)"),
    }
    for spec in specs[role]:
        found = pipeline.run(problem, pipeline.resolve(spec), threads=1).result
        assert found.proof is Proof.VERIFIED, found.reason
        assert 0 < found.lower_bound <= best


@pytest.mark.parametrize("more", ["step=short", "step=adaptive", "step=open", "average=polyak", "average=lookahead"])
def test_other_steps_and_averages(more):
    """Bounds of the trace are those of the layer, whose bands have steps of their own."""
    problem = arriving(TWO_OF_FOUR, 8, 8)[0] if more == "step=short" else random_layer(TWO_OF_FOUR, 8, 8)
    least, _ = relaxed_minimum(problem)
    spec = f"wanda+fw(variant=vanilla,steps=60,rounded=True,{more})+round"
    found = pipeline.run(problem, pipeline.resolve(spec), threads=1).result
    assert found.proof is Proof.VERIFIED, found.reason
    assert found.trace[-1].relaxed >= least - 1e-4 * abs(least)
    assert found.trace[-1].lower <= least + 1e-4 * abs(least)
    assert found.trace[-1].upper == pytest.approx(found.error, rel=1e-4)


def test_other_parameters_decline_by_name():
    problem = random_layer(TWO_OF_FOUR, 4, 8)
    for spec, name in (
        ("fw", "variant=inface"),
        ("fw(variant=away)", "variant=away"),
        ("push(variant=inface)", "variant=inface"),
        ("push+round(method=expectation)", "method=expectation"),
        ("bound(kind=shor)", "kind=shor"),
    ):
        reason = pipeline.skip_reason(problem, pipeline.resolve(spec))
        assert name in reason
        assert TWO_OF_FOUR in reason


@pytest.mark.parametrize("start", ["wanda", "random"])
@pytest.mark.parametrize("fixed", ["wanda", "ria", "start"])
def test_fixed_weights_stay(fixed, start):
    """``alpha`` keeps the best of each row and column of a block; of all of a mask it is the mask."""
    problem = random_layer("transposable:4:8", 8, 16)
    run = registry[start]().run(problem, State(), Context())
    after = FrankWolfe("vanilla", steps=30, alpha=0.5, fixed=fixed).run(problem, run, Context())
    held = after.relaxed < 1e-6
    assert (held.reshape(8, 2, 8).sum(axis=2) >= 2).all()
    assert (held.sum(axis=0) >= 2).all()
    if fixed == "start":
        whole = FrankWolfe("vanilla", steps=30, alpha=1.0, fixed=fixed).run(problem, run, Context())
        assert np.array_equal(whole.relaxed < 0.5, run.mask)
