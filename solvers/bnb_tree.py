"""Writing a tree certificate: streams of steps, variables, points and diagonals (read by ``fwbench.verify_tree``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fwbench import verify_tree as proof
from fwbench.problem import Problem
from fwbench.result import Certificate


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
        """The state at hand is bounded by 0."""
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


def safe_diagonal(Q: np.ndarray, free: np.ndarray, size: int, d: np.ndarray, rho: float) -> np.ndarray | None:
    """``d (r,)`` as float32, lowered until the checker proves ``(Q - Diag(d))_RR + rho Σ 1_g1_gᵀ ⪰ 0``; else None."""
    step = 16 * (free.size + 2) * proof.EPS * (float(np.abs(Q.diagonal()).sum()) + rho * free.size)
    least, most = (float(x) for x in (np.finfo(np.float32).min, np.finfo(np.float32).max))
    shift = 0.0
    for _ in range(60):
        if (d - shift).min() < least:
            return None
        lowered = np.minimum(d - shift, most).astype(np.float32)
        lowered = np.where(lowered > d - shift, np.nextafter(lowered, np.float32(-np.inf)), lowered)
        if proof.proves_positive(Q, free, size, lowered.astype(np.float64), rho):
            return lowered
        shift = max(2 * shift, step)
    return None
