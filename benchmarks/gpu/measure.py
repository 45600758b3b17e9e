"""What the studies of this folder share: their layers, clocks of a CUDA device, and files."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fwbench.problem import Problem
from fwbench.problems.extract import extract
from fwbench.problems.models import load_model
from fwbench.problems.text import load_text

BLOCK, PATTERN = 7, "0.5"
REPEATS = 20
DEVICE = "cuda"


def problems() -> dict[str, Problem]:
    """The layers of the block, by their last names."""
    found = extract(load_model("smollm2"), load_text("lee"), [BLOCK], pattern=PATTERN)
    return {problem.name.rpartition(".")[2]: problem for problem in found}


def on_device(work: Callable[[], Any], count: int) -> float:
    """Microseconds of one of the ``count`` pieces of ``work``: median of ``REPEATS`` replays of its graph."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / count)
    return statistics.median(times)


def on_host(work: Callable[[], Any], repeats: int) -> float:
    """Median of the wall seconds of ``work``, the device's included."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file of rows that have the same fields; numbers to five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
