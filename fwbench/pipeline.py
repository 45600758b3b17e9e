"""Resolve a spec to stages, run and time them, judge what comes out.

The pipeline owns the clock and the checks: stages hold neither. ``run`` never raises for a solver's failure: whatever
a stage does becomes a row with its status, verdict and reason.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import pkgutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fwbench import spec as specs
from fwbench import stage as stages
from fwbench import verify
from fwbench.judge import judge
from fwbench.patterns import Pattern, Rows
from fwbench.problem import Problem
from fwbench.result import Certificate, Proof, Result, StageRecord, Status, Verdict, pack_mask
from fwbench.spec import Spec, SpecError, StageSpec
from fwbench.stage import Context, Role, Stage, State

OPTIMALITY_TOLERANCE = 1e-9  # relative: a verified bound this close to the error makes it optimal
FEASIBILITY_TOLERANCE = 1e-4  # of a relaxed point computed in float32, absolute for each weight


@dataclass(frozen=True)
class Pipeline:
    """A resolved spec. ``text`` shows what differs from the defaults, ``full`` everything a result depends on."""

    stages: tuple[Stage, ...]

    @property
    def text(self) -> str:
        return str(Spec(tuple(_shown(stage, only_changed=True) for stage in self.stages)))

    @property
    def full(self) -> str:
        versions = ",".join(str(stage.version) for stage in self.stages)
        return f"{Spec(tuple(_shown(stage, only_changed=False) for stage in self.stages))} versions {versions}"

    @property
    def updates_weights(self) -> bool:
        return any(stage.role is Role.UPDATE for stage in self.stages)


@dataclass(frozen=True)
class Outcome:
    """A judged result and what it was judged on."""

    result: Result
    keep: np.ndarray | None = field(default=None, repr=False)
    weights: np.ndarray | None = field(default=None, repr=False)
    relaxed: np.ndarray | None = field(default=None, repr=False)
    certificate: Certificate | None = field(default=None, repr=False)


# --- from text to stages ---------------------------------------------------------------------------------------------


@cache
def load_solvers() -> dict[str, type[Stage]]:
    """Import every module of ``fwbench.solvers`` and of the entry-point group ``fwbench.solvers``; the registry."""
    import fwbench.solvers

    for module in pkgutil.iter_modules(fwbench.solvers.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"fwbench.solvers.{module.name}")
    for entry in importlib.metadata.entry_points(group="fwbench.solvers"):
        entry.load()
    return stages.registry


def load_file(path: str | Path) -> list[str]:
    """Load a solver file of the user's own; the names of the stages it registers.

    Raises:
        SpecError: the file cannot be read, raises, or registers nothing.
    """
    path = Path(path)
    name = f"fwbench_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        module_spec = importlib.util.spec_from_file_location(name, path)
        if module_spec is None or module_spec.loader is None or not path.is_file():
            raise SpecError(f"{path}: not a Python file with a solver")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise SpecError(f"{path}: loading it raised {type(error).__name__}: {error}") from error
    names = [key for key, stage in stages.registry.items() if stage.__module__ == name]
    if not names:
        raise SpecError(f"{path}: it registers no stage (decorate the class with fwbench.stage.register)")
    return names


def resolve(text: str) -> Pipeline:
    """Read a spec, expand presets, fill in what is left out.

    A ``relax``, ``refine`` or ``bound`` without a start begins from ``wanda``; a fractional end is rounded by
    ``round``.

    Raises:
        SpecError: one line; for an unknown name, with the nearest known one.
    """
    known = load_solvers()
    chain = [_build(item, known) for item in _expand(specs.parse(text)).stages]
    if chain[0].role in (Role.RELAX, Role.REFINE, Role.BOUND):
        chain.insert(0, known["wanda"]())
    filled: list[Stage] = []
    fractional = False
    for index, stage in enumerate(chain):
        if stage.role is Role.START and index:
            raise SpecError(f"{stage.name} in {text!r} makes a mask from nothing: it can only come first")
        if stage.role is Role.ROUND and not fractional:
            raise SpecError(f"{stage.name} in {text!r} has no fractional point to round: put a relaxation before it")
        if fractional and stage.role not in (Role.ROUND, Role.RELAX, Role.BOUND):
            filled.append(known["round"]())
            fractional = False
        if stage.role in (Role.RELAX, Role.ROUND):
            fractional = stage.role is Role.RELAX
        filled.append(stage)
    if fractional:
        filled.append(known["round"]())
    return Pipeline(tuple(filled))


def presets() -> dict[str, str]:
    """Names that stand for whole specs."""
    from fwbench.solvers import presets as module

    return module.PRESETS


def default_set() -> tuple[str, ...]:
    """Specs that run where none is named."""
    from fwbench.solvers import presets as module

    return module.DEFAULT


def _expand(spec: Spec) -> Spec:
    expanded: list[StageSpec] = []
    for item in spec.stages:
        if item.name in presets():
            if item.params:
                raise SpecError(
                    f"{item.name} is a preset and takes no parameters; it stands for {presets()[item.name]}"
                )
            expanded.extend(specs.parse(presets()[item.name]).stages)
        else:
            expanded.append(item)
    return Spec(tuple(expanded))


def _build(item: StageSpec, known: dict[str, type[Stage]]) -> Stage:
    if item.name not in known:
        raise SpecError(f"unknown solver {item.name!r}{_nearest(item.name, [*known, *presets()])}")
    kind = known[item.name]
    defaults = stages.parameters(kind)
    values = {}
    for key, value in item.params:
        if key not in defaults:
            raise SpecError(f"{item.name} has no parameter {key!r}{_nearest(key, defaults)}")
        values[key] = _coerce(f"{item.name}({key}=...)", value, defaults[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise SpecError(f"{item.name}: {error}") from None


def _coerce(where: str, value: object, default: object) -> object:
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    raise SpecError(f"{where}: expected a {type(default).__name__} such as {default!r}, got {value!r}")


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known) or 'none'}"


def _shown(stage: Stage, only_changed: bool) -> StageSpec:
    defaults = stages.parameters(type(stage))
    params = stages.parameters(stage).items()
    return StageSpec(stage.name, tuple(sorted((k, v) for k, v in params if not only_changed or v != defaults[k])))


def key(problem_hash: str, pipeline: Pipeline, seed: int, device: str, dtype: str) -> str:
    """Identity of a run: whatever its result depends on, the machine and library versions aside (hex)."""
    text = "\n".join((problem_hash, pipeline.full, str(seed), device, dtype))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- running ---------------------------------------------------------------------------------------------------------


def skip_reason(problem: Problem, pipeline: Pipeline) -> str | None:
    """Why a stage of the pipeline declines the problem (or lacks a package), or None."""
    for stage in pipeline.stages:
        missing = [name for name in stage.requires if importlib.util.find_spec(name) is None]
        if missing:
            return f"{stage.name} needs {', '.join(missing)}, which is not installed"
        if reason := stage.supports(problem):
            return f"{stage.name}: {reason}"
    return None


def warm_up(pipeline: Pipeline, problem: Problem, *, device: str = "cpu", dtype: str = "float32") -> None:
    """Compile and load what the pipeline needs, on a tiny problem of the same pattern; once in a process.

    Its failures are not reported: the run itself will meet them.
    """
    _warm_up(pipeline, problem.pattern if not isinstance(problem.pattern, Rows) else None, device, dtype)


@lru_cache(maxsize=256)
def _warm_up(pipeline: Pipeline, pattern: Pattern | None, device: str, dtype: str) -> None:
    size = getattr(pattern, "of", 8) * 2
    rng = np.random.default_rng(0)
    X = rng.standard_normal((size, 4 * size))
    tiny = Problem("warm-up", rng.standard_normal((2, size)), X @ X.T, pattern or Rows(np.full(2, size // 2)))
    if skip_reason(tiny, pipeline) is None:
        run(tiny, pipeline, device=device, dtype=dtype, time_limit=1.0)


def run(
    problem: Problem,
    pipeline: Pipeline,
    *,
    collection: str = "",
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 0,
    time_limit: float = math.inf,
) -> Outcome:
    """Run a pipeline on a problem and judge the answer.

    Args:
        threads: 0 for all cores.
        time_limit: seconds; stages stop themselves, and what is left is skipped but for rounding. (The runner kills
            what does not stop.)
    """
    blank = failed(problem, pipeline, "", collection=collection, device=device, dtype=dtype, seed=seed)
    try:
        reason = skip_reason(problem, pipeline)
    except Exception as error:
        return Outcome(replace(blank, reason=f"asking whether the problem is supported raised {_named(error)}"))
    if reason:
        return Outcome(replace(blank, status=Status.SKIPPED, reason=reason))
    started = time.monotonic()
    context = Context(device, dtype, started + time_limit, seed, threads or os.cpu_count() or 1, started)
    state = State()
    records: list[StageRecord] = []
    skipped: list[str] = []
    for stage in pipeline.stages:
        if context.expired() and stage.role in (Role.REFINE, Role.RELAX, Role.BOUND) and state.keep is not None:
            skipped.append(stage.name)
            continue
        if stage.role is Role.ROUND and state.relaxed is None:
            continue  # its relaxation was skipped
        try:
            state, record = _run_stage(problem, stage, state, context)
        except Exception as error:
            return Outcome(replace(blank, reason=_blame(stage, error), stages=tuple(records)))
        records.append(record)
    row = replace(blank, stages=tuple(records), counters=dict(state.counters), trace=state.trace)
    return _judged(problem, row, state, skipped)


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


def _run_stage(problem: Problem, stage: Stage, state: State, context: Context) -> tuple[State, StageRecord]:
    before = dict(state.counters)
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
            if error is not None and error > former + 1e-9 * abs(former):
                raise StageError(f"{stage.name} made the mask worse: {former:.6g} before, {error:.6g} after")
    counters = {k: v - before.get(k, 0) for k, v in after.counters.items() if v != before.get(k, 0)}
    lower = after.lower if after.lower != state.lower else None
    return after, StageRecord(stage.name, str(stage.role), seconds, error, relaxed_error, lower, counters)


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
        off = np.abs(problem.pattern.groups(u).sum(-1, dtype=np.float64) - problem.pattern.counts(problem.shape))
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


def _judged(problem: Problem, row: Result, state: State, skipped: list[str]) -> Outcome:
    judgement = judge(problem, state.keep, state.weights, state.claimed_error)
    row = replace(row, seconds=sum(record.seconds for record in row.stages), verdict=judgement.verdict)
    if judgement.verdict is not Verdict.FEASIBLE:
        return Outcome(replace(row, reason=judgement.reason), state.keep, state.weights, state.relaxed)
    assert judgement.error is not None
    assert state.keep is not None
    error = judgement.error
    relaxed = next((r.relaxed_error for r in reversed(row.stages) if r.relaxed_error is not None), None)
    rounded = next((r.error for r in row.stages if r.role == Role.ROUND), None)
    wanda = _wanda_error(problem)
    row = replace(
        row,
        status=Status.OPTIMAL if state.proven else Status.FEASIBLE,
        error=error,
        relative_error=error / problem.total if problem.total else (0.0 if error == 0 else math.inf),
        ratio_to_wanda=error / wanda if wanda else (1.0 if error == 0 else math.inf),
        relaxed_error=relaxed,
        rounding_error=(rounded - relaxed) / rounded if rounded and relaxed is not None else None,
        mask_sha256=hashlib.sha256(pack_mask(state.keep)).hexdigest(),
    )
    if state.stopped or skipped:
        reason = f"stopped early: {state.stopped}" if state.stopped else f"no time left for {', '.join(skipped)}"
        row = replace(row, status=Status.TIMEOUT, reason=reason)
    row, certificate = _with_bound(problem, row, state, error)
    return Outcome(row, state.keep, state.weights, state.relaxed, certificate)


def _with_bound(problem: Problem, row: Result, state: State, error: float) -> tuple[Result, Certificate | None]:
    """Join the lower bound: verified if its certificate replays, else the solver's claim."""
    mismatch = replace(row, status=Status.FAILED, verdict=Verdict.ERROR_MISMATCH)
    lower, proof, certificate = state.lower, Proof.CLAIMED, state.certificate
    if certificate is not None:
        checked = verify.check(problem, certificate)
        if not checked.ok:
            return replace(mismatch, reason=f"its certificate does not hold: {checked.reason}"), None
        if lower is None or lower <= max(certificate.bound, checked.bound):
            lower, proof = checked.bound, Proof.VERIFIED
        certificate = replace(certificate, bound=checked.bound)
    if lower is None:
        return row, None
    if row.updates_weights:
        return replace(row, lower_bound=None), certificate  # bounds are for masks with the given weights
    if lower > error * (1 + OPTIMALITY_TOLERANCE) + 1e-12 * problem.total:
        return replace(mismatch, reason=f"its lower bound {lower:.9g} exceeds the error {error:.9g}"), None
    verdict = row.verdict
    if proof is Proof.VERIFIED:
        tight = lower >= error * (1 - OPTIMALITY_TOLERANCE)
        verdict = Verdict.OPTIMAL if tight else Verdict.CERTIFIED
    return replace(row, verdict=verdict, lower_bound=lower, proof=proof), certificate


def failed(
    problem: Problem,
    pipeline: Pipeline,
    reason: str,
    *,
    status: Status = Status.FAILED,
    collection: str = "",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: float | None = None,
) -> Result:
    """The row of a run that gave no answer."""
    return Result(
        problem=problem.name,
        problem_hash=problem.hash,
        collection=collection,
        solver=pipeline.text,
        key=key(problem.hash, pipeline, seed, device, dtype),
        pattern=str(problem.pattern),
        rows=problem.rows,
        n=problem.n,
        status=status,
        reason=reason,
        seconds=seconds,
        seed=seed,
        device=device,
        dtype=dtype,
        updates_weights=pipeline.updates_weights,
        meta=dict(problem.meta),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@lru_cache(maxsize=8)
def _wanda_error_by_hash(problem_hash: str, holder: _Holder) -> float:
    keep = load_solvers()["wanda"]().run(holder.problem, State(), Context()).keep
    assert keep is not None
    return holder.problem.error(keep)


def _wanda_error(problem: Problem) -> float:
    return _wanda_error_by_hash(problem.hash, _Holder(problem))


@dataclass(frozen=True)
class _Holder:
    """Carries a problem past the cache: only the hash beside it is compared."""

    problem: Problem = field(compare=False)


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def describe(stage: type[Stage]) -> dict[str, Any]:
    """What ``fwbench solvers`` prints of a stage."""
    missing = [name for name in stage.requires if importlib.util.find_spec(name) is None]
    return {
        "name": stage.name,
        "role": str(stage.role),
        "parameters": stages.parameters(stage),
        "summary": (stage.__doc__ or "").strip().split("\n")[0],
        "source": stage.source,
        "installed": not missing,
        "missing": missing,
        "version": stage.version,
        "file": Path(sys.modules[stage.__module__].__file__ or "").name,
    }
