"""1-swap refinement: exchange one pruned and one kept weight of a group while that lowers the error.

With ``g = 2Qu + c`` the exchange of pruned ``i`` and kept ``j`` of one row changes the error by ``a_i + b_j - 2Q_ij``,
``a_i = Q_ii - g_i``, ``b_j = Q_jj + g_j``; between two rows, which do not interact, by ``a_i + b_j``.
(SparseSwaps, arXiv 2512.10922, eq. 6, in pruned indicators.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class Swap(Stage):
    """Repeat the best 1-swap of each row until none lowers the error: ends at a proven 1-swap optimum.

    On CUDA all rows descend side by side; swaps between rows, for a count over the layer, stay on the CPU. With
    ``enough=0.1`` a swap is taken as soon as no other of its row can gain more than ten times as much, which is faster
    and ends at slightly more error. In N:M groups it is always the best.
    ``limit``: most swaps of one row, 0 for as many as it takes (``T_max`` of SparseSwaps, 100 by its reviews); where
    rows share a count, an exchange between two rows is one of each.
    Transposable masks change by two rows and two columns of a block at once: always the best one, on the CPU.
    """

    name: ClassVar[str] = "swap"
    role: ClassVar[Role] = Role.REFINE
    advice: ClassVar[str] = (
        "After any mask: it is fast and never makes one worse; not alone where seconds do not count, `tabu` goes "
        "on from its end."
    )
    version: ClassVar[int] = 2  # other masks than version 1 with ``enough`` below 1 only
    source: ClassVar[str] = "Zimmer et al., SparseSwaps, arXiv 2512.10922"
    enough: float = 1.0  # part of the largest gain with which a swap is taken; in (0, 1]
    limit: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.enough <= 1:
            raise ValueError("enough is in (0, 1]")
        if self.limit < 0:
            raise ValueError("limit must not be negative; 0 is for no limit")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        from fwbench.solvers.local_search import swap_numba as kernel

        pruned = ~state.mask
        group = problem.group
        limit = self.limit or np.iinfo(np.int64).max
        if not problem.pattern.grouped:
            return self._exchange(problem, state, context, pruned, limit)
        shared = not problem.pattern.separable  # a count over the rows: the CPU goes on, and knows how many each made
        if context.device.startswith("cuda") and not (shared and self.limit):
            descend = descent_on_device(problem.n, group)
            rest = (self.enough, context.device, context.expired, problem.linear)
            swaps, evaluated, stopped = descend(problem.W, problem.G, pruned, group, limit, *rest)
            rows = None
        else:
            rows = kernel.Descent(problem.W, problem.G, group, context.threads, self.enough, problem.linear)
            swaps, evaluated, stopped = rows.descend_all(pruned, limit, context.expired)
        if shared and not stopped:
            rows = rows or kernel.Descent(problem.W, problem.G, group, context.threads, self.enough, problem.linear)
            done, more, stopped = rows.exchange(pruned, limit, context.expired)
            swaps, evaluated = swaps + done, evaluated + more
        return replace(state, keep=~pruned, stopped=stopped).count(swaps=swaps, swap_evaluations=evaluated)

    def _exchange(self, problem: Problem, state: State, context: Context, pruned: np.ndarray, limit: int) -> State:
        from fwbench.solvers.local_search import exchange_numba

        size, given = problem.pattern.tied(problem.shape), (context.threads, context.expired, problem.linear)
        swaps, evaluated, stopped = exchange_numba.descend(problem.W, problem.G, pruned, size, limit, *given)
        return replace(state, keep=~pruned, stopped=stopped).count(swaps=swaps, swap_evaluations=evaluated)


def descent_on_device(n: int, group: int) -> Callable[..., tuple[int, int, str]]:
    """The descent for a CUDA device: a kernel that holds a row where there is Triton and the row fits, else batches."""
    from fwbench.solvers.local_search import swap_torch

    if find_spec("triton"):
        from fwbench.solvers.local_search import swap_triton

        if swap_triton.fits(n, group):
            return swap_triton.descend
    return swap_torch.descend
