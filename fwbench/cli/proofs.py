"""Commands about proofs and masks from outside: certify, verify, registry, import-solution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fwbench.cli import options
from fwbench.cli.options import EXISTING, PATH, SECONDS
from fwbench.cli.progress import listener, loaded, one, progress, say_reasons

if TYPE_CHECKING:
    from fwbench.store import Store

WORDS = {True: "holds", False: "FAILS", None: "open "}  # of a finding


@click.command()
@click.argument("what", metavar="STORE|COLLECTION...", nargs=-1, required=True)
@click.option("--bound", default="shared", show_default=True, help="Kind of bound, see 'fwbench solvers'.")
@click.option(
    "--rows",
    default="all",
    show_default=True,
    help="Rows to bound each by itself: all, N for a sample, or a list such as 3,7,100-120.",
)
@click.option("--seconds", type=SECONDS, help="Time for each problem.")
@options.store
@options.jobs
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@options.places
@options.device
def certify(
    what: tuple[str, ...],
    bound: str,
    rows: str,
    seconds: float | None,
    path: Path,
    jobs: int,
    retry_failed: bool,
    places: tuple[str, ...],
    device: str,
) -> int:
    """Prove lower bounds for the problems of a store or of collections; the certificates go into the store."""
    from fwbench import pipeline
    from fwbench.problems.collections import check
    from fwbench.runner import run_grid
    from fwbench.spec import StageSpec
    from fwbench.store import Store, is_store

    given = {"kind": bound, "rows": int(rows) if rows.isdecimal() else rows, "seconds": seconds}
    params = tuple((key, value) for key, value in sorted(given.items()) if value not in (None, "all"))
    solver = pipeline.resolve(str(StageSpec("bound", params)))
    stores = [Path(item) for item in what if is_store(item)]
    if stores and len(what) > 1:
        raise click.UsageError("give one store, or collections")
    if places and not stores:
        raise click.UsageError("--problem says where a store's problems are: give a store")
    for item in () if stores else what:
        check(item)
    lost: list[str] = []
    where = stores[0] if stores else path
    if stores and not where.exists():
        raise click.UsageError(f"{where}: no such store")
    with progress() as report, Store(where) as store:
        found = _of_store(store, places, lost) if stores else loaded(what, (), report)
        listen = listener(report)
        summary = run_grid(found, [solver], store, jobs=jobs, device=device, retry_failed=retry_failed, on_event=listen)
    say_reasons(summary)
    certified, there = summary.fresh, summary.solved - summary.fresh
    missing = f", {len(lost)} not found" if lost else ""
    click.echo(f"{where}: {certified} certified, {there} were there, {summary.skipped} skipped{missing}")
    if not summary.done + summary.reused + len(lost):
        click.echo(f"{where}: it holds no problem yet: run solvers on some, or name collections", err=True)
    return 1 if summary.failed or lost or not summary.solved else 0


def _of_store(store: Store, places: tuple[str, ...], lost: list[str]) -> Iterator[tuple]:
    """Problems of a store with their collections; what is not found is said, and noted in ``lost``."""
    from fwbench.audit import problems_of

    for found in problems_of(store, places):
        if found.problem is not None:
            yield found.wanted.collection, found.problem
        else:
            lost.append(found.wanted.name or found.wanted.hash[:12])
            click.echo(f"{lost[-1]}: not found: {found.reason}", err=True)


@click.command()
@click.argument("what", metavar="STORE|CERTIFICATE|FOLDER", type=EXISTING)
@options.places
@click.option("--pattern", help="Of a certificate's problem, where it is not the file's own.")
@click.option("-q", "--quiet", is_flag=True, help="Only what does not hold, and the total.")
def verify(what: Path, places: tuple[str, ...], pattern: str | None, quiet: bool) -> int:
    """Replay proofs: the certificates and masks of a store, one certificate file, or a folder with a registry."""
    from fwbench import audit
    from fwbench.result import Certificate
    from fwbench.store import Store

    if pattern and what.suffix != ".npz":
        raise click.UsageError("--pattern is for a certificate file: a store and a registry know their patterns")
    if what.is_dir():
        findings = audit.verify_registry(what, places)
    elif what.suffix == ".npz":
        certificate = Certificate.read(what)
        found = audit.find_problem(certificate.problem, places or ("mini",), pattern)
        if found.problem is None:
            raise click.UsageError(f"{what}: its problem {certificate.problem[:12]} is not found: {found.reason}")
        findings = iter([audit.check_certificate(found.problem, certificate)])
    else:
        findings = audit.verify_store(Store(what, readonly=True), places)
    count: Counter[bool | None] = Counter()
    for item in findings:
        count[item.ok] += 1
        if not (quiet and item.ok):
            click.echo(f"{WORDS[item.ok]}  {item.problem}  {item.what}: {item.detail}")
    undecided = f", {count[None]} cannot be decided here" if count[None] else ""
    click.echo(f"{what}: {count[True]} hold, {count[False]} fail{undecided}")
    return 1 if count[False] else 0


@click.command()
@click.argument("action", required=False, type=click.Choice(["update", "solu"]))
@click.argument("store", required=False, type=EXISTING)
@options.folder
@options.places
def registry(action: str | None, store: Path | None, folder: Path | None, places: tuple[str, ...]) -> int:
    """Show the best known values, as a table or as a .solu file (solu), or take in what a store knows better.

    The suite's own registry takes problems of mini and smollm2; a --folder of one's own, begun where there is none,
    takes any.
    """
    from fwbench.audit import update_registry
    from fwbench.problems import registry as module
    from fwbench.store import Store

    folder = folder or module.FOLDER
    if action == "solu":
        click.echo(module.solu(module.best_known(folder)), nl=False)
        return 0
    if action is None:
        known = module.best_known(folder)
        names = module.names_of(known)
        for entry in sorted(known.values(), key=lambda entry: (entry.name, entry.hash)):
            gap = "open" if entry.gap is None else f"{entry.gap:.3%}"
            click.echo(f"{names[entry.hash]}  best {entry.upper}  bound {entry.lower}  gap {gap}  {entry.proof}")
        return 0
    if store is None:
        raise click.UsageError("registry update needs a store")
    with Store(store, readonly=True) as opened:
        update = update_registry(opened, folder, places)
    for line in update.left:
        click.echo(f"not taken: {line}", err=True)
    for line in update.improved:
        click.echo(line)
    left = f", {len(update.left)} not taken" if update.left else ""
    click.echo(f"{folder}: {len(update.improved)} improved{left}")
    return 1 if update.left else 0


@click.command("import-solution")
@click.argument("problem")
@click.argument("file", type=EXISTING)
@click.option("--by", required=True, help="Who found it: a solver, a person.")
@options.pattern
@click.option("--base", type=EXISTING, help="Mask of rows FILE leaves open.")
@click.option("--store", "path", type=PATH, help="[default: fwbench.sqlite, unless --registry]")
@click.option("--registry", "registered", is_flag=True, help="Take it into the registry if it improves it.")
@options.folder
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
    from fwbench import solutions
    from fwbench.problems.registry import FOLDER
    from fwbench.store import Store

    collection, found = one(problem, pattern)
    others = solutions.read_mask(found, base) if base else None
    outcome = solutions.import_solution(found, file, by, collection, others)
    improves = solutions.register(outcome, found, folder or FOLDER) if registered else None
    if path or not registered:
        with Store(path or Path("fwbench.sqlite")) as store:
            store.add(outcome, problem=found)
    row = outcome.result
    click.echo(f"{found.name}: error {row.error:.9g}, {row.ratio_to_wanda:.4f} of Wanda's, {row.verdict}")
    if improves is not None:
        click.echo(f"{folder or FOLDER}: {'improved' if improves else 'no better than what is known'}")
