"""Allocations: how many weights each layer, or each row, gives up, decided on the dense model before any solver runs.

Each prunes together exactly as many weights as the plan's pattern does everywhere (``counts``). A name is a stage's
spec of one stage: ``owl(M=5,spread=0.08)``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from fwbench import spec
from fwbench.patterns import Pattern, PerRow, Unstructured
from fwbench.pruning.allocation import counts, proved
from fwbench.pruning.allocation.exact import Exact
from fwbench.pruning.allocation.neuroal import NeuroAL
from fwbench.pruning.allocation.passes import Setting, setting
from fwbench.pruning.allocation.published import Alpha, Owl
from fwbench.spec import SpecError

UNIFORM = "uniform"
KINDS = {"owl": Owl, "alpha": Alpha, "neuroal": NeuroAL, "exact": Exact}

Method = Owl | Alpha | NeuroAL | Exact

__all__ = ["KINDS", "UNIFORM", "Method", "allocate", "full", "gap", "parse", "patterns", "refusal", "setting"]


def parse(text: str) -> Method | None:
    """The method of a name with parameters, None for ``uniform``.

    Raises:
        SpecError: no such method or parameter, or a value that it does not take.
    """
    stages = spec.parse(text).stages
    name, params = stages[0].name, dict(stages[0].params)
    if len(stages) > 1 or name not in (UNIFORM, *KINDS):
        raise SpecError(f"unknown allocation {text!r}; there are {', '.join((UNIFORM, *KINDS))}")
    kind = KINDS.get(name)
    fields = {} if kind is None else typing.get_type_hints(kind)
    if unknown := [key for key in params if key not in fields]:
        has = f"it takes {', '.join(fields)}" if fields else "it takes none"
        raise SpecError(f"allocation {name} has no parameter {unknown[0]!r}; {has}")
    if kind is None:
        return None
    return kind(**{key: _value(name, key, value, fields[key]) for key, value in params.items()})


def _value(name: str, key: str, value: spec.Literal, kind: Any) -> Any:
    """A parameter's value, if it is a number above 0, one of the words that it can be, or true or false."""
    if kind is bool:
        if value in (truths := {True: True, False: False, "true": True, "false": False}):
            return truths[value]
        raise SpecError(f"allocation {name}: {key} must be true or false")
    if words := typing.get_args(kind):
        if value not in words:
            raise SpecError(f"allocation {name}: {key} must be one of {', '.join(words)}")
        return value
    whole = kind is int
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if not 0 < number < float("inf") or (whole and number != int(number)):
        raise SpecError(f"allocation {name}: {key} must be a {'whole ' * whole}number above 0")
    return int(number) if whole else number


def full(method: Method | None) -> str:
    """The name with all parameters, but for bounds that are not asked for: they change no allocation."""
    if method is None:
        return UNIFORM
    name = next(name for name, kind in KINDS.items() if isinstance(method, kind))
    fields = sorted(dataclasses.asdict(method).items())
    return str(spec.StageSpec(name, tuple((key, value) for key, value in fields if value is not False)))


def refusal(method: Method | None, pattern: Pattern, streamed: bool = False) -> str:
    """Why an allocation cannot be had under a pattern, or of a model that stays in its files; empty where it can."""
    if method is None:
        return ""
    if not isinstance(pattern, PerRow | Unstructured):
        return f"pattern {pattern} leaves nothing to allocate; --allocation takes one such as 0.6 or unstructured:0.6"
    if streamed and isinstance(method, Exact):
        return "allocation exact runs the whole model backwards, so it has to be in memory: --whole, or another one"
    return ""


def allocate(method: Method, at: Setting) -> dict[str, Any]:
    """Counts of pruned weights by layer in plain JSON, see :func:`patterns`; the model is as it was afterwards."""
    if isinstance(method, NeuroAL):
        found = method.patterns(at)
    else:
        found = counts.layer_patterns(at.pattern, at.shapes, method.sparsities(at))
    return {name: counts.dumped(found[name], shape) for name, shape in at.shapes.items()}


def gap(method: Method, at: Setting, chosen: Mapping[str, Pattern], kept: proved.Kept) -> dict[str, Any] | None:
    """What the allocation costs and what any costs at least (``proved.gap``); None where it is not asked for."""
    return proved.gap(method, at, chosen, kept) if isinstance(method, Exact) and method.bounds else None


def patterns(at: Setting, allocated: Mapping[str, Any]) -> dict[str, Pattern]:
    """The pattern of each layer."""
    return {name: counts.read(at.pattern, shape, allocated[name]) for name, shape in at.shapes.items()}
