"""Problem: one layer (W, G, pattern, provenance; T and offset), and the only definition of the objective.

Notation, shared by the whole project (docs/mathematics.md, "The objective"): ``W (rows, n)`` weights, one row per
output; ``G (n, n)`` Gram matrix ``X Xᵀ / tokens`` of the layer's inputs, undamped; ``u (rows, n)`` in [0, 1], 1 =
pruned; ``keep (rows, n)`` bool, True = the weight stays. A row's error is ``uᵀ diag(w) G diag(w) u = ‖wX - (m∘w)X‖² /
tokens``.

Where the inputs ``X̂`` that arrive are not those of the target ``Y``, the error is ``‖Y - ŴX̂‖² / tokens``. With ``G =
X̂X̂ᵀ``, ``R = Y - WX̂`` (what arrives wrong), ``T = RX̂ᵀ (rows, n)`` and ``offset = ‖r‖² (rows,)``, all over tokens, a
row whose weights move by ``δ = w - ŵ`` costs ``δGδᵀ + 2tδᵀ + offset``: for masks the same quadratic and the linear term
``2(w∘t)ᵀu``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from fwbench import patterns
from fwbench.patterns import Pattern

Array = Any  # numpy.ndarray or torch.Tensor

SUMMED = 2**14  # tokens of a usual calibration text


class ProblemError(ValueError):
    """A problem that is not one (shapes, NaN, indefinite G); the message is one line."""


def shrunk(G: np.ndarray, shrinkage: float) -> np.ndarray:
    """``(1 - s) G + s diag(G)``: a Gram matrix whose correlations are drawn towards zero, float64 ``(n, n)``.

    Few calibration tokens overstate correlations, and masks that lean on them lose on other text (shrinkage of a
    covariance matrix: Ledoit and Wolf, J. Multivariate Anal. 88, 2004; here the target is the matrix's own diagonal, so
    that magnitude and Wanda stay as they are).

    Raises:
        ProblemError: the shrinkage is not in [0, 1].
    """
    if not 0 <= shrinkage <= 1:
        raise ProblemError(f"shrinkage must lie between 0 and 1, not {shrinkage}")
    result = (1 - shrinkage) * G
    np.fill_diagonal(result, G.diagonal())
    return result


def row_errors(G: Array, change: Array) -> Array:
    """What each row costs on its own inputs, ``(..., rows)``, for ``change (..., rows, n)``: ``change G changeᵀ``."""
    return ((change @ G) * change).sum(-1)


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer's mask selection problem; immutable.

    Args:
        name: for people; not part of the identity.
        W: weights, float32 ``(rows, n)``.
        G: Gram matrix, float64 ``(n, n)``, symmetric positive semidefinite (``check_psd`` tests the latter).
        pattern: a :class:`Pattern`, or its text.
        meta: provenance, strings.
        origin: absolute path of the file it was read from, empty if of none; where to look for it again.
        T: what arrives wrong against the inputs, float64 ``(rows, n)``; None where the target is ``WX``.
        offset: error of each row if nothing were pruned, float64 ``(rows,)``; with ``T``, and only then.

    Raises:
        ProblemError: wrong shapes or types, non-finite entries, an asymmetric ``G``, ``T`` without ``offset``.
        PatternError: the pattern does not fit.
    """

    name: str
    W: np.ndarray = field(repr=False)
    G: np.ndarray = field(repr=False)
    pattern: Pattern
    meta: Mapping[str, str] = field(default_factory=dict, repr=False)
    origin: str = field(default="", repr=False)
    T: np.ndarray | None = field(default=None, repr=False)
    offset: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        W = _frozen(self.W, np.float32, "W")
        G = _frozen(self.G, np.float64, "G")
        if 0 in W.shape:
            raise ProblemError(f"{self.name}: W is empty {W.shape}")
        if G.shape != (W.shape[1], W.shape[1]):
            raise ProblemError(f"{self.name}: G has shape {G.shape}, W {W.shape} asks for {(W.shape[1],) * 2}")
        more = self._target()
        for key, array in {"W": W, "G": G, **more}.items():
            if not np.isfinite(array).all():
                raise ProblemError(f"{self.name}: {key} has entries that are not finite")
        if not np.array_equal(G, G.T):
            if np.abs(G - G.T).max() > 1e-6 * np.abs(G).max():
                raise ProblemError(f"{self.name}: G is not symmetric")
            G = _frozen((G + G.T) / 2, np.float64, "G")
        pattern = patterns.parse(self.pattern)
        pattern.counts(W.shape)
        meta = MappingProxyType(dict(self.meta))
        for key, value in {"W": W, "G": G, "pattern": pattern, "meta": meta, **more}.items():
            object.__setattr__(self, key, value)

    def _target(self) -> dict[str, np.ndarray]:
        """``T`` and ``offset`` checked; nothing where the problem has none."""
        if self.T is None and self.offset is None:
            return {}
        if self.T is None or self.offset is None:
            raise ProblemError(f"{self.name}: T and offset belong together, and one is missing")
        T, offset = _frozen(self.T, np.float64, "T"), np.asarray(self.offset)
        if T.shape != np.shape(self.W):
            raise ProblemError(f"{self.name}: T has shape {T.shape}, W {np.shape(self.W)}")
        if offset.shape != T.shape[:1]:
            raise ProblemError(f"{self.name}: offset has shape {offset.shape}, not {T.shape[:1]}")
        return {"T": T, "offset": _frozen(offset[None], np.float64, "offset").reshape(-1)}

    def __reduce__(self) -> tuple:
        return Problem, (self.name, self.W, self.G, self.pattern, dict(self.meta), self.origin, self.T, self.offset)

    @property
    def rows(self) -> int:
        return self.W.shape[0]

    @property
    def n(self) -> int:
        return self.W.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.n

    @property
    def counts(self) -> np.ndarray:
        """Pruned count of each of the pattern's groups, int64 ``(groups,)``."""
        return self.pattern.counts(self.shape)

    @property
    def group(self) -> int:
        """Neighbouring weights of one row that may be exchanged: a row, or the M of N:M."""
        return min(self.pattern.group_size(self.shape), self.n)

    @property
    def blocks(self) -> int:
        """Number of independent problems: rows, or as many of them as the pattern ties together."""
        return self.rows // self.pattern.tied(self.shape)

    @property
    def block_size(self) -> int:
        """Variables of each independent problem: a row's, or the whole layer's where the pattern is unstructured."""
        return self.rows * self.n // self.blocks

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the content: shapes, W, G, each group's pruned count; T and offset where it has them.

        The text of the pattern too where its groups don't tell it.
        """
        digest = hashlib.sha256(f"fwbench-1 {self.rows} {self.n} {self.pattern.group_size(self.shape)} ".encode())
        if not self.pattern.grouped:
            digest.update(str(self.pattern).encode())
        for array in (self.W, self.G, self.pattern.counts(self.shape)):
            digest.update(np.ascontiguousarray(array).data)
        for key, part in (("T", self.T), ("offset", self.offset)):
            if part is not None:
                digest.update(key.encode())
                digest.update(part.data)
        return digest.hexdigest()

    @cached_property
    def linear(self) -> np.ndarray | None:
        """``c = 2 w∘t (rows, n)`` float64: a mask's error is ``uᵀQu + cᵀu + offset``. None where there is no ``T``."""
        if self.T is None:
            return None
        linear = 2 * self.W.astype(np.float64) * self.T
        linear.setflags(write=False)
        return linear

    @property
    def floor(self) -> float:
        """What no error is below, known before any bound: 0 for a square; of ``T`` and ``offset`` it is not proved."""
        return 0.0 if self.T is None else -math.inf

    @cached_property
    def row_totals(self) -> np.ndarray:
        """Error of each row with everything pruned, float64 ``(rows,)``."""
        return self.row_errors(np.ones(self.shape))

    @cached_property
    def total(self) -> float:
        """Error with everything pruned, ``tr(W G Wᵀ)`` or ``‖Y‖²``: the yardstick of the relative error."""
        return float(self.row_totals.sum())

    @cached_property
    def _errors(self) -> dict[tuple[tuple[int, ...], bytes], np.ndarray]:
        """What :meth:`mask_errors` found, by the mask's shape and hash."""
        return {}

    def row_errors(self, u: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Error of each row, float64 ``(rows,)``, at ``u (rows, n)`` (1 = pruned), relaxed or not; or of some rows."""
        u = np.asarray(u, dtype=np.float64)
        return self._target_errors(self.W[rows] * u, rows)

    def mask_errors(self, keep: np.ndarray) -> np.ndarray:
        """Error of each row for a mask, float64 ``(rows,)``; those of a mask are computed once."""
        keep = np.ascontiguousarray(keep, dtype=bool)
        key = keep.shape, hashlib.sha256(np.packbits(keep).tobytes()).digest()
        if key not in self._errors:  # a run judges one mask several times: after a stage, before the next, at the end
            self._errors[key] = self.row_errors(~keep)
            self._errors[key].setflags(write=False)  # shared by all who ask
        return self._errors[key]

    def tied(self, errors: np.ndarray) -> np.ndarray:
        """For each row the sum of ``errors (rows,)`` over the rows that the pattern ties to it; else its own."""
        count = self.rows // self.blocks
        return np.repeat(errors.reshape(-1, count).sum(axis=1), count)

    def better(self, u: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The point of less error, ``u`` where they are equal: row by row, or all rows at once that the pattern ties.

        Args:
            u: ``(rows, n)``, 1 = pruned, relaxed or not; other: the same.
        """
        less = self.tied(self.row_errors(other)) < self.tied(self.row_errors(u))
        return np.where(less[:, None], other, u)

    def error(self, keep: np.ndarray) -> float:
        """Error of the layer for a mask, float64."""
        return float(self.mask_errors(keep).sum())

    def rounding(self, keep: np.ndarray | None = None, weights: np.ndarray | None = None) -> float:
        """How far apart two honest float64 evaluations may be: of a mask's or weights' error; of a bound if None.

        A dot product of length ``n`` is off by at most ``γ_n Σ|.||.|`` (Higham, eq. 3.5); an error is two of them, one
        within the other, a bound some four and their sums: ``16 γ Σ_r |δ|ᵀ|G||δ|`` for the change ``δ`` of the weights.
        That is far below an error, but where rows cancel: there an error, and even ``total``, may be less than what
        float64 can tell of it.
        """
        change = self.W * (1.0 if keep is None else ~keep) if weights is None else self.W - weights.astype(np.float64)
        size = np.abs(change).astype(np.float64)
        gamma = (self.n + 2) * float(np.finfo(np.float64).eps)
        terms = float(((size @ np.abs(self.G)) * size).sum())
        if self.T is not None and self.offset is not None:
            terms += 2 * float((np.abs(self.T) * size).sum()) + float(np.abs(self.offset).sum())
        return 16 * gamma * terms

    def weight_errors(self, weights: np.ndarray) -> np.ndarray:
        """``‖(w - ŵ) X‖² / tokens`` of each row, float64 ``(rows,)``, for changed weights ``Ŵ (rows, n)``."""
        return self._target_errors(self.W.astype(np.float64) - weights)

    def _target_errors(self, change: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """``δGδᵀ + 2tδᵀ + offset`` of some rows, float64 ``(rows,)``, for ``δ = w - ŵ`` in ``change (rows, n)``."""
        errors = row_errors(self.G, change)
        if self.T is None or self.offset is None:
            return errors
        return errors + (2 * (self.T[rows] * change).sum(-1) + self.offset[rows])

    def error_of_weights(self, weights: np.ndarray) -> float:
        """The same for the layer, ``‖(W - Ŵ) X‖² / tokens``, float64."""
        return float(self.weight_errors(weights).sum())

    def part(self, rows: Any, name: str = "", pattern: Pattern | str | None = None) -> Problem:
        """Some rows, as numpy indexes them, as a problem of their own; of a pattern ``rows:`` with their counts.

        Raises:
            PatternError: the pattern, where none is given the problem's own, does not fit.
        """
        chosen: Any = self.pattern if pattern is None else pattern
        if pattern is None and isinstance(chosen, patterns.Rows):
            chosen = patterns.Rows(chosen.pruned[rows])
        T, offset = (None if array is None else array[rows] for array in (self.T, self.offset))
        return replace(self, name=name or self.name, W=self.W[rows], pattern=chosen, origin="", T=T, offset=offset)

    def with_pattern(self, pattern: Pattern | str) -> Problem:
        """The same layer under another pattern."""
        return replace(self, pattern=patterns.parse(pattern))

    def permuted(self, order: np.ndarray) -> Problem:
        """The same layer with its inputs in another order, ``(n,)``; where N:M groups them, other masks are allowed."""
        T = None if self.T is None else self.T[:, order]
        return replace(self, W=self.W[:, order], G=self.G[np.ix_(order, order)], origin="", T=T)

    def check_psd(self, stored: type = np.float64) -> None:
        """Raise ProblemError unless ``G`` is positive semidefinite to rounding.

        That of the type it was ``stored`` in, and that of a sum of ``SUMMED`` outer products, which moves eigenvalues
        by up to ``SUMMED eps trace(G)``: of a text that repeats itself by a tenth of it.
        """
        slack = self.n * float(np.finfo(stored).eps) * float(self.G.diagonal().max()) + float(np.finfo(np.float64).tiny)
        slack += SUMMED * float(np.finfo(np.float64).eps) * float(self.G.trace())
        try:
            factor = np.linalg.cholesky(self.G + slack * np.eye(self.n))
        except np.linalg.LinAlgError:
            raise ProblemError(f"{self.name}: G is not positive semidefinite") from None
        if self.T is not None and self.offset is not None:
            self._check_offset(factor)

    def _check_offset(self, factor: np.ndarray) -> None:
        """Raise ProblemError where some weights would have an error below 0: ``offset < t G⁻¹ tᵀ``."""
        assert self.T is not None
        assert self.offset is not None
        least = self.offset - (np.linalg.solve(factor, self.T.T) ** 2).sum(axis=0)
        slack = 1e-6 * np.maximum(np.abs(self.offset), np.abs(self.row_totals))
        if (wrong := np.flatnonzero(least < -slack)).size:
            raise ProblemError(
                f"{self.name}: T and offset are of no target: row {wrong[0]} could have an error of "
                f"{least[wrong[0]]:.3g}, below 0"
            )


def labels(problems: Iterable[tuple[str, str, str]], pattern_shown: bool = False) -> dict[str, str]:
    """What to call each problem, given as (hash, name, pattern), by its hash, so that no two are called the same.

    The name alone where it is nobody else's; else with the pattern, unless that is shown beside it; with the hash too
    where both are shared.
    """
    known = {digest: (name, pattern) for digest, name, pattern in problems}
    names, pairs = Counter(name for name, _ in known.values()), Counter(known.values())
    found = {}
    for digest, (name, pattern) in known.items():
        if pairs[name, pattern] > 1:
            found[digest] = f"{name} ({pattern}, {digest[:12]})"
        else:
            found[digest] = name if pattern_shown or names[name] == 1 else f"{name} ({pattern})"
    return found


def _frozen(array: np.ndarray, dtype: type, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ProblemError(f"{name} must be a matrix of numbers, got {array.dtype} {array.shape}")
    if array.dtype == dtype and array.base is None and array.flags.c_contiguous and not array.flags.writeable:
        return array  # another problem's: two of one input share their Gram matrix
    with np.errstate(over="ignore", under="ignore"):  # what overflows is refused as infinite
        array = np.array(array, dtype=dtype, order="C")  # a copy: the caller keeps his own
    array.setflags(write=False)
    return array
