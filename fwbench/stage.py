"""The contract of a solver's stage, and the registry.

A stage is a frozen dataclass of its parameters, with one pure function ``run(problem, state, context) -> State``. The
dataclass fields *are* the schema of its spec. It holds no timing, no checks and no printing: the pipeline does those.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.result import Certificate, TracePoint


class Role(StrEnum):
    """What a stage does to the state, and in which order stages may follow each other."""

    START = "start"  # a mask from nothing
    RELAX = "relax"  # a fractional point, and a bound for free
    ROUND = "round"  # fractional point to mask
    REFINE = "refine"  # mask to better mask, never worse
    UPDATE = "update"  # also changes the kept weights
    EXACT = "exact"  # mask and proof; an earlier mask is its incumbent
    BOUND = "bound"  # a lower bound


class Needs(StrEnum):
    """What a stage must find to begin with; what is missing is put before it when a spec is resolved."""

    NOTHING = "nothing"  # a mask or point that is there may still be used, see ``Stage.uses``
    MASK = "mask"
    POINT = "point"  # fractional
    EITHER = "mask or point"


@dataclass(frozen=True)
class State:
    """What stages hand on. Arrays are numpy, ``(rows, n)``, and never written to."""

    keep: np.ndarray | None = None  # bool, True = the weight stays
    relaxed: np.ndarray | None = None  # u in [0, 1], 1 = pruned; None once rounded
    weights: np.ndarray | None = None  # changed weights, zero where pruned
    lower: float | None = None  # lower bound as its stage states it
    certificate: Certificate | None = None  # proof of a lower bound
    claimed_error: float | None = None  # a solver's own word; the judge recomputes it
    proven: bool = False  # an exact stage says the mask is optimal
    stopped: str = ""  # why the last stage ended early ("deadline"), empty if by itself
    counters: Mapping[str, int] = field(default_factory=dict)
    trace: tuple[TracePoint, ...] = ()  # over all stages, in order of time

    @property
    def mask(self) -> np.ndarray:
        """``keep``. Raises ValueError where there is none."""
        if self.keep is None:
            raise ValueError("there is no mask to begin with")
        return self.keep

    def count(self, **more: int) -> State:
        """Add to the hardware-neutral counters (lmo_calls, gram_products, swap_evaluations, nodes, iterations)."""
        return replace(self, counters={**self.counters, **{k: self.counters.get(k, 0) + v for k, v in more.items()}})

    def bound(self, lower: float, certificate: Certificate | None = None) -> State:
        """Raise the lower bound; what is weaker changes nothing. A proof stays beside a stronger, unproved claim."""
        best = self if self.lower is not None and self.lower >= lower else replace(self, lower=lower)
        held = self.certificate
        if certificate is None or (held is not None and held.bound >= certificate.bound):
            return best
        return replace(best, certificate=certificate)


@dataclass(frozen=True)
class Context:
    """Where and how long to run. Stages ask it for the time; they own no clock."""

    device: str = "cpu"
    dtype: str = "float32"
    deadline: float = float("inf")  # time.monotonic() at which to stop
    seed: int = 0
    threads: int = 1
    started: float = field(default_factory=time.monotonic)
    # a stage that works for long part by part may call it with a part that is done, under a name of its own: should the
    # run be killed, the stage's ``salvage`` gets them back. Parts are pickled; any thread may call it
    hand_in: Callable[[Hashable, object], None] = field(default=lambda key, part: None, repr=False, compare=False)
    listener: Callable[[TracePoint], None] | None = field(default=None, repr=False)  # hears each point as it is made

    def point(
        self,
        upper: float | None = None,
        lower: float | None = None,
        iterations: int | None = None,
        relaxed: float | None = None,
    ) -> TracePoint:
        """A point for the trace, of what is known now; whoever watches the run hears it."""
        found = TracePoint(self.seconds(), upper, lower, iterations, relaxed)
        if self.listener is not None:
            self.listener(found)
        return found

    def seconds(self) -> float:
        """Seconds since the pipeline started."""
        return time.monotonic() - self.started

    def left(self, limit: float = float("inf")) -> float:
        """Seconds left until the deadline, at most ``limit``."""
        return min(limit, self.deadline - time.monotonic())

    def expired(self) -> bool:
        return time.monotonic() >= self.deadline


class Stage:
    """Base of all stages; subclass it as a frozen dataclass and register it.

    Class variables: ``name`` in specs; ``role``; ``version``, raised when its results change (it is part of a row's
    key); ``requires``, packages looked up without importing them; ``source``, the paper; ``advice``, one sentence: when
    to use it, when not; ``needs``, what it begins with if not what its role usually does; ``begin``, the spec that
    makes it where it is missing; ``uses``, what a stage that needs nothing takes all the same where it is
    there; ``needs_groups``, whether it works on groups with a count, so that patterns that ask for more are declined.
    """

    name: ClassVar[str]
    role: ClassVar[Role]
    version: ClassVar[int] = 1
    requires: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    needs: ClassVar[Needs | None] = None  # as usual for the role
    begin: ClassVar[str] = "wanda"
    uses: ClassVar[tuple[Needs, ...]] = ()
    needs_groups: ClassVar[bool] = False

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this stage declines the problem."""
        return None

    def run(self, problem: Problem, state: State, context: Context) -> State:
        raise NotImplementedError(self.name)

    def salvage(self, problem: Problem, state: State, parts: Mapping[Any, Any]) -> State:
        """What a run of this stage that was killed is worth: ``state``, which it was given, made better by ``parts``.

        Args:
            parts: what it had handed in (``Context.hand_in``), by their names; at least one.
        """
        return state


def ungrouped(problem: Problem, what: str = "it") -> str | None:
    """None, or why ``what`` works on groups with a count declines a problem whose pattern asks for more."""
    if problem.pattern.grouped:
        return None
    return (
        f"{what} works on groups with a count each, and {problem.pattern} counts along rows and columns; "
        "wanda, push, fw(variant=vanilla), swap, admm and refit work on it"
    )


_USUAL = {
    Role.START: Needs.NOTHING,
    Role.RELAX: Needs.EITHER,
    Role.ROUND: Needs.POINT,
    Role.REFINE: Needs.MASK,
    Role.UPDATE: Needs.MASK,
    Role.EXACT: Needs.MASK,
    Role.BOUND: Needs.EITHER,
}


def needs(stage: Stage | type[Stage]) -> Needs:
    """What a stage begins with."""
    return stage.needs or _USUAL[stage.role]


registry: dict[str, type[Stage]] = {}


def register(stage: type[Stage]) -> type[Stage]:
    """Class decorator: make a stage known under its name.

    Raises:
        TypeError: not a frozen dataclass with defaults for all fields, or the name is taken.
    """
    parameters = getattr(stage, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"stage {stage.__name__} must be a frozen dataclass")
    for item in dataclasses.fields(stage):  # type: ignore[arg-type]
        if item.default is dataclasses.MISSING:
            raise TypeError(f"stage {stage.name}: parameter {item.name!r} needs a default")
    known = registry.get(stage.name)
    if known is not None and (known.__module__, known.__qualname__) != (stage.__module__, stage.__qualname__):
        raise TypeError(f"stage name {stage.name!r} is taken by {known.__module__}.{known.__qualname__}")
    registry[stage.name] = stage
    return stage


def parameters(stage: Stage | type[Stage]) -> dict[str, Any]:
    """Parameters with their values (of an instance) or defaults (of a class)."""
    items = dataclasses.fields(stage)  # type: ignore[arg-type]
    if isinstance(stage, type):
        return {item.name: item.default for item in items}
    return {item.name: getattr(stage, item.name) for item in items}
