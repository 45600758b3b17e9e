"""A block as a QUBO, quadratic, unconstrained, binary: the counts as penalties, and back to masks that have them.

``min uᵀQu + cᵀu + Σ_g P_g (1ᵀu_g - p_g)²`` over all ``u`` in ``{0, 1}^m``. Where group ``g`` prunes ``d`` too many,
it has at least ``p_g + 1`` pruned weights. To keep ``i`` of them changes the error by at most ``a_i = 2 Σ_j Q_ij⁻ -
Q_ii - c_i``, and for the best of them that is at most the ``p_g + 1``-th largest ``a``. Each such step takes
``P_g (2d - 1) ≥ P_g`` off the penalty. So for ``P_g`` above that, and above its like for too few (``b_i = Q_ii + c_i +
2 Σ_j Q_ij⁺``, of ``size - p_g + 1`` kept), every minimiser has the counts, and is a best mask (docs/mathematics.md, "A
penalty form").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwbench.solvers.external.blocks import QuadraticBlock


@dataclass(frozen=True)
class Qubo:
    """``min uᵀAu + constant`` over ``u`` in ``{0, 1}^m``, the linear terms on the diagonal of ``A``."""

    A: np.ndarray  # (m, m), symmetric
    constant: float

    def values(self, u: np.ndarray) -> np.ndarray:
        """The objective of ``u (..., m)``."""
        u = np.asarray(u, np.float64)
        return ((u @ self.A) * u).sum(axis=-1) + self.constant


def dense(block: QuadraticBlock) -> np.ndarray:
    """``Q (m, m)``."""
    return block.Q if isinstance(block.Q, np.ndarray) else block.Q.toarray()


def enough(block: QuadraticBlock) -> np.ndarray:
    """For each group the ``P_g (groups,)`` above which every minimiser of the penalty form has the right counts."""
    Q, groups = dense(block), len(block.counts)
    own = Q.diagonal()
    positive = np.maximum(Q, 0).sum(axis=1) - np.maximum(own, 0)
    negative = np.maximum(-Q, 0).sum(axis=1) - np.maximum(-own, 0)
    keep = (2 * negative - own - block.c).reshape(groups, -1)
    prune = (2 * positive + own + block.c).reshape(groups, -1)
    size = keep.shape[1]
    found = np.zeros(groups)
    for group, count in enumerate(block.counts):
        if count < size:
            found[group] = max(found[group], np.sort(keep[group])[size - count - 1])
        if count > 0:
            found[group] = max(found[group], np.sort(prune[group])[count - 1])
    return found


def qubo(block: QuadraticBlock, penalty: float | np.ndarray) -> Qubo:
    """The penalty form of a block; its value is the error where the counts are right.

    Args:
        penalty: ``P``, of each group ``(groups,)`` or of all, in the units of the error.
    """
    counts = block.counts.astype(np.float64)
    size = block.size // len(counts)
    P = np.broadcast_to(np.asarray(penalty, np.float64), counts.shape)
    A = dense(block) + np.kron(np.diag(P), np.ones((size, size)))
    A[np.diag_indices_from(A)] += block.c - 2 * np.repeat(P * counts, size)
    return Qubo(A, block.constant + float((P * counts**2).sum()))


def repaired(block: QuadraticBlock, pruned: np.ndarray) -> np.ndarray:
    """The right counts from any ``pruned``, bool ``(m,)``: one weight after another, the one that costs least first."""
    Q, u = dense(block), pruned.copy()
    size = block.size // len(block.counts)
    slope = 2 * Q @ u + block.c
    for group, count in enumerate(block.counts):
        part = slice(group * size, (group + 1) * size)
        while (found := int(u[part].sum())) != count:
            sign = 1.0 if found < count else -1.0  # of the change of u
            costs = sign * slope[part] + Q.diagonal()[part]
            costs[u[part] == (sign > 0)] = np.inf
            i = part.start + int(costs.argmin())
            u[i] = not u[i]
            slope += 2 * sign * Q[:, i]
    return u
