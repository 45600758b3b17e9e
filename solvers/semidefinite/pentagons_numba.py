"""The numba kernels of ``pentagons``: products of five weights, their multipliers, and the search for violated ones.

With signs ``b = ±1`` of five weights, ``s = Σ b u`` and ``β = Σ b``, the product is ``(s - (β - 1)/2)(s - (β + 1)/2)``,
at least 0 on masks; in ``x = 2u - 1`` it is ``((bᵀx)² - 1)/4``. It is linear in the relaxed ``Y = (1, u)(1, u)ᵀ``.
"""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.jit import njit

PASSES = 6  # of exchanges in a search


@njit(nogil=True)
def value(P: np.ndarray, unit: np.ndarray, five: np.ndarray, sign: np.ndarray) -> float:
    """A product in ``Y = P * unit * unit[:, None]``; weights are counted from 0, the border comes before them."""
    beta = np.float32(0)
    for a in range(5):
        beta += sign[a]
    total = (beta * beta - np.float32(1)) / np.float32(4)
    for a in range(5):
        i = five[a] + 1
        total += (np.float32(1) - beta * sign[a]) * P[0, i] * unit[0] * unit[i]
        for b in range(a):
            j = five[b] + 1
            total += np.float32(2) * sign[a] * sign[b] * P[i, j] * unit[i] * unit[j]
    return float(total)


@njit(nogil=True)
def ascend(
    P: np.ndarray, unit: np.ndarray, five: np.ndarray, sign: np.ndarray, step: np.ndarray, multiplier: np.ndarray
) -> None:
    """``multiplier - step value``, where that is positive, in place."""
    for m in range(len(multiplier)):
        multiplier[m] = max(multiplier[m] - step[m] * value(P, unit, five[m], sign[m]), np.float32(0))


@njit(nogil=True)
def subtract(
    C: np.ndarray, unit: np.ndarray, five: np.ndarray, sign: np.ndarray, multiplier: np.ndarray, scale: float
) -> None:
    """Take from ``C`` the symmetric ``T`` whose ``⟨T, P⟩`` is the sum of the products times multiplier and scale."""
    for m in range(len(multiplier)):
        if multiplier[m] == 0:
            continue
        amount, beta = np.float32(scale) * multiplier[m], np.float32(0)
        for a in range(5):
            beta += sign[m, a]
        C[0, 0] -= amount * (beta * beta - np.float32(1)) / np.float32(4) * unit[0] * unit[0]
        for a in range(5):
            i = five[m, a] + 1
            single = amount / np.float32(2) * (np.float32(1) - beta * sign[m, a]) * unit[0] * unit[i]
            C[0, i] -= single
            C[i, 0] -= single
            for b in range(a):
                j = five[m, b] + 1
                both = amount * sign[m, a] * sign[m, b] * unit[i] * unit[j]
                C[i, j] -= both
                C[j, i] -= both


@njit(nogil=True)
def search(
    X: np.ndarray,
    seed: np.ndarray,
    lead: np.ndarray,
    given: np.ndarray,
    above: float,
    five: np.ndarray,
    sign: np.ndarray,
    amount: np.ndarray,
) -> int:
    """From each seed on, weights are added and then exchanged, each the best: how many fives are violated by more.

    Args:
        X: ``(n, n)``, ``xxᵀ`` relaxed.
        seed, lead, given: ``(seeds, 3)``, weights and signs, of which the first ``given (seeds,)`` count.
        above: the least violation that counts.
        five, sign, amount: of as many as there are seeds; what is found is written there, with ascending weights, the
            first one's sign 1, and the violation.
    """
    n, found = len(X), 0
    own, b = np.zeros(5, np.int64), np.zeros(5, np.float32)
    pull = np.zeros(n, np.float32)  # Σ b x over the set, times each x
    for t in range(len(seed)):
        pull[:] = 0
        for a in range(5):
            if a < given[t]:
                own[a], b[a] = seed[t, a], lead[t, a]
            else:
                own[a] = _strongest(pull, own, a, a)
                b[a] = -1.0 if pull[own[a]] > 0 else 1.0
            pull += b[a] * X[own[a]]
        for _ in range(PASSES):
            moved = False
            for a in range(5):
                pull -= b[a] * X[own[a]]
                best = _strongest(pull, own, 5, a)
                if abs(pull[best]) > abs(pull[own[a]]) + 1e-5:
                    own[a], moved = best, True
                b[a] = -1.0 if pull[own[a]] > 0 else 1.0
                pull += b[a] * X[own[a]]
            if not moved:
                break
        square = 0.0
        for a in range(5):
            square += b[a] * pull[own[a]]
        if (1 - square) / 4 > above:
            order = np.argsort(own)
            for a in range(5):
                five[found, a], sign[found, a] = own[order[a]], b[order[a]] * b[order[0]]
            amount[found] = (1 - square) / 4
            found += 1
    return found


@njit(nogil=True)
def _strongest(pull: np.ndarray, own: np.ndarray, size: int, but: int) -> int:
    """The weight with the largest pull that is none of the first ``size`` of ``own``, ``own[but]`` excepted."""
    best, most = -1, np.float32(-1)
    for v in range(len(pull)):
        if abs(pull[v]) > most:
            free = True
            for a in range(size):
                free = free and (own[a] != v or a == but)
            if free:
                best, most = v, abs(pull[v])
    return best
