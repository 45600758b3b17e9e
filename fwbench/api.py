"""The public interface behind ``import fwbench``: one function for each command that a notebook wants."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwbench import pipeline, verify
from fwbench.live import Table
from fwbench.problem import Problem
from fwbench.problems import collections, files, registry
from fwbench.problems.registry import BestKnown
from fwbench.result import RELAXATIONS, Answer, Certificate, Status, TracePoint

if TYPE_CHECKING:
    import pandas as pd

Listener = Callable[[str, TracePoint], None]  # a stage's name, and what is known


def load(selector: str | Path, pattern: str | None = None) -> list[Problem]:
    """Problems of a collection (``mini``, ``smollm2/07.*``), of a problem file, or of a folder of them.

    Args:
        selector: as on the command line; ``fwbench problems`` lists the collections.
        pattern: in place of the problems' own, such as ``0.6`` or ``2:4``.

    Raises:
        CollectionError, ProblemError, PatternError: one line, what is wrong.
    """
    return [problem for _, problem in collections.load(selector, None if pattern is None else [pattern])]


def solve(
    problem: Problem,
    solver: str = "fast",
    *,
    seconds: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    progress: bool | Listener = False,
) -> Answer:
    """Run a solver on a problem and judge what it answers; a failure is an answer too, with its reason.

    Args:
        problem: from :func:`load`, or ``Problem(name, W, G, pattern)``.
        solver: a spec such as ``wanda+swap``, or a preset; ``fwbench solvers`` lists the stages.
        seconds: limit; stages stop themselves.
        device: where torch computes.
        dtype: in which solvers compute; the judge always takes float64.
        progress: True prints primal, dual and gap while the solver runs; or a function that hears each stage's name
            and point.

    Raises:
        SpecError: an unknown solver or parameter.
    """
    resolved = pipeline.resolve(solver)
    limit = math.inf if seconds is None else seconds
    listener = Table() if progress is True else progress or None
    return pipeline.run(problem, resolved, device=device, dtype=dtype, seed=seed, time_limit=limit, on_point=listener)


@dataclass(frozen=True)
class ProvedBound:
    """A lower bound on the error of every mask of a problem, with its proof."""

    problem: Problem = field(repr=False)
    value: float  # sum over the rows
    rows: tuple[float, ...] = field(repr=False)  # of each row, where the proof goes row by row; else empty
    certificate: Certificate = field(repr=False)
    seconds: float

    @property
    def relaxation(self) -> str:
        """What the proof rests on, such as McCormick."""
        return RELAXATIONS.get(self.certificate.relaxation, self.certificate.kind)

    def __float__(self) -> float:
        return self.value

    def check(self) -> float:
        """Replay the proof, rounding errors accounted for; the bound that it proves.

        Raises:
            ValueError: it does not hold, with the reason.
        """
        found = verify.check(self.problem, self.certificate)
        if not found.ok:
            raise ValueError(f"{self.problem.name}: the proof does not hold: {found.reason}")
        return found.bound

    def save(self, path: Path | str) -> Path:
        """Write the certificate to a file, which ``fwbench verify`` replays. Raises ProblemError if that fails."""
        path = Path(path)
        files.write_atomic(path, self.certificate.to_bytes())
        return path


def bound(
    problem: Problem, kind: str = "best", *, seconds: float = 60.0, rows: int | str | None = None, device: str = "cpu"
) -> ProvedBound:
    """Prove a lower bound on the error of every mask of a problem.

    Args:
        kind: ``shared``, ``shor``, ``dnn``, ``mccormick``, ``triangles``, ``pentagons``, or ``best``: up that ladder as
            far as the time allows.
        seconds: limit; what is proved by then is returned.
        rows: that get a bound of their own: all (None), N for a sample, or a list such as ``3,7,100-120``.

    Raises:
        SpecError: an unknown kind.
        ValueError: the problem has no such bound, with the reason.
    """
    given = f"kind={kind},seconds={float(seconds)!r}" + ("" if rows is None else f",rows={rows!r}")
    answer = pipeline.run(problem, f"wanda+bound({given})", device=device)
    if answer.certificate is None or answer.result.lower_bound is None:
        raise ValueError(f"{problem.name}: no bound of kind {kind}: {answer.reason}")
    value, certificate = answer.result.lower_bound, answer.certificate
    return ProvedBound(problem, value, answer.row_bounds, certificate, answer.seconds or 0.0)


def best_known(problem: Problem) -> BestKnown | None:
    """What the committed registry knows of a problem: the best mask, the best lower bound; None for a stranger."""
    return registry.best_known().get(problem.hash)


class Results:
    """The rows of one store or of several, each mask measured against the best bound of any source."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)  # one plain dict a run

    @classmethod
    def read(cls, *stores: Path | str) -> Results:
        """The rows of stores, as they are now. Raises StoreError, one line."""
        from fwbench.report import rows

        return cls(rows.load(stores, registry.best_known()))

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas table; ``fwbench.report.frame.COLUMNS`` has its columns, types and their meaning."""
        from fwbench.report.frame import frame

        return frame(self.rows)

    def report(self, folder: Path | str, title: str = "fwbench report") -> Path:
        """Write the report (HTML, Markdown, LaTeX, CSV); the path of its ``index.html``."""
        from fwbench.report import page

        return page.write(self.rows, folder, title=title, registry=registry.best_known())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        solved = sum(row["solved"] for row in self.rows)
        failed = sum(row["status"] == Status.FAILED for row in self.rows)
        return f"Results of {len(self)} runs: {solved} solved, {failed} failed"


def run(
    selectors: str | Path | Sequence[str | Path],
    solvers: str | Sequence[str] = (),
    *,
    store: Path | str | None = None,
    patterns: Sequence[str] | None = None,
    jobs: int = 1,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    dtype: str = "float32",
) -> Results:
    """Run every solver on every problem, each in a worker of its own, as ``fwbench run`` does.

    Args:
        selectors: collections, files or folders.
        solvers: specs; the default set if none are named.
        store: SQLite file; what it holds is not run again. None keeps nothing but the Results.
        patterns: in place of the problems' own.
        jobs: workers at a time.
        time_limit: seconds a job.
        memory_limit: bytes a worker.

    Raises:
        SpecError, CollectionError, ProblemError, StoreError: one line, what is wrong.
    """
    from fwbench.runner import run_grid
    from fwbench.store import Store

    chosen = [selectors] if isinstance(selectors, str | Path) else list(selectors)
    specs = [solvers] if isinstance(solvers, str) else list(solvers)
    resolved = [pipeline.resolve(spec) for spec in specs or pipeline.default_set()]
    for selector in chosen:
        collections.check(selector, patterns)
    found = (pair for selector in chosen for pair in collections.load(selector, patterns))
    with tempfile.TemporaryDirectory(prefix="fwbench-") as folder:
        path = Path(folder) / "store.sqlite" if store is None else Path(store)
        with Store(path) as opened:
            run_grid(
                found,
                resolved,
                opened,
                seeds=seeds,
                jobs=jobs,
                time_limit=time_limit,
                memory_limit=memory_limit,
                device=device,
                dtype=dtype,
            )
        return Results.read(path)


def prune(model: str | Path, out: Path | str, pattern: str, solver: str = "", **options: Any) -> dict[str, Any]:
    """Prune a whole model into a folder that transformers loads, as ``fwbench prune`` does.

    Args:
        model: ``smollm2``, ``gemma3``, a folder, a GGUF file, or a name on the hub.
        out: folder that appears, complete, at the end.
        pattern: such as ``0.6`` or ``2:4``.
        solver: spec; empty for the default.
        options: fields of ``fwbench.pruning.plan.Options``: text, tokens, sequential, device, ...

    Returns:
        The content of the folder's ``fwbench.json``: perplexities, totals, one record a layer.

    Raises:
        PruneError, ModelError, TextError, PatternError, SpecError: one line, what is wrong.
    """
    from fwbench.pruning.engine import prune as prune_model
    from fwbench.pruning.plan import Options

    return prune_model(str(model), Path(out), Options(pattern=pattern, spec=solver, **options))


def recover(pruned: str | Path, out: Path | str, against: str | Path = "", **options: Any) -> dict[str, Any]:
    """Train the weights that pruning kept towards the dense model, block by block, as ``fwbench recover`` does.

    Args:
        pruned: folder of a pruned model, whose pruned weights stay zero.
        out: folder that appears, complete, at the end.
        against: the dense model; empty for the one that the folder was pruned from.
        options: fields of ``fwbench.pruning.Recovery``: text, tokens, epochs, rate, device, ...

    Returns:
        The content of the folder's ``fwbench.json``: perplexities, totals, one record a block and a layer.

    Raises:
        PruneError, ModelError, TextError: one line, what is wrong.
    """
    from fwbench.pruning import Recovery
    from fwbench.pruning import recover as recover_model

    return recover_model(str(pruned), Path(out), Recovery(against=str(against), **options))
