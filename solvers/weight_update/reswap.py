"""1-swaps under refitted weights: the mask that is best once the kept weights answer for the pruned ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.solvers.numerics import lapack
from fwbench.solvers.numerics.threads import rows_pool
from fwbench.solvers.weight_update.refit import raised
from fwbench.solvers.weight_update.reswap_numba import RELATIVE_GAIN, descend, lower, submatrix
from fwbench.stage import Context, Role, Stage, State, register

SINGULAR = 1e12  # an input's variance over what is left of it once the others explain it: beyond this, rounding
CHUNK_ROWS = 64  # rows multiplied together
WHOLE = 256  # rows of up to so many weights are searched whole
CHOSEN, PART = 160, 1 / 6  # of longer ones so many weights at a time, or this part of them if that is more
ROUNDS = 8  # choices of a row's weights at most
ENOUGH = 1e-2  # of a row's error: a round that gains less is the last
PROMISED = 3e-4  # of it: what the next round must promise
HALVES = 2  # and their complements, by which to tell what half of the inputs leaves of the others' variances
FIRST, LAST = 4, 10  # steps of conjugate gradients before the first round and after the last
CLOSE = 1e-6  # of a row's error: how far it may be from that of the refit
ROUNDING = {"float32": 1e-6, "float64": RELATIVE_GAIN}  # of a row's error: exchanges that gain less are none


@register
@dataclass(frozen=True)
class Reswap(Stage):
    """Exchange one pruned and one kept weight of a row while that lowers the error left after ``refit``, then refit.

    A row of up to 256 weights ends at a mask that no exchange improves: partial swap inescapable, as Hazimeh and
    Mazumder call it for subset selection. Of a longer one the most promising weights, a sixth, are so exchanged
    while all others stay on their side, others in the next round, until a round gains less than 1 % or the next one
    promises less than 0.03 %; that in float32.
    Begins from the mask at hand, from Wanda's where there is none. On CUDA rows descend side by side, each whole. A row
    that time does not reach keeps its mask. Counts over the layer stay those of each row. A target moves the weights to
    begin with, by ``T (G + λI)⁻¹``; on the mask at the end they are ``refit``'s. What removing the weights ``P`` costs
    then, ``w_Pᵀ (C_PP)⁻¹ w_P`` with ``C = (G + λI)⁻¹``, is the closed form of Zhao et al.'s multiple removal problem:
    they choose ``P`` by single costs, exchanges lower the form itself.
    """

    ridge: float = 1e-3  # relative to the mean diagonal of G, towards the trained weights; as ``refit``'s
    limit: int = 0  # exchanges a row at most; 0 for as many as it takes

    name: ClassVar[str] = "reswap"
    role: ClassVar[Role] = Role.UPDATE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For the least error with update; not where ADMM's is enough, it takes four to five times as long."
    )
    version: ClassVar[int] = 4  # ends where no round promises more
    source: ClassVar[str] = (
        "Hazimeh and Mazumder, Oper. Res. 68(5), 2020; Hassibi and Stork 1992; Zhao et al., 2410.15567"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge!r}")
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
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
            scaled = Scaled(shared, size)

            def some(first: int) -> tuple[int, bool]:
                """Exchanges in some rows, and whether time was up."""
                if context.expired():
                    return 0, True
                rows = slice(first, first + CHUNK_ROWS)
                keep[rows], weights[rows], done, cut = scaled.solve(W[rows], keep[rows], most, context.expired)
                return done, cut

            with rows_pool(context.threads) as pool:
                found = list(pool.map(some, range(0, problem.rows, CHUNK_ROWS)))
            swaps, late = sum(done for done, _ in found), any(cut for _, cut in found)
        if problem.T is not None:  # exchanges take the ridge's λ|w|² of what is pruned at the moved weights
            trained = np.where(state.mask, problem.W, 0)
            worse = problem.weight_errors(weights) > problem.weight_errors(trained)
            keep[worse], weights[worse] = state.mask[worse], trained[worse]
        after = replace(state, keep=keep, relaxed=None, weights=weights.astype(np.float32))
        return replace(after, stopped="deadline" if late else "").count(swaps=swaps)


class Shared:
    """What all rows share: ``G``, the ridge ``λ`` and ``C = (G + λI)⁻¹``, with ``λ`` raised until there is one.

    The inverse of a singular ``G`` that rounding lets pass is none: its blocks could not be factorised. It is computed
    where it is asked for: most need no more than to know that there is one.
    """

    def __init__(self, G: torch.Tensor, mean: float, ridge: float) -> None:
        self.G = G
        while True:
            self.penalty = ridge * mean
            damped = G + self.penalty * torch.eye(len(G), dtype=G.dtype)
            variances = damped.diagonal().clone()
            if lapack.cholesky(damped):
                self._factor = damped
                if float(variances.max()) <= SINGULAR * self.penalty:  # no variance that is left is below the penalty
                    return
                if float((variances * inverse_diagonal(damped)).max()) <= SINGULAR:
                    return
            ridge = raised(ridge)

    @cached_property
    def C(self) -> torch.Tensor:
        """``(n, n)``."""
        return lapack.inverse(self._factor.clone())


@dataclass
class Rows:
    """Some rows under descent, in units where ``H`` has ones on its diagonal; float64 ``(rows, n)``."""

    W: np.ndarray
    V: np.ndarray  # the weights now, zero where pruned
    R: np.ndarray  # (W - V) H
    keep: np.ndarray  # bool
    cost: np.ndarray  # λ w²

    def errors(self) -> np.ndarray:
        """``(rows,)``, the penalty on the change of kept weights included."""
        return ((self.W - self.V) * self.R).sum(1) - (self.cost * ~self.keep).sum(1)


class Scaled:
    """``H = G + λI`` with ones on its diagonal, and what rows do with it."""

    def __init__(self, shared: Shared, size: int) -> None:
        G = shared.G.numpy()
        self.scale = 1 / np.sqrt(G.diagonal() + shared.penalty)
        self.H = G * self.scale * self.scale[:, None]
        np.fill_diagonal(self.H, 1.0)
        self.rough = self.H.astype(np.float32)
        self.penalty = shared.penalty * self.scale**2
        self.left = unexplained(self.H)
        _compile_rough()
        self.size = size

    def solve(
        self, W: np.ndarray, keep: np.ndarray, most: int, expired: Callable[[], bool]
    ) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """The masks and weights of some rows after their exchanges, of the first and the last mask the better; how many
        exchanges there were, and whether time was up before they had ended.
        """
        W = W / self.scale
        unit = np.abs(W).max(axis=1, keepdims=True)
        unit[unit == 0] = 1.0
        W /= unit
        rows = Rows(W, W * keep, np.empty_like(W), keep.copy(), self.penalty * W**2)
        self.refine(rows, FIRST)
        before, swaps = rows.errors(), np.zeros(len(W), np.int64)
        busy = np.flatnonzero(keep.any(1) & ~keep.all(1) & (before > 0))
        late = False
        for number in range(ROUNDS):
            errors, gained = rows.errors(), np.zeros(len(W))
            gain, loss = self.alone(rows)
            if number:
                busy = busy[self.promised(gain[busy], loss[busy]) > PROMISED * errors[busy]]
            for row in busy:
                if late := expired():
                    break
                chosen = self.promising(gain[row], loss[row])
                done, gained[row] = self.round(rows, int(row), chosen, errors[row], most - int(swaps[row]))
                swaps[row] += done
            np.matmul(W - rows.V, self.H, out=rows.R)
            busy = busy[gained[busy] > ENOUGH * errors[busy]]
            if late or W.shape[1] <= WHOLE or not busy.size:
                break
        self.refine(rows, LAST)
        self.finish(rows)
        worse = (swaps > 0) & ~(rows.errors() < before)  # what was carried along may have drifted
        if worse.any():
            first = Rows(W[worse], (W * keep)[worse], rows.R[worse], keep[worse], rows.cost[worse])
            self.refine(first, LAST)
            self.finish(first)
            rows.keep[worse], rows.V[worse], swaps[worse] = first.keep, first.V, 0
        return rows.keep, rows.V * self.scale * unit, int(swaps.sum()), late

    def refine(self, rows: Rows, steps: int) -> None:
        """Steps of conjugate gradients towards the refit, in float32 from a residual in float64."""
        np.matmul(rows.W - rows.V, self.H, out=rows.R)
        rest, keep = (rows.R * rows.keep).astype(np.float32), rows.keep.astype(np.float32)
        along, square = rest.copy(), (rest**2).sum(1)
        for _ in range(steps):
            product = (along @ self.rough) * keep
            curvature = (along * product).sum(1)
            step = np.divide(square, curvature, out=np.zeros_like(square), where=curvature > 0)[:, None]
            rows.V += step * along
            rest -= step * product
            last, square = square, (rest**2).sum(1)
            along *= np.divide(square, last, out=np.zeros_like(square), where=last > 0)[:, None]
            along += rest
        np.matmul(rows.W - rows.V, self.H, out=rows.R)

    def finish(self, rows: Rows) -> None:
        """Solve the rows not yet proved close to their refit: no eigenvalue of ``H`` is below the least ``λ``."""
        rest = ((rows.R * rows.keep) ** 2).sum(1)
        for row in np.flatnonzero(rest > CLOSE * self.penalty.min() * np.maximum(rows.errors(), 0)):
            S = np.flatnonzero(rows.keep[row])
            factor = torch.from_numpy(lower(self.H, S))
            if not lapack.cholesky(factor):
                raise ArithmeticError("reswap: the kept weights cannot be solved for to rounding; raise `ridge`")
            right = rows.W[row] @ self.H[:, S]
            rows.V[row, S] = lapack.solve(factor, torch.from_numpy(right)).numpy()
        np.matmul(rows.W - rows.V, self.H, out=rows.R)

    def round(
        self, rows: Rows, row: int, chosen: tuple[np.ndarray, np.ndarray], error: float, most: int
    ) -> tuple[int, float]:
        """Exchanges among some kept and some pruned weights of a row, ``chosen``, and what they gain."""
        J, A = chosen
        if not (J.size and A.size):
            return 0, 0.0
        stay = rows.keep[row].copy()
        stay[J] = False
        S = np.flatnonzero(stay)
        for H in (self.rough, self.H) if S.size else (self.H,):
            found = self._among(H, rows, row, S, J, A, error, most)
            if found is not None:
                return found
        return 0, 0.0

    def alone(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """About what keeping each pruned weight and pruning each kept one would add to the error, by themselves;
        infinite for the others.
        """
        gain = np.where(rows.keep, np.inf, rows.cost - rows.R**2 / self.left)
        return gain, np.where(rows.keep, rows.V**2 * self.left - rows.cost, np.inf)

    def promised(self, gain: np.ndarray, loss: np.ndarray) -> np.ndarray:
        """What all exchanges of some rows might gain together, ``(rows,)``: the best with the best of each group."""
        shape = (len(gain), gain.shape[1] // self.size, self.size)
        changes = np.sort(gain.reshape(shape)) + np.sort(loss.reshape(shape))
        return -np.minimum(changes, 0).sum((1, 2))

    def promising(self, gain: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kept and the pruned weights of a row whose exchange may gain most, in the order of their groups."""
        n = gain.size
        most = n if n <= WHOLE else max(CHOSEN, int(n * PART))
        counts = [min(most // 2 if most < n else n, int(np.isfinite(value).sum())) for value in (loss, gain)]
        if self.size < n:  # with the best partner
            groups = np.arange(0, n, self.size)
            best_in, best_out = np.minimum.reduceat(gain, groups), np.minimum.reduceat(loss, groups)
            of = np.arange(n) // self.size
            gain, loss = gain + best_out[of], loss + best_in[of]
        parts = [
            np.sort(np.argpartition(value, count - 1)[:count]) if count else np.zeros(0, np.int64)
            for value, count in zip((loss, gain), counts, strict=True)
        ]
        return parts[0], parts[1]

    def _among(
        self, H: np.ndarray, rows: Rows, row: int, S: np.ndarray, J: np.ndarray, A: np.ndarray, error: float, most: int
    ) -> tuple[int, float] | None:
        """The same in the precision of ``H``; None where that does not hold the row."""
        v, rest, T = rows.V[row], rows.R[row], np.concatenate((J, A))
        m, was = T.size, v[J].astype(H.dtype)
        # the target's correlations once the weights of S, as they are, have had their part
        X = np.empty((m + 1, S.size), H.dtype)
        X[:m] = submatrix(H, T, S)
        X[m] = rest[S] + was @ X[: J.size]
        D = np.empty((m + 1, m + 1), H.dtype)
        D[:m, :m] = submatrix(H, T, T)
        D[m, :m] = D[:m, m] = rest[T] + was @ D[: J.size, :m]
        D[m, m] = 0
        if S.size:
            factor, whitened = torch.from_numpy(lower(H, S)), torch.from_numpy(X)
            if not lapack.cholesky(factor):
                return None
            lapack.half(factor, whitened)
            D -= lapack.gram(whitened, of_rows=True).numpy()
        M = tableau(D, J.size)
        if M is None:
            return None
        groups = T // self.size
        first, last = (np.searchsorted(groups[J.size :], groups[: J.size], side) for side in ("left", "right"))
        cost = rows.cost[row, T].astype(H.dtype)
        order = np.arange(m)
        swaps, gain = descend(M, J.size, cost, first, last, order, error, ROUNDING[H.dtype.name], most)
        if not np.isfinite(gain):
            return None
        kept, now, T = order[: J.size], M[: J.size, m], T[order]
        if S.size:
            change = (X[m] - now @ X[kept])[None]
            v[S] += lapack.half(factor, torch.from_numpy(change), back=True).numpy()[0]
        rows.keep[row, T[: J.size]], rows.keep[row, T[J.size :]] = True, False
        v[T[: J.size]], v[T[J.size :]] = now, 0
        return swaps, gain


@cache
def _compile_rough() -> None:
    """The kernels in float32: a short row, such as a warm-up has, asks for those in float64 only."""
    none, one = np.zeros(0, np.int64), np.eye(1, dtype=np.float32)
    submatrix(one, none, none)
    lower(one, none)
    descend(one, 0, one[0, :0], none, none, none, 1.0, ROUNDING["float32"], 0)


def inverse_diagonal(factor: torch.Tensor) -> torch.Tensor:
    """Of the matrix whose factor ``lapack.cholesky`` left, the inverse's diagonal, ``(n,)``."""
    return lapack.half(factor, torch.eye(len(factor), dtype=factor.dtype)).square_().sum(1)


def unexplained(H: np.ndarray) -> np.ndarray:
    """Of each input's variance what is left once half of the others explain it: the mean of some halves, ``(n,)``."""
    n, rng = len(H), np.random.default_rng(0)
    logs, times = np.zeros(n), np.zeros(n)
    for _ in range(HALVES):
        order = rng.permutation(n)
        for S in (np.sort(order[: -(-n // 2)]), np.sort(order[n // 2 :])):
            factor = torch.from_numpy(lower(H, S))
            if lapack.cholesky(factor):
                logs[S] -= np.log(inverse_diagonal(factor).numpy())
                times[S] += 1
    return np.exp(logs / np.maximum(times, 1))


def tableau(D: np.ndarray, kept: int) -> np.ndarray | None:
    """``D`` swept on its first ``kept``; None if those are not definite."""
    M = torch.from_numpy(D)
    factor = M[:kept, :kept].contiguous()
    if not lapack.cholesky(factor):
        return None
    inverse, across = lapack.inverse(factor), M[:kept, kept:].contiguous()
    through = lapack.product(inverse, across)
    M[:kept, :kept], M[:kept, kept:], M[kept:, :kept] = -inverse, through, through.mT
    M[kept:, kept:] -= lapack.product(across.mT.contiguous(), through)
    return D
