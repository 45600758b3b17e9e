"""The command that draws how solvers converge."""

from __future__ import annotations

from pathlib import Path

import click

from fwbench.cli.make import SEED, device_option
from fwbench.cli.progress import progress


@click.command()
@click.argument("problem")
@click.option("-s", "--solver", "specs", multiple=True, required=True, help="Solver spec; may be repeated.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Figure: .svg, .pdf or .png.")
@click.option("--csv", "table", is_flag=True, help="Write the numbers too, to the same name with .csv.")
@click.option("--pattern", help="Pattern in place of the problem's own.")
@click.option("--time-limit", default=float("inf"), type=click.FloatRange(min=0, min_open=True), help="Of each solver.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@device_option
@click.option("--dtype", default="float64", show_default=True, type=click.Choice(["float32", "float64"]))
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
    lines = [pipeline.resolve(spec) for spec in specs]
    results = []
    with progress() as tell:
        _, found = one(problem, pattern, lambda done, total, what: tell(done, total, what, None))
        for done, line in enumerate(lines):
            tell(done, len(lines), line.text, None)
            pipeline.warm_up(line, found, device=device, dtype=dtype)
            outcome = pipeline.run(found, line, seed=seed, device=device, dtype=dtype, time_limit=time_limit)
            report.check_run(outcome.result)
            results.append(outcome.result)
    drawn = report.curves(results)
    report.write(drawn, output, f"{found.name}, {found.pattern}")
    if table:
        write_atomic(output.with_suffix(".csv"), report.to_csv(drawn).encode())
    click.echo(f"{output}: {found.name}, {len(drawn)} solvers")
