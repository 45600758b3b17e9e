"""The Triton kernels, which a CUDA device runs: on one where there is one, else in Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # read when the kernels are decorated
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="needs Triton")

from layers import arriving, hostile_layers, integer_layer, random_layer
from test_swap_torch import starts

from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop, loop_triton
from fwbench.solvers.frank_wolfe.loop_torch import minimise_torch
from fwbench.solvers.frank_wolfe.push import Push, middle
from fwbench.solvers.local_search import swap_torch, swap_triton, tabu, tabu_numba, tabu_triton
from fwbench.solvers.local_search.anneal_numba import keys
from fwbench.solvers.local_search.swap import Swap
from fwbench.stage import Context, State

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["0.5", "2:4", "rows"]


def hostile(pattern):
    """Some of the hostile layers: the interpreter takes a second for each."""
    return [p for p in hostile_layers(pattern) if p.name in ("zero row", "zero inputs", "duplicate inputs", "huge")]


def both(problem, dtype="float64", e=None, **options):
    """The runs of the torch loop and of the fused one, from the middle of the polytope."""
    context = Context(DEVICE, dtype)
    layer = loop.Objective.of(problem, context, None if e is None else problem.W.astype(float) ** 2 * e)
    u = torch.tensor(middle(problem), dtype=layer.W.dtype, device=DEVICE)
    given = loop.LoopOptions(variant="vanilla", **options)
    assert loop_triton.fits(layer, given)
    mine = loop_triton.minimise_triton(layer, u, given, context, loop_triton.Loop(layer, given))
    return minimise_torch(layer, u, given, context), mine


@pytest.mark.parametrize("step", ["open", "linesearch"])
@pytest.mark.parametrize("pattern", KINDS)
def test_iterates_equal_the_torch_loop_s(pattern, step):
    steps, problem = 6, random_layer(pattern, rows=2, n=16)
    e = np.full(problem.n, 0.5 * np.linalg.eigvalsh(problem.G)[0])
    fixed = torch.tensor(np.random.default_rng(0).random(problem.shape) < 0.1, device=DEVICE)
    for more in ({}, {"e": e}, {"fixed": fixed}):
        theirs, mine = both(problem, step=step, steps=steps, **more)
        assert torch.allclose(mine.u, theirs.u, rtol=0, atol=1e-12)
        assert mine.iterations == theirs.iterations == steps
        assert mine.counters["gram_products"] == steps + 1
        assert float(mine.bound.sum()) <= float(mine.trace[-1].relaxed) + 1e-9
        value = problem.row_errors(mine.u.cpu().numpy()).sum() if not more else None
        assert value is None or mine.trace[-1].relaxed == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("pattern", KINDS)
def test_a_target_s_iterates_equal_the_torch_loop_s(pattern):
    problem, _, _ = arriving(pattern, rows=2, n=16)
    e = np.full(problem.n, 0.5 * np.linalg.eigvalsh(problem.G)[0])
    for more in ({}, {"e": e}, {"gap": 0.3}):
        theirs, mine = both(problem, step="linesearch", steps=6, **more)
        assert torch.allclose(mine.u, theirs.u, rtol=0, atol=1e-12)
        assert torch.allclose(mine.bound, theirs.bound, rtol=1e-12)
        for moment in (0, -1):
            one, two = mine.trace[moment], theirs.trace[moment]
            assert (one.lower, one.relaxed) == pytest.approx((two.lower, two.relaxed), rel=1e-12)
        if not more:
            assert mine.trace[-1].relaxed == pytest.approx(problem.row_errors(mine.u.cpu().numpy()).sum(), rel=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the slope, which is not looked at
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pattern", KINDS)
def test_the_vertex_is_the_pattern_s(pattern, dtype):
    """Thresholds by bits: ties, zeros of both signs, infinities and subnormal numbers."""
    rng = np.random.default_rng(1)
    awkward = [0.0, -0.0, 1.0, -1.0, 1e-310 if dtype == "float64" else 1e-42, np.inf, 3e38, -3e38]
    for scores in (rng.choice(awkward, (2, 24)), rng.integers(-3, 4, (2, 24)), rng.standard_normal((2, 24))):
        pattern_ = random_layer(pattern, rows=2, n=24).pattern
        W = torch.zeros(scores.shape, dtype=getattr(torch, dtype), device=DEVICE)
        layer = loop.Objective(W, torch.zeros(24, 24, dtype=W.dtype, device=DEVICE), None, pattern_)
        work = loop_triton.Loop(layer, loop.LoopOptions(steps=1))
        work.begin(torch.full_like(W, 0.5), None)
        for factor in (1, 1, -1):  # the threshold is sought from the last one
            work.g.copy_(factor * torch.tensor(scores))
            work.launch(0, move=False, check=False)
            expected = pattern_.prune(factor * torch.tensor(scores, dtype=W.dtype))
            assert torch.equal(work.v.bool().cpu(), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of float32, on the layer "huge"
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_hostile_layers_stay_in_the_polytope(pattern):
    for problem in hostile(pattern):
        _, run = both(problem, dtype="float32", steps=2, step="linesearch")
        u = run.u.double().cpu().numpy()
        assert u.min() >= 0
        assert u.max() <= 1
        counts = problem.counts
        np.testing.assert_allclose(problem.pattern.groups(u).sum(axis=-1), counts, atol=1e-5)
        assert run.trace[-1].relaxed <= run.trace[0].relaxed * (1 + 1e-5)


def test_stops_refreshes_and_looks(monkeypatch):
    problem = random_layer("0.5", rows=2, n=16)
    monkeypatch.setattr(loop_triton, "LOOK", 5)
    monkeypatch.setattr(loop_triton, "REFRESH", 10)
    theirs, mine = both(problem, steps=23, step="linesearch")
    assert torch.allclose(mine.u, theirs.u, atol=1e-9)
    assert [moment.iterations for moment in mine.trace] == [0, 5, 10, 15, 20, 23]
    assert mine.counters["gram_products"] == 1 + 23 + 2
    assert np.diff([moment.lower for moment in mine.trace]).min() >= 0
    _, early = both(problem, steps=500, step="linesearch", gap=0.5)
    assert early.iterations < 500
    assert early.trace[-1].relaxed - early.trace[-1].lower <= 0.5 * early.trace[-1].relaxed
    late = Context(DEVICE, "float32", deadline=0.0)
    layer = loop.Objective.of(problem, late)
    options = loop.LoopOptions(steps=50)
    start = torch.full_like(layer.W, 0.5)
    run = loop_triton.minimise_triton(layer, start, options, late, loop_triton.Loop(layer, options))
    assert (run.stopped, run.iterations) == ("deadline", 0)


def test_one_loop_serves_every_strength_of_push(monkeypatch):
    """The stage itself, its layer on the device or as if it were."""
    problem = random_layer("0.5", rows=2, n=16)
    stage, context = Push(rounds=3, steps=4), Context(DEVICE, "float64")
    monkeypatch.setattr(loop, "fused", lambda layer, options: None)
    monkeypatch.setattr(
        loop, "minimise", lambda layer, u, options, context, _: minimise_torch(layer, u, options, context)
    )
    apart = stage.run(problem, State(), context)
    made = []

    def fused(layer, options):
        made.append(loop_triton.Loop(layer, options))
        return made[-1]

    def minimise(layer, u, options, context, kept):
        return loop_triton.minimise_triton(layer, u, options, context, kept)

    monkeypatch.setattr(loop, "fused", fused)
    monkeypatch.setattr(loop, "minimise", minimise)
    together = stage.run(problem, State(), context)
    np.testing.assert_allclose(together.relaxed, apart.relaxed, atol=1e-9)
    assert together.counters["iterations"] == apart.counters["iterations"] == 12
    assert len(made) == 1


def test_what_does_not_fit_is_left_to_torch():
    problem = random_layer("0.5", rows=2, n=16)
    layer = loop.Objective.of(problem, Context())
    assert loop_triton.fits(layer, loop.LoopOptions())
    for options in (
        loop.LoopOptions(variant="dicg"),
        loop.LoopOptions(step="adaptive"),
        loop.LoopOptions(step="short"),
    ):
        assert not loop_triton.fits(layer, options)
    for pattern in ("unstructured:0.5", "1:6"):
        other = random_layer("0.5", rows=2, n=12).with_pattern(pattern)
        assert not loop_triton.fits(loop.Objective.of(other, Context()), loop.LoopOptions())
    assert not swap_triton.fits(12, 6)
    assert not swap_triton.fits(swap_triton.MOST + 1, swap_triton.MOST + 1)


def descended(problem, start, limit=10**9, enough=1.0, expired=lambda: False, descend=swap_triton.descend):
    pruned = ~start.keep
    group = problem.group
    found = descend(problem.W, problem.G, pruned, group, limit, enough, DEVICE, expired, problem.linear)
    return ~pruned, *found


def arriving_layer(pattern, rows, n, seed):
    """One that has a target."""
    return arriving(pattern, rows, n, seed)[0]


@pytest.mark.parametrize("limit", [1, 0])
@pytest.mark.parametrize("make", [integer_layer, random_layer, arriving_layer])
@pytest.mark.parametrize("pattern", KINDS)
def test_swaps_equal_the_kernel_s_swap_by_swap_ties_included(pattern, make, limit):
    problem = make(pattern, rows=2, n=24, seed=3)
    for start in starts(problem):
        keep, swaps, evaluated, stopped = descended(problem, start, limit or 10**9)
        expected = Swap(limit=limit).run(problem, start, Context())
        assert np.array_equal(keep, expected.keep)
        assert (swaps, stopped) == (expected.counters["swaps"], "")
        assert evaluated <= (swaps + problem.rows) * problem.n**2


@pytest.mark.parametrize("pattern", KINDS)
def test_swaps_on_hostile_layers(pattern):
    for problem in hostile(pattern):
        start = starts(problem)[1]
        keep, *_ = descended(problem, start)
        assert not count_reason(problem, keep), problem.name
        assert problem.error(keep) <= problem.error(start.keep) * (1 + 1e-12) + 1e-13 * problem.total


def test_swaps_end_at_an_optimum_and_examine_few_lines(monkeypatch):
    problem = random_layer("0.5", rows=2, n=32, condition=1e2)
    start = starts(problem)[1]
    keep, swaps, evaluated, _ = descended(problem, start)
    batches = descended(problem, start, descend=swap_torch.descend)
    assert np.array_equal(keep, batches[0])
    assert evaluated < batches[2]
    less = descended(problem, start, enough=0.1)
    assert less[2] < evaluated
    assert Swap().run(problem, State(keep=less[0]), Context()).counters["swaps"] == 0
    monkeypatch.setattr(swap_triton, "SWAPS", 3)  # of a launch
    assert np.array_equal(descended(problem, start)[0], keep)
    looks = iter([False, True])
    part = descended(problem, start, expired=lambda: next(looks))
    assert part[1:] == (6, part[2], "deadline")
    assert np.array_equal(part[0], Swap(limit=3).run(problem, start, Context()).keep)
    assert swaps > 6


def test_rows_that_nothing_can_move():
    problem = Problem("edge", np.ones((2, 4)), np.eye(4), random_layer("0.5", rows=2, n=4).pattern)
    for pattern in ("0.0", "1.0"):
        edge = problem.with_pattern(pattern)
        keep = np.full(edge.shape, pattern == "0.0")
        assert descended(edge, State(keep=keep))[1:] == (0, 0, "")


def memories(problem, seed=0):
    """Of both kernels, from one mask."""
    pruned = ~starts(problem)[1].keep
    group = problem.group
    random = keys(seed, np.arange(problem.rows), 0)
    W = problem.W.astype(float)
    target = problem.T, problem.offset
    theirs = tabu_numba.TabuState.begin(W, problem.G, pruned, group, random, *target)
    return theirs, tabu_triton.TabuState.begin(W, problem.G, pruned, group, random, DEVICE, *target)


@pytest.mark.parametrize("candidates", [1, 2, 50])
@pytest.mark.parametrize("make", [integer_layer, random_layer, arriving_layer])
@pytest.mark.parametrize("pattern", [*KINDS, "20:40"])
def test_tabu_moves_as_the_kernel_does(pattern, make, candidates):
    problem = make("0.5", rows=2, n=40 if pattern == "20:40" else 16, seed=3)
    problem = problem.with_pattern(pattern if pattern != "rows" else np.array([3, 9]))
    theirs, mine = memories(problem)
    for first, stop in ((0, 7), (7, 25)):
        assert mine.walk(first, stop, candidates, 3, 8) == theirs.walk(first, stop, candidates, 3, 8)
        assert np.array_equal(mine.now.bool().cpu(), theirs.now)
        assert np.array_equal(mine.best, theirs.best)
        assert np.array_equal(mine.barred.cpu(), theirs.barred)
        assert np.array_equal(mine.random.cpu().numpy().view(np.uint64), theirs.random)
        for name in ("error", "least", "margin_in", "margin_out"):
            np.testing.assert_allclose(getattr(mine, name).cpu(), getattr(theirs, name), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine.y.cpu(), theirs.y, rtol=1e-9, atol=1e-12)


def test_tabu_keeps_the_counts_on_hostile_layers():
    for pattern in KINDS:
        for problem in hostile(pattern):
            _, mine = memories(problem)
            before = problem.error(~mine.best)
            mine.walk(0, 5, 2, 3, 8)
            assert not count_reason(problem, ~mine.best), problem.name
            assert problem.error(~mine.best) <= before * (1 + 1e-12)


def test_a_row_with_nothing_to_swap(monkeypatch):
    problem = random_layer("0.5", rows=3, n=16).with_pattern(np.array([0, 16, 8]))
    theirs, mine = memories(problem)
    assert mine.walk(0, 6, 2, 3, 8) == theirs.walk(0, 6, 2, 3, 8)
    assert np.array_equal(mine.best.sum(axis=1), [0, 16, 8])


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.5"])
def test_the_stage_on_a_device(monkeypatch, pattern):
    """The stage itself, as on a device: the same masks, and the same trace."""
    problem = integer_layer(pattern, rows=2, n=16, seed=1)
    start, stage = starts(problem)[1], tabu.Tabu(iterations=12)
    expected = stage.run(problem, start, Context())
    monkeypatch.setattr(tabu, "_runs_on", lambda *_: True)
    monkeypatch.setattr(tabu, "LAUNCH", 3)
    found = stage.run(problem, start, Context(DEVICE))
    assert np.array_equal(found.keep, expected.keep)
    assert found.trace[-1].upper == expected.trace[-1].upper == problem.error(found.keep)
    assert [found.counters[name] for name in ("iterations", "swaps")] == [
        expected.counters[name] for name in ("iterations", "swaps")
    ]


def test_where_tabu_runs(monkeypatch):
    assert not tabu._runs_on("cpu", 16, 16)
    assert tabu._runs_on("cuda:0", 16, 16)
    assert not tabu._runs_on("cuda", 12, 6)
    monkeypatch.setattr(tabu, "find_spec", lambda name: None)
    assert not tabu._runs_on("cuda", 16, 16)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from fwbench.solvers.frank_wolfe import loop_triton
from fwbench.solvers.local_search import swap_triton
from fwbench.solvers.local_search import tabu_triton


def build(kernel, types, **constants):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    built = compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(built.asm["cubin"]) > 0)


narrow = {"n": "i32", "offset": "i32", "limit": "i32"}
small = dict.fromkeys(["ell", "gap", "relative", "absolute", "gain_fraction"], "fp32")
for real, bits in (("fp32", 31), ("fp64", 63)):
    arrays = {name: f"*{real}" for kernel in (loop_triton._iterate, swap_triton._descend) for name in kernel.arg_names}
    arrays = {name: kind for name, kind in arrays.items() if name.endswith("_")}
    arrays |= {"fixed_": "*i1", "counts_": "*i32", "v_": "*u8", "done_": "*u8", "began_": "*i32", "swaps_": "*i32"}
    arrays |= {"lines_": "*i32", "guess_": f"*i{bits + 1}", "spacing_": "*fp64"}
    known = dict(LOWEST=-(1 << bits), HIGHEST=(1 << bits) - 1, FARTHEST=2.0**bits - 2.0 ** (bits - 24))
    known |= dict(EPS=1e-6, BLOCK=1024)
    for size, rule, on in ((1, 0, True), (1, 1, False), (4, 1, True)):
        known |= dict(SIZE=size, RULE=rule, HAS_D=on, HAS_C=not on, HAS_FIXED=on, MOVE=on, CHECK=not on)
        build(loop_triton._iterate, arrays | narrow | small, **known)
arrays |= {"u_": "*u8"}
for size in (1, 4):
    build(swap_triton._descend, arrays | narrow | small, SIZE=size, KNOTS=swap_triton.KNOTS, BLOCK=1024)
doubles = ["w_", "G_", "diagonal_", "y_", "error_", "least_", "margin_in_", "margin_out_"]
arrays = dict.fromkeys(doubles, "*fp64") | {"now_": "*u8", "best_": "*u8"}
arrays |= {"barred_": "*i32", "swaps_": "*i32", "random_": "*i64", "evaluated_": "*i64", "relative": "fp32"}
whole = dict.fromkeys(["n", "first", "stop", "wanted", "tenure", "spread"], "i32")
for size in (1, 4):
    build(tabu_triton._walk, arrays | whole, SIZE=size, BLOCK=1024)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter runs any Python, the compiler does not; it needs no device."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["_iterate", "True"] * 6 + ["_descend", "True"] * 2 + ["_walk", "True"] * 2
