"""Stages of a pipeline on a CUDA device beside the host's cores, whole layers of block 7.

    python -m benchmarks.gpu.stages        stages.csv

The second of two runs counts on the device, whose kernels the first one compiles.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.measure import problems, write
from benchmarks.shared import command
from fwbench import machine, pipeline
from fwbench.problem import Problem

LAYERS = ("k_proj", "o_proj", "gate_proj", "down_proj")
SPECS = ("fast", "wanda+swap+tabu(iterations=3000)", "wanda+swap+refit", "wanda+swap+reswap", "wanda+swap+admm")
SPECS += ("sparsegpt",)


def timed(name: str, problem: Problem, spec: str, device: str, cores: int) -> list[dict[str, Any]]:
    """A line for each stage of the spec."""
    solver = pipeline.resolve(spec)
    pipeline.run(problem, solver, device=device, threads=cores)
    there = pipeline.run(problem, solver, device=device, threads=cores).result
    pipeline.warm_up(pipeline.Run(problem, solver))
    here = pipeline.run(problem, solver, threads=cores).result
    pairs = zip(there.stages, here.stages, strict=True)
    return [
        {
            "layer": name, "rows": problem.rows, "n": problem.n, "spec": spec, "stage": one.stage,
            "device_s": one.seconds, "host_s": other.seconds, "device_error": there.error, "host_error": here.error,
        }
        for one, other in pairs
    ]  # fmt: skip


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("layers", nargs="*", default=LAYERS)
    given = parser.parse_args()
    cores = int(machine.describe()["cores"])
    lines: list[dict[str, Any]] = []
    layers = problems()
    for name in given.layers:
        for spec in SPECS:
            lines += timed(name, layers[name], spec, given.device, cores)
            print(lines[-1], flush=True)
            write(given.out / "stages.csv", lines)


if __name__ == "__main__":
    main()
