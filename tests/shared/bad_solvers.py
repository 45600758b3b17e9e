"""A kit of deliberately bad solvers, as one solver file: what the runner and the contract suite must catch.

Each starts from Wanda's mask and does one thing wrong. They do it to small layers too, the warm-up's included.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fwbench.contract import enumerated
from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State, register


def honest(problem: Problem) -> State:
    """Wanda's mask."""
    return State(keep=~problem.pattern.prune(np.abs(problem.W) * np.sqrt(np.maximum(problem.G.diagonal(), 0))))


@register
@dataclass(frozen=True)
class Good(Stage):
    """The good neighbour."""

    name: ClassVar[str] = "good"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return honest(problem)


@register
@dataclass(frozen=True)
class Raises(Stage):
    """Raises."""

    name: ClassVar[str] = "bad_raises"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        raise ArithmeticError("on purpose")


@register
@dataclass(frozen=True)
class Declines(Stage):
    """Declines whatever it is given."""

    name: ClassVar[str] = "bad_declines"
    role: ClassVar[Role] = Role.START

    def supports(self, problem: Problem) -> str | None:
        return "it likes no problem"


@register
@dataclass(frozen=True)
class Nan(Stage):
    """Changes a kept weight to NaN."""

    name: ClassVar[str] = "bad_nan"
    role: ClassVar[Role] = Role.UPDATE

    def run(self, problem: Problem, state: State, context: Context) -> State:
        mask = honest(problem)
        weights = np.where(mask.keep, problem.W, 0)
        weights[mask.keep] = np.nan
        return replace(mask, weights=weights)


@register
@dataclass(frozen=True)
class Count(Stage):
    """Prunes one weight too few, or too many."""

    name: ClassVar[str] = "bad_count"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        keep = honest(problem).keep.copy()
        keep[0, 0] = not keep[0, 0]
        return State(keep=keep)


@register
@dataclass(frozen=True)
class Lies(Stage):
    """Claims half of its error."""

    name: ClassVar[str] = "bad_lies"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        mask = honest(problem)
        return replace(mask, claimed_error=problem.error(mask.keep) / 2)


@register
@dataclass(frozen=True)
class Bound(Stage):
    """Claims that its mask cannot be beaten."""

    name: ClassVar[str] = "bad_bound"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        mask = honest(problem)
        return replace(mask, lower=problem.error(mask.keep), proven=True)


def untargeted(problem: Problem) -> Problem:
    """The problem as those see it who have not heard of targets."""
    return replace(problem, T=None, offset=None)


@register
@dataclass(frozen=True)
class UntargetedError(Stage):
    """Claims the error that its mask has without the target."""

    name: ClassVar[str] = "bad_untargeted_error"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        mask = honest(problem)
        return replace(mask, claimed_error=untargeted(problem).error(mask.keep))


@register
@dataclass(frozen=True)
class UntargetedBound(Stage):
    """Claims the optimum without the target as a bound, where it can enumerate it."""

    name: ClassVar[str] = "bad_untargeted_bound"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return replace(honest(problem), lower=enumerated(untargeted(problem)) if problem.n <= 8 else 0.0)


@register
@dataclass(frozen=True)
class Worse(Stage):
    """Turns a mask upside down and calls it a refinement."""

    name: ClassVar[str] = "bad_worse"
    role: ClassVar[Role] = Role.REFINE

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return replace(state, keep=~problem.pattern.prune(-np.abs(problem.W) * np.sqrt(problem.G.diagonal())))


@register
@dataclass(frozen=True)
class Mutates(Stage):
    """Scales the problem in place, which makes every error smaller."""

    name: ClassVar[str] = "bad_mutates"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        mask = honest(problem)
        problem.W.setflags(write=True)
        problem.W[...] *= 0.5
        return mask


@register
@dataclass(frozen=True)
class MutatesState(Stage):
    """Improves the mask it was given in place."""

    name: ClassVar[str] = "bad_mutates_state"
    role: ClassVar[Role] = Role.REFINE

    def run(self, problem: Problem, state: State, context: Context) -> State:
        state.keep.setflags(write=True)
        state.keep[...] = np.roll(state.keep, 1, axis=1)
        return replace(state, keep=honest(problem).keep)


@register
@dataclass(frozen=True)
class Random(Stage):
    """Ignores the seed."""

    name: ClassVar[str] = "bad_random"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return State(keep=~problem.pattern.prune(np.random.default_rng().random(problem.shape)))


@register
@dataclass(frozen=True)
class Sleeps(Stage):
    """Sleeps past every limit."""

    name: ClassVar[str] = "bad_sleeps"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        time.sleep(3600)
        return honest(problem)


@register
@dataclass(frozen=True)
class Allocates(Stage):
    """Takes memory in small pieces and holds it."""

    name: ClassVar[str] = "bad_allocates"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        held = []
        for _ in range(1 << 12):  # 64 GiB in the end
            held.append(np.ones(1 << 21))
            time.sleep(0.005)
        return honest(problem)


@register
@dataclass(frozen=True)
class AllocatesAtOnce(Stage):
    """Takes more memory than there is in one piece."""

    name: ClassVar[str] = "bad_allocates_at_once"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        np.ones(1 << 33)
        return honest(problem)


@register
@dataclass(frozen=True)
class Exits(Stage):
    """Ends the process without a word."""

    name: ClassVar[str] = "bad_exits"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        print("bye", flush=True)
        os._exit(3)


@register
@dataclass(frozen=True)
class Segfault(Stage):
    """Reads address zero."""

    name: ClassVar[str] = "bad_segfault"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        ctypes.string_at(0)
        return honest(problem)


@register
@dataclass(frozen=True)
class Killed(Stage):
    """Is killed by somebody else."""

    name: ClassVar[str] = "bad_killed"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        os.kill(os.getpid(), 9)
        return honest(problem)
