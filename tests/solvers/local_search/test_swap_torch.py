"""The batched torch swaps, which a GPU runs, against the kernel that is tested by exhaustive search."""

import numpy as np
import pytest
import torch
from layers import PATTERNS, hostile_layers, integer_layer, random_layer

from fwbench.judge import count_reason
from fwbench.solvers.local_search import swap_torch
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Random, Wanda
from fwbench.stage import Context, State

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
SEPARABLE = [pattern for pattern in PATTERNS if not pattern.startswith("unstructured")]


def starts(problem, seed=0):
    return [stage.run(problem, State(), Context(seed=seed)) for stage in (Wanda(), Random())]


def descended(problem, start, device, limit=10**9, enough=1.0, expired=lambda: False):
    pruned = ~start.keep
    group = problem.group
    found = swap_torch.descend(problem.W, problem.G, pruned, group, limit, enough, device, expired)
    return ~pruned, *found


@DEVICES
@pytest.mark.parametrize("limit", [1, 3, 0])
@pytest.mark.parametrize("make", [integer_layer, random_layer])
@pytest.mark.parametrize("pattern", [*SEPARABLE, "20:40"])
def test_equals_the_kernel_swap_by_swap_ties_included(pattern, make, limit, device):
    problem = make(pattern, rows=5, n=80, seed=3)
    for start in starts(problem):
        keep, swaps, _, stopped = descended(problem, start, device, limit or 10**9)
        expected = Swap(limit=limit).run(problem, start, Context())
        assert np.array_equal(keep, expected.keep)
        assert swaps == expected.counters["swaps"]
        assert stopped == ""


@DEVICES
@pytest.mark.parametrize("pattern", SEPARABLE)
def test_hostile_layers(pattern, device):
    for problem in hostile_layers(pattern):
        for start in starts(problem):
            keep, *_ = descended(problem, start, device)
            assert not count_reason(problem, keep), problem.name
            assert problem.error(keep) <= problem.error(start.keep) * (1 + 1e-12) + 1e-13 * problem.total


@DEVICES
def test_examines_lines_only_where_they_may_win_and_batches_do_not_matter(device, monkeypatch):
    problem = random_layer("0.5", rows=9, n=96, condition=1e2)
    start = starts(problem)[1]
    keep, swaps, evaluated, _ = descended(problem, start, device)
    every_pair = (swaps + problem.rows) * (problem.n // 2) * problem.n
    assert evaluated < every_pair / 2
    monkeypatch.setattr(swap_torch, "ENTRIES", 2 * 96 * swap_torch.LINES)
    parts = descended(problem, start, device)
    assert np.array_equal(parts[0], keep)
    assert parts[1:] == (swaps, evaluated, "")


@DEVICES
def test_enough_ends_at_a_1_swap_optimum(device):
    problem = random_layer("0.5", rows=4, n=64, condition=1e4)
    for start in starts(problem):
        keep, *_ = descended(problem, start, device, enough=0.1)
        again = Swap().run(problem, State(keep=keep), Context())
        assert again.counters["swaps"] == 0
        assert problem.error(keep) < problem.error(start.keep)


@DEVICES
def test_a_deadline_leaves_whole_swaps(device):
    problem = random_layer("0.5", rows=4, n=64)
    start = starts(problem)[1]
    looks = iter([False, False, True])
    keep, swaps, _, stopped = descended(problem, start, device, expired=lambda: next(looks))
    assert stopped == "deadline"
    assert not count_reason(problem, keep)
    assert np.array_equal(keep, Swap(limit=2).run(problem, start, Context()).keep)
    assert swaps == 8


@NO_GPU
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4"])
def test_the_stage_on_a_gpu_equals_the_stage_on_the_cpu(pattern):
    problem = integer_layer(pattern, rows=4, n=48)
    for start in starts(problem):
        on_cpu, on_gpu = (Swap().run(problem, start, Context(device=device)) for device in ("cpu", "cuda"))
        assert np.array_equal(on_cpu.keep, on_gpu.keep)


def test_a_batch_keeps_to_its_device():
    """On tensors without data, a mixture with the host's raises; what asks for data is not reached."""
    W, G = (torch.empty(shape, device="meta", dtype=torch.float64) for shape in ((3, 16), (16, 16)))
    with pytest.raises(RuntimeError, match="device"):
        W * torch.ones(3, 16)
    strongest = swap_torch.strongest(G)
    for group in (4, 16):
        batch = swap_torch._Batch(W, G, strongest, np.zeros((3, 16), bool), group, 0.5)
        a, b = batch.q - 2 * batch.g, batch.q + 2 * batch.g
        partner = batch._best_partner(b, batch.coupling, batch.score)
        change, at, evaluated = batch._in_groups(W, a, b, batch.active, batch.error)
        assert {x.device for x in (batch.u, batch.error, partner, change, at)} == {W.device}
        assert (partner.shape, change.shape, at.dtype) == ((3, 16), (3,), torch.int64)
        assert evaluated == 3 * 16 * group
