"""Commands that exchange with others: export, import-solution, cite, compare."""

from __future__ import annotations

from pathlib import Path

import click

from fwbench.cli.make import numbers
from fwbench.cli.progress import progress


def _one(selector: str, pattern: str | None) -> tuple:
    from fwbench.problems.collections import one

    with progress() as report:
        return one(selector, pattern, lambda done, total, what: report(done, total, what, None))


@click.command()
@click.argument("problem")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".lp, .mps, .qplib or .npz.")
@click.option("--rows", callback=numbers, help="Rows to write, such as 3,7,100-120. [default: all]")
@click.option("--pattern", help="Pattern in place of the problem's own.")
@click.option("--relaxed", is_flag=True, help="Variables between 0 and 1 in place of binary ones.")
def export(problem: str, output: Path, rows: list[int] | None, pattern: str | None, relaxed: bool) -> None:
    """Write a problem, or some of its rows, for other people's solvers.

    PROBLEM selects one problem. Variables are u_r_i, 1 where weight i of row r is pruned; the optimum is the error.
    """
    from fwbench.problems.export import write

    _, found = _one(problem, pattern)
    write(found, output, rows, relaxed)
    click.echo(f"{output}: {found.name}, {len(set(rows or range(found.rows)))} of {found.rows} rows")


@click.command("import-solution")
@click.argument("problem")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--by", required=True, help="Who found it: a solver, a person.")
@click.option("--pattern", help="Pattern in place of the problem's own.")
@click.option("--base", type=click.Path(path_type=Path, exists=True), help="Mask of rows FILE leaves open.")
@click.option("--store", "path", type=click.Path(path_type=Path), help="[default: fwbench.sqlite, unless --registry]")
@click.option("--registry", "registered", is_flag=True, help="Take it into the registry if it improves it.")
@click.option("--folder", type=click.Path(path_type=Path), help="Registry to use. [default: the suite's]")
def import_solution(
    problem: str,
    file: Path,
    by: str,
    pattern: str | None,
    base: Path | None,
    path: Path | None,
    registered: bool,
    folder: Path | None,
) -> None:
    """Bring a mask from outside before the judge, and into a store or the registry.

    FILE is a .npy or .npz with a bool array (True where a weight stays), a .sol of Gurobi, SCIP, HiGHS, CBC or
    CPLEX for the exported instance, or hex digits as in the registry. PROBLEM selects one problem.
    """
    from fwbench import imports
    from fwbench.problems.registry import FOLDER
    from fwbench.store import Store

    collection, found = _one(problem, pattern)
    others = imports.read_mask(found, base) if base else None
    outcome = imports.import_solution(found, file, by, collection, others)
    improves = imports.register(outcome, found, folder or FOLDER) if registered else None
    if path or not registered:
        with Store(path or Path("fwbench.sqlite")) as store:
            store.add(outcome, problem=found)
    row = outcome.result
    click.echo(f"{found.name}: error {row.error:.9g}, {row.ratio_to_wanda:.4f} of Wanda's, {row.verdict}")
    if improves is not None:
        click.echo(f"{folder or FOLDER}: {'improved' if improves else 'no better than what is known'}")


@click.command()
@click.argument("old", metavar="STORE", type=click.Path(path_type=Path))
@click.argument("new", metavar="STORE", type=click.Path(path_type=Path))
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
@click.option("--folder", type=click.Path(path_type=Path), help="Registry to use. [default: the suite's]")
def cite(what: str, form: str, folder: Path | None) -> None:
    """Say how to cite the best masks of a store, or the best known mask of one problem.

    A sentence with the certified gap, a table, and BibTeX of the suite, the model, the text and each solver's paper.
    """
    from fwbench.cite import cite as write
    from fwbench.problems.registry import FOLDER

    click.echo(write(what, form, folder or FOLDER), nl=False)
