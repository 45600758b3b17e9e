"""How far an exact allocation, its budgets and masks together, can be from the best: what it has, and a proved bound.

The objective is what ``exact`` minimises: the harm that each layer's part predicts, in proportion to the error of some
of its rows. No layer's sparsity is further from the mean than its reach allows. The rows of a layer have equal counts
but where ours have not; where the pattern counts over the layer, they share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from fwbench import pipeline
from fwbench.patterns import Pattern, PerRow, Unstructured
from fwbench.problem import Problem
from fwbench.pruning.allocation import exact, lower
from fwbench.pruning.allocation.lower import Lower
from fwbench.pruning.allocation.passes import Setting
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context

SOLVER = "fast"  # whose masks stand for ours
LINES = 7  # sparsities within reach at which lower curves are sought


@dataclass(frozen=True)
class Measured:
    """Some rows of a layer: errors at the count that it was given, and what is proved of every count."""

    unit: float  # error of Wanda's mask at the plan's sparsity: what the layer's part is of
    pruned: int  # weights of the whole layer
    wanda: float
    upper: float  # of SOLVER's mask
    lower: Lower

    def to_json(self) -> dict[str, Any]:
        """In plain JSON, fractions as text."""
        lines = [[str(number) for number in line] for line in self.lower.lines]
        return {**asdict(self), "lower": {**asdict(self.lower), "lines": lines, "loose": str(self.lower.loose)}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measured:
        own = content["lower"]
        lines = tuple((Fraction(intercept), Fraction(slope)) for intercept, slope in own["lines"])
        return cls(**{**content, "lower": Lower(lines, own["low"], own["high"], Fraction(own["loose"]))})


class Kept(Protocol):
    """Where each layer's figures are kept, by name: a kill loses one layer."""

    def read_json(self, name: str) -> Any: ...

    def write_json(self, name: str, content: Any) -> None: ...


def gap(method: exact.Exact, at: Setting, chosen: Mapping[str, Pattern], kept: Kept) -> dict[str, Any]:
    """What the allocation costs and what any costs at least, in plain JSON: see :func:`summed`.

    Args:
        chosen: pattern of each layer, as the method allocated it.
        kept: what was measured is read from there, and what is measured is written.
    """
    at = at.first(method.tokens)
    reach = exact.grid(at.sparsity, method.reach)
    levels = np.linspace(reach[0], reach[-1], LINES)
    found, masks = {}, {}
    for layer, problem in exact.problems(at, "bounds"):
        masks[layer.name] = exact.wanda_pruned(layer, problem)
        file = f"allocation_gap/{layer.name}.json"
        if (content := kept.read_json(file)) is None:
            content = measured(problem, chosen[layer.name], levels).to_json()
            kept.write_json(file, content)
        found[layer.name] = Measured.from_json(content)
    parts = exact.harm_parts(at, masks, method.of)
    return summed(found, {name: max(parts[name], 0.0) for name in found})


def measured(problem: Problem, chosen: Pattern, levels: np.ndarray) -> Measured:
    """Measure and bound the rows of a layer that its curve is of.

    Args:
        problem: the whole layer, its pattern the plan's.
        chosen: the layer's own pattern.
        levels: ascending sparsities within reach.
    """
    assert isinstance(problem.pattern, PerRow | Unstructured)
    rows = exact.sampled(problem.rows)
    some, own = problem.part(rows), problem.with_pattern(chosen).part(rows)
    answer = pipeline.run(own, SOLVER)
    wanda = own.error(~own.pattern.prune(wanda_score(own.W, own.G)))
    pruned = int(chosen.counts(problem.shape).sum())
    curve = lower.curve_of(some, levels.tolist(), problem.rows, Context(threads=os.cpu_count() or 1))
    size = problem.rows * problem.n
    whole = isinstance(chosen, PerRow) or (isinstance(chosen, Unstructured) and len(rows) == problem.rows)
    return Measured(
        unit=float(exact.curve(some, np.array([problem.pattern.fraction]))[0]) or 1.0,
        pruned=pruned,
        wanda=wanda,
        upper=wanda if answer.keep is None else min(wanda, own.error(answer.keep)),
        lower=replace(
            curve,
            low=min(pruned, math.floor(levels[0] * size)),
            high=max(pruned, math.ceil(levels[-1] * size)),
            loose=Fraction(0) if whole else curve.loose,
        ),
    )


def summed(found: Mapping[str, Measured], parts: Mapping[str, float]) -> dict[str, Any]:
    """The harm predicted, and lower bounds of it.

    Args:
        parts: of each layer, at least 0.

    Returns:
        ``wanda``, ``upper``: with Wanda's and ``SOLVER``'s masks; ``lower_here``: with any masks, as allocated;
        ``lower``: with any masks and any allocation within reach.
    """
    weights = {name: parts[name] / layer.unit for name, layer in found.items()}
    curves = {name: layer.lower.times(weights[name]) for name, layer in found.items()}
    budget = sum(layer.pruned for layer in found.values())
    here = [curve.fixed(found[name].pruned) for name, curve in curves.items()]
    return {
        "rows": exact.ROWS,
        "solver": SOLVER,
        "wanda": math.fsum(weights[name] * layer.wanda for name, layer in found.items()),
        "upper": math.fsum(weights[name] * layer.upper for name, layer in found.items()),
        "lower_here": lower.bound(here, budget),
        "lower": lower.bound(list(curves.values()), budget),
    }
