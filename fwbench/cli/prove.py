"""Commands about proofs: certify, verify, registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from fwbench.cli.make import _chain, _listener, device_option
from fwbench.cli.progress import progress

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
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Time for each problem.")
@click.option("--store", "path", default="fwbench.sqlite", show_default=True, type=click.Path(path_type=Path))
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1))
@device_option
def certify(
    what: tuple[str, ...], bound: str, rows: str, seconds: float | None, path: Path, jobs: int, device: str
) -> int:
    """Prove lower bounds for the problems of a store or of collections; the certificates go into the store."""
    from fwbench import pipeline
    from fwbench.problems.collections import check
    from fwbench.prove import problems_of
    from fwbench.result import Status
    from fwbench.runner import JobEnded, run_grid
    from fwbench.spec import StageSpec
    from fwbench.store import Store

    given = {"kind": bound, "rows": int(rows) if rows.isdecimal() else rows, "seconds": seconds}
    params = tuple((key, value) for key, value in sorted(given.items()) if value not in (None, "all"))
    line = pipeline.resolve(str(StageSpec("bound", params)))
    stores = [Path(item) for item in what if Path(item).suffix in (".sqlite", ".db")]
    if stores and len(what) > 1:
        raise click.UsageError("give one store, or collections")
    for item in () if stores else what:
        check(item)
    with progress() as report, Store(stores[0] if stores else path) as store:
        if stores:
            known = problems_of(store)
            found: Iterator[tuple] = ((name, problem) for _, problem, name in known if problem is not None)
        else:
            found = _chain(what, (), report)
        listen, without = _listener(report), 0

        def tell(event: object) -> None:
            nonlocal without
            if isinstance(event, JobEnded) and event.result.status in (Status.SKIPPED, Status.FAILED):
                without += not event.reused
                if event.result.status is Status.SKIPPED:
                    click.echo(f"skipped: {event.result.problem}: {event.result.reason}", err=True)
            listen(event)

        summary = run_grid(found, [line], store, jobs=jobs, device=device, on_event=tell)
    where, done, there = stores[0] if stores else path, summary.done - without, summary.reused
    click.echo(f"{where}: {done} certified, {there} were there, {summary.skipped} skipped")
    return 1 if summary.failed or not done + there else 0


@click.command()
@click.argument("what", metavar="STORE|CERTIFICATE|FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option("--problem", "selectors", multiple=True, help="Where a certificate's problem is. [default: mini]")
@click.option("-q", "--quiet", is_flag=True, help="Only what does not hold, and the total.")
def verify(what: Path, selectors: tuple[str, ...], quiet: bool) -> int:
    """Replay proofs: the certificates and masks of a store, one certificate file, or a folder with a registry."""
    from fwbench import prove
    from fwbench.result import Certificate
    from fwbench.store import Store

    if what.is_dir():
        findings = prove.verify_registry(what)
    elif what.suffix == ".npz":
        certificate = Certificate.read(what)
        problem = prove.find_problem(certificate.problem, selectors or ("mini",))
        if problem is None:
            raise click.UsageError(f"{what}: its problem {certificate.problem[:12]} is not found; name it by --problem")
        findings = iter([prove.check_certificate(problem, certificate)])
    else:
        findings = prove.verify_store(Store(what, readonly=True))
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
@click.argument("store", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--folder", default=None, type=click.Path(path_type=Path), help="Registry to use. [default: the suite's]")
def registry(action: str | None, store: Path | None, folder: Path | None) -> None:
    """Show the best known values, as a table or as a .solu file (solu), or take in what a store knows better."""
    from fwbench.problems import registry as module
    from fwbench.prove import update_registry
    from fwbench.store import Store

    folder = folder or module.FOLDER
    if action == "solu":
        click.echo(module.solu(module.best_known(folder)), nl=False)
        return
    if action is None:
        for entry in sorted(module.best_known(folder).values(), key=lambda entry: entry.name):
            gap = "open" if entry.gap is None else f"{entry.gap:.3%}"
            click.echo(f"{entry.name}  best {entry.upper}  bound {entry.lower}  gap {gap}  {entry.proof}")
        return
    if store is None:
        raise click.UsageError("registry update needs a store")
    improvements = update_registry(Store(store, readonly=True), folder)
    for line in improvements:
        click.echo(line)
    click.echo(f"{folder}: {len(improvements)} improved")
