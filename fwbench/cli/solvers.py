"""Commands about solvers: solvers, check-solver."""

from __future__ import annotations

import click
from rich.markup import escape
from rich.table import Column, Table

from fwbench.cli.streams import console


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
