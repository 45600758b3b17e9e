"""What the benchmarks run on: real layers of ``mini``, on one thread so that loads of the machine matter less."""

from __future__ import annotations

from functools import cache

import torch

from fwbench.problem import Problem
from fwbench.problems.collections import load

V_PROJ = "n576.v_proj.whole"  # the whole layer, 192 x 576
PATTERNS = ("0.5", "2:4", "unstructured:0.5")
BLOCKS = ("n096.gate_proj.top.0.5", "n096.o_proj.random.0.5", "n128.o_proj.random.0.5", "n128.v_proj.top.2:4")


def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def mini(name: str, pattern: str = "") -> Problem:
    """The problem of ``mini`` whose name holds ``name``, under its own pattern or another."""
    [(_, problem)] = load(f"mini/*{name}*")
    return problem.with_pattern(pattern) if pattern else problem
