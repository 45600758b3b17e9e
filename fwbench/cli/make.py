"""Commands that make something: extract, run, check-solver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fwbench.cli.progress import Report, progress
from fwbench.spec import SEEDS

if TYPE_CHECKING:
    from fwbench.events import Summary


def _chain(selectors: tuple[str, ...], patterns: tuple[str, ...], report: Report) -> Iterator[tuple]:
    from fwbench.problems.collections import load

    for selector in selectors:
        yield from load(selector, patterns or None, lambda done, total, what: report(done, total, what, None))


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """``4G``, ``512M`` or bytes."""
    if text is None:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(float(digits) * unit)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a size such as 4G or 512M") from None


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """``3,7,100-120``."""
    from fwbench.spec import SpecError
    from fwbench.spec import numbers as read

    try:
        return None if text is None else read(text)
    except SpecError as error:
        raise click.BadParameter(str(error)) from None


def _usable(_: click.Context, __: click.Parameter, device: str) -> str:
    from fwbench.machine import device_error

    if reason := device_error(device):
        raise click.BadParameter(reason)
    return device


SEED = click.IntRange(SEEDS.start, SEEDS.stop - 1)
device_option = click.option(
    "--device", default="cpu", show_default=True, callback=_usable, help="Where torch computes, such as cuda."
)


trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model, if it has some."
)


@click.command()
@click.argument("selectors", metavar="COLLECTION...", nargs=-1, required=True)
@click.option("-s", "--solver", "specs", multiple=True, help="Solver spec; may be repeated. [default: the default set]")
@click.option("--pattern", "patterns", multiple=True, help="Pattern in place of the problems' own; may be repeated.")
@click.option("--store", "path", default="fwbench.sqlite", show_default=True, type=click.Path(path_type=Path))
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), help="Seconds for each job.")
@click.option("--memory-limit", callback=_size, help="Resident memory of a worker, such as 4G.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Workers at a time.")
@click.option("--seed", "seeds", default=(0,), multiple=True, type=SEED, help="Seed; may be repeated. [default: 0]")
@device_option
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option("--file", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with solvers.")
@click.option("--retry-failed", is_flag=True, help="Run failed rows again.")
def run(
    selectors: tuple[str, ...],
    specs: tuple[str, ...],
    patterns: tuple[str, ...],
    path: Path,
    time_limit: float | None,
    memory_limit: int | None,
    jobs: int,
    seeds: tuple[int, ...],
    device: str,
    dtype: str,
    files: tuple[Path, ...],
    retry_failed: bool,
) -> int:
    """Run solvers on the problems of collections, files or folders; each row is stored as it ends.

    What the store holds already is reused; a run that was killed goes on where it was.
    """
    from fwbench import pipeline
    from fwbench.problems.collections import check
    from fwbench.runner import run_grid
    from fwbench.store import Store

    for file in files:
        pipeline.load_file(file)
    lines = [pipeline.resolve(spec) for spec in specs or pipeline.default_set()]
    for selector in selectors:
        check(selector, patterns or None)  # before a store is made and before any work
    with progress() as report, Store(path) as store:
        summary = run_grid(
            _chain(selectors, patterns, report),
            lines,
            store,
            seeds=seeds,
            jobs=jobs,
            time_limit=time_limit,
            memory_limit=memory_limit,
            device=device,
            dtype=dtype,
            retry_failed=retry_failed,
            files=files,
            on_event=_listener(report),
        )
    say_reasons(summary)
    click.echo(
        f"{path}: {summary.done} run, {summary.reused} reused; {summary.solved} solved, "
        f"{summary.skipped} skipped, {summary.failed} failed"
    )
    return 0 if summary.solved else 1


def say_reasons(summary: Summary) -> None:
    for line in summary.lines():
        click.echo(line, err=True)


def _listener(report: Report):
    from fwbench.runner import JobEnded, JobStarted, Progress

    state: dict[str, Any] = {"done": 0, "total": None, "what": "", "left": None}

    def listen(event: object) -> None:
        if isinstance(event, JobStarted):
            state["what"] = f"{event.problem} {event.solver}"
        elif isinstance(event, Progress):
            state.update(done=event.done, total=event.total, left=event.eta_seconds)
        elif isinstance(event, JobEnded) and event.result.status == "failed" and not event.reused:
            click.echo(f"failed: {event.result.problem} {event.result.solver}: {event.result.reason}", err=True)
        report(state["done"], state["total"], state["what"], state["left"])

    return listen


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the problem files.")
@click.option("--text", default="lee", show_default=True, help="Calibration: a file, folder, pypi: resource or name.")
@click.option("--blocks", callback=numbers, help="Decoder blocks, such as 0-3,22. [default: all]")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(min=1))
@click.option("--pattern", default="0.5", show_default=True)
@click.option(
    "--layers", default="", help="Regular expression: only layers whose name, or path in the model, it finds."
)
@click.option("--skip", default="", help="Regular expression: no layers whose name, or path in the model, it finds.")
@trust_option
def extract(
    model: str,
    output: Path,
    text: str,
    blocks: list[int] | None,
    tokens: int,
    pattern: str,
    layers: str,
    skip: str,
    trust_remote_code: bool,
) -> None:
    """Extract the problems of a causal language model's layers into a folder of problem files."""
    from fwbench import patterns
    from fwbench.problems.extract import extract as extract_problems
    from fwbench.problems.files import SUFFIX, file_stem, write_problem
    from fwbench.problems.models import load_model
    from fwbench.problems.text import load_text

    patterns.parse(pattern)
    source = load_text(text)
    loaded = load_model(model, trust_remote_code)
    count = 0
    with progress() as report:
        for problem in extract_problems(
            loaded,
            source,
            blocks,
            tokens,
            pattern,
            lambda done, total, what: report(done, total, what, None),
            layers=layers,
            skip=skip,
        ):
            output.mkdir(parents=True, exist_ok=True)
            write_problem(problem, output / f"{file_stem(problem.name)}{SUFFIX}")
            count += 1
    click.echo(f"{output}: {count} problems")


@click.command("check-solver")
@click.argument("solver", metavar="SPEC|FILE")
def check_solver(solver: str) -> int:
    """Run the contract tests on a solver: a spec, or a Python file that registers one."""
    from fwbench.contract import check

    bad = 0
    for item in check(solver):
        click.echo(f"{'pass' if item.ok else 'FAIL'}  {item.name}{': ' + item.reason if item.reason else ''}")
        bad += not item.ok
    click.echo(f"{solver}: {'all hold' if not bad else f'{bad} do not hold'}")
    return 1 if bad else 0
