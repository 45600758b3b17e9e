"""Time pipelines, one JSON line of standard input after the other, with whichever fwbench Python finds.

    echo '{"layer": "q_proj", "pattern": "0.5", "n": 576, "rows": 0, "spec": "admm"}' | python -m benchmarks.speed.cells

``layer`` is one of block 7 of SmolLM2; empty for a synthetic one of ``n`` inputs with the spectrum of its down_proj.
``rows`` 0 is all of them. Answers with CPU seconds, judging included, and the judged error.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from functools import cache

import numpy as np

from benchmarks.shared import command
from benchmarks.shared.threads import one_thread
from fwbench import pipeline
from fwbench.patterns import parse
from fwbench.problem import Problem
from fwbench.problems.collections import one


@cache
def layer(name: str, n: int) -> Problem:
    if name:
        return one(f"smollm2/07.{name}")[1]
    real = one("smollm2/07.down_proj")[1].G
    root = np.sqrt(real.diagonal())
    values = np.maximum(np.linalg.eigvalsh(real / root / root[:, None])[::-1], 1e-9)
    places = np.linspace(0, len(values) - 1, n)
    spectrum = np.exp(np.interp(places, np.arange(len(values)), np.log(values)))
    rng = np.random.default_rng(n)
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    half = basis * np.sqrt(spectrum) * np.exp(rng.normal(0, 0.5, (n, 1)))
    return Problem(f"spectrum-{n}", rng.standard_normal((192, n)), half @ half.T, parse("0.5"), {"model": "synthetic"})


@cache
def compiled(spec: str, pattern: str) -> None:
    """Run it once on a row of a real layer, which may ask for other kernels than a short one."""
    whole = layer("q_proj", 0)
    pipeline.run(replace(whole, W=whole.W[:1]).with_pattern(pattern), pipeline.resolve(spec), threads=1)


def answer(name: str, pattern: str, n: int, rows: int, spec: str) -> dict[str, float]:
    whole = layer(name, n)
    problem = replace(whole, W=whole.W[: rows or None]).with_pattern(pattern)
    solver = pipeline.resolve(spec)
    compiled(spec, pattern)
    began = time.process_time()
    result = pipeline.run(problem, solver, threads=1).result
    seconds = time.process_time() - began
    if result.error is None:
        raise SystemExit(f"{problem.name}: {spec} failed ({result.reason})")
    return {"seconds": seconds, "error": result.error, "rows": problem.rows}


def main() -> None:
    command.parser(__spec__, __doc__).parse_args() if __spec__ else None  # run by its path, it has no options
    one_thread()
    for text in sys.stdin:
        cell = json.loads(text)
        print(json.dumps(answer(cell["layer"], cell["pattern"], cell["n"], cell["rows"], cell["spec"])), flush=True)


if __name__ == "__main__":
    main()
