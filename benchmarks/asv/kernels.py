"""Seconds of the kernels on mini's whole v_proj layer (192 x 576)."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from fwbench import bounds, verify
from fwbench.problem import Problem
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.semidefinite.shared_diagonal import shared_e
from fwbench.solvers.start.greedy import Greedy
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

from .mini import PATTERNS, V_PROJ, mini, one_thread

ITERATIONS = 20  # a call; the first and the last also compute the bound
ROUNDS = 5  # of which the ratio takes the fastest


class Kernels:
    """Everything a solver repeats, for each kind of pattern."""

    params = PATTERNS
    param_names = ("pattern",)

    def setup(self, pattern: str) -> None:
        one_thread()
        self.problem = mini(V_PROJ, pattern)
        self.context = Context(threads=1)
        self.wanda = Wanda().run(self.problem, State(), self.context)
        self.layer = loop.Objective.of(self.problem, self.context)
        self.start = torch.tensor(~self.wanda.keep, dtype=torch.float32)
        self.gradient = self.layer.gradient(self.start, self.layer.product(self.start))
        self.u = loop.minimise(self.layer, self.start, loop.LoopOptions(steps=50), self.context).u.numpy()

    def time_lmo(self, pattern: str) -> None:
        self.problem.pattern.prune(self.gradient)

    def time_fw_20_iterations(self, pattern: str) -> None:
        iterate(self.layer, self.start, self.context)

    def time_bound(self, pattern: str) -> None:
        bounds.lower_bound(self.problem, self.u)


class Stages:
    """Whole stages; numba has compiled them before the clock starts."""

    params = PATTERNS
    param_names = ("pattern",)
    number = 1
    rounds = 1
    repeat = 2

    def setup(self, pattern: str) -> None:
        one_thread()
        self.problem = mini(V_PROJ, pattern)
        self.context = Context(threads=1)
        self.wanda = Wanda().run(self.problem, State(), self.context)
        small = Problem("small", np.ones((2, 8)), np.eye(8), pattern)
        Swap().run(small, Wanda().run(small, State(), self.context), self.context)
        Greedy().run(small, State(), self.context)

    def time_greedy(self, pattern: str) -> None:
        Greedy().run(self.problem, State(), self.context)

    def time_swap_from_wanda(self, pattern: str) -> None:
        Swap().run(self.problem, self.wanda, self.context)


class Proofs:
    """Making and checking a certificate."""

    number = 1
    rounds = 1
    repeat = 2

    def setup(self) -> None:
        one_thread()
        self.problem = mini(V_PROJ)
        self.u = (~Wanda().run(self.problem, State(), Context()).keep) * 0.5 + 0.25
        self.certificate = bounds.certificate(self.problem, self.u)

    def time_shared_e(self) -> None:
        shared_e(self.problem, self.u)

    def time_certificate(self) -> None:
        bounds.certificate(self.problem, self.u)

    def time_verify(self) -> None:
        verify.check(self.problem, self.certificate)


class Products:
    """The yardstick of an iteration: one product of all rows with G, which no iteration can do without."""

    def setup(self) -> None:
        one_thread()
        self.layer = loop.Objective.of(mini(V_PROJ), Context())
        self.start = torch.full_like(self.layer.W, 0.5)

    def time_20_gemms(self) -> None:
        multiply(self.layer, self.start)

    def track_fw_over_gemm(self) -> float:
        """An iteration's seconds over its product's, both at their fastest."""
        return fastest(iterate, self.layer, self.start, Context()) / fastest(multiply, self.layer, self.start)

    track_fw_over_gemm.unit = "ratio"


def iterate(layer: loop.Objective, start: torch.Tensor, context: Context) -> None:
    loop.minimise(layer, start, loop.LoopOptions(steps=ITERATIONS), context)


def multiply(layer: loop.Objective, start: torch.Tensor) -> None:
    for _ in range(ITERATIONS):
        start @ layer.G


def fastest(function: Callable[..., object], *arguments: object) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = perf_counter()
        function(*arguments)
        seconds.append(perf_counter() - began)
    return min(seconds)
