"""1-swaps under refitted weights: the mask that is best once the kept weights answer for the pruned ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.solvers.weight_update.refit import raised
from fwbench.stage import Context, Role, Stage, State, register

if TYPE_CHECKING:
    import torch

SINGULAR = 1e12  # an input's variance over what is left of it once the others explain it: beyond this, rounding


@register
@dataclass(frozen=True)
class Reswap(Stage):
    """Exchange one pruned and one kept weight of a row while that lowers the error left after ``refit``, then refit.

    Ends, row by row, at a mask that no exchange improves: partial swap inescapable, as Hazimeh and Mazumder call it for
    subset selection. Begins from the mask at hand, from Wanda's where there is none. ``n³`` operations for each row and
    ``n²`` for each exchange; on CUDA rows descend side by side. A row that time does not reach keeps its mask. Counts
    over the layer stay those of each row. A target moves the weights to begin with, by ``T (G + λI)⁻¹``; on the mask at
    the end they are ``refit``'s.
    """

    ridge: float = 1e-3  # relative to the mean diagonal of G, towards the trained weights; as ``refit``'s
    limit: int = 0  # exchanges a row at most; 0 for as many as it takes

    name: ClassVar[str] = "reswap"
    role: ClassVar[Role] = Role.UPDATE
    version: ClassVar[int] = 2  # exchanges are the best of a block, not of all
    source: ClassVar[str] = "Hazimeh and Mazumder, Operations Research 68(5), 2020; Hassibi and Stork 1992"

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge!r}")
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        import torch

        from fwbench.solvers.numerics.threads import workers

        keep, weights = np.array(state.mask), np.where(state.mask, problem.W, 0).astype(np.float64)
        mean = float(problem.G.diagonal().mean())
        swaps, late = 0, False
        size = problem.group
        most = self.limit or np.iinfo(np.int64).max
        shared = Shared(torch.from_numpy(problem.G.copy()), mean, self.ridge) if mean > 0 else None
        W = problem.W if shared is None or problem.T is None else problem.W + problem.T @ shared.C.numpy()
        if shared is not None and context.device.startswith("cuda"):
            from fwbench.solvers.weight_update import reswap_torch

            rest = (shared.G, shared.C, shared.penalty, size, most, context.device, context.expired)
            keep, weights, swaps, late = reswap_torch.solve(W, keep, *rest)
        elif shared is not None:

            def one(row: int) -> int:
                """Exchanges in one row; -1 if there was no time."""
                if context.expired():
                    return -1
                done, keep[row], weights[row] = shared.solve(W[row].astype(np.float64), keep[row], size, most)
                return done

            with workers(context.threads, problem.rows) as over:
                found = over(one, range(problem.rows))
            swaps, late = sum(max(done, 0) for done in found), -1 in found
        if problem.T is not None:  # exchanges take the ridge's λ|w|² of what is pruned at the moved weights
            trained = np.where(state.mask, problem.W, 0)
            worse = problem.weight_errors(weights) > problem.weight_errors(trained)
            keep[worse], weights[worse] = state.mask[worse], trained[worse]
        after = replace(state, keep=keep, relaxed=None, weights=weights.astype(np.float32))
        return replace(after, stopped="deadline" if late else "").count(swaps=swaps)


class Shared:
    """What all rows share: ``G``, the ridge ``λ`` and ``C = (G + λI)⁻¹``, with ``λ`` raised until there is one.

    The inverse of a singular ``G`` that rounding lets pass is none: its blocks could not be factorised.
    """

    def __init__(self, G: torch.Tensor, mean: float, ridge: float) -> None:
        import torch

        self.G = G
        while True:
            self.penalty = ridge * mean
            damped = G + self.penalty * torch.eye(len(G), dtype=G.dtype)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed):
                self.C = torch.cholesky_inverse(factor).contiguous()
                if float((damped.diagonal() * self.C.diagonal()).max()) <= SINGULAR:
                    return
            ridge = raised(ridge)

    def solve(self, w: np.ndarray, keep: np.ndarray, size: int, most: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Exchanges in one row, its mask and its weights after them: of the first and the last mask the better."""
        import torch

        from fwbench.solvers.numerics import lapack
        from fwbench.solvers.weight_update.reswap_numba import descend, submatrix

        P, S = np.flatnonzero(~keep), np.flatnonzero(keep)
        if not (P.size and S.size):
            return 0, keep, np.where(keep, w, 0)
        C = self.C.numpy()
        factor = _factor(C, P)
        weights, left = self._refitted(w, P, S, factor)
        B, across = lapack.inverse(factor), submatrix(C, S, P)
        Z = lapack.product(torch.from_numpy(across), B)
        swaps: int = descend(w, C, B.numpy(), Z.numpy(), across, P, S, size, self.penalty, most)
        others, less = self._refitted(w, P, S, _factor(C, P))
        if not (swaps and less < left):  # what was carried along may have drifted
            return 0, keep, weights
        changed = np.ones_like(keep)
        changed[P] = False
        return swaps, changed, others

    def _refitted(self, w: np.ndarray, P: np.ndarray, S: np.ndarray, factor: torch.Tensor) -> tuple[np.ndarray, float]:
        """The weights ``(n,)`` on the mask that keeps ``S``, and what is left with them, the penalty included."""
        import torch

        from fwbench.solvers.numerics import lapack

        spread = torch.zeros(w.size, dtype=torch.float64)
        spread[torch.from_numpy(P)] = lapack.solve(factor, torch.from_numpy(w[P]))
        v = w - (self.C @ spread).numpy()
        v[P] = 0
        change = torch.from_numpy(w - v)
        return v, float(change @ (self.G @ change) + self.penalty * (change[S] ** 2).sum())


def _factor(C: np.ndarray, P: np.ndarray) -> torch.Tensor:
    """``C_PP`` as ``lapack.cholesky`` leaves it."""
    import torch

    from fwbench.solvers.numerics import lapack
    from fwbench.solvers.weight_update.reswap_numba import submatrix

    factor = torch.from_numpy(submatrix(C, P, P))
    if not lapack.cholesky(factor):
        raise ArithmeticError("reswap: the inverse of G is not positive definite to rounding; raise `ridge`")
    return factor
