"""Simulated annealing with swaps: anytime refinement of all rows by rounds of doubling length.

A round cools every row from its input mask; then the weights on which a row's best masks so far disagree are annealed
by themselves, which joins what each mask has found ("tour merging" of the travelling salesman, Cook and Seymour 2003).
Each mask found is brought to its 1-swap optimum. A row whose best mask was found again, independently, is settled and
leaves its time to the others. So stopping after any round costs at most a constant factor of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from fwbench.problem import Problem
from fwbench.result import TracePoint
from fwbench.solvers.numerics.threads import numba_threads
from fwbench.stage import Context, Role, Stage, State, register

CHUNK_ROWS = 64  # rows annealed together
STEP = 30_000_000  # proposals between two looks at the clock, some 0.1 s on two cores
MERGE = 4  # merging takes one sweep for so many of the annealing before it
ELITES = 8  # masks kept of each row
SAME = 1e-9  # relative difference below which two errors are the same mask's
FOUND_AGAIN = 2  # times after which a row is settled
LEAST_SWEEPS = 20  # shorter cooling is not worth the start
RESERVE = 0.9  # part of the time left that is planned


@register
@dataclass(frozen=True)
class Anneal(Stage):
    """Simulated annealing with swaps, in rounds of doubling length, merging the best masks of each row.

    ``hot`` and ``cold`` are temperatures in units of a row's error / n, a target left out of it. Without ``seconds``
    there are ``rounds`` rounds and the result depends on the seed alone; with it, rounds go on until the time is used
    up or all rows are settled.
    """

    name: ClassVar[str] = "anneal"
    role: ClassVar[Role] = Role.REFINE
    needs_groups: ClassVar[bool] = True
    advice: ClassVar[str] = "For the best mask that time can buy; not where seconds count, `tabu` is cheaper."
    version: ClassVar[int] = 4
    source: ClassVar[str] = "Kirkpatrick, Gelatt, Vecchi 1983"
    sweeps: int = 500  # proposals a weight in the first round; each further round doubles them
    rounds: int = 4
    seconds: float = float("inf")
    hot: float = 8.0
    cold: float = 0.5

    def __post_init__(self) -> None:
        if self.sweeps < 1 or self.rounds < 1:
            raise ValueError("sweeps and rounds must be at least 1")
        if not self.hot >= self.cold > 0:
            raise ValueError("temperatures must be positive, and hot not below cold")

    def run(self, problem: Problem, state: State, context: Context) -> State:
        with numba_threads(context.threads):
            search = Annealing.begin(problem, ~state.mask, state, context, self)
            search.descend_input()
            rounds = self.rounds if self.seconds == float("inf") else 40
            for number in range(rounds):
                if not search.round(number):
                    break
            return search.finish()


@dataclass
class Annealing:
    """The layer's masks, and what the stage spends on them."""

    problem: Problem
    context: Context
    stage: Anneal
    state: State
    group: int
    W: np.ndarray  # float64 (rows, n)
    G: np.ndarray
    start: np.ndarray  # bool (rows, n), pruned: where every round begins
    best: np.ndarray  # bool (rows, n), pruned
    error: np.ndarray  # float64 (rows,), of ``best``
    elites: np.ndarray  # bool (rows, ELITES, n), pruned
    elite_errors: np.ndarray  # float64 (rows, ELITES), inf where there is none
    again: np.ndarray  # int64 (rows,), how often annealing found ``best`` again
    expires: Callable[[], bool]
    left: Callable[[], float]
    rate: float = 0.0  # seconds a sweep of a row
    stopped: str = ""
    counts: dict[str, int] = field(default_factory=lambda: {"iterations": 0, "swaps": 0, "swap_evaluations": 0})
    trace: list[TracePoint] = field(default_factory=list)

    @classmethod
    def begin(cls, problem: Problem, pruned: np.ndarray, state: State, context: Context, stage: Anneal) -> Annealing:
        from fwbench.solvers.local_search import anneal_numba as kernel

        W, G = problem.W.astype(np.float64), problem.G
        end = context.seconds() + stage.seconds
        return cls(
            problem,
            context,
            stage,
            state,
            problem.group,
            W,
            G,
            pruned,
            pruned.copy(),
            kernel.errors(W, G, pruned, problem.T, problem.offset),
            np.zeros((problem.rows, ELITES, problem.n), dtype=bool),
            np.full((problem.rows, ELITES), np.inf),
            np.zeros(problem.rows, dtype=np.int64),
            expires=lambda: context.expired() or context.seconds() >= end,
            left=lambda: context.left(end - context.seconds()),
        )

    def round(self, number: int) -> bool:
        """One round over the rows not yet settled; False if there was nothing to do, or no time."""
        open_rows = np.flatnonzero(self.again < FOUND_AGAIN)
        for first in range(0, len(open_rows), CHUNK_ROWS):
            rows = open_rows[first : first + CHUNK_ROWS]
            sweeps = self._affordable(self.stage.sweeps << number, len(open_rows) - first)
            if not sweeps:
                return False
            before = self.left(), self.context.seconds()
            self._anneal(rows, self.start[rows], np.ones((len(rows), self.problem.n), bool), sweeps, 2 * number)
            known = np.isfinite(self.elite_errors[rows])
            several = rows[known.sum(axis=1) > 1]
            if len(several):
                masks = self.elites[several]
                differ = (masks != masks[:, :1]) & np.isfinite(self.elite_errors[several])[:, :, None]
                self._anneal(several, masks[:, 0], differ.any(axis=1), max(1, sweeps // MERGE), 2 * number + 1)
            self.rate = (self.context.seconds() - before[1]) / (sweeps * len(rows))
            self.trace.append(self.context.point(float(self.error.sum())))
            if self._out_of_time():
                return False
        return len(open_rows) > 0

    def _affordable(self, sweeps: int, rows: int) -> int:
        """Sweeps for the next chunk so that all ``rows`` of this round get theirs; 0 if that is too few to help."""
        left = self.left()
        if self.rate == 0 or left == float("inf"):
            return sweeps
        fit = max(0, int(RESERVE * left / (rows * self.rate)))
        if fit >= sweeps:
            return sweeps
        self._note()
        return fit if fit >= LEAST_SWEEPS else 0

    def _out_of_time(self) -> bool:
        if self.expires():
            self._note()
            return True
        return False

    def _note(self) -> None:
        """Time cut the work; that is worth a word only if it was the pipeline's."""
        if self.context.left() <= self.left() + 1e-3:
            self.stopped = "deadline"

    def _anneal(self, rows: np.ndarray, pruned: np.ndarray, free: np.ndarray, sweeps: int, run: int) -> None:
        """Cool some rows, descend from what was found, and keep it."""
        from fwbench.solvers.local_search import anneal_numba as kernel

        random = kernel.keys(self.context.seed, rows, run)
        target = self._target(rows)
        walk = kernel.AnnealState.begin(self.W[rows], self.G, pruned, free, self.group, random, *target)
        step = max(1, STEP // (len(rows) * self.problem.n))
        for first in range(0, sweeps, step):
            if first and self._out_of_time():
                break
            stop = min(first + step, sweeps)
            self.counts["swaps"] += walk.cool(self.stage.hot, self.stage.cold, first, stop, sweeps)
            self.counts["iterations"] += (stop - first) * len(rows)
            self.counts["swap_evaluations"] += (stop - first) * int((walk.movable > 0).sum()) * self.problem.n
        found = walk.best
        self._descend(rows, found)
        self._keep(rows, found, kernel.errors(walk.W, self.G, found, *target), run % 2 == 0)

    def _target(self, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        T, offset = self.problem.T, self.problem.offset
        return (None, None) if T is None or offset is None else (T[rows], offset[rows])

    def _descend(self, rows: np.ndarray, pruned: np.ndarray) -> None:
        from fwbench.solvers.local_search import swap_numba

        linear = None if self.problem.linear is None else self.problem.linear[rows]
        descent = swap_numba.Descent(self.W[rows], self.G, self.group, self.context.threads, linear=linear)
        done, evaluated, _ = descent.descend_all(pruned, np.iinfo(np.int64).max, self.context.expired)
        self.counts["swaps"] += done
        self.counts["swap_evaluations"] += evaluated

    def descend_input(self) -> None:
        """The input's 1-swap optimum is the first best mask, and not an elite: annealing starts from it."""
        from fwbench.solvers.local_search import anneal_numba as kernel

        rows = np.arange(self.problem.rows)
        self._descend(rows, self.best)
        self.start = self.best.copy()
        self.error = kernel.errors(self.W, self.G, self.best, self.problem.T, self.problem.offset)
        self.trace.append(self.context.point(float(self.error.sum())))

    def _keep(self, rows: np.ndarray, found: np.ndarray, error: np.ndarray, independent: bool) -> None:
        """Enter masks among the elites (best first, no error twice) and update the best."""
        for row, mask, value in zip(rows, found, error, strict=True):
            same = SAME * abs(self.error[row])
            better = value < self.error[row] - same
            if better:
                self.best[row], self.error[row], self.again[row] = mask, value, 0
            elif independent and value <= self.error[row] + same:
                self.again[row] += 1
            if not better and self.elite_errors[row, 0] == np.inf:  # an input this good is worth merging with
                self._enter(row, self.best[row], self.error[row])
            self._enter(row, mask, value)

    def _enter(self, row: int, mask: np.ndarray, value: float) -> None:
        held = self.elite_errors[row]
        if np.any(np.abs(held - value) <= SAME * abs(value)):
            return
        at = int(np.searchsorted(held, value))
        if at < ELITES:
            self.elites[row, at + 1 :] = self.elites[row, at:-1].copy()
            held[at + 1 :] = held[at:-1].copy()
            self.elites[row, at], held[at] = mask, value

    def finish(self) -> State:
        """The best masks; for a count over the layer, after exchanges between rows."""
        if not self.problem.pattern.separable and not self.context.expired():
            from fwbench.solvers.local_search import swap_numba

            linear = self.problem.linear
            rows = swap_numba.Descent(self.W, self.G, self.group, self.context.threads, linear=linear)
            done, evaluated, cut = rows.exchange(self.best, np.iinfo(np.int64).max, self.context.expired)
            self.counts["swaps"] += done
            self.counts["swap_evaluations"] += evaluated
            self.stopped = self.stopped or cut
            self.trace.append(self.context.point(self.problem.error(~self.best)))
        state = replace(self.state, keep=~self.best, stopped=self.stopped, trace=(*self.state.trace, *self.trace))
        return state.count(**self.counts)
