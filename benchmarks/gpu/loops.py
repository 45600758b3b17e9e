"""The CUDA path on a CUDA device: iterations against the bare product, swaps against the plain search, TF32's loss.

    python -m benchmarks.gpu.loops        machine.csv, iterations.csv, swaps.csv, tf32.csv

Real layers: block 7 of SmolLM2-135M, pattern 0.5. Times are medians over repeats, by the device's own events where the
host is not part of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.measure import DEVICE, on_device, on_host, problems, write
from benchmarks.peers.swap import pair_search
from benchmarks.shared import command
from fwbench import machine, pipeline
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.loop_torch import minimise_torch
from fwbench.solvers.frank_wolfe.loop_triton import LOOK, Loop
from fwbench.solvers.frank_wolfe.push import middle
from fwbench.solvers.local_search import swap_torch, swap_triton
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context


def iterations(name: str, problem: Problem, dtype: str, tf32: bool) -> list[dict[str, Any]]:
    """An iteration of each kind of vanilla loop beside its one product."""
    context = Context(DEVICE, dtype)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    plain = loop.Objective.of(problem, context)
    curved = loop.Objective.of(problem, context, 0.1 * problem.W.astype(np.float64) ** 2 * problem.G.diagonal())
    start = torch.tensor(middle(problem), dtype=plain.W.dtype, device=DEVICE)
    fixed = torch.tensor(np.random.default_rng(0).random(problem.shape) < 0.45, device=DEVICE)
    kinds = {
        "SparseFW (open, 0.9 fixed)": (plain, loop.LoopOptions(LOOK, "open", fixed=fixed)),
        "line search": (plain, loop.LoopOptions(LOOK)),
        "push (line search, concave term)": (curved, loop.LoopOptions(LOOK)),
    }
    rows = []
    for kind, (layer, options) in kinds.items():
        work = Loop(layer, options)
        work.begin(start, layer.d)

        def products(work: Loop = work) -> None:
            for _ in range(LOOK):
                torch.mm(work.P, work.layer.G, out=work.T)

        def steps(work: Loop = work) -> None:
            for offset in range(LOOK):
                work.step(offset, check=offset + 1 == LOOK)

        def kernels(work: Loop = work) -> None:
            for offset in range(LOOK):
                work.launch(offset, move=True, check=offset + 1 == LOOK)

        product, step, kernel = (on_device(piece, LOOK) for piece in (products, steps, kernels))
        host = 1e6 * on_host(steps, 5) / LOOK
        torch_loop = 1e6 * on_host(lambda layer=layer, o=options: minimise_torch(layer, start, o, context), 1) / LOOK
        rows.append(
            {
                "layer": name, "rows": problem.rows, "n": problem.n, "dtype": "tf32" if tf32 else dtype, "loop": kind,
                "product_us": product, "kernel_us": kernel, "iteration_us": step, "ratio": step / product,
                "without_graph_us": host, "torch_loop_us": torch_loop,
            }
        )  # fmt: skip
    torch.backends.cuda.matmul.allow_tf32 = False
    return rows


def swaps(name: str, problem: Problem) -> dict[str, Any]:
    """Descents from Wanda's mask: the plain search, the batches, the kernel."""
    start = problem.pattern.prune(wanda_score(problem.W, problem.G))
    W, G = torch.tensor(problem.W, device=DEVICE), torch.tensor(problem.G, dtype=torch.float32, device=DEVICE)
    found: dict[str, np.ndarray] = {}

    def plain() -> None:
        found["plain"] = pair_search(W, G, torch.tensor(start, device=DEVICE)).cpu().numpy()

    def ours(kind: str, descend: Callable, enough: float = 1.0) -> Callable[[], None]:
        def work() -> None:
            pruned = start.copy()
            descend(problem.W, problem.G, pruned, problem.n, 10**9, enough, DEVICE, lambda: False)
            found[kind] = pruned

        return work

    seconds = {
        "plain": on_host(plain, 1),
        "batches": on_host(ours("batches", swap_torch.descend), 1),
        "kernel": on_host(ours("kernel", swap_triton.descend), 3),
        "kernel_0.1": on_host(ours("kernel_0.1", swap_triton.descend, 0.1), 3),
    }
    errors = {kind: problem.error(~pruned) for kind, pruned in found.items()}
    same = {kind: int((found[kind] == found["plain"]).all(axis=1).sum()) for kind in ("batches", "kernel")}
    return {
        "layer": name, "rows": problem.rows, "n": problem.n, "wanda_error": problem.error(~start),
        **{f"{kind}_s": value for kind, value in seconds.items()},
        **{f"{kind}_error": value for kind, value in errors.items()},
        **{f"{kind}_same_masks": value for kind, value in same.items()},
    }  # fmt: skip


def precision(name: str, problem: Problem) -> list[dict[str, Any]]:
    """The judge's errors of whole pipelines, products in float32 and in TF32."""
    rows = []
    for spec in ("sparsefw", "fast"):
        solver = pipeline.resolve(spec)
        row: dict[str, Any] = {"layer": name, "spec": spec}
        for kind, tf32 in (("float32", False), ("tf32", True)):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            pipeline.run(problem, solver, device=DEVICE)
            result = pipeline.run(problem, solver, device=DEVICE).result
            row |= {f"{kind}_error": result.error, f"{kind}_s": result.seconds}
            stages = {record.stage: record.seconds for record in result.stages}
            row[f"{kind}_stages"] = " ".join(f"{stage}:{seconds:.4f}" for stage, seconds in stages.items())
        torch.backends.cuda.matmul.allow_tf32 = False
        rows.append(row)
    return rows


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    layers = problems()
    device = torch.cuda.get_device_name()
    write(out / "machine.csv", [{"device": device, "torch": torch.__version__, **machine.describe()}])
    timed = [("gate_proj", "float32", False), ("down_proj", "float32", False), ("k_proj", "float32", False)]
    timed += [("gate_proj", "float32", True), ("down_proj", "float32", True), ("gate_proj", "float64", False)]
    write(
        out / "iterations.csv",
        [row for name, dtype, tf32 in timed for row in iterations(name, layers[name], dtype, tf32)],
    )
    write(out / "swaps.csv", [swaps(name, layers[name]) for name in ("o_proj", "gate_proj", "down_proj")])
    write(out / "tf32.csv", [row for name, problem in layers.items() for row in precision(name, problem)])
    for file in ("iterations", "swaps", "tf32"):
        print((out / f"{file}.csv").read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
