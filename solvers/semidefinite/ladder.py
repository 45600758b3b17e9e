"""The ladder of a row's bounds, and the climb from one rung to the next.

Each rung begins where the one below it ended. Alternating directions look for multipliers of the products that its
relaxation has besides (:class:`Directions`); the interior point then finds the best diagonal for the largest of them,
and that is the proof. A sixth rung is a class of directions and a line in ``LADDER``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fwbench.solvers.semidefinite.doubly_nonnegative import Directions, DoublyNonnegative, lagrangian
from fwbench.solvers.semidefinite.mccormick import McCormick
from fwbench.solvers.semidefinite.pentagons import Pentagons
from fwbench.solvers.semidefinite.row import RowForm
from fwbench.solvers.semidefinite.shor import Shor, shor
from fwbench.solvers.semidefinite.triangles import Triangles

ANY = range(sys.maxsize)
LONGEST = 2**16  # row whose triples and fives a proof can name
RESERVE = 1.5  # of the seconds that the start took: kept for the interior point at the end


@dataclass(frozen=True)
class Rung:
    """One relaxation: what climbs to it, what that costs, and which rows it is for."""

    name: str  # of ``fwbench.result.RELAXATIONS``
    directions: type[Directions] | None = None  # None: the interior point alone
    iterations: int = 0  # of the directions
    products: int = 0  # kept at most, times n: the largest multipliers
    sizes: range = ANY  # rows of so many weights; others stay on the rung below
    batched: bool = True  # whether a GPU takes many rows at once


LADDER = (
    Rung("shor"),
    Rung("dnn", DoublyNonnegative, iterations=90, products=20),  # more iterations gain little
    Rung("mccormick", McCormick, iterations=120, products=30),
    # half as many iterations leave 0.15 points more of a gap, twice as many 0.05 less
    Rung("triangles", Triangles, iterations=1280, products=30, sizes=range(3, LONGEST + 1), batched=False),
    Rung("pentagons", Pentagons, iterations=640, products=30, sizes=range(5, LONGEST + 1), batched=False),
)
RUNGS = {rung.name: rung for rung in LADDER}


class Machine(Protocol):
    """Where rows are bounded, and how exactly: :class:`Host`, or a GPU (``fwbench.solvers.bounds.batch``)."""

    @property
    def device(self) -> str:
        """Of the alternating directions."""

    def shor(self, forms: Sequence[RowForm], deadline: float) -> list[Shor]:
        """Shor's bounds of some rows of equal length."""

    def map(self, work: Callable, *rows: Iterable) -> Iterable:
        """As the built-in one: small work of each row."""


@dataclass(frozen=True)
class Host:
    """One row after the other on the CPU."""

    tolerance: float = 3e-4
    device: str = "cpu"

    def shor(self, forms: Sequence[RowForm], deadline: float) -> list[Shor]:
        return [shor(form, tolerance=self.tolerance, deadline=deadline) for form in forms]

    def map(self, work: Callable, *rows: Iterable) -> Iterable:
        return map(work, *rows)


def climb(
    rungs: Sequence[Rung],
    forms: Sequence[RowForm],
    starts: Sequence[Shor | None],
    machine: Machine,
    deadline: float = math.inf,
) -> list[Shor]:
    """The bounds of rows of equal length on the last of ``rungs``, none worse than where its climb began.

    Args:
        rungs: from the bottom of the ladder. The last is climbed; the others by rows without a start.
        starts: what the climb to the rung before the last gave; None for a row that begins at the bottom.
        deadline: of ``time.monotonic()``; what is reached by then is valid too.
    """
    *below, rung = rungs
    if rung.directions is None:
        return machine.shor(forms, deadline)
    begun = dict(enumerate(starts))
    if new := [row for row, start in begun.items() if start is None]:
        begun |= zip(new, climb(below, [forms[row] for row in new], [None] * len(new), machine, deadline), strict=True)
    held = [start for start in begun.values() if start is not None]
    n, reserve = len(forms[0].Q), RESERVE * sum(start.seconds for start in held)
    if time.monotonic() + reserve >= deadline or n not in rung.sizes:
        return held
    directions = rung.directions(forms, held, rung.iterations, machine.device, machine.map)
    for _ in range(rung.iterations):
        if time.monotonic() + reserve >= deadline:
            break
        directions.step()
    reduce = partial(lagrangian, limit=rung.products * n)
    less, written = zip(*machine.map(reduce, forms, directions.multipliers(), directions.cuts()), strict=True)
    found = [write(one) for write, one in zip(written, machine.shor(less, deadline), strict=True)]
    return [max(pair, key=lambda one: one.proof.bound) for pair in zip(held, found, strict=True)]


def path(name: str, iterations: int | None = None) -> tuple[Rung, ...]:
    """The ladder up to a rung, those below it with as many products: they are where it starts, not what is kept.

    Args:
        iterations: of that rung, if not its own number.
    """
    top = RUNGS[name] if iterations is None else replace(RUNGS[name], iterations=iterations)
    below = LADDER[: LADDER.index(RUNGS[name])]
    return (*(replace(rung, products=top.products) for rung in below), top)


def row_bound(
    name: str,
    form: RowForm,
    start: Shor | None = None,
    *,
    iterations: int | None = None,
    tolerance: float = 3e-4,
    deadline: float = math.inf,
) -> Shor:
    """The bound of one row on a rung, on the CPU.

    Args:
        form: a row with a free choice (``form.free``).
        start: what the rung below gave for the row, if known.
        iterations: of this rung, if not its own number.
        tolerance: relative, of the interior points.
        deadline: of ``time.monotonic()``; what is reached by then is valid too.
    """
    [found] = climb(path(name, iterations), [form], [start], Host(tolerance), deadline)
    return found
