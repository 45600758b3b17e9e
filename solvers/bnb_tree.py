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
    """One block's proof, in preorder."""

    rho: float
    steps: bytearray = field(default_factory=bytearray)
    variables: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    diagonals: list[np.ndarray] = field(default_factory=list)

    def step(self, code: int, variable: int) -> None:
        """A BRANCH or FIX (with its value added) of a variable, a LEAF or NOTHING."""
        self.steps.append(code)
        if proof.BRANCH <= code < proof.POINT:
            self.variables.append(variable)

    def point(self, data: np.ndarray) -> None:
        self.steps.append(proof.POINT)
        self.points.append(data)

    def diagonal(self, d: np.ndarray) -> None:
        self.steps.append(proof.DIAGONAL)
        self.diagonals.append(d)


def certificate(problem: Problem, trees: Iterable[Tree], bound: float, source: str = "bnb") -> Certificate:
    """The certificate of a layer's blocks."""
    trees = list(trees)
    diagonals = [d for tree in trees for d in tree.diagonals]
    points = np.concatenate([np.zeros(0, np.uint16)] + [part for tree in trees for part in tree.points])
    arrays: dict[str, np.ndarray] = {
        "step": np.frombuffer(b"".join(bytes(tree.steps) for tree in trees), np.uint8),
        "variable": np.array([v for tree in trees for v in tree.variables], np.uint16),
        "point": (points >> 8).astype(np.uint8),
        "digits": (points & 255).astype(np.uint8),
        "diagonal": np.concatenate(diagonals) if diagonals else np.zeros(0, np.float32),
        "rho": np.array([tree.rho for tree in trees]),
    }
    return Certificate(problem.hash, bound, "tree", arrays, source)


def safe_diagonal(Q: np.ndarray, free: np.ndarray, size: int, d: np.ndarray, rho: float) -> np.ndarray | None:
    """``d (r,)`` as float32, lowered until the checker proves ``(Q - Diag(d))_RR + rho Σ 1_g1_gᵀ ⪰ 0``; else None."""
    step = 16 * (free.size + 2) * proof.EPS * (float(np.abs(Q.diagonal()).sum()) + rho * free.size)
    shift = 0.0
    for _ in range(60):
        lowered = (d - shift).astype(np.float32)
        lowered = np.where(lowered > d - shift, np.nextafter(lowered, np.float32(-np.inf)), lowered)
        if proof.proves_positive(Q, free, size, lowered.astype(np.float64), rho):
            return lowered
        shift = max(2 * shift, step)
    return None
