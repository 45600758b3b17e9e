"""Sparsity patterns: which masks are allowed, their polytope's linear minimisation oracle, and top-k rounding.

Every pattern but one is the same thing seen through a reshape: it cuts the layer ``(rows, n)`` into groups of equal
size and prunes an exact count in each. Per row the groups are the rows, unstructured there is one, and in N:M a group
is M neighbours. So one function, "prune the count smallest in each group", is the oracle, the rounding and the greedy
mask at once. Ties go to the lower index (row-major). Transposable N:M counts along the columns too: its oracle is a
transportation problem for each block (``transport``), and whoever exchanges weights within groups must decline it.

Arrays are numpy's or torch's; torch is never imported here (array-api-compat finds the namespace of what it is given).
"""

from __future__ import annotations

import codecs
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from fwbench.patterns import transport

Array = Any  # numpy.ndarray or torch.Tensor
Shape = tuple[int, int]  # (rows, n)

DRIFT = 1e-5  # of a count: float32 sums of a relaxed point wander on ill-scaled rows
PROJECTED, MOST_PROJECTIONS = 1e-9, 10_000  # where the projection on a transposable pattern's polytope ends


class PatternError(ValueError):
    """A pattern that cannot be read, or does not fit a layer; the message is one line."""


@dataclass(frozen=True)
class Pattern:
    """Base of the five patterns. Subclasses say how the layer is cut into groups."""

    @property
    def separable(self) -> bool:
        """True if no count spans two rows: rows are then independent problems that share G."""
        return True

    @property
    def grouped(self) -> bool:
        """True if the counts of its groups are all that it asks: weights of a group may then be exchanged."""
        return True

    def tied(self, shape: Shape) -> int:
        """Number of neighbouring rows whose counts hang together: 1 where rows are independent."""
        return 1

    def group_size(self, shape: Shape) -> int:
        """Number of neighbouring (row-major) weights in a group."""
        return shape[1]

    def counts(self, shape: Shape) -> np.ndarray:
        """Pruned count of each group, int64 ``(groups,)``.

        Raises:
            PatternError: the pattern does not fit a layer of this shape.
        """
        raise NotImplementedError(type(self).__name__)

    def groups(self, x: Array) -> Array:
        """View ``(..., rows, n)`` as ``(..., groups, size)``."""
        size = self.group_size((x.shape[-2], x.shape[-1]))
        return x.reshape((*x.shape[:-2], x.shape[-2] * x.shape[-1] // size, size))

    def prune(self, score: Array, share: float = 1.0) -> Array:
        """Prune the lowest scores: bool ``(..., rows, n)``, True = pruned, the exact count in each group.

        With ``score`` the gradient this is the linear minimisation oracle over the polytope (a vertex), with
        ``score = -u`` it is top-k rounding, with a saliency it is the greedy mask. With a ``share`` in [0, 1] only that
        part of each count is pruned, rounded.
        """
        grouped = self.groups(score)
        counts = np.round(share * self.counts((score.shape[-2], score.shape[-1]))).astype(np.int64)
        return smallest(grouped, counts).reshape(score.shape)

    def nearest(self, weights: Array, share: float = 1.0) -> Array:
        """Prune so that the weights that are left are nearest to these, in squares: bool ``(..., rows, n)``, exact."""
        return self.prune(abs(weights), share)

    def excess(self, u: Array) -> Array:
        """How much more than its count each sum is that the pattern fixes, float64; ``u (rows, n)``, 1 = pruned.

        The sums of the groups, in their order; of a transposable pattern those of the columns' groups behind them.
        """
        return _excess(self.groups(u), self.counts((u.shape[0], u.shape[1])))

    def row_counts(self, shape: Shape) -> np.ndarray:
        """Pruned count of each row, int64 ``(rows,)``, where the pattern fixes it.

        Raises:
            PatternError: the pattern counts over the layer, or does not fit.
        """
        return self.counts(shape).reshape(shape[0], -1).sum(axis=1)


@dataclass(frozen=True)
class PerRow(Pattern):
    """``0.6``: exactly ``round(0.6 n)`` weights of each row are pruned."""

    fraction: float

    def __str__(self) -> str:
        return _shortest(self.fraction)

    def counts(self, shape: Shape) -> np.ndarray:
        return np.full(shape[0], round(self.fraction * shape[1]), dtype=np.int64)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """``unstructured:0.6``: exactly ``round(0.6 rows n)`` weights of the layer are pruned."""

    fraction: float

    def __str__(self) -> str:
        return f"unstructured:{_shortest(self.fraction)}"

    @property
    def separable(self) -> bool:
        return False

    def tied(self, shape: Shape) -> int:
        return shape[0]

    def group_size(self, shape: Shape) -> int:
        return shape[0] * shape[1]

    def counts(self, shape: Shape) -> np.ndarray:
        return np.array([round(self.fraction * shape[0] * shape[1])], dtype=np.int64)

    def row_counts(self, shape: Shape) -> np.ndarray:
        raise PatternError(f"pattern {self} does not fix the count of a row")


@dataclass(frozen=True)
class NM(Pattern):
    """``2:4``: of each M consecutive weights of a row, N are kept and M - N pruned."""

    kept: int
    of: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    def group_size(self, shape: Shape) -> int:
        return self.of

    def counts(self, shape: Shape) -> np.ndarray:
        if shape[1] % self.of:
            raise PatternError(f"pattern {self} does not fit: {self.of} does not divide the {shape[1]} inputs")
        return np.full(shape[0] * shape[1] // self.of, self.of - self.kept, dtype=np.int64)


@dataclass(frozen=True)
class Transposable(Pattern):
    """``transposable:2:4``: in each M×M block every row and every column keeps N, so W and its transpose are N:M.

    A backward pass multiplies by the transpose, which is then as fast (Hubara et al., NeurIPS 2021, arXiv 2102.08124;
    TSENOR, arXiv 2505.23949). Its groups are those of N:M, and the columns have the same.
    """

    kept: int
    of: int

    def __str__(self) -> str:
        return f"transposable:{self.kept}:{self.of}"

    @property
    def separable(self) -> bool:
        return False

    @property
    def grouped(self) -> bool:
        return False

    def tied(self, shape: Shape) -> int:
        return self.of

    def group_size(self, shape: Shape) -> int:
        return self.of

    def counts(self, shape: Shape) -> np.ndarray:
        """Of the rows' groups; each group of a column has the same."""
        for size, what in ((shape[1], "inputs"), (shape[0], "rows")):
            if size % self.of:
                raise PatternError(f"pattern {self} does not fit: {self.of} does not divide the {size} {what}")
        return np.full(shape[0] * shape[1] // self.of, self.of - self.kept, dtype=np.int64)

    def blocks(self, x: Array) -> Array:
        """``(..., rows, n)`` as ``(blocks, M, M)``, row by row of blocks."""
        xp, (rows, n), of = array_namespace(x), x.shape[-2:], self.of
        self.counts((rows, n))
        cut = xp.reshape(x, (-1, rows // of, of, n // of, of))
        return xp.reshape(xp.permute_dims(cut, (0, 1, 3, 2, 4)), (-1, of, of))

    def whole(self, blocks: Array, shape: tuple[int, ...]) -> Array:
        """What :meth:`blocks` cut, whole again: ``shape`` is ``(..., rows, n)``."""
        xp, (rows, n), of = array_namespace(blocks), shape[-2:], self.of
        cut = xp.reshape(blocks, (-1, rows // of, n // of, of, of))
        return xp.reshape(xp.permute_dims(cut, (0, 1, 3, 2, 4)), shape)

    def prune(self, score: Array, share: float = 1.0) -> Array:
        """Prune where the sum of the scores is least: bool ``(..., rows, n)``, True = pruned, exact (``transport``)."""
        count = round(share * (self.of - self.kept))
        return self.whole(transport.least(self.blocks(score), count), score.shape)

    def nearest(self, weights: Array, share: float = 1.0) -> Array:
        return self.prune(weights * weights, share)  # sums of absolute values have another minimum

    def excess(self, u: Array) -> Array:
        counts = self.counts((u.shape[0], u.shape[1]))
        xp = array_namespace(u)
        return xp.concat([_excess(self.groups(u), counts), _excess(self.groups(u.T), counts)])


@dataclass(frozen=True, eq=False)
class Rows(Pattern):
    """``rows:FILE``: a pruned count for each row of its own."""

    pruned: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        given = np.asarray(self.pruned)
        if given.ndim != 1 or given.dtype.kind not in "iuf" or not np.isfinite(given).all() or np.any(given % 1):
            raise PatternError("pattern rows: the counts must be a list of whole numbers, one for each row")
        pruned = np.array(given, dtype=np.int64)
        pruned.setflags(write=False)
        object.__setattr__(self, "pruned", pruned)

    def __str__(self) -> str:
        return f"rows:{hashlib.sha256(self.pruned.tobytes()).hexdigest()[:12]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and np.array_equal(self.pruned, other.pruned)

    def __hash__(self) -> int:
        return hash(self.pruned.tobytes())

    def counts(self, shape: Shape) -> np.ndarray:
        if self.pruned.shape != (shape[0],):
            raise PatternError(f"pattern {self} has {self.pruned.size} counts for a layer of {shape[0]} rows")
        if self.pruned.min(initial=0) < 0 or self.pruned.max(initial=0) > shape[1]:
            raise PatternError(f"pattern {self} has a count outside 0..{shape[1]}")
        return self.pruned


def project(pattern: Pattern, u: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """The nearest point of the pattern's polytope, float64 ``(rows, n)``, counts exact to rounding.

    ``clip(u - t, 0, 1)`` in each group, with ``t`` found by bisection (the capped simplex: Wang and Lu 2015). Groups
    inside [0, 1] whose sum is within ``tolerance`` of their count stay as they are. Transposable: see below.
    """
    if isinstance(pattern, Transposable):
        return _project_blocks(pattern, u, tolerance)
    x = pattern.groups(np.asarray(u, dtype=np.float64))
    counts = pattern.counts((u.shape[-2], u.shape[-1]))[:, None]
    off = np.abs(x.sum(axis=1, keepdims=True) - counts) > tolerance
    off |= ((x < 0) | (x > 1)).any(axis=1, keepdims=True)
    if not off.any():
        return x.reshape(u.shape)
    moved, wanted = x[off[:, 0]], counts[off[:, 0]]
    low, high = moved.min(axis=1, keepdims=True) - 1, moved.max(axis=1, keepdims=True)
    for _ in range(60):
        t = (low + high) / 2
        too_many = np.clip(moved - t, 0, 1).sum(axis=1, keepdims=True) > wanted
        low, high = np.where(too_many, t, low), np.where(too_many, high, t)
    x = x.copy()  # of a caller's float64 array it is a view
    x[off[:, 0]] = np.clip(moved - (low + high) / 2, 0, 1)
    return x.reshape(u.shape)


def _project_blocks(pattern: Transposable, u: np.ndarray, tolerance: float) -> np.ndarray:
    """By Dykstra's alternating projections between the sums and the box (Boyle and Dykstra 1986), to ``PROJECTED``."""
    x, size, count = pattern.blocks(np.array(u, dtype=np.float64)), pattern.of, pattern.of - pattern.kept

    def off(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.sum(axis=2, keepdims=True) - count, x.sum(axis=1, keepdims=True) - count

    wrong = np.maximum(*(np.abs(part).max(axis=(1, 2)) for part in off(x))) > tolerance
    wrong |= ((x < 0) | (x > 1)).any(axis=(1, 2))
    moved, rest = x[wrong], np.zeros((int(wrong.sum()), size, size))
    for _ in range(MOST_PROJECTIONS if moved.size else 0):
        rows, columns = off(moved)
        if max(np.abs(rows).max(), np.abs(columns).max()) <= PROJECTED and moved.min() >= 0 and moved.max() <= 1:
            break
        near = moved - (rows + columns) / size + rows.sum(axis=1, keepdims=True) / size**2 + rest
        moved = np.clip(near, 0, 1)
        rest = near - moved
    x[wrong] = moved
    return pattern.whole(x, u.shape)


def parse(text: str | Pattern | np.ndarray) -> Pattern:
    """Read a pattern: ``0.6``, ``unstructured:0.6``, ``2:4``, ``transposable:2:4``, ``rows:FILE`` (text or .npy), or an
    array of counts.

    Raises:
        PatternError: one line, what is wrong and what would be right.
    """
    if isinstance(text, Pattern):
        return text
    if isinstance(text, np.ndarray):
        return Rows(text)
    text = str(text).strip()
    if text.startswith("rows:"):
        return Rows(_read_counts(Path(text.removeprefix("rows:"))))
    if match := re.fullmatch(r"(transposable:)?(\d+):(\d+)", text):
        kept, of = map(int, match.groups()[1:])
        if not 0 <= kept <= of or of == 0:
            raise PatternError(f"pattern {text!r}: N:M keeps N of each M weights, so N must not exceed M")
        return Transposable(kept, of) if match[1] else NM(kept, of)
    kind, colon, number = text.rpartition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if kind + colon not in ("", "unstructured:") or not 0 <= fraction <= 1:
        raise PatternError(
            f"unknown pattern {text!r}: use a fraction to prune per row such as 0.5, unstructured:0.5, 2:4, "
            "transposable:2:4 or rows:FILE"
        )
    return Unstructured(fraction) if kind else PerRow(fraction)


def _excess(groups: Array, counts: np.ndarray) -> Array:
    xp = array_namespace(groups)
    return xp.sum(groups, axis=-1, dtype=xp.float64) - xp.asarray(counts.astype(np.float64), device=device(groups))


def _shortest(fraction: float) -> str:
    """The shortest text that reads back as the same number."""
    return text if float(text := f"{fraction:g}") == fraction else repr(float(fraction))


def _read_counts(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return np.array([int(word) for word in data.decode(encoding).split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PatternError(f"pattern rows:{path}: cannot read the counts ({reason})") from None


def smallest(x: Array, counts: np.ndarray) -> Array:
    """Mark the ``counts[g]`` smallest entries of each group ``g``; ties go to the lower index.

    Args:
        x: ``(..., groups, size)``, numpy or torch, without NaN.
        counts: ``(groups,)``, each in 0..size.

    Returns:
        bool, the shape and device of ``x``, with exactly ``counts[g]`` True in group ``g``.
    """
    xp, size = array_namespace(x), x.shape[-1]
    low, high = int(counts.min(initial=size)), int(counts.max(initial=0))
    if high == 0 or low == size:
        return xp.full(x.shape, high > 0, dtype=xp.bool, device=device(x))
    if low == high:
        threshold, need = _kth_smallest(x, low), low
    else:
        count = xp.asarray(counts.copy(), device=device(x))[:, None]
        index = xp.clip(count - 1, 0, size - 1)
        ordered = xp.sort(x, axis=-1)
        threshold = xp.take_along_axis(ordered, xp.broadcast_to(index, (*x.shape[:-1], 1)), axis=-1)
        need = count
    chosen = x <= threshold
    if low == 0 and low != high:
        chosen = chosen & (need > 0)
    if not bool(xp.any(xp.sum(chosen, axis=-1, keepdims=True, dtype=xp.int64) > need)):
        return chosen
    below = chosen & (x < threshold)
    tied = chosen & (x == threshold)
    left = need - xp.sum(below, axis=-1, keepdims=True, dtype=xp.int64)
    return below | (tied & (xp.cumulative_sum(tied, axis=-1, dtype=xp.int64) <= left))


def _kth_smallest(x: Array, k: int) -> Array:
    if isinstance(x, np.ndarray):
        return np.partition(x, k - 1, axis=-1)[..., k - 1 : k]
    return x.kthvalue(k, dim=-1, keepdim=True).values
