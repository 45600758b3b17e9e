"""Commands that run solvers: run, trace."""

from __future__ import annotations

from pathlib import Path

import click

from fwbench.cli import options
from fwbench.cli.options import PATH, SECONDS, SEED
from fwbench.cli.progress import listener, loaded, progress, say_reasons


@click.command()
@click.argument("selectors", metavar="COLLECTION...", nargs=-1, required=True)
@click.option("-s", "--solver", "specs", multiple=True, help="Solver spec; may be repeated. [default: the default set]")
@click.option("--pattern", "patterns", multiple=True, help="Pattern in place of the problems' own; may be repeated.")
@options.store
@click.option("--time-limit", type=SECONDS, help="Seconds for each job.")
@click.option("--memory-limit", callback=options.size, help="Resident memory of a worker, such as 4G.")
@options.jobs
@click.option("--seed", "seeds", default=(0,), multiple=True, type=SEED, help="Seed; may be repeated. [default: 0]")
@options.device
@options.dtype("float32")
@click.option("--file", "files", multiple=True, type=PATH, help="Python file with solvers.")
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
    solvers = [pipeline.resolve(spec) for spec in specs or pipeline.default_set()]
    for selector in selectors:
        check(selector, patterns or None)  # before a store is made and before any work
    with progress() as report, Store(path) as store:
        summary = run_grid(
            loaded(selectors, patterns, report),
            solvers,
            store,
            seeds=seeds,
            jobs=jobs,
            time_limit=time_limit,
            memory_limit=memory_limit,
            device=device,
            dtype=dtype,
            retry_failed=retry_failed,
            files=files,
            on_event=listener(report),
        )
    say_reasons(summary)
    click.echo(
        f"{path}: {summary.done} run, {summary.reused} reused; {summary.solved} solved, "
        f"{summary.skipped} skipped, {summary.failed} failed"
    )
    return 0 if summary.solved else 1


@click.command()
@click.argument("problem")
@click.option("-s", "--solver", "specs", multiple=True, required=True, help="Solver spec; may be repeated.")
@click.option("-o", "--output", required=True, type=PATH, help="Figure: .svg, .pdf or .png.")
@click.option("--csv", "table", is_flag=True, help="Write the numbers too, to the same name with .csv.")
@options.pattern
@click.option("--time-limit", default=float("inf"), type=SECONDS, help="Of each solver.")
@options.seed
@options.device
@options.dtype("float64")
def trace(
    problem: str,
    specs: tuple[str, ...],
    output: Path,
    table: bool,
    pattern: str | None,
    time_limit: float,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Draw how solvers converge on one problem: gaps and errors against seconds and iterations, for a paper.

    PROBLEM selects one problem. The solvers run here, one after another; nothing is stored. Write 'fw(rounded=True)' to
    see the error of every rounded iterate too, for a product more now and then.
    """
    from fwbench import pipeline
    from fwbench.problems.collections import one
    from fwbench.problems.files import write_atomic
    from fwbench.report import trace as report

    report.check(output)
    solvers = [pipeline.resolve(spec) for spec in specs]
    results = []
    with progress() as tell:
        _, found = one(problem, pattern, tell)
        for done, solver in enumerate(solvers):
            tell(done, len(solvers), solver.text)
            run = pipeline.Run(found, solver, seed, device, dtype)
            pipeline.warm_up(run)
            outcome = pipeline.execute(run, time_limit=time_limit)
            report.check_run(outcome.result)
            results.append(outcome.result)
    drawn = report.curves(results)
    report.write(drawn, output, f"{found.name}, {found.pattern}")
    if table:
        write_atomic(output.with_suffix(".csv"), report.to_csv(drawn).encode())
    click.echo(f"{output}: {found.name}, {len(drawn)} solvers")
