"""``reswap`` for a CUDA device: rows side by side in torch, each by its best exchange of all, in float64.

The formulas are those of ``reswap_numba``. Rows of unlike counts are padded: a place that is none has a gain or a cost
which no exchange would take. A row that has no exchange left is taken out of its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fwbench.solvers.weight_update.reswap_numba import RELATIVE_GAIN

MATRICES = 6  # of a row's size, held at once
PART = 0.6  # of the free memory


def solve(
    W: np.ndarray,
    keep: np.ndarray,
    G: torch.Tensor,
    C: torch.Tensor,
    penalty: float,
    size: int,
    most: int,
    device: str,
    expired: Callable[[], bool],
    at_once: int = 0,
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """All rows of a layer, batch by batch.

    Args:
        W: ``(rows, n)``, the trained weights.
        keep: bool ``(rows, n)``.
        G: float64 ``(n, n)``.
        C: float64 ``(n, n)``, the inverse of ``G + penalty I``.
        penalty: on the squared change of kept weights.
        size: neighbours within which weights may be exchanged, ``n`` for the whole row.
        most: exchanges a row at most.
        device: where.
        expired: whether time is up; what is not begun then keeps its mask and its trained weights.
        at_once: rows of a batch; as many as the free memory holds if 0.

    Returns:
        The masks, the refitted weights ``(rows, n)``, the number of exchanges, and whether time was up.
    """
    keep, weights, swaps = keep.copy(), np.where(keep, W, 0).astype(np.float64), 0
    G, C = G.to(device), C.to(device)
    order = np.argsort(keep.sum(1), kind="stable")  # like counts together
    at_once = at_once or _fitting(len(C), keep.sum(1), device)
    for start in range(0, len(W), at_once):
        if expired():
            return keep, weights, swaps, True
        rows = order[start : start + at_once]
        w, before = torch.from_numpy(W[rows].astype(np.float64)).to(device), torch.from_numpy(keep[rows]).to(device)
        after, done = before.clone(), torch.zeros(len(rows), dtype=torch.int64, device=device)
        pruned = _places(~before)
        factor = _factor(C, *pruned)
        old, left = _refitted(w, before, pruned, factor, G, C, penalty)
        RefitBatch(w, before, pruned, factor, C, penalty, size).descend(after, done, most)
        pruned = _places(~after)
        new, less = _refitted(w, after, pruned, _factor(C, *pruned), G, C, penalty)
        better = (done > 0) & (less < left)  # what was carried along may have drifted
        keep[rows] = torch.where(better[:, None], after, before).cpu().numpy()
        weights[rows] = torch.where(better[:, None], new, old).cpu().numpy()
        swaps += int(done[better].sum())
    return keep, weights, swaps, False


def _fitting(n: int, kept: np.ndarray, device: str) -> int:
    """Rows that the free memory holds at once; on a CPU, where only tests come by, all."""
    if not device.startswith("cuda"):
        return max(1, len(kept))
    longest, pruned = int(kept.max()), n - int(kept.min())
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(PART * free / (8 * MATRICES * max(1, pruned) * max(longest, pruned))))


Places = tuple[torch.Tensor, torch.Tensor]


def _places(mask: torch.Tensor) -> Places:
    """Of a bool ``(rows, n)``, its columns in order, padded to the most of any row, and which are no padding."""
    most = int(mask.sum(1).max())
    index = torch.argsort(mask.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    return index, mask.gather(1, index)


def _factor(C: torch.Tensor, P: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Cholesky's of each ``C_PP``, with ones on the diagonal of the padding."""
    M = C[P[:, :, None], P[:, None, :]] * (real[:, :, None] & real[:, None, :])
    M.diagonal(dim1=1, dim2=2)[~real] = 1
    return torch.linalg.cholesky(M)


def _refitted(
    w: torch.Tensor,
    keep: torch.Tensor,
    pruned: Places,
    factor: torch.Tensor,
    G: torch.Tensor,
    C: torch.Tensor,
    penalty: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights refitted on their masks, and what is left of each row with them, the penalty included."""
    P, real = pruned
    y = torch.cholesky_solve((w.gather(1, P) * real)[:, :, None], factor)[:, :, 0]
    v = torch.where(keep, w - torch.zeros_like(w).scatter_add_(1, P, y * real) @ C, 0)
    change = w - v
    return v, ((change @ G) * change).sum(1) + penalty * (change * keep).square().sum(1)


class RefitBatch:
    """Rows that still have exchanges; names are those of ``reswap_numba``, with the rows as first axis."""

    def __init__(
        self,
        w: torch.Tensor,
        keep: torch.Tensor,
        pruned: Places,
        factor: torch.Tensor,
        C: torch.Tensor,
        penalty: float,
        size: int,
    ) -> None:
        self.C, self.penalty, self.size = C, penalty, size
        self.w, self.rows = w, torch.arange(len(w), device=w.device)
        self.P, self.p_real = pruned[0].clone(), pruned[1]  # exchanges write to the first
        self.S, self.s_real = _places(keep)
        self.B = torch.cholesky_inverse(factor)
        between = C[self.S[:, :, None], self.P[:, None, :]] * (self.s_real[:, :, None] & self.p_real[:, None, :])
        self.Z = between @ self.B
        lost = w.gather(1, self.P) * self.p_real
        self.y = (self.B @ lost[:, :, None])[:, :, 0]
        self.diagonal = self.B.diagonal(dim1=1, dim2=2).clone()
        self.r = w.gather(1, self.S) * self.s_real - (self.Z @ lost[:, :, None])[:, :, 0]
        self.sigma = torch.where(self.s_real, C.diagonal()[self.S], 1) - (self.Z * between).sum(2)
        self.error = (lost * self.y).sum(1) - penalty * lost.square().sum(1)

    def descend(self, keep: torch.Tensor, done: torch.Tensor, most: int) -> None:
        """Exchange until none gains, each row had ``most``, or its error is rounding; masks and numbers in place."""
        if not (self.P.shape[1] and self.S.shape[1]):
            return
        while most > 0 and len(self.rows):
            change, place = self._changes().flatten(1).min(1)
            gains = (self.error > 0) & (change < -RELATIVE_GAIN * self.error)
            if not bool(gains.all()):
                self._take(gains)
                change, place = change[gains], place[gains]
                if not len(self.rows):
                    break
            out, a = place // self.P.shape[1], place % self.P.shape[1]
            i = torch.arange(len(a), device=a.device)
            keep[self.rows, self.P[i, a]] = True
            keep[self.rows, self.S[i, out]] = False
            done[self.rows] += 1
            self._exchange(i, out, a)
            self.error += change
            most -= 1

    def _take(self, which: torch.Tensor) -> None:
        for name, held in vars(self).items():
            if isinstance(held, torch.Tensor) and name != "C":
                setattr(self, name, held[which])

    def _changes(self) -> torch.Tensor:
        """``(rows, s, p)``: the change of the error by each exchange."""
        inverse = 1 / self.diagonal
        gain = self.penalty * self.w.gather(1, self.P).square() - self.y.square() * inverse
        gain = torch.where(self.p_real, gain, torch.inf)
        cost = torch.where(self.s_real, self.penalty * self.w.gather(1, self.S).square(), -torch.inf)
        values = (self.Z * (self.y * inverse)[:, None]).add_(self.r[:, :, None]).square_()
        values /= self.Z.square().mul_(inverse[:, None]).add_(self.sigma[:, :, None])
        values.add_(gain[:, None]).sub_(cost[:, :, None])
        if self.size < self.w.shape[1]:
            values[(self.S // self.size)[:, :, None] != (self.P // self.size)[:, None]] = 0
        return values

    def _exchange(self, i: torch.Tensor, out: torch.Tensor, a: torch.Tensor) -> None:
        """In each row ``i`` prune the kept weight at ``out`` and keep the pruned one at ``a``."""
        enters, leaves = self.P[i, a], self.S[i, out]
        b, t, u = self.B[i, a], self.Z[i, out], self.Z[i, :, a]
        top, through = self.diagonal[i, a], t[i, a]
        value, share = self.y[i, a] / top, through / top
        schur, rest = self.sigma[i, out] + through * share, self.r[i, out] + through * value
        t -= share[:, None] * b
        t[i, a] = -1
        beside = self.C[leaves[:, None], self.P] * self.p_real
        beside[i, a] = 0
        v = self.C[leaves[:, None], self.S] * self.s_real - (self.Z @ beside[:, :, None])[:, :, 0]
        along = (b * beside).sum(1)
        self.r += u * value[:, None]
        u /= top[:, None]
        self.sigma += u.square() * top[:, None]
        v += u * along[:, None]
        self.S[i, out], self.r[i, out], self.sigma[i, out] = enters, value, 1 / top
        v[i, out] = self.C[leaves, enters] + along / top
        self.sigma -= v.square() / schur[:, None]
        v /= schur[:, None]
        self.r -= v * rest[:, None]
        u[i, out] += 1 / top  # its line is replaced by that of what enters
        v[i, out] += 1
        self.P[i, a] = leaves  # of the same group as what enters
        self.y -= value[:, None] * b + (rest / schur)[:, None] * t
        self.diagonal += t.square() / schur[:, None] - b.square() / top[:, None]
        self.y[i, a], self.diagonal[i, a] = rest / schur, 1 / schur
        pruned = torch.stack((b, t), 1)
        scaled = torch.stack((b / top[:, None], t / -schur[:, None]), 2)
        self.B.baddbmm_(scaled, pruned, alpha=-1)
        self.Z.baddbmm_(torch.stack((u, v), 2), pruned, alpha=-1)
