"""Bounds of rows in batches on a CUDA device, beside the same rows one by one on the host's cores.

    python -m benchmarks.gpu.bounds                bounds.csv
    python -m benchmarks.gpu.bounds --rows 256 'smollm2/07.gate_proj'

Each kind begins where the one below it ended, on the device as on the host. The checker proves the device's bounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.measure import write
from benchmarks.shared import command
from fwbench import machine, verify
from fwbench.bounds import group_bounds
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.solvers.bounds.batch import Device, fitting, path_of_batches
from fwbench.solvers.bounds.stage import Bound, chosen_rows
from fwbench.solvers.numerics.threads import rows_pool, torch_threads
from fwbench.solvers.semidefinite.ladder import climb, row_bound
from fwbench.solvers.semidefinite.row import RowForm, row_certificate
from fwbench.solvers.semidefinite.shor import Shor
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State

KINDS = ("shor", "dnn", "mccormick")
TOLERANCE = 3e-4


def timed(name: str, problem: Problem, rows: Sequence[int], device: str, cores: int) -> list[dict[str, Any]]:
    """A line for each kind: seconds of all rows on the device, of a few on the host, the bounds of both."""
    forms = [RowForm.of(problem, row) for row in rows]
    machine = Device(device, TOLERANCE, cores)
    size = fitting(problem.n, device)
    few = np.linspace(0, len(rows) - 1, min(cores, len(rows))).astype(int).tolist()  # a row for each core of the host
    solved: list[Shor | None] = [None] * len(rows)
    alone: list[Shor | None] = [None] * len(few)
    lines = []
    for kind in KINDS:
        began = time.perf_counter()
        found: list[Shor] = []
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            found += climb(path_of_batches(kind), forms[part], solved[part], machine)
        seconds = time.perf_counter() - began
        solved = list(found)

        def one(at: int, start: Shor | None, kind: str = kind) -> Shor:
            return row_bound(kind, forms[at], start, tolerance=TOLERANCE)

        began = time.perf_counter()
        with torch_threads(cores), rows_pool(min(cores, len(few))) as pool:
            single = list(pool.map(one, few, alone))
        host = time.perf_counter() - began
        alone = list(single)
        ratios = [found[at].proof.bound / other.proof.bound for at, other in zip(few, single, strict=True)]
        checked, check_s, lower = proved(problem, rows, found)
        lines.append(
            {
                "layer": name, "rows": len(rows), "n": problem.n, "kind": kind, "at_once": size, "seconds": seconds,
                "row_ms": 1e3 * seconds / len(rows), "host_rows": len(few),
                "host_row_ms": 1e3 * host / len(few),
                "least_ratio": min(ratios), "greatest_ratio": max(ratios), "converged": sum(f.converged for f in found),
                "lower": lower, "verified": checked, "verify_s": check_s,
                "device_peak_mb": torch.cuda.max_memory_allocated() / 1e6 if device != "cpu" else 0.0,
            }
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def proved(problem: Problem, rows: Sequence[int], found: Sequence[Shor]) -> tuple[str, float, float]:
    """What the checker says of the rows' certificate, its seconds, and the layer's bound."""
    keep = ~problem.pattern.prune(wanda_score(problem.W, problem.G))
    shared = Bound(kind="shared", seconds=60).run(problem, State(keep=keep), Context()).certificate
    assert shared is not None
    lower = np.maximum(group_bounds(problem, shared.arrays["u"], shared.arrays["e"]), 0.0)
    proofs = {row: one.proof for row, one in zip(rows, found, strict=True) if one.proof.lower > lower[row]}
    for row, proof in proofs.items():
        lower[row] = proof.lower
    began = time.perf_counter()
    checked = verify.check(problem, row_certificate(shared, proofs, float(lower.sum()), "gpu_bounds"))
    return "proved" if checked.ok else checked.reason, time.perf_counter() - began, float(lower.sum())


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--rows", default="all", help="of each layer, as `fwbench certify` takes them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("layers", nargs="*", default=["smollm2/13.v_proj"])
    given = parser.parse_args()
    cores = int(machine.describe()["cores"])
    lines = []
    for layer in given.layers:
        for _, problem in load(layer):
            rows = chosen_rows(given.rows, problem.rows)
            lines += timed(layer.rpartition("/")[2], problem, rows, given.device, cores)
            write(given.out / "bounds.csv", lines)


if __name__ == "__main__":
    main()
