"""Seeded generators of problems: for tests, for scaling curves, and as hard cases that real layers rarely show.

All are small by default; ``CASES`` is the collection ``synthetic``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fwbench.patterns import Pattern, parse
from fwbench.problem import Problem

META = {"model": "synthetic", "license": "CC0-1.0"}


def gram(X: np.ndarray) -> np.ndarray:
    """``X Xᵀ / tokens``, float64 ``(n, n)``, of inputs ``X (n, tokens)``."""
    X = np.asarray(X, dtype=np.float64)
    return X @ X.T / X.shape[1]


def correlated(
    rows: int = 4, n: int = 64, rho: float = 0.9, pattern: Pattern | str = "0.5", seed: int = 0, name: str = ""
) -> Problem:
    """Gaussian inputs with correlation ``rho^|i-j|`` (an AR(1) chain) and uneven scales, ``4 n`` tokens."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 4 * n))
    for i in range(1, n):
        X[i] = rho * X[i - 1] + np.sqrt(1 - rho**2) * X[i]
    X *= np.exp(rng.normal(0, 0.5, (n, 1)))
    return _problem(name or f"correlated-{n}", rng.standard_normal((rows, n)), gram(X), pattern, seed)


def ill_conditioned(
    rows: int = 4, n: int = 64, condition: float = 1e8, pattern: Pattern | str = "0.5", seed: int = 0, name: str = ""
) -> Problem:
    """Eigenvalues spread evenly in the logarithm from 1 down to ``1 / condition``, eigenvectors at random."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    root = basis * np.sqrt(np.logspace(0, -np.log10(condition), n))
    return _problem(name or f"ill-conditioned-{n}", rng.standard_normal((rows, n)), root @ root.T, pattern, seed)


def degenerate(rows: int = 4, n: int = 64, pattern: Pattern | str = "0.5", seed: int = 0, name: str = "") -> Problem:
    """A quarter of the inputs are copies of others, an eighth are always zero: ``G`` is singular, its diagonal too."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2 * n))
    order = rng.permutation(n)
    X[order[: n // 4]] = X[order[n // 4 : 2 * (n // 4)]]
    X[order[n - n // 8 :]] = 0
    return _problem(name or f"degenerate-{n}", rng.standard_normal((rows, n)), gram(X), pattern, seed)


def planted(rows: int = 4, n: int = 48, seed: int = 0, name: str = "") -> tuple[Problem, np.ndarray]:
    """A problem whose best mask is known, and that mask: bool ``(rows, n)`` with error exactly 0.

    Inputs come in triples ``(a, b, a + b)``. In half of a row's triples the weights are ``(c, c, -c)``: removing all
    three changes nothing, removing any one or two does. All numbers are small integers, so sums are exact.

    Raises:
        ValueError: ``n`` is not a multiple of 6.
    """
    if n % 6:
        raise ValueError(f"planted: n must be a multiple of 6, got {n}")
    rng = np.random.default_rng(seed)
    triples, tokens = n // 3, 1 << (2 * n - 1).bit_length()  # a power of two divides exactly
    a, b = rng.integers(-4, 5, (2, triples, tokens))
    X = np.stack([a, b, a + b], axis=1).reshape(n, tokens)
    W = rng.integers(1, 4, (rows, triples, 3)) * rng.choice([-1, 1], (rows, triples, 1))  # one sign: no cancelling
    keep = np.ones((rows, triples, 3), dtype=bool)
    for row in range(rows):
        hidden = rng.permutation(triples)[: triples // 2]
        size = rng.integers(1, 9, hidden.size)[:, None]
        W[row, hidden] = size * np.array([1, 1, -1])
        keep[row, hidden] = False
    return _problem(name or f"planted-{n}", W.reshape(rows, n), gram(X), "0.5", seed), keep.reshape(rows, n)


def diagonal(rows: int = 4, n: int = 64, pattern: Pattern | str = "0.5", seed: int = 0, name: str = "") -> Problem:
    """Uncorrelated inputs: the best mask prunes the smallest ``w² G_ii`` of each group, as Wanda does."""
    rng = np.random.default_rng(seed)
    G = np.diag(np.exp(rng.normal(0, 1, n)))
    return _problem(name or f"diagonal-{n}", rng.standard_normal((rows, n)), G, pattern, seed)


def ties(rows: int = 4, n: int = 32, pattern: Pattern | str = "0.5", seed: int = 0, name: str = "") -> Problem:
    """Small integers everywhere: many masks have equal errors, and every error is exact in float32."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-1, 2, (n, 64))
    return _problem(name or f"ties-{n}", rng.integers(-2, 3, (rows, n)), gram(X), pattern, seed)


def zero_rows(rows: int = 4, n: int = 32, pattern: Pattern | str = "0.5", seed: int = 0, name: str = "") -> Problem:
    """Every other row has no weight but zero: whatever is pruned there costs nothing."""
    problem = correlated(rows, n, pattern=pattern, seed=seed)
    W = problem.W * (np.arange(rows) % 2)[:, None]
    return _problem(name or f"zero-rows-{n}", W, problem.G, pattern, seed)


def _problem(name: str, W: np.ndarray, G: np.ndarray, pattern: Pattern | str, seed: int) -> Problem:
    return Problem(name, W, G, parse(pattern), {**META, "source": f"fwbench.problems.synthetic {name} seed {seed}"})


def _named(cases: dict[str, Callable[..., Problem]]) -> dict[str, Callable[[], Problem]]:
    return {f"synthetic.{key}": partial(case, name=f"synthetic.{key}") for key, case in cases.items()}


def _planted(name: str) -> Problem:
    return planted(name=name)[0]


CASES: dict[str, Callable[[], Problem]] = _named(
    {f"correlated.n{n:03}": partial(correlated, n=n) for n in (32, 64, 128, 256)}
    | {f"ill_conditioned.n{n:03}": partial(ill_conditioned, n=n) for n in (32, 64, 128, 256)}
    | {
        "correlated.n064.2:4": partial(correlated, pattern="2:4", seed=1),
        "correlated.n064.unstructured:0.6": partial(correlated, pattern="unstructured:0.6", seed=2),
        "degenerate.n064": degenerate,
        "diagonal.n064": diagonal,
        "planted.n048": _planted,
        "ties.n032": ties,
        "zero_rows.n032": zero_rows,
    }
)
