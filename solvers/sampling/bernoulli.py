"""The stage ``bernoulli``: a policy gradient on the chances with which weights are pruned, forward evaluations only.

With ``m_i ~ B(p_i)`` independent, 1 = pruned, a row's mean error is ``F(p) = pᵀQp + Σ Q_ii p_i(1 - p_i) + cᵀp`` and its
offset (that of ``rounding/pipage``), and for any ``b`` that is drawn before ``m``

    E (f(m) - b) (m - p) / (p(1 - p)) = ∇F(p),

as ``(m - p) / (p(1 - p))`` is the gradient of ``log P(m | p)`` and has mean 0. Rows are independent given ``p``, so
each has its own error and its own ``b``, also where a pattern ties them together: less noise at the same cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench import patterns
from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register


@register
@dataclass(frozen=True)
class Bernoulli(Stage):
    """Draw masks from independent chances ``p``; move ``p`` against errors above a moving mean: no gradient is asked.

    ``p ← Π(p - rate / n (f(m) - b) (m - p) / (p(1 - p)))``, with ``Π`` the Euclidean projection on the polytope.
    Errors are in units of a row's mean ``Q_ii`` (of ``c_i`` and ``Q_ii``, where there is a target). ``samples``: masks
    drawn for a step, each a product of all rows with the Gram matrix. ``window``: steps over which ``b`` averages.
    ``explore``: what is drawn with is ``(1 - explore) p + explore × middle``, so that no chance is 0 or 1.
    It begins with the point or mask at hand, and proves nothing.
    """

    name: ClassVar[str] = "bernoulli"
    role: ClassVar[Role] = Role.RELAX
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "For comparing with methods that see errors alone, as of a model that cannot be differentiated; not where the "
        "Gram matrix is at hand, whose exact gradient costs one product and has no noise."
    )
    source: ClassVar[str] = "Gao et al., Bypass Back-propagation, arXiv 2406.10576; Williams 1992 (REINFORCE)"
    steps: int = 500
    samples: int = 2
    rate: float = 0.05
    window: int = 5
    explore: float = 0.1

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.window) < 1:
            raise ValueError("steps, samples and window must be at least 1")
        if not 0 < self.rate < float("inf") or not 0 < self.explore <= 1:
            raise ValueError("rate must be positive and explore in (0, 1]")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        rng, stopped, done = np.random.default_rng(context.seed), "", 0
        start = state.relaxed if state.relaxed is not None else ~state.mask
        q = np.asarray(start, np.float64)
        middle = patterns.project(problem.pattern, np.full(problem.shape, 0.5))
        unit = units(problem)
        baseline = None
        step = self.rate / problem.n * (1 - self.explore) / self.samples  # p follows q by 1 - explore
        for _ in range(self.steps):
            if context.expired():
                stopped = "deadline"
                break
            p = (1 - self.explore) * q + self.explore * middle
            gradient, errors = np.zeros(problem.shape), np.zeros(problem.rows)
            for _ in range(self.samples):
                m = rng.random(problem.shape) < p
                f = problem.row_errors(m) / unit
                if baseline is None:
                    baseline = f
                gradient += estimate(p, m, f - baseline)
                errors += f
            assert baseline is not None
            baseline = baseline + (errors / self.samples - baseline) / self.window
            q = patterns.project(problem.pattern, q - step * gradient)
            done += 1
        after = replace(state, relaxed=patterns.project(problem.pattern, q, patterns.DRIFT), stopped=stopped)
        return after.count(iterations=done, gram_products=done * self.samples)


def estimate(p: np.ndarray, m: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """``(f(m) - b) (m - p) / (p(1 - p))``, float64 ``(rows, n)``: 0 where a chance is 0 or 1.

    Args:
        p: chances ``(rows, n)``; m: what was drawn, bool; advantage: ``f(m) - b`` of each row, ``(rows,)``.
    """
    spread = p * (1 - p)
    return advantage[:, None] * np.divide(m - p, spread, out=np.zeros_like(p), where=spread > 0)


def units(problem: Problem) -> np.ndarray:
    """What a row's errors are measured in, ``(rows,)``: its mean ``Q_ii``, of a target ``|c_i|`` too; 1 if 0."""
    size = (problem.W.astype(np.float64) ** 2 * problem.G.diagonal()).mean(axis=1)
    if problem.linear is not None:
        size = size + np.abs(problem.linear).mean(axis=1)
    return np.where(size > 0, size, 1.0)
