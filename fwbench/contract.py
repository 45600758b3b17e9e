"""The contract suite: what every solver must keep, tried on tiny problems of every pattern and on hostile data.

``check`` needs nothing from a solver's author but a spec or a file. Everything runs in isolated workers, so a solver
that hangs or crashes fails its checks and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from fwbench import child, isolate, patterns, pipeline
from fwbench.isolate import Failure, Limits, Reply, Worker
from fwbench.patterns import Transposable, transport
from fwbench.problem import Problem
from fwbench.result import Proof, Result, Status, Verdict
from fwbench.stage import Context, Role, State, registry

PATTERNS = ("0.5", "0.6", "unstructured:0.5", "2:4", "transposable:2:4", "rows")
TOLERANCE = 1e-6  # relative, of bounds against the enumerated optimum
GRACE = 2.0  # seconds past the limit
GIVE_UP = 3  # killed this often, the rest is not tried


@dataclass(frozen=True)
class Check:
    """One line of the suite; ``reason`` says why not, or what was declined."""

    name: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """A problem to try, its optimum where it can be enumerated, and its time limit in seconds."""

    name: str
    problem: Problem
    optimum: float | None
    seconds: float


@dataclass(frozen=True)
class Finding:
    """What a worker saw on one case: two runs with one seed, and arrays that were written into."""

    first: Result
    same_mask: bool
    written: tuple[str, ...] = ()


@dataclass
class _Trial:
    """Cases and what came of them."""

    findings: list[tuple[Case, Finding]] = field(default_factory=list)
    failures: list[tuple[Case, Failure]] = field(default_factory=list)
    untried: list[Case] = field(default_factory=list)


def check(
    spec_or_file: str | Path,
    *,
    files: Sequence[str | Path] = (),
    time_limit: float = 2.0,
    memory_limit: int = 2 << 30,
    warm_up_limit: float = 60.0,
    device: str = "cpu",
    on_check: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Try a solver against the contract.

    Args:
        spec_or_file: a spec, or a Python file that registers stages, each of which is checked.
        files: solver files that the spec needs.
        time_limit: seconds a run; the deadline check gives a quarter of it to a larger problem.
        memory_limit: bytes resident of the worker, interpreter and libraries (some 0.4 GiB) included.
        warm_up_limit: seconds for compiling on a first tiny problem.
        on_check: told of each line as it is known.

    Returns:
        One line a check. A problem that the solver declines with a reason counts as passed.

    Raises:
        SpecError: no such solver, or the file cannot be loaded.
    """
    specs = [str(spec_or_file)]
    if str(spec_or_file).endswith(".py"):
        names = pipeline.load_file(spec_or_file)
        files = [*files, spec_or_file]
        specs = [spec for name in names if (spec := _spec_of(name))]
    for file in files:
        pipeline.load_file(file)
    checks: list[Check] = []
    for spec in specs:
        solver = pipeline.resolve(spec)
        trial = _try_all(
            solver.text, [str(Path(f).resolve()) for f in files], time_limit, memory_limit, warm_up_limit, device
        )
        prefix = f"{solver.text}: " if len(specs) > 1 else ""
        for item in judge_trial(trial):
            checks.append(Check(prefix + item.name, item.ok, item.reason))
            if on_check is not None:
                on_check(checks[-1])
    return checks


def _spec_of(name: str) -> str:
    """A spec that puts a stage of a user's file to use."""
    pipeline.load_solvers()
    return f"fw+{name}" if registry[name].role is Role.ROUND else name


# --- the problems ----------------------------------------------------------------------------------------------------


def cases(time_limit: float) -> list[Case]:
    """Every pattern, hostile data, targets, and one larger problem with little time, in the order they are tried."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 3)) @ rng.standard_normal((3, 40)) + rng.standard_normal((8, 40))
    W = rng.standard_normal((3, 8))
    data = [(f"pattern {pattern}", W, X, pattern) for pattern in PATTERNS]
    data += [
        (f"{name}, {pattern}", *arrays, pattern)
        for name, arrays in _hostile(W, X).items()
        for pattern in ("0.5", "2:4")
    ]
    data += [(f"n = {n}", W[:, :n], X[:n], "0.6") for n in (1, 2, 3)]
    data += [(f"pattern {pattern}", W, X, pattern) for pattern in ("0", "1", "unstructured:0.05")]
    tried = [_case(*item, time_limit) for item in data]
    tried += [_targeted(f"pattern {pattern} with a target", W, X, pattern, time_limit) for pattern in PATTERNS]
    X = rng.standard_normal((192, 20)) @ rng.standard_normal((20, 400)) + rng.standard_normal((192, 400))
    large = Problem("larger", rng.standard_normal((48, 192)), X @ X.T / 400, patterns.parse("0.5"))
    return [*tried, Case("deadline", large, None, time_limit / 4)]


def _hostile(W: np.ndarray, X: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    zero_column, duplicate, zero_row = X.copy(), X.copy(), W.copy()
    zero_column[[0, 5]] = 0
    duplicate[1::2] = duplicate[::2]
    zero_row[1] = 0
    scale = np.logspace(0, -4, X.shape[0])[:, None]
    return {
        "zero inputs": (W, zero_column),
        "duplicate inputs": (W, duplicate),
        "a row of zeros": (zero_row, X),
        "all zero": (0 * W, 0 * X),
        "ties of whole numbers": (np.ones_like(W), np.ones_like(X)),
        "condition 1e8": (W, X * scale),
        "one token": (W, X[:, :1]),
        "tiny numbers": (W * 1e-8, X * 1e-8),
    }


def _case(name: str, W: np.ndarray, X: np.ndarray, pattern: str, time_limit: float) -> Case:
    kind: str | np.ndarray = np.array([0, W.shape[1] // 2, W.shape[1]]) if pattern == "rows" else pattern
    if pattern == "transposable:2:4":
        W = np.resize(W, (4, W.shape[1]))  # its blocks need a fourth row: the first again
    problem = Problem(name, W, X @ X.T / X.shape[1], patterns.parse(kind))
    return Case(name, problem, enumerated(problem), time_limit)


def _targeted(name: str, W: np.ndarray, X: np.ndarray, pattern: str, time_limit: float) -> Case:
    """A target near what is left where the weights that matter most are pruned.

    Whoever ignores its linear term takes other masks, and claims errors and bounds far above the optimum.
    """
    plain = _case(name, W, X, pattern, time_limit).problem
    pruned = plain.pattern.prune(-np.abs(plain.W) * np.sqrt(plain.G.diagonal()))
    noise = np.random.default_rng(1).standard_normal((plain.rows, X.shape[1]))
    rest = 0.3 * noise - (plain.W * pruned) @ X
    T, offset = rest @ X.T / X.shape[1], (rest**2).mean(axis=1)
    problem = dataclasses.replace(plain, T=T, offset=offset)
    return Case(name, problem, enumerated(problem), time_limit)


def enumerated(problem: Problem) -> float:
    """The least error of any mask, by enumeration of each row's; for small n, every pattern.

    Rows of an unstructured pattern share one count, so their best errors by count are joined row by row.
    """
    n = problem.n
    if isinstance(problem.pattern, Transposable):
        return float(problem.row_errors(_masks_of_blocks(problem.pattern, problem.shape)).sum(-1).min())
    masks = np.array(list(itertools.product((False, True), repeat=n)))  # (2^n, n), True = pruned
    errors = np.stack([_mask_errors(problem, row, masks) for row in range(problem.rows)])
    counts = problem.counts
    if problem.pattern.separable:
        size = problem.pattern.group_size(problem.shape)
        found = masks.reshape(len(masks), -1, size).sum(-1)
        wanted = counts.reshape(problem.rows, -1)
        return float(sum(errors[row][(found == wanted[row]).all(1)].min() for row in range(problem.rows)))
    pruned = masks.sum(1)
    best = np.zeros(1)  # by count
    for own in errors:
        of_row = np.array([own[pruned == count].min() for count in range(n + 1)])
        joined = np.full(len(best) + n, math.inf)
        for count, error in enumerate(of_row):
            part = joined[count : count + len(best)]
            np.minimum(part, best + error, out=part)
        best = joined
    return float(best[int(counts[0])])


def _masks_of_blocks(pattern: Transposable, shape: tuple[int, int]) -> np.ndarray:
    """Every mask, bool ``(masks, rows, n)``, True = pruned."""
    number = shape[0] * shape[1] // pattern.of**2
    blocks = transport.masks(pattern.of, pattern.of - pattern.kept)
    every = np.array(list(itertools.product(range(len(blocks)), repeat=number)))
    return pattern.whole(blocks[every.ravel()], (len(every), *shape))


def _mask_errors(problem: Problem, row: int, masks: np.ndarray) -> np.ndarray:
    change = masks * problem.W[row].astype(np.float64)
    errors = ((change @ problem.G) * change).sum(1)
    if problem.T is None or problem.offset is None:
        return errors
    return errors + 2 * change @ problem.T[row] + problem.offset[row]


# --- in the worker ---------------------------------------------------------------------------------------------------


def probe(problem: Problem, text: str, seconds: float, device: str, warm_up: bool) -> Finding:
    """Run a spec twice with one seed; the second time stage by stage, to see what each writes into."""
    run = pipeline.Run(problem, pipeline.resolve(text), seed=1, device=device)
    if warm_up:
        pipeline.warm_up(run)
    held = {name: array.copy() for name in ("W", "G", "T", "offset") if (array := getattr(problem, name)) is not None}
    child.started()
    outcome = pipeline.execute(run, time_limit=seconds)
    written = tuple(
        f"problem.{name}" for name, before in held.items() if not np.array_equal(getattr(problem, name), before)
    )
    late = (outcome.result.seconds or 0) > seconds / 2  # on a busy machine the second run might not end in time
    if written or late or outcome.keep is None or outcome.result.status in (Status.FAILED, Status.TIMEOUT):
        return Finding(outcome.result, True, written)
    state, more = _walk(run, Context(device=device, seed=1))
    return Finding(outcome.result, np.array_equal(state.keep, outcome.keep), more)  # type: ignore[arg-type]


def _walk(run: pipeline.Run, context: Context) -> tuple[State, tuple[str, ...]]:
    state, written = State(), []
    for stage in run.solver.stages:
        before = _copies(state)
        after = stage.run(run.problem, state, context)
        now = _copies(state)
        written += [f"state.{name} (by {stage.name})" for name in before if not _same(before[name], now[name])]
        state = after
        for array in (state.keep, state.relaxed, state.weights):
            if array is not None:
                array.setflags(write=False)
    return state, tuple(written)


def _copies(state: State) -> dict[str, np.ndarray | None]:
    values = {item.name: getattr(state, item.name) for item in dataclasses.fields(state)}
    return {
        name: values[name] if values[name] is None else values[name].copy() for name in ("keep", "relaxed", "weights")
    }


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or np.array_equal(a, b, equal_nan=True)  # type: ignore[arg-type]


# --- trying and judging ----------------------------------------------------------------------------------------------


def _try_all(
    text: str, files: list[str], time_limit: float, memory_limit: int, warm_up_limit: float, device: str
) -> _Trial:
    trial, worker, warm_up = _Trial(), None, True
    todo = cases(time_limit)
    setup = [("fwbench.pipeline:load_solvers", ()), *(("fwbench.pipeline:load_file", (file,)) for file in files)]
    try:
        while todo:
            case = todo[0]
            if worker is None or not worker.alive:
                worker = Worker(setup)
            grace = GRACE + case.seconds  # it runs twice
            limits = Limits(case.seconds, grace, setup_seconds=warm_up_limit, memory=memory_limit)
            order = ("fwbench.contract:probe", case.problem, text, case.seconds, device, warm_up)
            reply = _await(worker, order, limits)
            if isinstance(reply, Failure) and reply.kind == "setup" and warm_up:
                warm_up = False  # without it the time limit will tell the true story
                continue
            todo.pop(0)
            if isinstance(reply, Reply):
                trial.findings.append((case, reply.value))
            else:
                trial.failures.append((case, reply))
                if len(trial.failures) == GIVE_UP:
                    trial.untried = todo
                    break
    finally:
        if worker is not None:
            worker.close()
    return trial


def _await(worker: Worker, order: tuple, limits: Limits) -> Reply | Failure:
    submitted = False
    while True:
        if worker.idle and not submitted:
            worker.submit(*order, limits=limits)
            submitted = True
        if not worker.alive:
            return Failure("died", "what an earlier run left behind ended the process")
        wait(worker.handles(), timeout=isolate.POLL_SECONDS)
        if (reply := worker.poll()) is not None:
            return reply


def judge_trial(trial: _Trial) -> list[Check]:
    """The lines of the suite, from what the workers saw."""
    checks = [_answered(case, finding.first) for case, finding in trial.findings]
    checks += [Check(f"answers: {case.name}", False, failure.reason) for case, failure in trial.failures]
    if trial.untried:
        checks.append(Check(f"answers: {len(trial.untried)} more", False, f"not tried after {GIVE_UP} failures"))
    seen = trial.findings
    late = [
        f"{c.name}: {f.first.seconds:.2g} s of {c.seconds:g} s"
        for c, f in seen
        if (f.first.seconds or 0) > c.seconds + GRACE
    ]
    about_answers = {
        "honest error and bound": [found for c, f in seen if (found := _dishonest(c, f.first))],
        "purity": [f"{c.name}: it wrote into {f.written[0]}" for c, f in seen if f.written],
        "determinism": [f"{c.name}: two masks for one seed" for c, f in seen if not f.same_mask],
    }
    about_processes = {
        "deadline kept": late + _failures(trial, "time", "setup"),
        "memory kept": _failures(trial, "memory"),
        "the process survives": _failures(trial, "died", "raised"),
    }
    answered = any(f.first.solved or f.first.status is Status.SKIPPED for _, f in seen)
    for name, complaints in about_answers.items():
        reasons = complaints if complaints or answered else ["nothing to judge: no answer was accepted"]
        checks.append(_line(name, reasons))
    return checks + [_line(name, complaints) for name, complaints in about_processes.items()]


def _line(name: str, complaints: list[str]) -> Check:
    return Check(name, not complaints, complaints[0] if complaints else "")


def _failures(trial: _Trial, *kinds: str) -> list[str]:
    return [f"{case.name}: {failure.reason}" for case, failure in trial.failures if failure.kind in kinds]


def _answered(case: Case, row: Result) -> Check:
    name = f"answers: {case.name}"
    if row.status is Status.SKIPPED:
        return Check(name, True, f"declined: {row.reason}")
    return Check(name, row.solved, "" if row.solved else row.reason)


def _dishonest(case: Case, row: Result) -> str:
    """Why the case shows a false claim, or an empty text."""
    if row.verdict is Verdict.ERROR_MISMATCH or row.proof is Proof.REFUTED:
        return f"{case.name}: {row.reason}"
    if case.optimum is None or row.error is None or row.updates_weights:
        return ""
    slack = TOLERANCE * case.optimum + 1e-12 * case.problem.total  # and the rounding of f itself
    if row.lower_bound is not None and row.lower_bound > case.optimum + slack:
        return f"{case.name}: its lower bound {row.lower_bound:.9g} exceeds the optimum {case.optimum:.9g}"
    if row.status is Status.OPTIMAL and row.error > case.optimum + slack:
        return f"{case.name}: it calls {row.error:.9g} optimal, the optimum is {case.optimum:.9g}"
    return ""
