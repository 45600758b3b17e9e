"""Our ``swap`` against a plain batched torch pair search, on the same rows in one run, one after the other.

    python benchmarks/peer_swap.py smollm2/07.gate_proj --rows 64

The peer looks at every (pruned, kept) pair of every row in each round, as SparseSwaps (arXiv 2512.10922) describes it:
the kind of code a pruning script would hold. It is float32 on all cores; ours is exact float64.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.scores import wanda_score
from fwbench.solvers.swap_kernel import Rows


def pair_search(W: torch.Tensor, G: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    """Best 1-swap of each row until none gains: bool ``(rows, n)``, rows finished drop out of the batch."""
    pruned = pruned.clone()
    active = torch.arange(len(W))
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


def compare(problem: Problem, rows: int, threads: int) -> dict[str, float]:
    """Seconds and final errors of both, from Wanda's mask."""
    problem = Problem(problem.name, problem.W[:rows], problem.G, problem.pattern)
    start = problem.pattern.prune(wanda_score(problem.W, problem.G))
    torch.set_num_threads(threads)
    W, G = torch.tensor(problem.W), torch.tensor(problem.G, dtype=torch.float32)
    pair_search(W[:2], G, torch.tensor(start[:2]))
    began = time.perf_counter()
    theirs = pair_search(W, G, torch.tensor(start)).numpy()
    peer = time.perf_counter() - began
    kernel = Rows(problem.W, problem.G, problem.n, threads)
    kernel.descend(start[:2].copy(), slice(0, 2), 10**9)
    began = time.perf_counter()
    ours = start.copy()
    swaps, _ = Rows(problem.W, problem.G, problem.n, threads).descend(ours, slice(0, rows), 10**9)
    own = time.perf_counter() - began
    return {
        "rows": rows,
        "n": problem.n,
        "swaps": swaps,
        "peer seconds": peer,
        "our seconds": own,
        "times faster": peer / own,
        "peer error": problem.error(~theirs),
        "our error": problem.error(~ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="+")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for selector in options.problems:
        for _, problem in load(selector):
            found = compare(problem, options.rows, options.threads)
            print(problem.name, ", ".join(f"{key} {value:.6g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
