"""Alternating minimisation over tokens and weights: the tokens of largest error are left out, the others pruned for.

For callers that hold a layer's inputs: ``trimmed`` takes them in batches (``benchmarks/prune/trimmed`` collects a
model's), and any solver of problems. A problem itself holds a Gram matrix, in which tokens cannot be told apart, so
this is no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fwbench.patterns import Pattern, parse
from fwbench.problem import Problem


@dataclass(frozen=True, eq=False)
class Trimmed:
    """Weights ``(rows, n)``, 0 where pruned; the tokens that they are pruned for, bool ``(tokens,)``; errors.

    ``errors``: the mean error of the tokens that stay, first with all of them, then after each half step: other tokens,
    other weights. None is above the one before it.
    """

    weights: np.ndarray
    stays: np.ndarray
    errors: tuple[float, ...]


def trimmed(
    W: np.ndarray,
    batches: Iterable[np.ndarray],
    pattern: Pattern | str,
    solve: Callable[[Problem], np.ndarray],
    part: float,
    rounds: int = 10,
) -> Trimmed:
    """Minimise the error ``‖(W - Ŵ) x‖²`` of the tokens that stay, over ``Ŵ`` and over which tokens do.

    In turn: the ``part`` of the tokens with the largest error goes, ``solve`` prunes the layer for the others. It ends
    when the same tokens go again, or when ``solve`` does not lower their error: then the weights before stay. As least
    trimmed squares (Rousseeuw and Van Driessen, Data Min. Knowl. Disc. 12, 2006: its concentration steps), by the
    alternation of robust phase retrieval (arXiv 2409.04733), whose outliers are sparse among the measurements. As
    there, an outlier to which the first weights are fitted is not seen; leave such tokens out of ``batches``. A round
    costs ``part`` of the whole Gram matrix, from which the tokens that go are taken.

    Args:
        W: weights, ``(rows, n)``.
        batches: the layer's inputs, ``(tokens, n)`` each, the same in each pass: there are two a round.
        pattern: of the mask.
        solve: prunes a problem: weights ``(rows, n)``, updated or not, 0 where pruned.
        part: of the tokens, that is left out, rounded down; 0 is ``solve`` itself.
        rounds: the most.

    Raises:
        ValueError: ``part`` outside [0, 1), ``rounds`` below 1, ``batches`` that can be read only once, or are empty.
        ProblemError: inputs that are not finite, or of another length than the weights' rows.
    """
    if not 0 <= part < 1:
        raise ValueError(f"part must lie in [0, 1), got {part}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if iter(batches) is batches:
        raise ValueError("batches are read more than once: give a list, not an iterator")
    stays = np.ones(sum(len(X) for X in batches), dtype=bool)
    if not stays.size:
        raise ValueError("batches hold no token")
    chosen, whole = parse(pattern), _gram(batches, stays)

    def problem_of(G: np.ndarray) -> Problem:
        return Problem("tokens that stay", W, G / np.count_nonzero(stays), chosen)

    problem = problem_of(whole)
    weights = solve(problem)
    errors = [problem.error_of_weights(weights)]
    count = int(part * stays.size + 1e-6)  # 0.29 of 100 are 29
    for _ in range(rounds if count else 0):
        last, stays = stays, _smallest(_errors(W - weights, batches), stays.size - count)
        if np.array_equal(stays, last):
            break
        problem = problem_of(whole - _gram(batches, ~stays))
        errors.append(problem.error_of_weights(weights))
        other = solve(problem)
        if (error := problem.error_of_weights(other)) >= errors[-1]:
            break
        weights = other
        errors.append(error)
    return Trimmed(weights, stays, tuple(errors))


def _gram(batches: Iterable[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """The sum ``Σ x xᵀ`` over the chosen tokens, float64 ``(n, n)``."""
    done, G = 0, np.zeros((0, 0))
    for X in batches:
        part = X[chosen[done : done + len(X)]].astype(np.float64)
        G, done = (part.T @ part + G if done else part.T @ part), done + len(X)
    return G


def _errors(change: np.ndarray, batches: Iterable[np.ndarray]) -> np.ndarray:
    """``‖change x‖²`` of each token, ``(tokens,)``, in the batches' precision."""
    return np.concatenate([np.square(X @ change.T.astype(X.dtype)).sum(axis=1) for X in batches])


def _smallest(errors: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` smallest, bool ``(tokens,)``; of equal ones the first."""
    stays = np.zeros(errors.size, dtype=bool)
    stays[np.argsort(errors, kind="stable")[:count]] = True
    return stays
