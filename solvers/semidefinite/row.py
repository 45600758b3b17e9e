"""One row of a layer as a quadratic program, what the proof of its bound holds, and many proofs in one certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.numerics.scaling import scale_for
from fwbench.verify.products import FIVES, TRIPLES

MOVED = 2.0  # mean diagonals: how far Q moves the edge between pruned and kept
NEGLIGIBLE = 2.0**-30  # beside a linear term of 1: what float32 no longer tells


@dataclass(frozen=True)
class RowForm:
    """One row: ``uᵀQu + lᵀu + constant + offset`` over masks with ``counts[g]`` of each group of neighbours pruned."""

    Q: np.ndarray  # (n, n)
    counts: np.ndarray  # (groups,)
    linear: np.ndarray | None = None  # (n,)
    constant: float = 0.0  # of products that are taken from the row
    offset: float = 0.0  # the row's own: bounds are exact to a part of their sum with it
    scale: float = 1.0  # a power of two: it is the row whose weights are multiplied by it

    @classmethod
    def of(cls, problem: Problem, row: int) -> RowForm:
        w = problem.W[row].astype(np.float64)
        counts = problem.counts.reshape(problem.rows, -1)[row]
        size = float((w * w * problem.G.diagonal()).mean())
        if problem.linear is None or problem.offset is None:
            scale = scale_for(size)
            w *= scale
            return cls((w[:, None] * w) * problem.G, counts, scale=scale)
        scale = scale_for(max(size, float(np.abs(problem.linear[row]).mean())))
        w *= scale
        linear, offset = centred(problem.linear[row] * scale**2, counts, size * scale**2)
        offset += float(problem.offset[row]) * scale**2
        return cls((w[:, None] * w) * problem.G, counts, linear, offset=offset, scale=scale)

    @property
    def free(self) -> bool:
        """True if there is a choice to make, and something at stake."""
        size = len(self.Q) // len(self.counts)
        choice = bool(((self.counts > 0) & (self.counts < size)).any())
        return choice and (bool(self.Q.diagonal().max() > 0) or (self.linear is not None and bool(self.linear.any())))

    @property
    def unit(self) -> float:
        """What relaxations divide the row by: its mean diagonal, or of a linear term beside which that is nothing."""
        unit = float(self.Q.diagonal().mean())
        return unit if self.linear is None else max(unit, NEGLIGIBLE * float(np.abs(self.linear).mean()))


def centred(linear: np.ndarray, counts: np.ndarray, size: float) -> tuple[np.ndarray, float]:
    """``lᵀu`` as another ``lᵀu`` and a constant, equal on masks, with the edge between pruned and kept near 0.

    The penalty on the counts is finite and in units of ``Q``: a relaxation pays for a multiplier far larger than those.
    So where the edge of ``l`` alone, in a group, lies further from 0 than ``Q`` would move it, ``l`` moves by the rest.

    Args:
        linear: ``(m,)``; counts: pruned count of each group of neighbours, ``(groups,)``.
        size: the mean diagonal of ``Q``.
    """
    groups = np.sort(linear.reshape(len(counts), -1), axis=1)
    last, each = groups.shape[1] - 1, np.arange(len(counts))
    edge = (groups[each, np.clip(counts - 1, 0, last)] + groups[each, np.clip(counts, 0, last)]) / 2
    edge -= np.clip(edge, -MOVED * size, MOVED * size)
    return linear - np.repeat(edge, last + 1), float(edge @ counts)


@dataclass(frozen=True)
class RowProof:
    """What a row, its weights times ``scale``, brings to a certificate of kind ``rows`` (``fwbench.verify``)."""

    bound: float  # the tangent's, in plain float64
    d: np.ndarray  # (n,)
    rho: float
    u: np.ndarray  # (n,) float32
    pair: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    multiplier: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    triple: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint16))
    corner: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the triples
    five: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.uint16))
    sign: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    share: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the fives
    scale: float = 1.0

    @property
    def lower(self) -> float:
        """The bound of the row itself."""
        return self.bound / self.scale**2


def row_certificate(shared: Certificate, proofs: Mapping[int, RowProof], lower: float, source: str) -> Certificate:
    """The proofs of single rows in one certificate; the other rows stand on the shared one.

    Args:
        lower: the bound of the whole layer.
    """
    if not proofs:
        return shared
    rows = sorted(proofs)
    own = [proofs[row] for row in rows]
    u = np.array(shared.arrays["u"])
    u[rows] = np.stack([proof.u for proof in own])
    arrays = {
        "e": shared.arrays["e"],
        "u": u,
        "rows": np.array(rows, dtype=np.int64),
        "d": np.stack([proof.d for proof in own]),
        "rho": np.array([proof.rho for proof in own]),
        "start": np.cumsum([0, *(len(proof.pair) for proof in own)], dtype=np.int64),
        "pair": np.concatenate([proof.pair for proof in own]),
        "kind": np.concatenate([proof.kind for proof in own]),
        "multiplier": np.concatenate([proof.multiplier for proof in own]),
    }
    for *names, start in (TRIPLES, FIVES):
        if any(len(getattr(proof, names[0])) for proof in own):
            for name in names:
                arrays[name] = np.concatenate([getattr(proof, name) for proof in own])
            arrays[start] = np.cumsum([0, *(len(getattr(proof, names[0])) for proof in own)], dtype=np.int64)
    if any(proof.scale != 1 for proof in own):
        arrays["scale"] = np.array([proof.scale for proof in own])
    return Certificate(shared.problem, lower, "rows", arrays, source)


def tangent_bound(form: RowForm, d: np.ndarray, rho: float, u: np.ndarray) -> float:
    """The row's lower bound by the tangent at ``u``, as ``fwbench.verify`` derives it, in plain float64."""
    u = u.astype(np.float64)
    product = form.Q @ u - d * u
    g = 2 * product + d
    if form.linear is not None:
        g += form.linear
    groups = np.sort(g.reshape(len(form.counts), -1), axis=1)
    chosen = groups[np.arange(groups.shape[1]) < form.counts[:, None]].sum()
    off = u.reshape(len(form.counts), -1).sum(axis=1) - form.counts
    return float(chosen - product @ u - rho * (off @ off)) + form.constant + form.offset
