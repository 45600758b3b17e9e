"""Run the stages of a solver on a problem, time them, check what each hands on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from fwbench.patterns import Pattern, Rows
from fwbench.pipeline.cell import Run
from fwbench.pipeline.judging import Answer, judged
from fwbench.pipeline.resolving import Solver, resolve, skip_reason
from fwbench.problem import Problem
from fwbench.result import Certificate, Result, StageRecord, Status, TracePoint
from fwbench.stage import Context, Role, Stage, State

WARM_UP_LIMIT, WARM_UPS = 1.0, 12  # seconds a try, tries
FEASIBILITY_TOLERANCE = 1e-4  # of a relaxed point computed in float32, absolute for each weight


def warm_up(run: Run) -> None:
    """Compile and load what the solver needs, on a tiny problem of the same pattern; once in a process.

    On a GPU the problem has as many columns as the real one, since kernels are compiled for a width. Its failures are
    not reported: the run itself will meet them.
    """
    pattern = run.problem.pattern if not isinstance(run.problem.pattern, Rows) else None
    _warm_up(run.solver, pattern, run.device, run.dtype, run.problem.n if run.device.startswith("cuda") else 0)


@lru_cache(maxsize=256)
def _warm_up(solver: Solver, pattern: Pattern | None, device: str, dtype: str, n: int) -> None:
    size = n or getattr(pattern, "of", 8) * 2
    rng = np.random.default_rng(0)
    X = rng.standard_normal((size, size if n else 4 * size))
    rows = 2 if pattern is None or pattern.grouped else pattern.tied((2, size))
    tiny = Problem("warm-up", rng.standard_normal((rows, size)), X @ X.T, pattern or Rows(np.full(2, size // 2)))
    if skip_reason(tiny, solver) is not None:
        return
    tries: list[float] = []
    while len(tries) < WARM_UPS:  # while one stage compiles the limit passes, and what comes after it is not reached
        began = time.monotonic()
        answer = execute(Run(tiny, solver, device=device, dtype=dtype), time_limit=WARM_UP_LIMIT)
        tries.append(time.monotonic() - began)
        if answer.result.status is not Status.TIMEOUT or _steady(tries):
            break


def _steady(seconds: list[float]) -> bool:
    """Whether three tries took the same time: it is what the solver takes, not what compilation does."""
    return len(seconds) >= 3 and max(seconds[-3:]) < 1.1 * min(seconds[-3:])


def run(
    problem: Problem,
    solver: Solver | str,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    collection: str = "",
    **limits: Any,
) -> Answer:
    """:func:`execute` a run of these parts, with its keywords; ``solver`` may be a spec."""
    solver = resolve(solver) if isinstance(solver, str) else solver
    return execute(Run(problem, solver, seed, device, dtype, collection), **limits)


def execute(
    run: Run,
    *,
    threads: int = 0,
    time_limit: float = math.inf,
    on_solved: Callable[[], None] | None = None,
    on_point: Callable[[str, TracePoint], None] | None = None,
    hand_in: Callable[[Done | Part, bool], None] | None = None,
) -> Answer:
    """Run a solver's stages on a problem and judge the answer.

    Args:
        threads: 0 for all cores.
        time_limit: seconds; stages stop themselves, and what is left is skipped but for rounding. (The runner kills
            what does not stop.)
        on_solved: called when the last stage has ended and its mask and proof are about to be checked.
        on_point: called with a stage's name and what is known, while it runs and when it has ended.
        hand_in: called with what :func:`salvage` makes an answer of, should this run be killed, from any thread; True
            beside it says that it takes the place of all before.
    """
    problem, blank = run.problem, run.failed("")
    try:
        reason = skip_reason(problem, run.solver)
    except Exception as error:
        return Answer(replace(blank, reason=f"asking whether the problem is supported raised {_named(error)}"))
    if reason:
        return Answer(replace(blank, status=Status.SKIPPED, reason=reason))
    started = time.monotonic()
    context = Context(run.device, run.dtype, started + time_limit, run.seed, threads or os.cpu_count() or 1, started)
    state = State()
    records: list[StageRecord] = []
    skipped: list[str] = []
    for index, stage in enumerate(run.solver.stages):
        if context.expired() and stage.role in (Role.REFINE, Role.RELAX, Role.BOUND) and state.keep is not None:
            skipped.append(stage.name)
            state = _given(stage, state)  # as the row says of its solver
            continue
        if stage.role is Role.ROUND and state.relaxed is None:
            continue  # its relaxation was skipped
        hear = partial(on_point, stage.name) if on_point else None
        try:
            within = replace(_handing(context, index, hand_in), listener=hear)
            state, record = _run_stage(problem, stage, state, within)
        except Exception as error:
            return Answer(replace(blank, reason=_blame(stage, error), stages=tuple(records)))
        records.append(record)
        if hear:
            hear(TracePoint(context.seconds(), record.error, state.lower, relaxed=record.relaxed_error))
        if hand_in is not None and stage is not run.solver.stages[-1]:
            hand_in(Done(replace(state, relaxed=None), tuple(records)), True)
    if on_solved is not None:
        on_solved()
    return judged(problem, _ran(blank, records, state), state, skipped)


def _ran(blank: Result, records: Sequence[StageRecord], state: State) -> Result:
    """A row with what its stages did."""
    trace = tuple(TracePoint(*point) for point in state.trace)
    return replace(blank, stages=tuple(records), counters=dict(state.counters), trace=trace)


@dataclass(frozen=True)
class Done:
    """Handed in when a stage has ended: the state after it, but for the fractional point, and all records so far."""

    state: State
    records: tuple[StageRecord, ...]


@dataclass(frozen=True)
class Part:
    """Handed in by the stage at ``index`` while it is running."""

    index: int
    key: Hashable
    value: object


def _handing(context: Context, index: int, hand_in: Callable[[Done | Part, bool], None] | None) -> Context:
    if hand_in is None:
        return context
    return replace(context, hand_in=lambda key, value: hand_in(Part(index, key, value), False))


def salvage(run: Run, handed: Iterable[Done | Part]) -> Answer:
    """What a run that was killed had by then, from what it had handed in, judged as if the clock had ended it."""
    blank = run.failed("")
    state, parts, index = State(), dict[Hashable, object](), 0
    records: tuple[StageRecord, ...] = ()
    for item in handed:
        if isinstance(item, Done):
            state, records, parts = item.state, item.records, {}
        else:
            parts[item.key], index = item.value, item.index
    if parts:
        stage = run.solver.stages[index]
        state = _checked(run.problem, stage, stage.salvage(run.problem, _given(stage, state), parts))
    weights = state.weights if run.solver.updates_weights else None
    state = replace(state, weights=weights, proven=False, stopped="killed")
    return judged(run.problem, _ran(blank, records, state), state, [])


class StageError(Exception):
    """A stage broke its contract; the message becomes the row's reason."""


def _blame(stage: Stage, error: Exception) -> str:
    """The reason of a row whose stage ended with an exception."""
    if isinstance(error, StageError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"memory: {stage.name} ran out of memory {_one_line(error)}".strip()
    if "out of memory" in str(error):
        return f"memory: {stage.name}: {_one_line(error)}"
    return f"{stage.name} raised {_named(error)}"


def _given(stage: Stage, state: State) -> State:
    """What a stage begins with: changed weights do not belong to another mask."""
    return state if stage.role in (Role.UPDATE, Role.BOUND) else replace(state, weights=None)


def _run_stage(problem: Problem, stage: Stage, state: State, context: Context) -> tuple[State, StageRecord]:
    before = dict(state.counters)
    state = _given(stage, state)
    _synchronise(context.device)
    started = time.perf_counter()
    after = stage.run(problem, state, context)
    _synchronise(context.device)
    seconds = time.perf_counter() - started
    if not isinstance(after, State):
        raise StageError(f"{stage.name} returned a {type(after).__name__}, not a State")
    after = _checked(problem, stage, after)
    error = relaxed_error = None
    if after.relaxed is not None and stage.role is not Role.BOUND:
        relaxed_error = float(problem.row_errors(after.relaxed).sum())
    elif after.keep is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # the judge will say so
            error = problem.error(after.keep) if after.weights is None else problem.error_of_weights(after.weights)
        error = error if math.isfinite(error) else None
        if stage.role is Role.REFINE and state.keep is not None:
            former = problem.error(state.keep)
            if (
                error is not None
                and error > former + 1e-9 * abs(former)
                and error > former + problem.rounding(state.keep) + problem.rounding(after.keep)
            ):
                raise StageError(f"{stage.name} made the mask worse: {former:.6g} before, {error:.6g} after")
    counters = {k: v - before.get(k, 0) for k, v in after.counters.items() if v != before.get(k, 0)}
    lower = after.lower if after.lower != state.lower else None
    proved = after.certificate is not None and after.certificate is not state.certificate
    relaxation = after.certificate.relaxation if proved and after.certificate is not None else ""
    return after, StageRecord(stage.name, str(stage.role), seconds, error, relaxed_error, lower, relaxation, counters)


def _checked(problem: Problem, stage: Stage, state: State) -> State:
    """Shapes, types, finiteness and feasibility of what a stage hands on; its arrays become read-only."""
    for name in ("keep", "relaxed", "weights"):
        array = getattr(state, name)
        if array is None:
            continue
        if not isinstance(array, np.ndarray) or array.shape != problem.shape:
            raise StageError(f"{stage.name} returned {name} of shape {np.shape(array)}, not {problem.shape}")
        array.setflags(write=False)
    if state.keep is not None and state.keep.dtype != bool:
        raise StageError(f"{stage.name} returned a mask of dtype {state.keep.dtype}, not bool")
    u = state.relaxed
    if u is not None:
        if not np.isfinite(u).all():
            raise StageError(f"{stage.name} returned a relaxed point that is not finite")
        off = np.abs(problem.pattern.excess(u))
        if u.min() < -FEASIBILITY_TOLERANCE or u.max() > 1 + FEASIBILITY_TOLERANCE:
            raise StageError(f"{stage.name} returned a relaxed point outside [0, 1]: {u.min():.3g} to {u.max():.3g}")
        if off.max() > FEASIBILITY_TOLERANCE * problem.pattern.group_size(problem.shape):
            raise StageError(f"{stage.name} returned a relaxed point whose count is off by {off.max():.3g}")
    for name in ("lower", "claimed_error"):
        number = getattr(state, name)
        if not isinstance(number, int | float | np.number | None):
            raise StageError(f"{stage.name} returned {name} of type {type(number).__name__}, not a number")
    if state.lower is not None and math.isnan(state.lower):
        raise StageError(f"{stage.name} returned a lower bound that is NaN")
    if not isinstance(state.certificate, Certificate | None):
        raise StageError(f"{stage.name} returned a {type(state.certificate).__name__}, not a Certificate")
    return state


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
