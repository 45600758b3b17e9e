"""1-swap descent on a CUDA device in Triton: a program holds a row and swaps on until none of its pairs gains.

The bound of ``swap_torch``, and the same result: lines ``i`` one at a time, the most promising first, as long as the
next one may still win; in groups of N:M, where lines are short, every pair. float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import triton
import triton.language as tl

from fwbench.solvers.local_search.swap_numba import ABSOLUTE_GAIN, RELATIVE_GAIN
from fwbench.solvers.local_search.swap_torch import at_start, strongest

KNOTS = 8  # values of c between which φ is bounded by chords
SWAPS = 64  # of a row in one launch: between two looks at the clock
MOST = 1 << 13  # entries of a row that fit into a program's registers


def fits(n: int, group: int) -> bool:
    """Whether rows of ``n`` weights in groups of ``group`` can be descended here; ``swap_torch`` can do any."""
    return 0 < n <= MOST and (group == n or not group & (group - 1))


@triton.jit
def _best_in_row(
    w_, G_, w, a, b, coupling, score, column, inside, least, slack, gain_fraction, n, KNOTS: tl.constexpr
):  # fmt: skip
    """The best change below ``least``, its pair ``(i, j)`` (-1 for none), and how many lines were examined."""
    top = tl.maximum(tl.max(coupling, axis=0), 1e-300)
    part = tl.minimum(coupling / top, 1.0)
    chord = tl.full(part.shape, float("inf"), w.dtype)
    left = tl.cast(0.0, w.dtype)
    low = tl.min(b, axis=0)
    for knot in tl.static_range(1, KNOTS):  # φ is concave: the least of its chords, drawn out, is the one at hand
        right = tl.cast((knot / (KNOTS - 1)) ** 2, w.dtype)  # spaced by squares, as most couplings are small
        high = tl.min(b - 2 * right * top * score, axis=0)
        chord = tl.minimum(chord, low + (part - left) / (right - left) * (high - low))
        left, low = right, high
    bound = a + tl.where(inside, chord, 0.0)
    best = least
    best_i = -1
    best_j = -1
    lines = 0
    hope, i = tl.min(bound, axis=0, return_indices=True)
    while hope <= (best / tl.where(best_i >= 0, gain_fraction, 1.0)) + slack:
        weight = tl.load(w_ + i)
        change = tl.sum(tl.where(column == i, a, 0.0), axis=0) + (
            b - 2 * weight * w * tl.load(G_ + i.to(tl.int64) * n + column, inside, other=0)
        )
        found, j = tl.min(change, axis=0, return_indices=True)
        tie = (found == best) & (best_i >= 0) & (i < best_i)
        better = (found < best) | tie
        best_i, best_j = tl.where(better, i, best_i), tl.where(better, j, best_j)
        best = tl.where(better, found, best)
        bound = tl.where(column == i, float("inf"), bound)
        lines += 1
        hope, i = tl.min(bound, axis=0, return_indices=True)
    return best, best_i, best_j, lines


@triton.jit
def _best_in_groups(
    G_, w, a, b, column, inside, least, n, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The same over all pairs of each group of ``SIZE`` neighbours; every one of the ``n`` lines is examined."""
    weights = tl.reshape(w, (BLOCK // SIZE, SIZE))
    taken = tl.reshape(b, (BLOCK // SIZE, SIZE))
    place = tl.arange(0, SIZE)[None, :]
    best_change = tl.full((BLOCK,), float("inf"), w.dtype)
    best_partner = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(SIZE):
        other = tl.sum(tl.where(place == k, weights, 0.0), axis=1)[:, None]
        add = tl.sum(tl.where(place == k, taken, 0.0), axis=1)[:, None]
        other = tl.reshape(tl.broadcast_to(other, (BLOCK // SIZE, SIZE)), (BLOCK,))
        add = tl.reshape(tl.broadcast_to(add, (BLOCK // SIZE, SIZE)), (BLOCK,))
        partner = column // SIZE * SIZE + k
        entry = tl.load(G_ + column.to(tl.int64) * n + partner, inside, other=0)
        change = a + (add - 2 * w * other * entry)
        best_partner = tl.where(change < best_change, partner, best_partner)
        best_change = tl.minimum(change, best_change)
    best, i = tl.min(best_change, axis=0, return_indices=True)
    j = tl.sum(tl.where(column == i, best_partner, 0), axis=0)
    gains = best < least
    return tl.where(gains, best, least), tl.where(gains, i, -1), tl.where(gains, j, -1), n


@triton.jit(do_not_specialize=["limit"])
def _descend(
    w_, G_, diagonal_, strongest_, u_, g_, error_, largest_, swaps_, lines_, n, limit, relative, absolute,
    gain_fraction, SIZE: tl.constexpr, KNOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """At most ``limit`` swaps in one row; fewer mean that it is at its optimum."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < n
    at = row.to(tl.int64) * n + column
    w = tl.load(w_ + at, inside, other=0)
    q = w * w * tl.load(diagonal_ + column, inside, other=0)
    coupling = tl.abs(w) * tl.load(strongest_ + column, inside, other=0)
    score = tl.sqrt(q)
    u = tl.load(u_ + at, inside, other=0) != 0
    g = tl.load(g_ + at, inside, other=0)
    error = tl.load(error_ + row)
    largest = tl.load(largest_ + row)
    pruned = tl.sum(u.to(tl.int32), axis=0)
    swaps = 0
    lines = 0
    going = (pruned > 0) & (pruned < n) & (limit > 0)
    while going:
        a = tl.where(u, q - 2 * g, float("inf"))
        b = tl.where(u | (column >= n), float("inf"), q + 2 * g)
        least = -relative * error - absolute * largest
        if SIZE > 1:
            best, i, j, seen = _best_in_groups(G_, w, a, b, column, inside, least, n, SIZE, BLOCK)
        else:
            slack = 1e-12 * error + 1e-14 * largest
            best, i, j, seen = _best_in_row(
                w_ + row.to(tl.int64) * n,
                G_,
                w,
                a,
                b,
                coupling,
                score,
                column,
                inside,
                least,
                slack,
                gain_fraction,
                n,
                KNOTS,
            )
        lines += seen
        if i >= 0:
            u = (u & (column != i)) | (column == j)
            frees = tl.sum(tl.where(column == i, w, 0.0), axis=0)
            takes = tl.sum(tl.where(column == j, w, 0.0), axis=0)
            line_i = tl.load(G_ + i.to(tl.int64) * n + column, inside, other=0)
            line_j = tl.load(G_ + j.to(tl.int64) * n + column, inside, other=0)
            g += w * (takes * line_j - frees * line_i)
            error = tl.maximum(error + best, 0.0)  # below 0 by rounding, it would never end
            swaps += 1
        going = (i >= 0) & (swaps < limit)
    tl.store(u_ + at, u.to(tl.uint8), inside)
    tl.store(g_ + at, g, inside)
    tl.store(error_ + row, error)
    tl.store(swaps_ + row, swaps)
    tl.store(lines_ + row, lines)


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
    """As ``swap_torch.descend``, which says what the arguments are; the clock is asked before every ``SWAPS`` swaps."""
    rows, n = W.shape
    weights, gram = (torch.tensor(x, dtype=torch.float64, device=device) for x in (W, G))
    u = torch.tensor(pruned, dtype=torch.uint8, device=device)
    g, error, largest = at_start(weights, gram, u, linear)
    diagonal, coupling = gram.diagonal().contiguous(), strongest(gram)
    size = group if group < n else 1
    block = max(triton.next_power_of_2(n), size)
    active, swaps, evaluated, stopped = torch.arange(rows, device=device), 0, 0, ""
    left = limit
    while len(active) and left > 0:
        if expired():
            stopped = "deadline"
            break
        at_most = min(SWAPS, left)
        part_w, part_u, part_g, part_error = (x[active].contiguous() for x in (weights, u, g, error))
        done, lines = (torch.zeros(len(active), dtype=torch.int32, device=device) for _ in range(2))
        _descend[(len(active),)](
            part_w, gram, diagonal, coupling, part_u, part_g, part_error, largest[active], done, lines, n, at_most,
            RELATIVE_GAIN, ABSOLUTE_GAIN, gain_fraction, SIZE=size, KNOTS=KNOTS, BLOCK=block,
            num_warps=max(1, min(16, block // 128)),
        )  # fmt: skip
        u[active], g[active], error[active] = part_u, part_g, part_error
        swaps += int(done.sum())
        evaluated += int(lines.sum()) * (group if size > 1 else n)
        active = active[done == at_most]
        left -= at_most
    pruned[:] = u.bool().cpu().numpy()
    return swaps, evaluated, stopped
