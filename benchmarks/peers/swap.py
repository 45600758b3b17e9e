"""Our ``swap`` against a plain batched torch pair search, on the same rows in one run, one after the other.

    python -m benchmarks.peers.swap smollm2/07.gate_proj --rows 64

The peer looks at every (pruned, kept) pair of every row in each round, as SparseSwaps (arXiv 2512.10922) describes it:
the kind of code a pruning script would hold. It is float32 on all cores; ours is exact float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.shared import command
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.local_search.swap_numba import Descent
from fwbench.solvers.start.scores import wanda_score


def pair_search(W: torch.Tensor, G: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Best 1-swap of each row until none gains: bool ``(rows, n)``, rows finished drop out of the batch."""
    pruned = pruned.clone()
    active = torch.arange(len(W), device=W.device)
    diagonal = W**2 * G.diagonal()
    while len(active):
        w, u, q = W[active], pruned[active], diagonal[active]
        g = w * ((w * u) @ G)
        count = int(u[0].sum())
        ins = u.to(torch.uint8).topk(count, dim=1).indices.sort(dim=1).values
        outs = (~u).to(torch.uint8).topk(u.shape[1] - count, dim=1).indices.sort(dim=1).values
        a, b = (q - 2 * g).gather(1, ins), (q + 2 * g).gather(1, outs)
        Q = w.gather(1, ins)[:, :, None] * G[ins[:, :, None], outs[:, None, :]] * w.gather(1, outs)[:, None, :]
        change = (a[:, :, None] + b[:, None, :] - 2 * Q).flatten(1)
        best, at = change.min(dim=1)
        error = (g * u).sum(dim=1)
        gains = best < -1e-6 * error
        i = ins.gather(1, (at // b.shape[1])[:, None])
        j = outs.gather(1, (at % b.shape[1])[:, None])
        u = u.scatter(1, i, False).scatter(1, j, True)
        pruned[active[gains]] = u[gains]
        active = active[gains]
    return pruned


def compare(problem: Problem, rows: int, threads: int, repeats: int, enough: float) -> dict[str, float]:
    """Errors of both from Wanda's mask, and medians of how many times faster ours is, timed in turns.

    CPU seconds are the process's, all threads together; wall seconds are of use on a quiet machine only.
    """
    problem = Problem(problem.name, problem.W[:rows], problem.G, problem.pattern)
    start = problem.pattern.prune(wanda_score(problem.W, problem.G))
    torch.set_num_threads(threads)
    W, G = torch.tensor(problem.W), torch.tensor(problem.G, dtype=torch.float32)

    def theirs() -> np.ndarray:
        return pair_search(W, G, torch.tensor(start)).numpy()

    def ours() -> np.ndarray:
        pruned = start.copy()
        Descent(problem.W, problem.G, problem.n, threads, enough).descend(pruned, slice(0, rows), 10**9)
        return pruned

    pair_search(W[:2], G, torch.tensor(start[:2]))
    mine = ours()
    clocks: list[tuple[float, ...]] = []
    for _ in range(repeats):
        peer, other = _clocked(theirs)
        own, mine = _clocked(ours)
        clocks.append((*peer, *own))
    peer_wall, peer_cpu, own_wall, own_cpu = np.array(clocks).T
    return {
        "rows": rows,
        "n": problem.n,
        "threads": threads,
        "times faster (CPU)": float(np.median(peer_cpu / own_cpu)),
        "times faster (wall)": float(np.median(peer_wall / own_wall)),
        "our CPU ms a row": 1e3 * float(np.median(own_cpu)) / rows,
        "rows with the same mask": int((mine == other).all(axis=1).sum()),
        "peer error": problem.error(~other),
        "our error": problem.error(~mine),
    }


def _clocked(function: Callable[[], np.ndarray]) -> tuple[tuple[float, float], np.ndarray]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = function()
    return (time.perf_counter() - wall, time.process_time() - cpu), found


def main() -> None:
    parser = command.parser(__spec__, __doc__)
    parser.add_argument("problems", nargs="+", help="as for 'fwbench run'")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--enough", type=float, default=1.0, help="the parameter of `swap`; 1 for the peer's own masks")
    options = parser.parse_args()
    for selector in options.problems:
        for _, problem in load(selector):
            found = compare(problem, options.rows, options.threads, options.repeats, options.enough)
            print(problem.name, ", ".join(f"{key} {value:.6g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
