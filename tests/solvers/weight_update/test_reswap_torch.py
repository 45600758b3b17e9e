"""``reswap`` in torch batches, which a GPU runs, against the kernel that is tested exchange by exchange."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, begun, hostile_layers, random_layer

from fwbench.judge import count_reason, judge
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.solvers.weight_update import reswap_torch
from fwbench.solvers.weight_update.reswap import WHOLE, Reswap, Shared
from fwbench.stage import Context, State

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])


def solved(problem, keep, device, ridge=1e-3, most=10**9, expired=lambda: False, at_once=0):
    shared = Shared(torch.from_numpy(problem.G.copy()), float(problem.G.diagonal().mean()), ridge)
    size = problem.group
    rest = (shared.G, shared.C, shared.penalty, size, most, device, expired, at_once)
    return reswap_torch.solve(problem.W, keep, *rest)


@DEVICES
@pytest.mark.parametrize("limit", [1, 2, 0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_the_kernel(pattern, limit, device):
    problem = random_layer(pattern, rows=5, n=60, seed=3)
    assert problem.n <= WHOLE  # the kernel, too, takes the best of all
    for start in (Wanda().run(problem, State(), Context()), Random().run(problem, State(), Context(seed=1))):
        keep, weights, swaps, late = solved(problem, start.keep, device, most=limit or 10**9)
        expected = Reswap(limit=limit).run(problem, start, Context())
        assert np.array_equal(keep, expected.keep)
        assert swaps == expected.counters["swaps"]
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-5, atol=1e-6)
        assert not late


@DEVICES
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers_are_never_worse_than_their_mask(pattern, ridge, device):
    for problem in hostile_layers(pattern):
        if not problem.G.any():
            continue  # the stage asks no device then
        start = Wanda().run(problem, State(), Context())
        keep, weights, *_ = solved(problem, start.keep, device, ridge)
        assert np.array_equal(keep.sum(axis=1), start.keep.sum(axis=1))
        assert not count_reason(problem, keep), problem.name
        found = judge(problem, keep, weights.astype(np.float32))
        assert found.verdict == "feasible", problem.name
        assert found.error <= problem.error(start.keep) * (1 + 1e-6) + 1e-7 * problem.total, problem.name


@DEVICES
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.6"])
def test_batches_do_not_matter_and_a_deadline_leaves_whole_rows(pattern, device):
    problem = random_layer(pattern, rows=9, n=32)
    start = Random().run(problem, State(), Context())
    keep, weights, swaps, _ = solved(problem, start.keep, device)
    for at_once in (1, 4):
        again, others, as_many, late = solved(problem, start.keep, device, at_once=at_once)
        assert np.array_equal(again, keep)
        assert as_many == swaps
        assert not late
        np.testing.assert_allclose(others, weights, rtol=1e-9, atol=1e-12)
    again, others, as_many, late = solved(problem, start.keep, device, expired=lambda: True)
    assert late
    assert as_many == 0
    assert np.array_equal(again, start.keep)
    assert np.array_equal(others, np.where(start.keep, problem.W, 0))


@NO_GPU
def test_the_stage_runs_on_a_device():
    problem = random_layer("0.5", rows=9, n=200)
    here, there = (Reswap().run(problem, begun(problem, Reswap), Context(device=device)) for device in ("cpu", "cuda"))
    errors = [problem.error_of_weights(state.weights) for state in (here, there)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("fraction", ["0.0", "1.0"])
def test_rows_without_exchanges(fraction):
    problem = random_layer("0.5", rows=2, n=6).with_pattern(fraction)
    keep = np.full(problem.shape, fraction == "0.0")
    after, weights, swaps, _ = solved(problem, keep, "cpu")
    assert swaps == 0
    assert np.array_equal(after, keep)
    np.testing.assert_allclose(weights, np.where(keep, problem.W, 0))
