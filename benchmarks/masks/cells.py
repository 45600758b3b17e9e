"""The grid of ``grid`` as its page sees it: cells read from the store, and means over the cells of solvers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fwbench import pipeline
from fwbench.metrics import shifted_geometric_mean as mean
from fwbench.problem import Problem
from fwbench.result import Result
from fwbench.spec import SpecError
from fwbench.store import Store

SWAP = "wanda+swap"


@dataclass(frozen=True)
class Cell:
    """One solver on one problem."""

    result: Result
    errors: np.ndarray  # float64 (rows,)
    seconds: float  # of the CPU
    current: bool  # run by the versions its stages have now

    @property
    def ratio(self) -> float:
        return float(self.result.ratio_to_wanda or np.nan)

    def trace(self) -> list[tuple[float, float]]:
        """(CPU seconds, ratio to Wanda) of every mask on the way, by the stages' ends and the stages' own traces."""
        share = self.result.timing["cpu_share"]
        unit = self.result.error / self.ratio if self.result.error else 1.0
        points = [(point[0], point[1]) for point in self.result.trace if point[1] is not None]
        clock = 0.0
        for stage in self.result.stages:
            clock += stage.seconds
            points += [(clock, stage.error)] if stage.error is not None else []
        return sorted((at * share, upper / unit) for at, upper in points)


Grid = dict[str, dict[str, Cell]]  # solver -> problem's name -> cell


def short(spec: str) -> str:
    """A spec without what every line of this study has in common."""
    text = spec.replace("+round+", "+").removesuffix("+round").replace("wanda+fw", "fw").replace("wanda+push", "push")
    text = text.replace(",steps=500", "").replace("gap=0.0,", "")
    return text.replace("fw(alpha=0.9,step=open,steps=2000,variant=vanilla)", "SparseFW")


def resolved(spec: str) -> str:
    """The name in the grid of a spec or preset; the text itself if this version does not know it."""
    try:
        return short(pipeline.resolve(spec).text)
    except SpecError:
        return spec


def read(path: Path, every: Sequence[Problem]) -> Grid:
    """The solved cells of a store that belong to these problems."""
    known = {problem.hash: problem for problem in every}
    grid: Grid = defaultdict(dict)
    with Store(path, readonly=True) as store:
        for result in store.results():
            problem, mask = known.get(result.problem_hash), store.mask(result.key)
            if problem is not None and mask is not None:
                now = pipeline.Run(problem, pipeline.resolve(result.solver)).key
                cell = Cell(result, problem.row_errors(~mask), result.timing["cpu_seconds"], result.key == now)
                grid[short(result.solver)][problem.name] = cell
    return grid


def against(grid: Grid, one: str, other: str, chosen: Callable[[str], bool] = lambda name: True) -> tuple[float, int]:
    """Mean of error over error on the problems that both have run on, and their number."""
    a, b = grid.get(one, {}), grid.get(other, {})
    names = [name for name in a if name in b and chosen(name)]
    return mean(a[name].ratio / b[name].ratio for name in names), len(names)


def best_of_rows(grid: Grid) -> dict[str, np.ndarray]:
    """The least error of each row that any solver found."""
    found: dict[str, np.ndarray] = {}
    for cells in grid.values():
        for name, cell in cells.items():
            found[name] = np.minimum(found.get(name, np.inf), cell.errors)
    return found


def complete(grid: Grid, solvers: Sequence[str]) -> list[str]:
    """Those of the solvers that have run on all problems."""
    return [solver for solver in solvers if len(grid.get(solver, ())) == len(grid["wanda"])]
