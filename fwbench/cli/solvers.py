"""Commands about solvers: solvers, check-solver."""

from __future__ import annotations

import inspect

import click
from rich.markup import escape
from rich.table import Column, Table

from fwbench.cli.streams import console


@click.command()
@click.argument("stage", required=False)
def solvers(stage: str | None) -> None:
    """List the stages solvers are made of, and the presets; or all about one STAGE."""
    from fwbench import pipeline
    from fwbench.spec import StageSpec

    if stage is not None:
        _about(stage)
        return
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


def _about(name: str) -> None:
    """What a stage does, when to use it, its parameters and its source."""
    from fwbench import pipeline

    known = pipeline.load_solvers()
    if name not in known:
        raise click.ClickException(f"there is no stage {name!r}; they are: {', '.join(sorted(known))}")
    said = pipeline.describe(known[name])
    click.echo(f"{name} ({said['role']})\n\n{inspect.getdoc(known[name])}\n")
    if said["parameters"]:
        click.echo(f"Parameters: {', '.join(f'{key}={value}' for key, value in said['parameters'].items())}")
    if said["advice"]:
        click.echo(f"When: {said['advice']}")
    click.echo(f"Source: {said['source'] or 'fwbench'}")
    if said["missing"]:
        click.echo(f"Not installed: {', '.join(said['missing'])}")


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
