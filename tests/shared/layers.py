"""Small layers for the tests of solvers: random, of whole numbers (so that ``==`` is exact), and hostile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fwbench import pipeline
from fwbench.problem import Problem
from fwbench.stage import Context, Stage, State

PATTERNS = ("0.5", "0.25", "unstructured:0.4", "2:4", "1:4", "rows")


def pattern_of(name: str, rows: int, n: int) -> str | np.ndarray:
    """A pattern of the list for a layer; ``rows`` stands for counts 0, 1, ... up to n."""
    return np.linspace(0, n, rows).astype(np.int64) if name == "rows" else name


def begun(problem: Problem, stage: type[Stage] | Stage) -> State:
    """The mask that a pipeline puts before a stage which stands alone in its spec."""
    state = State()
    for before in pipeline.resolve(stage.begin).stages:
        state = before.run(problem, state, Context())
    return State(keep=state.keep)


def random_layer(pattern: str, rows: int = 3, n: int = 12, seed: int = 0, condition: float = 1.0) -> Problem:
    """Correlated inputs whose scales span ``sqrt(condition)``."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)) @ rng.standard_normal((3, 50)) + rng.standard_normal((n, 50))
    X *= np.logspace(0, -np.log10(condition) / 2, n)[:, None]
    return Problem(f"random {seed}", rng.standard_normal((rows, n)), X @ X.T / 50, pattern_of(pattern, rows, n))


def integer_layer(pattern: str, rows: int = 4, n: int = 12, seed: int = 0) -> Problem:
    """Small whole numbers: every error is exact in float64, and ties abound."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, (n, 20)).astype(float)
    return Problem(f"integer {seed}", rng.integers(-2, 3, (rows, n)), X @ X.T, pattern_of(pattern, rows, n))


def arriving(
    pattern: str, rows: int = 3, n: int = 12, seed: int = 0, wrong: float = 0.5, whole: bool = False
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A layer whose inputs arrive wrong: its problem, the target ``WX (rows, 40)``, and ``X̂ (n, 40)`` that arrives.

    Args:
        wrong: how large ``X - X̂`` is beside ``X``.
        whole: small whole numbers, so that ties abound.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-2, 3, shape).astype(float) if whole else rng.standard_normal(shape)

    X = draw(n, 40) if whole else draw(n, 3) @ draw(3, 40) + draw(n, 40)
    arrived = X + wrong * draw(n, 40)
    W = draw(rows, n).astype(np.float32)
    return problem_of(f"arriving {seed}", W, W @ X, arrived, pattern_of(pattern, rows, n)), W @ X, arrived


def problem_of(name: str, W: np.ndarray, Y: np.ndarray, X: np.ndarray, pattern: str | np.ndarray) -> Problem:
    """The problem of weights ``W`` on inputs ``X (n, tokens)`` with the target ``Y (rows, tokens)``, from its words."""
    tokens, rest = X.shape[1], Y - W.astype(np.float64) @ X
    return Problem(name, W, X @ X.T / tokens, pattern, T=rest @ X.T / tokens, offset=(rest * rest).sum(axis=1) / tokens)


def hostile_targets(pattern: str, rows: int = 3, n: int = 8) -> list[Problem]:
    """Linear terms that break solvers: none, ties, huge, inputs and weights that are dead, what arrives is noise."""
    plain = random_layer(pattern, rows, n, seed=3)
    none = replace(plain, name="T of zeros", T=np.zeros(plain.shape), offset=np.zeros(rows))
    ties, huge = arriving(pattern, rows, n, whole=True)[0], arriving(pattern, rows, n, wrong=1e6)[0]
    _, Y, X = arriving(pattern, rows, n, seed=5)
    rng = np.random.default_rng(11)
    W = rng.standard_normal((rows, n)).astype(np.float32)
    dead, noise = X.copy(), rng.standard_normal(X.shape)
    dead[: n // 2] = 0
    zeros = np.where(np.arange(rows)[:, None] == 0, 0, W)
    scaled = np.logspace(-12, 12, rows)[:, None]
    made = pattern_of(pattern, rows, n)
    return [
        none,
        replace(ties, name="ties"),
        replace(huge, name="huge"),
        problem_of("dead inputs", W, Y, dead, made),
        problem_of("a row of zeros", zeros, Y, X, made),
        problem_of("noise arrives", W, Y, noise, made),
        problem_of("rows of all sizes", (W * scaled).astype(np.float32), Y * scaled, X, made),
        problem_of("one token", W, Y[:, :1], X[:, :1], made),
    ]


def repelling_layer(rows: int = 1, n: int = 12, seed: int = 0, spread: float = 0.0) -> Problem:
    """Inputs that repel each other or not, at random, and weights within ``spread`` of 1: pairs alone leave a gap."""
    rng = np.random.default_rng(seed)
    repel = np.triu(rng.choice([0.0, 1.0], (n, n)), 1)
    G = repel + repel.T
    G += (0.05 - np.linalg.eigvalsh(G)[0]) * np.eye(n)
    W = rng.uniform(1 - spread, 1 + spread, (rows, n)).astype(np.float32)
    return Problem(f"repelling {seed}", W, G, "0.5")


def odd_layer(rows: int = 1) -> Problem:
    """Two groups of five inputs that share one signal each: half of five is odd, which no triple sees."""
    G = np.kron(np.eye(2), np.ones((5, 5))) + 0.01 * np.eye(10)
    return Problem("odd", np.ones((rows, 10), np.float32), G, "0.5")


def hostile_layers(pattern: str, rows: int = 3, n: int = 8) -> list[Problem]:
    """What breaks solvers: zeros, duplicates, few tokens, bad condition, extreme scales."""
    rng = np.random.default_rng(7)
    W, X = rng.standard_normal((rows, n)), rng.standard_normal((n, 30))
    zero_row, zero_input, twins, opposite = W.copy(), X.copy(), X.copy(), X.copy()
    zero_row[0] = 0
    sparse = np.where(rng.random(W.shape) < 0.6, 0.0, W)
    zero_input[[0, 3]] = 0
    twins[1::2] = twins[::2]
    opposite[1] = -opposite[0]
    cases = {
        "zero row": (zero_row, X),
        "zero inputs": (W, zero_input),
        "all zero": (0 * W, 0 * X),
        "pruned before": (sparse, X),
        "equal weights": (np.ones_like(W), np.eye(n)),
        "duplicate inputs": (np.ones_like(W), twins),
        "opposite inputs": (np.ones_like(W), opposite),
        "one token": (W, X[:, :1]),
        "condition 1e8": (W, X * np.logspace(0, -4, n)[:, None]),
        "tiny": (1e-12 * W, 1e-6 * X),
        "huge": (1e12 * W, 1e6 * X),
    }
    kind = pattern_of(pattern, rows, n)
    return [Problem(name, W, X @ X.T / X.shape[1], kind) for name, (W, X) in cases.items()]


def extreme_layers(pattern: str, rows: int = 3, n: int = 8) -> list[Problem]:
    """What no unit fits: rows, inputs and weights that differ by 1e30 or are it, and rows that cancel."""
    rng = np.random.default_rng(11)
    W, X = rng.standard_normal((rows, n)), rng.standard_normal((n, 30))
    G, one = X @ X.T / 30, np.ones(n)
    steps, ill = np.logspace(15, -15, n), np.logspace(0, -6, n)
    huge, alone, beside, dead, twins = W.copy(), W.copy(), W.copy(), W.copy(), X.copy()
    huge[0, 3], huge[1, 0] = 1e30, 1e10
    alone[0, 1:], beside[:, 2:] = 0, 1e-30 * W[:, 2:]
    dead[:, [0, 5 % n]] = 1e30
    alive = np.ones(n)
    alive[[0, 5 % n]] = 0
    twins[1::2] = twins[::2]
    opposite = np.repeat(W[:, ::2], 2, axis=1) * np.tile([1, -1], n // 2)
    few = X[:, :2]
    null = (np.linalg.svd(few)[0][:, 2:] @ rng.standard_normal((n - 2, rows))).T

    def times(*factors: float) -> np.ndarray:
        return W * np.resize(factors, rows)[:, None]

    cases = {
        "rows 1, 1e-30, 1e30": (times(1, 1e-30, 1e30), G, one),
        "rows 1e20, 0, 1e-20": (times(1e20, 0, 1e-20), G, one),
        "a row below float32's normal numbers": (times(1, 1e-40), G, one),
        "rows 1e-30": (times(1e-30), G, one),
        "rows 1e30": (times(1e30), G, one),
        "inputs 1e-15": (W, G, 1e-15 * one),
        "inputs 1e15": (W, G, 1e15 * one),
        "rows 1e30 of inputs 1e15": (times(1e30), G, 1e15 * one),
        "rows 1e-30 of inputs 1e-15": (times(1e-30), G, 1e-15 * one),
        "rows 1e-30 of inputs 1e15": (times(1e-30), G, 1e15 * one),
        "inputs from 1e15 to 1e-15": (W, G, steps),
        "the same, and weights the other way": (W / steps, G, steps),
        "condition 1e12": (W, G, ill),
        "weights 1e30 and 1e10": (huge, G, one),
        "a row of one weight": (alone, G, one),
        "weights beside 1e-30": (beside, G, one),
        "weights 1e30 of inputs that are zero": (dead, G, alive),
        "twins that cancel": (opposite, twins @ twins.T / 30, one),
        "twins that cancel to 1e-5": (opposite * (1 + 1e-5 * W), twins @ twins.T / 30, one),
        "twins that cancel to 1e-7": (opposite * (1 + 1e-7 * W), twins @ twins.T / 30, one),
        "the null space of two tokens": (null, few @ few.T / 2, one),
        "the null space, rows 1, 1e-30, 1e30": (null / W * times(1, 1e-30, 1e30), few @ few.T / 2, one),
        "all zero": (0 * W, 0 * G, one),
    }
    kind = pattern_of(pattern, rows, n)
    return [Problem(name, W, G * inputs * inputs[:, None], kind) for name, (W, G, inputs) in cases.items()]
