"""Bounds of allocations: lines at every count, the knapsack over them, whole layers by brute force, a whole run."""

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import integer_layer, random_layer
from scipy.optimize import linprog
from small_models import hashes, options, place, saved

from fwbench import verify
from fwbench.patterns import PerRow, Rows, Unstructured
from fwbench.pruning import allocation, plan, prune
from fwbench.pruning.allocation import counts, lower, proved
from fwbench.pruning.allocation.lower import Lower
from fwbench.solvers.learned import curve
from fwbench.stage import Context

__all__ = ["place"]  # a fixture
ONE = Context(threads=1)
LEVELS = np.linspace(0.25, 0.75, proved.LINES)


# --- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [random_layer, integer_layer])
@pytest.mark.parametrize("kind", [PerRow, Unstructured])
def test_lines_are_below_every_mask_of_every_count(make, kind):
    layer = make("0.5", rows=2, n=6, seed=3)
    found = curve.certificates(layer, [kind(level) for level in (0.34, 0.5, 0.67)], ONE)
    for certificate, level in zip(found, (0.34, 0.5, 0.67), strict=True):
        own = layer.with_pattern(kind(level))
        lines = verify.lines(own, certificate)
        checked = verify.check(own, certificate)
        assert checked.ok
        size = own.block_size
        at_home = sum(intercept + slope * own.counts[0] for intercept, slope in lines)
        assert at_home == pytest.approx(checked.bound, rel=1e-9, abs=1e-9 * own.total)
        for masks in itertools.product([False, True], repeat=size):
            u = np.zeros((own.blocks, size))
            u[:] = masks
            errors = own.row_errors(u.reshape(own.shape)).reshape(own.blocks, -1).sum(axis=1)
            below = [intercept + slope * sum(masks) for intercept, slope in lines]
            assert (below <= errors + 1e-12 * own.total).all()


def test_lines_of_other_problems_patterns_and_proofs_are_refused():
    layer = random_layer("0.5", rows=2, n=8)
    [certificate] = curve.certificates(layer, [layer.pattern], ONE)
    with pytest.raises(verify.Refuted, match="another problem"):
        verify.lines(layer.with_pattern("0.25"), certificate)
    forged = {"e": certificate.arrays["e"] + 1.01 * np.linalg.eigvalsh(layer.G)[-1], "u": certificate.arrays["u"]}
    with pytest.raises(verify.Refuted, match="positive semidefinite"):
        verify.lines(layer, type(certificate)(layer.hash, 0.0, "diagonal", forged))
    with pytest.raises(verify.Refuted, match="its own counts alone"):
        verify.lines(layer, type(certificate)(layer.hash, 0.0, "rows", dict(certificate.arrays)))
    grouped = layer.with_pattern("2:4")
    with pytest.raises(verify.Refuted, match="one count for each row or for the layer, not 2:4"):
        verify.lines(grouped, type(certificate)(grouped.hash, 0.0, "diagonal", dict(certificate.arrays)))


# --- the knapsack ----------------------------------------------------------------------------------------------------


def drawn(data):
    """A lower curve of whole numbers, so that ties abound."""
    number = st.integers(-6, 6)
    lines = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=4))
    low = data.draw(st.integers(0, 4))
    made = tuple((Fraction(intercept), Fraction(slope, 2)) for intercept, slope in lines)
    return Lower((*made, (Fraction(0), Fraction(0))), low, low + data.draw(st.integers(0, 4)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_knapsacks_bound_is_the_least_sum(data):
    """The curves are convex in whole numbers, so that the best price proves the minimum itself."""
    curves = [drawn(data) for _ in range(data.draw(st.integers(1, 3)))]
    budget = data.draw(st.integers(sum(c.low for c in curves), sum(c.high for c in curves)))
    ranges = [range(c.low, c.high + 1) for c in curves]
    best = min(
        sum(c.at(count) for c, count in zip(curves, chosen, strict=True))
        for chosen in itertools.product(*ranges)
        if sum(chosen) == budget
    )
    found = lower.bound(curves, budget)
    assert found <= best
    assert found == pytest.approx(float(best), abs=1e-6)
    loose = [replace(c, loose=Fraction(1, len(curves))) for c in curves]
    assert max(0, found - 1 - 1e-9) <= lower.bound(loose, budget) <= max(0, best - 1)


def test_the_knapsack_against_a_linear_programme():
    """HiGHS: minimise the sum of t with t at least each line, counts within limits, their sum the budget."""
    rng = np.random.default_rng(0)
    curves, budget = [], 0
    for _ in range(12):
        slopes, size = np.sort(rng.exponential(size=5)), int(rng.integers(50, 400))
        lines = tuple((Fraction(-slope * slope * size / 3), Fraction(slope)) for slope in slopes)
        curves.append(Lower(lines, size // 4, size))
        budget += round(0.6 * size)
    A, b = [], []
    for number, own in enumerate(curves):
        for intercept, slope in own.lines:
            row = np.zeros(24)
            row[number], row[12 + number] = -1, float(slope)
            A.append(row)
            b.append(-float(intercept))
    limits = [(None, None)] * 12 + [(own.low, own.high) for own in curves]
    total = np.repeat([0.0, 1.0], 12)[None]
    solved = linprog(1 - total[0], A, b, total, [budget], limits, method="highs")
    found = lower.bound(curves, budget)
    assert found >= solved.fun - 1e-9  # whole numbers cost a little more
    assert found == pytest.approx(solved.fun, rel=2e-3)


# --- layers, all allocations and all masks ---------------------------------------------------------------------------


def best_of(problem, pattern):
    return best_mask(problem.with_pattern(pattern))[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_row", [True, False])
def test_no_allocation_is_below_the_bound(seed, by_row):
    """Every count of every layer and every mask, by enumeration; ours is one of them."""
    pattern = PerRow(0.5) if by_row else Unstructured(0.5)
    layers = {
        str(k): make(str(pattern), rows=2, n=6, seed=seed + 7 * k)
        for k, make in enumerate((random_layer, integer_layer, random_layer))
    }
    rng = np.random.default_rng(seed)
    parts = dict(zip(layers, rng.exponential(size=3), strict=True))
    wanted = dict(zip(layers, rng.uniform(0.35, 0.65, 3), strict=True))
    chosen = counts.layer_patterns(pattern, {name: layer.shape for name, layer in layers.items()}, wanted)
    found = {name: proved.measured(layer, chosen[name], LEVELS) for name, layer in layers.items()}
    said = proved.summed(found, parts)
    weights = {name: parts[name] / found[name].unit for name in layers}
    budget = sum(layer.pruned for layer in found.values())
    curves, here = {}, 0.0
    for name, layer in layers.items():
        own = found[name].lower
        curves[name] = {p: weights[name] * best_even(layer, p, by_row) for p in range(own.low, own.high + 1)}
        here += curves[name][found[name].pruned]
    optimum = min(
        sum(curves[name][p] for name, p in zip(curves, each, strict=True))
        for each in itertools.product(*curves.values())
        if sum(each) == budget
        and all(p % 2 == 0 for name, p in zip(curves, each, strict=True) if isinstance(chosen[name], PerRow))
    )
    slack = 1e-9 * abs(optimum)
    assert said["lower"] <= optimum + slack
    assert said["lower_here"] <= here + slack
    assert said["lower"] <= said["lower_here"]
    assert optimum <= here + slack <= said["upper"] + 2 * slack
    assert said["upper"] <= said["wanda"]
    assert said["lower"] > 0.2 * optimum


def best_even(layer, pruned, by_row):
    """Least error with so many pruned, the two rows' counts as equal as they can be, or free."""
    if not by_row:
        return best_of(layer, Unstructured(pruned / (layer.rows * layer.n)))
    more, less = pruned // 2 + pruned % 2, pruned // 2
    return min(best_of(layer, Rows(np.array(pair))) for pair in ((more, less), (less, more)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.integers(4, 9), st.booleans())
def test_a_curve_is_convex_and_below_the_optima(seed, rows, n, by_row):
    layer = random_layer("0.5" if by_row else "unstructured:0.5", rows=rows, n=n, seed=seed, condition=100)
    found = lower.curve_of(layer, LEVELS.tolist(), rows, ONE)
    step = rows if by_row else max(1, rows * n // 6)
    values = {}
    for pruned in range(0, rows * n + 1, step):
        pattern = PerRow(pruned / (rows * n)) if by_row else Unstructured(pruned / (rows * n))
        values[pruned] = float(found.at(pruned))
        if by_row or rows * n <= 16:
            best = best_of(layer, pattern)
            assert values[pruned] <= best * (1 + 1e-9) + 1e-12
    second = np.diff(list(values.values()), 2)
    assert (second >= -1e-9 * layer.total).all()


def test_the_curve_is_the_relaxations():
    """At its own levels as high as Clarabel's optimum of the convexified programme, on a middling layer."""
    clarabel = pytest.importorskip("clarabel")
    from scipy import sparse

    layer = random_layer("0.5", rows=2, n=40, seed=1)
    levels = [PerRow(level) for level in (0.3, 0.5, 0.7)]
    certificates = curve.certificates(layer, levels, ONE)
    for level, certificate in zip(levels, certificates, strict=True):
        own, total = layer.with_pattern(level), 0.0
        for w, count in zip(layer.W.astype(float), own.counts.tolist(), strict=True):
            d = w * w * certificate.arrays["e"]
            Q = w[:, None] * layer.G * w - np.diag(d)
            A = sparse.csc_matrix(np.vstack([np.ones(40), np.eye(40), -np.eye(40)]))
            cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(80)]
            settings_ = clarabel.DefaultSettings()
            settings_.verbose = False
            b = np.concatenate([[count], np.ones(40), np.zeros(40)])
            total += clarabel.DefaultSolver(sparse.csc_matrix(2 * Q), d, A, b, cones, settings_).solve().obj_val
        assert verify.check(own, certificate).bound == pytest.approx(total, rel=2e-3)


# --- by name, and whole runs ------------------------------------------------------------------------------------------


def test_names():
    plain, asked = allocation.parse("exact"), allocation.parse("exact(bounds=true)")
    assert allocation.parse("exact(bounds=false)") == plain == replace(asked, bounds=False)
    assert allocation.full(plain) == "exact(of=loss,reach=0.15,tokens=2048)"  # as before there were any
    assert allocation.parse(allocation.full(asked)) == asked


@pytest.mark.parametrize(("family", "pattern"), [("llama", "0.5"), ("gpt2", "unstructured:0.61")])
def test_of_a_model(place, tmp_path, family, pattern):
    at = options(place, pattern=pattern, allocation="exact(tokens=50,bounds=true)")
    summary = prune(str(saved(place, family)), tmp_path / "out", at)
    said = summary["allocation_gap"]
    assert 0 < said["lower"] <= said["lower_here"] <= said["upper"] <= said["wanda"]
    assert "whatever the layers' sparsities within reach" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "fwbench.json").read_text())["allocation_gap"] == said


def test_killed_among_the_bounds(place, tmp_path, monkeypatch):
    """What was measured of a layer is not measured again, and nothing else comes of it."""
    source, asked = str(saved(place, "llama")), options(place, allocation="exact(tokens=50,bounds=true)")
    whole = prune(source, tmp_path / "whole", asked)
    real, done = proved.measured, []

    def counted(problem, *more, last=None):
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(problem.name)
        return real(problem, *more)

    monkeypatch.setattr(proved, "measured", partial(counted, last=5))
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out", asked)
    monkeypatch.setattr(proved, "measured", counted)
    again = prune(source, tmp_path / "out", asked)
    assert again["allocation_gap"] == whole["allocation_gap"]
    assert len(done) == len(set(done)) == len(whole["layers"])
    assert hashes(tmp_path / "out")["model.safetensors"] == hashes(tmp_path / "whole")["model.safetensors"]


def test_none_unless_asked_for(place):
    made = plan.make(str(saved(place, "llama")), options(place, allocation="exact"))
    setting = allocation.setting(made.model, made.layers, made.batches, made.pattern)
    assert allocation.gap(made.allocation, setting, {}, None) is None
