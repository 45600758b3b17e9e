"""Channel permutation for N:M: which inputs share a group, chosen so that the scores that are kept are largest (RIA).

The pattern groups neighbours, so a problem's groups are fixed, and no solver may exchange inputs: a permutation makes
another problem, of other masks, here with its order beside it. Whether a model can use it is the model's: the rows of
the layers that make the inputs must be put in the same order, as those of ``gate_proj`` and ``up_proj`` before
``down_proj`` can be, while inputs that other layers read too have to be gathered as they come.

As published (Zhang et al., ICLR 2024), channels are dealt to the groups in descending order of their summed scores;
then for each place within a group the channels there are assigned to the groups anew, by linear sum assignment. The
paper was read in summaries; rounds are repeated here until one gains nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fwbench.patterns import NM, PatternError
from fwbench.problem import Problem
from fwbench.solvers.start.scores import ria_score

ORDER = "input order"  # the name of the order in a problem's provenance


def regrouped(problem: Problem, score: np.ndarray | None = None, rounds: int = 10) -> Problem:
    """The layer with its inputs in an order in which N:M keeps more; ``input order`` in ``meta`` tells which.

    Args:
        problem: with a pattern N:M.
        score: of each weight, larger = more worth keeping, ``(rows, n)``; RIA's if None.
        rounds: of assignments, at most.

    Raises:
        PatternError: the pattern is not N:M.
    """
    order = channel_order(problem, ria_score(problem.W, problem.G) if score is None else score, rounds)
    meta = dict(problem.meta) | {ORDER: ",".join(map(str, order))}
    return replace(problem.permuted(order), name=f"{problem.name}, regrouped", meta=meta)


def kept_score(pattern: NM, score: np.ndarray) -> float:
    """What N:M keeps of the scores ``(rows, n)``: of each group the ``N`` largest."""
    grouped = score.reshape(len(score), -1, pattern.of)
    return float(np.sort(grouped, axis=-1)[..., pattern.of - pattern.kept :].sum())


def channel_order(problem: Problem, score: np.ndarray, rounds: int = 10) -> np.ndarray:
    """The order of the inputs, int64 ``(n,)``; at equal scores the one in which they are.

    Raises:
        PatternError: the pattern is not N:M.
    """
    from scipy.optimize import linear_sum_assignment

    pattern = problem.pattern
    if not isinstance(pattern, NM):
        raise PatternError(f"pattern {pattern} has no groups of inputs to permute: only N:M has")
    dealt = np.argsort(-score.sum(axis=0), kind="stable").reshape(pattern.of, -1)  # a line for each place in a group
    best = kept_score(pattern, score[:, dealt.T.ravel()])
    for _ in range(rounds if 0 < pattern.kept < pattern.of else 0):
        before = best
        for place in range(pattern.of):
            others = np.sort(score[:, np.delete(dealt, place, axis=0)], axis=1)  # (rows, M - 1, groups)
            least = others[:, pattern.of - 1 - pattern.kept]  # what a channel must exceed to be kept beside them
            gain = np.array([np.maximum(score[:, [c]] - least, 0).sum(axis=0) for c in dealt[place]])
            channels, groups = linear_sum_assignment(gain, maximize=True)
            trial = dealt.copy()
            trial[place, groups] = dealt[place, channels]
            if (value := kept_score(pattern, score[:, trial.T.ravel()])) > best:
                dealt, best = trial, value
        if best <= before:
            break
    order = dealt.T.ravel()
    natural = np.arange(problem.n)
    return order if best > kept_score(pattern, score) else natural
