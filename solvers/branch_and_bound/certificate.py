"""Writing a tree certificate: streams of steps, variables, points and diagonals (read by ``fwbench.verify.tree``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fwbench.bounds import lowered
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify import tree as proof
from fwbench.verify.rounding import EPS, proves_convex


@dataclass
class Tree:
    """One block's proof, in preorder; its numbers are of the block's weights times ``scale``, a power of two."""

    rho: float
    scale: float = 1.0
    steps: list[bytes] = field(default_factory=list)
    variables: list[np.ndarray] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    diagonals: list[np.ndarray] = field(default_factory=list)

    def nothing(self) -> None:
        """The state at hand is bounded by its linear term, or by 0 where there is none."""
        self.steps.append(bytes([proof.NOTHING]))

    def leaf(self, point: np.ndarray) -> None:
        """The state at hand is bounded by ``point``, uint16 of the free variables."""
        self.steps.append(bytes([proof.POINT, proof.LEAF]))
        self.points.append(point)

    def subtree(self, diagonal: np.ndarray, steps: np.ndarray, variables: np.ndarray, points: np.ndarray) -> None:
        """A new diagonal and the steps under it (uint8), with what BRANCH and FIX and what POINT ask for (uint16)."""
        self.steps += [bytes([proof.DIAGONAL]), steps.tobytes()]
        self.variables.append(variables)
        self.points.append(points)
        self.diagonals.append(diagonal)


def certificate(problem: Problem, trees: Iterable[Tree], bound: float, source: str = "bnb") -> Certificate:
    """The certificate of a layer's blocks."""
    trees = list(trees)
    none = [np.zeros(0, np.uint16)]
    points = np.concatenate(none + [part for tree in trees for part in tree.points])
    arrays: dict[str, np.ndarray] = {
        "step": np.frombuffer(b"".join(part for tree in trees for part in tree.steps), np.uint8),
        "variable": np.concatenate(none + [part for tree in trees for part in tree.variables]),
        "point": (points >> 8).astype(np.uint8),
        "digits": (points & 255).astype(np.uint8),
        "diagonal": np.concatenate([np.zeros(0, np.float32)] + [d for tree in trees for d in tree.diagonals]),
        "rho": np.array([tree.rho for tree in trees]),
    }
    if any(tree.scale != 1 for tree in trees):
        arrays["scale"] = np.array([tree.scale for tree in trees])
    return Certificate(problem.hash, bound, "tree", arrays, source)


def safe_diagonal(Q: np.ndarray, free: np.ndarray, size: int, d: np.ndarray, rho: float) -> np.ndarray:
    """``d (r,)`` as float32, lowered until the checker proves ``(Q - Diag(d))_RR + rho Σ 1_g1_gᵀ ⪰ 0``.

    Raises:
        ValueError: nothing is enough.
    """
    step = 16 * (free.size + 2) * EPS * (float(np.abs(Q.diagonal()).sum()) + rho * free.size)
    part, group = Q[np.ix_(free, free)], free // size
    return lowered(d, lambda d: proves_convex(part, d, rho, group), step, dtype=np.float32)
