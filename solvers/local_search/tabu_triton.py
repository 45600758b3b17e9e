"""Tabu search on a CUDA device in Triton: a program holds a row, its memory and its random numbers.

The moves of ``tabu_numba``, one for one but for rounding; float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from fwbench.solvers.local_search.swap_numba import RELATIVE_GAIN


@triton.jit
def _corrected(margin, count, wanted):
    return tl.where(count > 2 * wanted, margin * 0.8, tl.where(count < wanted, margin * 1.25, margin))


@triton.jit
def _best_in_row(
    G_, sign, change, free, ins, outs, column, aspired, n, BLOCK: tl.constexpr
):  # fmt: skip
    """The least change over candidates ``ins`` x ``outs``: neither tabu, or below ``aspired``; and its pair or -1."""
    top = tl.cast(float("inf"), change.dtype)
    best_i = -1
    best_j = -1
    i = tl.min(tl.where(ins, column, BLOCK), axis=0)
    while i < n:
        here = column == i
        line = tl.load(G_ + i.to(tl.int64) * n + column, outs, other=0)
        own = tl.sum(tl.where(here, change, 0.0), axis=0)
        side = tl.sum(tl.where(here, sign, 0.0), axis=0)
        open_ = tl.sum((here & free).to(tl.int32), axis=0) > 0
        value = own + change + 2 * side * sign * line
        value = tl.where(outs & ((value < aspired) | (free & open_)), value, float("inf"))
        found, j = tl.min(value, axis=0, return_indices=True)
        better = found < top
        best_i, best_j = tl.where(better, i, best_i), tl.where(better, j, best_j)
        top = tl.where(better, found, top)
        i = tl.min(tl.where(ins & (column > i), column, BLOCK), axis=0)
    return top, best_i, best_j


@triton.jit
def _of_partner(x, k, place, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Of each entry, that of the ``k``-th of its group."""
    parts = tl.reshape(x, (BLOCK // SIZE, SIZE))
    taken = tl.sum(tl.where(place == k, parts, 0), axis=1)[:, None]
    return tl.reshape(tl.broadcast_to(taken, (BLOCK // SIZE, SIZE)), (BLOCK,))


@triton.jit
def _best_in_groups(
    G_, sign, change, free, now, inside, column, aspired, n, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The same over all pairs of each group of ``SIZE`` neighbours."""
    place = tl.arange(0, SIZE)[None, :]
    least = tl.full((BLOCK,), float("inf"), change.dtype)
    partner = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(SIZE):
        other = column // SIZE * SIZE + k
        entry = tl.load(G_ + column.to(tl.int64) * n + other, inside, other=0)
        kept = _of_partner(now.to(tl.int32), k, place, SIZE, BLOCK) == 0
        open_ = free & (_of_partner(free.to(tl.int32), k, place, SIZE, BLOCK) != 0)
        value = change + _of_partner(change, k, place, SIZE, BLOCK)
        value += 2 * sign * _of_partner(sign, k, place, SIZE, BLOCK) * entry
        value = tl.where(inside & now & kept & ((value < aspired) | open_), value, float("inf"))
        partner = tl.where(value < least, other, partner)
        least = tl.minimum(value, least)
    top, i = tl.min(least, axis=0, return_indices=True)
    j = tl.sum(tl.where(column == i, partner, 0), axis=0)
    found = top < float("inf")
    return top, tl.where(found, i, -1), tl.where(found, j, -1)


@triton.jit
def _next(x):
    """xorshift64 (Marsaglia 2003), uint64."""
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    return x


@triton.jit(do_not_specialize=["first", "stop", "wanted", "tenure", "spread"])
def _walk(
    w_, G_, diagonal_, now_, best_, y_, barred_, error_, least_, margin_in_, margin_out_, random_, swaps_, evaluated_,
    n, first, stop, wanted, tenure, spread, relative, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Iterations ``first:stop`` of one row."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < n
    at = row.to(tl.int64) * n + column
    w = tl.load(w_ + at, inside, other=0)
    own = w * w * tl.load(diagonal_ + column, inside, other=0)
    now = tl.load(now_ + at, inside, other=0) != 0
    best = tl.load(best_ + at, inside, other=0) != 0
    y = tl.load(y_ + at, inside, other=0)
    barred = tl.load(barred_ + at, inside, other=0)
    error = tl.load(error_ + row)
    least = tl.load(least_ + row)
    margin_in = tl.load(margin_in_ + row)
    margin_out = tl.load(margin_out_ + row)
    x = tl.load(random_ + row).to(tl.uint64, bitcast=True)
    swaps = 0
    evaluated = tl.cast(0, tl.int64)
    iteration = first
    while iteration < stop:
        sign = tl.where(now, w, -w)
        change = own - 2 * sign * y
        free = barred < iteration
        aspired = least - error - relative * tl.abs(least)
        if SIZE == 1:
            low_in = tl.min(tl.where(inside & now & free, change, float("inf")), axis=0) + margin_in
            low_out = tl.min(tl.where(inside & (~now) & free, change, float("inf")), axis=0) + margin_out
            ins = inside & now & (change <= low_in)
            outs = inside & (~now) & (change <= low_out)
            count_in = tl.sum(ins.to(tl.int32), axis=0)
            count_out = tl.sum(outs.to(tl.int32), axis=0)
            margin_in = _corrected(margin_in, count_in, wanted)
            margin_out = _corrected(margin_out, count_out, wanted)
            evaluated += count_in.to(tl.int64) * count_out
            top, i, j = _best_in_row(G_, sign, change, free, ins, outs, column, aspired, n, BLOCK)
        else:
            pruned = tl.sum(tl.reshape((inside & now).to(tl.int64), (BLOCK // SIZE, SIZE)), axis=1)
            kept = tl.sum(tl.reshape((inside & (~now)).to(tl.int64), (BLOCK // SIZE, SIZE)), axis=1)
            evaluated += tl.sum(pruned * kept, axis=0)
            top, i, j = _best_in_groups(G_, sign, change, free, now, inside, column, aspired, n, SIZE, BLOCK)
        if i >= 0:
            frees = tl.sum(tl.where(column == i, w, 0.0), axis=0)
            takes = tl.sum(tl.where(column == j, w, 0.0), axis=0)
            line_i = tl.load(G_ + i.to(tl.int64) * n + column, inside, other=0)
            line_j = tl.load(G_ + j.to(tl.int64) * n + column, inside, other=0)
            y += takes * line_j - frees * line_i
            now = (now & (column != i)) | (column == j)
            error += top
            swaps += 1
            x = _next(x)
            held = tenure + (((x >> 32) * (spread + 1).to(tl.uint64)) >> 32).to(tl.int32)
            barred = tl.where(column == i, iteration + held, barred)
            x = _next(x)
            held = tenure + (((x >> 32) * (spread + 1).to(tl.uint64)) >> 32).to(tl.int32)
            barred = tl.where(column == j, iteration + held, barred)
            record = error < least - relative * tl.abs(least)
            best = tl.where(record, now, best)
            least = tl.where(record, error, least)
        iteration += 1
    tl.store(now_ + at, now.to(tl.uint8), inside)
    tl.store(best_ + at, best.to(tl.uint8), inside)
    tl.store(y_ + at, y, inside)
    tl.store(barred_ + at, barred, inside)
    tl.store(error_ + row, error)
    tl.store(least_ + row, least)
    tl.store(margin_in_ + row, margin_in)
    tl.store(margin_out_ + row, margin_out)
    tl.store(random_ + row, x.to(tl.int64, bitcast=True))
    tl.store(swaps_ + row, swaps)
    tl.store(evaluated_ + row, evaluated)


@dataclass
class TabuState:
    """State of the search in all rows, on the device; as ``tabu_numba.TabuState``."""

    W: torch.Tensor  # float64 (rows, n)
    G: torch.Tensor  # float64 (n, n)
    now: torch.Tensor  # uint8 (rows, n), 1 = pruned
    record: torch.Tensor  # uint8 (rows, n)
    y: torch.Tensor  # float64 (rows, n)
    barred: torch.Tensor  # int32 (rows, n)
    error: torch.Tensor  # float64 (rows,), and so are the next three
    least: torch.Tensor
    margin_in: torch.Tensor
    margin_out: torch.Tensor
    random: torch.Tensor  # int64 (rows,), bits of uint64
    group: int

    @classmethod
    def begin(
        cls,
        W: np.ndarray,
        G: np.ndarray,
        pruned: np.ndarray,
        group: int,
        random: np.ndarray,
        device: str,
        T: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> TabuState:
        """As ``tabu_numba.TabuState.begin``; ``swap_triton.fits`` says which rows fit."""
        weights, gram = (torch.tensor(x, dtype=torch.float64, device=device) for x in (W, G))
        now = torch.tensor(pruned, dtype=torch.uint8, device=device)
        y = (weights * now) @ gram
        error = (weights * now * y).sum(dim=1)
        margin = 1e-3 * error / W.shape[1]
        if T is not None:
            shift, constant = (torch.tensor(x, dtype=torch.float64, device=device) for x in (T, offset))
            error = error + (2 * (weights * now * shift).sum(dim=1) + constant)
            y += shift
        barred = torch.full(W.shape, -1, dtype=torch.int32, device=device)
        bits = torch.tensor(random.view(np.int64), device=device)
        return cls(
            weights, gram, now, now.clone(), y, barred, error, error.clone(), margin, margin.clone(), bits, group
        )

    @property
    def best(self) -> np.ndarray:
        return self.record.bool().cpu().numpy()

    def walk(self, first: int, stop: int, candidates: int, tenure: int, spread: int) -> tuple[int, int]:
        """Iterations ``first:stop``; numbers of swaps and of pairs evaluated."""
        rows, n = self.W.shape
        size = self.group if self.group < n else 1
        block = max(triton.next_power_of_2(n), size)
        swaps = torch.zeros(rows, dtype=torch.int32, device=self.W.device)
        evaluated = torch.zeros(rows, dtype=torch.int64, device=self.W.device)
        _walk[(rows,)](
            self.W, self.G, self.G.diagonal().contiguous(), self.now, self.record, self.y, self.barred, self.error,
            self.least, self.margin_in, self.margin_out, self.random, swaps, evaluated, n, first, stop, candidates,
            tenure, spread, RELATIVE_GAIN, SIZE=size, BLOCK=block, num_warps=max(1, min(16, block // 128)),
        )  # fmt: skip
        return int(swaps.sum()), int(evaluated.sum())
