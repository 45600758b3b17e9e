"""Masks from a saliency score of each weight: neither interactions nor a target are seen, as published.

A score function takes ``W (rows, n)`` and ``G (n, n)`` and returns float64 ``(rows, n)``, larger = more worth keeping.
``sqrt(G_jj)`` is ``‖X_j‖ / sqrt(tokens)``: the common factor changes no ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def magnitude_score(W: np.ndarray, G: np.ndarray) -> np.ndarray:
    """``|W_ij|``, float64 ``(rows, n)``; ``G`` is not looked at."""
    return np.abs(W.astype(np.float64))


def input_norms(G: np.ndarray) -> np.ndarray:
    """``‖X_j‖ / sqrt(tokens)`` of each input, float64 ``(n,)``."""
    return np.sqrt(np.maximum(G.diagonal(), 0.0))


def wanda_score(W: np.ndarray, G: np.ndarray) -> np.ndarray:
    """``|W_ij| ‖X_j‖``, float64 ``(rows, n)`` (Sun et al., arXiv 2306.11695, eq. 1)."""
    return magnitude_score(W, G) * input_norms(G)


def ria_score(W: np.ndarray, G: np.ndarray, a: float = 0.5) -> np.ndarray:
    """``(|W_ij| / Σ_j|W_ij| + |W_ij| / Σ_i|W_ij|) ‖X_j‖^a``, float64 ``(rows, n)``.

    Zhang et al., Plug-and-Play, ICLR 2024 (RIA), relative importance and activations. A row or column of zeros
    counts as unimportant.
    """
    size = magnitude_score(W, G)
    row, column = size.sum(axis=1, keepdims=True), size.sum(axis=0, keepdims=True)
    relative = size / np.where(row > 0, row, 1.0) + size / np.where(column > 0, column, 1.0)
    return relative * input_norms(G) ** a


def keep_highest(problem: Problem, score: np.ndarray) -> np.ndarray:
    """The mask that prunes the lowest scores within each of the pattern's groups: bool ``(rows, n)``, True = stays."""
    return ~problem.pattern.prune(score)


def _start(problem: Problem, state: State, score: np.ndarray) -> State:
    return replace(state, keep=keep_highest(problem, score), relaxed=None)


@register
@dataclass(frozen=True)
class Magnitude(Stage):
    """Prune the smallest |W_ij| within each of the pattern's groups."""

    name: ClassVar[str] = "magnitude"
    role: ClassVar[Role] = Role.START
    advice: ClassVar[str] = (
        "For a baseline that needs no calibration text; not where a mask matters, Wanda's costs the same and errs less."
    )
    source: ClassVar[str] = "Han et al., Learning both Weights and Connections, NeurIPS 2015, arXiv 1506.02626"

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return _start(problem, state, magnitude_score(problem.W, problem.G))


@register
@dataclass(frozen=True)
class Wanda(Stage):
    """Prune the smallest |W_ij| ‖X_j‖ within each of the pattern's groups."""

    name: ClassVar[str] = "wanda"
    role: ClassVar[Role] = Role.START
    advice: ClassVar[str] = (
        "For a mask in milliseconds and as the start of other stages; not as the last word, swaps take off some "
        "40 % of its error."
    )
    source: ClassVar[str] = "Sun et al., A Simple and Effective Pruning Approach for LLMs, arXiv 2306.11695, eq. 1"

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return _start(problem, state, wanda_score(problem.W, problem.G))


@register
@dataclass(frozen=True)
class Ria(Stage):
    """Prune the smallest relative importance (|W_ij| by its row's and its column's sum) times ‖X_j‖^a."""

    a: float = 0.5

    name: ClassVar[str] = "ria"
    role: ClassVar[Role] = Role.START
    advice: ClassVar[str] = (
        "For the published rival of Wanda's score; not for the least layer error, Wanda's is lower on most layers "
        "measured here."
    )
    source: ClassVar[str] = "Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method, ICLR 2024"

    def __post_init__(self) -> None:
        if not 0 <= self.a < float("inf"):
            raise ValueError(f"a must be a number of at least 0, got {self.a!r}")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return _start(problem, state, ria_score(problem.W, problem.G, self.a))


@register
@dataclass(frozen=True)
class Random(Stage):
    """Prune at random, uniformly among the feasible masks: the floor that every solver must beat."""

    name: ClassVar[str] = "random"
    role: ClassVar[Role] = Role.START
    advice: ClassVar[str] = "For the floor of a comparison; never for a mask to use."

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return _start(problem, state, np.random.default_rng(context.seed).random(problem.shape))
