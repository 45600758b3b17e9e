"""Commands that say what came out: results, report, compare, cite."""

from __future__ import annotations

from pathlib import Path

import click

from fwbench.cli import options
from fwbench.cli.options import PATH


@click.command()
@click.argument("store", nargs=-1, required=True, type=PATH)
@click.option("--json", "form", flag_value="json", default=True, help="One object a line (the default).")
@click.option("--csv", "form", flag_value="csv", help="A table with a header.")
def results(store: tuple[Path, ...], form: str) -> None:
    """Print every result of a store with the best bounds known joined in."""
    from fwbench.problems.registry import best_known
    from fwbench.report import rows

    joined = rows.load(store, best_known())
    click.echo(rows.to_csv(joined) if form == "csv" else rows.to_json(joined), nl=False)


@click.command()
@click.argument("store", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder to write to.")
@click.option("--title", default="fwbench report", show_default=True)
def report(store: tuple[Path, ...], output: Path, title: str) -> None:
    """Write a report (HTML, Markdown, LaTeX, CSV) of one or more stores; of a recovered model, its own page."""
    from fwbench.problems.registry import best_known
    from fwbench.report import page, rows
    from fwbench.store import is_store

    if len(store) == 1 and (store[0] / "fwbench.json").is_file() and not is_store(store[0]):
        from fwbench.pruning import tasks

        click.echo(tasks.report(store[0], output))
        return
    known = best_known()
    click.echo(page.write(rows.load(store, known), output, title=title, registry=known))


@click.command()
@click.argument("old", metavar="STORE", type=PATH)
@click.argument("new", metavar="STORE", type=PATH)
def compare(old: Path, new: Path) -> int:
    """Compare two stores, the earlier first; exit code 1 if an error rose or a status got worse."""
    from fwbench.report.compare import compare_stores, lines

    found = compare_stores(old, new)
    for line in lines(found):
        click.echo(line)
    return 1 if found.regressions else 0


@click.command()
@click.argument("what", metavar="STORE|PROBLEM")
@click.option("--format", "form", default="md", show_default=True, type=click.Choice(["md", "latex", "bibtex"]))
@options.folder
def cite(what: str, form: str, folder: Path | None) -> None:
    """Say how to cite the best masks of a store, or the best known mask of one problem.

    A sentence with the certified gap, a table, and BibTeX of the suite, the model, the text and each solver's paper.
    """
    from fwbench.cite import cite as write
    from fwbench.problems.registry import FOLDER

    click.echo(write(what, form, folder or FOLDER), nl=False)
