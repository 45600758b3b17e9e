"""A layer's least squares in units of its own: what ``iht``, ``fistapruner`` and ``alternate`` walk in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fwbench.problem import Problem
from fwbench.stage import Context, State

ABOVE = 1e-5  # relative: how far the curvature is taken above the largest eigenvalue, whose rounding is float32's


@dataclass
class Layer:
    """``‖(w - v) X‖² + 2 t (w - v)`` of each row's weights ``v``, in units of its own.

    Arrays are ``(rows, n)``, on a device. Rows are divided by their largest weight (those that the pattern ties by the
    largest of them all), inputs by their norms or all by the largest.
    """

    problem: Problem
    G: torch.Tensor  # (n, n)
    w: torch.Tensor
    t: torch.Tensor | None
    scale: np.ndarray  # of inputs (n,)
    size: np.ndarray  # of rows (rows, 1)
    curvature: float  # no eigenvalue of G is above

    @classmethod
    def of(cls, problem: Problem, context: Context, scaled: bool = True) -> Layer:
        """In inputs of norm 1, or in those that are given."""
        kind = getattr(torch, context.dtype)
        norm = np.sqrt(np.maximum(problem.G.diagonal(), 0.0))
        scale = norm if scaled else np.full(problem.n, norm.max())
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        G = torch.from_numpy(problem.G * inverse * inverse[:, None]).to(context.device)
        W = problem.W * np.where(norm > 0, scale, 0.0)  # a dead input's weights go first
        size = np.abs(W).max(axis=1, keepdims=True)
        tied = problem.rows // problem.blocks
        size = np.repeat(size.reshape(-1, tied).max(axis=1), tied)[:, None]
        size[size == 0] = 1.0
        t = None if problem.T is None else torch.from_numpy(problem.T * inverse / size).to(context.device, kind)
        largest = float(torch.linalg.eigvalsh(G)[-1]) * (1 + ABOVE)
        w = torch.from_numpy(W / size).to(context.device, kind)
        return cls(problem, G.to(kind), w, t, scale, size, largest if largest > 0 else 1.0)

    def begin(self, state: State) -> torch.Tensor:
        """The weights that an earlier stage has changed, or those that its mask keeps."""
        alive = self.problem.G.diagonal() > 0
        return torch.from_numpy(_given(self.problem, state) * np.where(alive, self.scale, 0.0) / self.size).to(self.w)

    def slope(self, v: torch.Tensor) -> torch.Tensor:
        """``(w - v) G + t``, half of the error's negative gradient: one Gram product."""
        product = (self.w - v) @ self.G
        return product if self.t is None else product + self.t

    def errors(self, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Of each row and those that the pattern ties to it, ``(rows, 1)``, without offset."""
        rest = self.w - v
        return self.tied((rest * (slope if self.t is None else slope + self.t)).sum(1, keepdim=True))

    def tied(self, own: torch.Tensor, reduce: Callable[..., torch.Tensor] = torch.sum) -> torch.Tensor:
        """What each row has, ``(rows, 1)``, reduced over the rows that the pattern ties to it; see ``Problem.tied``."""
        count = len(own) // self.problem.blocks
        return reduce(own.reshape(-1, count), dim=1, keepdim=True).repeat_interleave(count, dim=0)

    def largest(self, v: torch.Tensor) -> torch.Tensor:
        """``v`` with the smallest of each group set to zero: the nearest point that has the pattern."""
        return torch.where(self.problem.pattern.nearest(v), 0, v)

    def better(self, state: State, v: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Masks and weights of ``v``, which has the pattern, or those at hand where they are better.

        Row by row, or all rows at once that the pattern ties. Both are judged as they will be: in float64, the weights
        rounded to float32.
        """
        problem, start, given = self.problem, state.mask, _given(self.problem, state)
        keep = ~problem.pattern.nearest(v).cpu().numpy()
        unscaled = v.cpu().numpy().astype(np.float64) * self.size
        dead = problem.G.diagonal() <= 0
        weights = np.where(dead, problem.W, np.divide(unscaled, self.scale, out=unscaled, where=self.scale > 0))
        weights = np.where(keep, weights, 0).astype(np.float32)
        ours, theirs = (problem.tied(problem.weight_errors(each)) for each in (weights, given))
        better = ours <= theirs
        keep[~better], weights[~better] = start[~better], given[~better]
        return keep, weights

    def end(self, state: State, v: torch.Tensor, stopped: str = "") -> State:
        """The state after a stage that ended at ``v``."""
        keep, weights = self.better(state, v)
        return replace(state, keep=keep, relaxed=None, weights=weights, stopped=stopped)


def _given(problem: Problem, state: State) -> np.ndarray:
    """Weights to begin with, float32 ``(rows, n)``; changed ones that a later mask has left behind are of no use."""
    keep = state.mask
    if state.weights is not None and not state.weights[~keep].any():
        return state.weights
    return np.where(keep, problem.W, 0)
