"""Proved lower bounds of one layer at many counts, warm-started from one to the next.

That a diagonal is safe, ``G - diag(e) ⪰ 0``, has nothing to do with a count, nor has the tangent of the convex function
that it makes: so one diagonal serves all counts, and each certificate proves a line below the least error at every
count (``fwbench.verify.lines``). The relaxation's value is convex in the count, so that few lines are enough
(docs/mathematics.md, "Every count at once").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fwbench import bounds, patterns
from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.frank_wolfe import loop, rules
from fwbench.solvers.frank_wolfe.stage import PLAIN_GAP
from fwbench.solvers.learned.diagonal import inverse_e, learned_e
from fwbench.solvers.numerics.threads import torch_threads
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context

STEPS, GAP, CORRECT = 500, 1e-3, 20  # iterations at most, relative gap, iterations between corrections


def certificates(problem: Problem, levels: Sequence[Pattern], context: Context) -> list[Certificate]:
    """A certificate of kind ``diagonal`` of the layer under each of some patterns that differ in their counts.

    All have one diagonal, the trained net's or the inverse one, which proves more at the level in the middle; each
    point is sought from the one before.

    Args:
        problem: its own pattern is not used.
        levels: ascending counts, of patterns with a count for each row or for the layer.
        context: solved on the CPU, whatever its device.

    Raises:
        ValueError: ``G`` is not positive semidefinite.
    """
    middle = problem.with_pattern(levels[len(levels) // 2])
    wanda = middle.pattern.prune(wanda_score(middle.W, middle.G)).astype(np.float64)
    with torch_threads(context.threads):
        plain = _minimised(middle, wanda, None, PLAIN_GAP, context)
        tried = [(e, _minimised(middle, plain, e, GAP, context)) for e in (learned_e(middle, plain), inverse_e(middle))]
        e, u = max(tried, key=lambda pair: bounds.lower_bound(middle, pair[1], pair[0]))
        found = []
        for level in levels:
            own = problem.with_pattern(level)
            u = _minimised(own, patterns.project(own.pattern, u), e, GAP, context)
            found.append(bounds.certificate(own, u, e, "curve"))
    return found


def _minimised(problem: Problem, start: np.ndarray, e: np.ndarray | None, gap: float, context: Context) -> np.ndarray:
    """The point whose tangent bounds best ``(rows, n)``."""
    layer = loop.Objective.of(problem, context, None if e is None else problem.W.astype(np.float64) ** 2 * e)
    options = loop.LoopOptions(STEPS, "linesearch", rules.fastest(problem.pattern), gap, correct=CORRECT)
    run = loop.minimise(layer, torch.tensor(start, dtype=layer.W.dtype), options, context)
    return run.best_u.clamp(0, 1).numpy()
