"""Commands that show what there is: problems, solvers, results, report."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

WIDE = 200  # columns where the output is no terminal


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


@click.command()
@click.argument("collection", required=False)
def problems(collection: str | None) -> None:
    """List the collections, or the problems of one."""
    from fwbench.problems.collections import catalog, load

    if collection is None:
        table = Table("collection", "problems", "what it is", box=None)
        for item in catalog():
            table.add_row(item.name, str(item.problems), escape(item.sentence))
        console().print(table)
        return
    from fwbench.problems.registry import best_known

    known = best_known()
    table = Table("problem", "rows", "n", "pattern", "best known", "gap", "proof", "hash", box=None)
    for _, problem in load(collection):
        best = known.get(problem.hash)
        upper = f"{best.upper:.6g}" if best and best.upper is not None else "open"
        gap = f"{best.gap:.2%}" if best and best.gap is not None else "open"
        shape = (str(problem.rows), str(problem.n), str(problem.pattern))
        proof = str(best.proof) if best else "none"
        table.add_row(escape(problem.name), *shape, upper, gap, proof, problem.hash[:12])
    console().print(table)


@click.command()
def solvers() -> None:
    """List the stages solvers are made of, and the presets."""
    from fwbench import pipeline
    from fwbench.spec import StageSpec

    table = Table(
        Column("stage and defaults", overflow="fold"), "role", "what it does", "source", "installed", box=None
    )
    known = [pipeline.describe(stage) for stage in pipeline.load_solvers().values()]
    order = ["start", "relax", "round", "refine", "update", "exact", "bound"]
    for item in sorted(known, key=lambda item: (order.index(item["role"]), item["name"])):
        spec = str(StageSpec(item["name"], tuple(item["parameters"].items())))
        installed = "yes" if item["installed"] else f"no: {', '.join(item['missing'])}"
        table.add_row(*map(escape, (spec, item["role"], item["summary"], item["source"], installed)))
    console().print(table)
    table = Table("preset", "stands for", box=None)
    for name, spec in pipeline.presets().items():
        table.add_row(name, escape(spec))
    console().print(table)


@click.command()
@click.argument("store", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "form", flag_value="json", default=True, help="One object a line (the default).")
@click.option("--csv", "form", flag_value="csv", help="A table with a header.")
def results(store: tuple[Path, ...], form: str) -> None:
    """Print every result of a store with the best bounds known joined in."""
    from fwbench.problems.registry import best_known
    from fwbench.report import rows

    joined = rows.load(store, best_known())
    click.echo(rows.to_csv(joined) if form == "csv" else rows.to_json(joined), nl=False)


@click.command()
@click.argument("store", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--title", default="fwbench report", show_default=True)
def report(store: tuple[Path, ...], output: Path, title: str) -> None:
    """Write a report (HTML, Markdown, LaTeX, CSV) of one or more stores."""
    from fwbench.problems.registry import best_known
    from fwbench.report import page, rows

    known = best_known()
    click.echo(page.write(rows.load(store, known), output, title=title, registry=known))
