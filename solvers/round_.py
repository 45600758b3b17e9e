"""Rounding: from a fractional point to a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register

METHODS = ("topk",)


@register
@dataclass(frozen=True)
class Round(Stage):
    """Prune the weights whose relaxed value is largest: the exact count in each group, ties to the lower index."""

    name: ClassVar[str] = "round"
    role: ClassVar[Role] = Role.ROUND
    source: ClassVar[str] = "Roux et al., SparseFW, arXiv 2510.13713, section 3"
    method: str = "topk"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        if state.relaxed is None:
            raise ValueError("there is no fractional point to round")
        keep = ~problem.pattern.prune(-np.asarray(state.relaxed))
        return replace(state, keep=keep, relaxed=None)
