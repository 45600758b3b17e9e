"""Best 1-swaps of all rows of a batch at once, in torch on any device: what ``swap`` runs on a GPU.

The bound is that of ``swap_numba``, in float64: ``Q_ij ≤ c_i s_j`` with ``c_i = |w_i|`` times the largest
``|G_ij| / sqrt(G_jj)`` and ``s_j = |w_j| sqrt(G_jj)``, so a pruned ``i`` gains at best ``a_i + φ(c_i)``, where
``φ(c) = min_j b_j - 2c s_j`` is concave and lies above its chords. Lines ``i`` are examined a few at a time, the most
promising first, and only in rows where the next one may still win. Result and ties are the kernel's, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fwbench.solvers.local_search.swap_numba import ABSOLUTE_GAIN, RELATIVE_GAIN

LINES = 16  # pruned weights of a row examined together
KNOTS = 8  # values of c between which φ is bounded by chords
ENTRIES = 1 << 24  # of the largest array: rows beyond it wait for the next batch


def descend(
    W: np.ndarray,
    G: np.ndarray,
    pruned: np.ndarray,
    group: int,
    limit: int,
    gain_fraction: float,
    device: str,
    expired: Callable[[], bool],
    linear: np.ndarray | None = None,
) -> tuple[int, int, str]:
    """Best 1-swaps in each row of ``pruned (rows, n)``, in place, in float64 on the device.

    Args:
        W: ``(rows, n)``.
        G: float64 ``(n, n)``.
        pruned: bool ``(rows, n)``.
        group: neighbours within which a row's weights may be exchanged; ``n`` for the whole row.
        limit: swaps a row at most.
        gain_fraction: part of the largest gain with which an exchange is taken, in (0, 1]; 1 for the best.
        device: a CUDA device, or ``cpu``.
        expired: asked before every swap.
        linear: ``c (rows, n)`` float64 of the problem, None where it has none.

    Returns:
        Numbers of swaps and of pairs evaluated (whole lines, kept and pruned alike), and ``"deadline"`` if
        it was cut short.
    """
    gram = torch.tensor(G, dtype=torch.float64, device=device)
    coupling = strongest(gram)
    size = max(1, ENTRIES // (W.shape[1] * min(LINES if group == W.shape[1] else group, W.shape[1])))
    swaps = evaluated = 0
    for first in range(0, len(W), size):
        part = slice(first, first + size)
        batch = _Batch(
            torch.tensor(W[part], dtype=torch.float64, device=device),
            gram,
            coupling,
            pruned[part],
            group,
            gain_fraction,
            None if linear is None else linear[part],
        )
        late = False
        for _ in range(limit):
            if late := expired():
                break
            done, seen = batch.swap()
            swaps, evaluated = swaps + done, evaluated + seen
            if done == 0:
                break
        pruned[part] = batch.u.cpu().numpy()
        if late:
            return swaps, evaluated, "deadline"
    return swaps, evaluated, ""


def strongest(G: torch.Tensor) -> torch.Tensor:
    """Of each weight, the largest ``|G_ij| / sqrt(G_jj)`` of another, ``(n,)``."""
    root = G.diagonal().sqrt()
    strength = torch.where(root > 0, G.abs() / root, 0.0)
    return strength.fill_diagonal_(0.0).amax(dim=1)


def at_start(
    W: torch.Tensor, G: torch.Tensor, u: torch.Tensor, linear: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row ``Qu`` and half of the linear term ``(rows, n)``, and what rounding is measured by ``(rows,)`` twice.

    That is the error, ``cᵀu`` by its size, and the largest entry of ``Q`` and ``c``.
    """
    g = W * ((W * u) @ G)
    error, largest = (g * u).sum(dim=1).clamp(min=0), (W**2 * G.diagonal()).amax(dim=1)
    if linear is not None:
        half = torch.tensor(linear / 2, dtype=W.dtype, device=W.device)
        g += half
        error += (2 * half.abs() * u).sum(dim=1)
        largest = torch.maximum(largest, 2 * half.abs().amax(dim=1))
    return g, error, largest


class _Batch:
    """Rows under descent; those that are at their optimum are left out of the work."""

    def __init__(
        self,
        W: torch.Tensor,
        G: torch.Tensor,
        strongest: torch.Tensor,
        pruned: np.ndarray,
        group: int,
        gain_fraction: float,
        linear: np.ndarray | None = None,
    ) -> None:
        self.W, self.G, self.group, self.gain_fraction = W, G, group, gain_fraction
        self.u = torch.tensor(pruned, device=W.device)
        self.q = W**2 * G.diagonal()
        self.g, self.error, self.largest = at_start(W, G, self.u, linear)
        self.active = torch.arange(len(W), device=W.device)
        self.score = self.q.sqrt()
        self.coupling = W.abs() * strongest

    def swap(self) -> tuple[int, int]:
        """One swap in every active row that gains by one; numbers of swaps and of pairs evaluated."""
        rows = self.active
        w, u, g, q = self.W[rows], self.u[rows], self.g[rows], self.q[rows]
        a = torch.where(u, q - 2 * g, torch.inf)
        b = torch.where(u, torch.inf, q + 2 * g)
        least = -RELATIVE_GAIN * self.error[rows] - ABSOLUTE_GAIN * self.largest[rows]
        find = self._in_row if self.group == w.shape[1] else self._in_groups
        change, at, evaluated = find(w, a, b, rows, least)
        gains = at >= 0
        rows, w, change, at = rows[gains], w[gains], change[gains], at[gains]
        i, j = at // w.shape[1], at % w.shape[1]
        self.u[rows, i], self.u[rows, j] = False, True
        each = torch.arange(len(rows), device=w.device)
        self.g[rows] += w * (w[each, j][:, None] * self.G[j] - w[each, i][:, None] * self.G[i])
        self.error[rows] = (self.error[rows] + change).clamp(min=0)  # below 0 by rounding, it would never end
        self.active = rows
        return len(rows), evaluated

    def _in_groups(
        self, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor, least: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """All pairs of each group: the best change, its pair ``i n + j`` or -1, and how many pairs were evaluated."""
        n, size = w.shape[1], self.group
        shape = (len(w), n // size, size)
        blocks = self.G.reshape(n // size, size, n // size, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        grouped = w.reshape(shape)
        Q = 2 * grouped[:, :, :, None] * grouped[:, :, None, :] * blocks
        change = (a.reshape(shape)[:, :, :, None] + (b.reshape(shape)[:, :, None, :] - Q)).flatten(1)
        best = change.amin(dim=1)
        index = torch.arange(n, device=w.device).reshape(n // size, size)
        pair = (index[:, :, None] * n + index[:, None, :]).flatten()
        at = torch.where(change == best[:, None], pair, n * n).amin(dim=1)
        return best, torch.where(best < least, at, -1), change.numel()

    def _in_row(
        self, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor, least: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The same where the whole row is one group, examining lines as long as one may win."""
        n = w.shape[1]
        slack = 1e-12 * self.error[rows] + 1e-14 * self.largest[rows]
        bound, order = (a + self._best_partner(b, self.coupling[rows], self.score[rows])).sort(dim=1)
        best, at = least.clone(), torch.full_like(rows, n * n)
        evaluated = 0
        for first in range(0, n, LINES):
            cut = torch.where(at < n * n, best / self.gain_fraction, best) + slack
            more = torch.nonzero(bound[:, first] <= cut).flatten()
            if not len(more):
                break
            lines = order[more, first : first + LINES]
            x = w[more]
            Q = 2 * x.gather(1, lines)[:, :, None] * x[:, None, :] * self.G[lines]
            change = a[more].gather(1, lines)[:, :, None] + (b[more][:, None, :] - Q)
            found = change.flatten(1).amin(dim=1)
            pair = lines[:, :, None] * n + torch.arange(n, device=w.device)
            where = torch.where(change == found[:, None, None], pair, n * n).flatten(1).amin(dim=1)
            better = (found < best[more]) | ((found == best[more]) & (where < at[more]) & (at[more] < n * n))
            best[more] = torch.where(better, found, best[more])
            at[more] = torch.where(better, where, at[more])
            evaluated += change.numel()
        return best, torch.where(at < n * n, at, -1), evaluated

    @staticmethod
    def _best_partner(b: torch.Tensor, coupling: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Chords below ``φ(coupling)``, ``(rows, n)``; knots are spaced by squares, as most couplings are small."""
        top = coupling.amax(dim=1, keepdim=True).clamp(min=torch.finfo(coupling.dtype).tiny)
        grid = torch.linspace(0, 1, KNOTS, dtype=coupling.dtype, device=coupling.device) ** 2
        phi = torch.stack([(b - 2 * x * top * score).amin(dim=1) for x in grid], dim=1)
        part = (coupling / top).clamp(max=1)
        left = (torch.bucketize(part, grid, right=True) - 1).clamp(max=KNOTS - 2)
        lowest = grid.take(left)
        share = (part - lowest) / (grid.take(left + 1) - lowest)
        low, high = phi.gather(1, left), phi.gather(1, left + 1)
        return low + share * (high - low)
