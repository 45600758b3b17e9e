"""Commands about problems: problems, extract, export."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from fwbench.cli import options
from fwbench.cli.options import PATH
from fwbench.cli.progress import one, progress
from fwbench.cli.streams import console


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
@click.argument("model")
@click.option("-o", "--output", required=True, type=PATH, help="Folder for the problem files.")
@click.option("--text", default="lee", show_default=True, help="Calibration: a file, folder, pypi: resource or name.")
@click.option("--blocks", callback=options.numbers, help="Decoder blocks, such as 0-3,22. [default: all]")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(min=1))
@click.option("--pattern", default="0.5", show_default=True)
@click.option(
    "--layers", default="", help="Regular expression: only layers whose name, or path in the model, it finds."
)
@click.option("--skip", default="", help="Regular expression: no layers whose name, or path in the model, it finds.")
@click.option(
    "--against",
    default="",
    metavar="DENSE",
    help="The dense model that MODEL was pruned from: its weights, and its outputs as the target.",
)
@options.trust
@options.stream
def extract(
    model: str,
    output: Path,
    text: str,
    blocks: list[int] | None,
    tokens: int,
    pattern: str,
    layers: str,
    skip: str,
    against: str,
    trust_remote_code: bool,
    stream: bool | None,
) -> None:
    """Extract the problems of a causal language model's layers into a folder of problem files.

    With --against they are those of a pruned model in sequence: to choose, for the inputs that arrive, the mask with
    which the dense weights give the dense model's output.
    """
    from fwbench import patterns
    from fwbench.problems.extract import extract as extract_problems
    from fwbench.problems.files import SUFFIX, file_stem, write_problem
    from fwbench.problems.models import load_model
    from fwbench.problems.text import load_text

    patterns.parse(pattern)
    source = load_text(text)
    loaded = load_model(model, trust_remote_code, stream)
    dense = load_model(against, trust_remote_code, stream) if against else None
    count = 0
    with progress() as report:
        for problem in extract_problems(
            loaded,
            source,
            blocks,
            tokens,
            pattern,
            report,
            layers=layers,
            skip=skip,
            against=dense,
        ):
            output.mkdir(parents=True, exist_ok=True)
            write_problem(problem, output / f"{file_stem(problem.name)}{SUFFIX}")
            count += 1
    click.echo(f"{output}: {count} problems")


@click.command()
@click.argument("problem")
@click.option("-o", "--output", required=True, type=PATH, help=".lp, .mps, .qplib or .npz.")
@click.option("--rows", callback=options.numbers, help="Rows to write, such as 3,7,100-120. [default: all]")
@options.pattern
@click.option("--relaxed", is_flag=True, help="Variables between 0 and 1 in place of binary ones.")
def export(problem: str, output: Path, rows: list[int] | None, pattern: str | None, relaxed: bool) -> None:
    """Write a problem, or some of its rows, for other people's solvers.

    PROBLEM selects one problem. Variables are u_r_i, 1 where weight i of row r is pruned; the optimum is the error.
    """
    from fwbench.problems.export import write

    _, found = one(problem, pattern)
    write(found, output, rows, relaxed)
    click.echo(f"{output}: {found.name}, {len(set(rows or range(found.rows)))} of {found.rows} rows")
