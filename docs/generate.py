"""What of the site is made from the code and the library: the catalogues of solvers and problems, and the reports."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

import fwbench
from fwbench import pipeline
from fwbench.cite import OPTIMAL, percent, upward
from fwbench.problems import collections, registry
from fwbench.problems.registry import BestKnown
from fwbench.result import Proof
from fwbench.spec import StageSpec
from fwbench.stage import Needs, Role, Stage, needs, parameters

EASY = 192  # inputs: up to here `bnb` closes every problem of `mini` in seconds (reports/exact)
NOTHING = "–"


def write(folder: Path) -> None:
    """Write the catalogues to ``folder/NAME.md``; the pages include them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in {"solvers": solvers(), "presets": presets(), "problems": problems(), "face": face()}.items():
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_reports(source: Path, target: Path) -> None:
    """Bring the reports into the site: Sphinx reads one folder, and follows no link out of it, so links come too."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("latest"))
    for page in target.glob("*/*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("](../../docs/", "](../../"), encoding="utf-8")
    with (target / "README.md").open("a", encoding="utf-8") as index:
        index.write("\n```{toctree}\n:hidden:\n:glob:\n\n*/index\n```\n")


def face() -> Iterator[str]:
    """Every name of ``import fwbench``, functions first, for autodoc."""
    things = {name: getattr(fwbench, name) for name in getattr(fwbench, "__all__", ()) if not name.startswith("_")}
    yield "```{eval-rst}"
    for name in sorted(things, key=lambda name: (isinstance(things[name], type), name)):
        if isinstance(things[name], type):
            yield f".. autoclass:: fwbench.{name}\n   :members:\n"
        else:
            yield f".. autofunction:: fwbench.{name}\n"
    yield "```"


# --- solvers


def solvers() -> Iterator[str]:
    """Every registered stage, by role, in the order in which a spec is read."""
    known = sorted(pipeline.load_solvers().values(), key=lambda stage: stage.name)
    for role in Role:
        yield f"## {role}\n"
        for stage in known:
            if stage.role is role:
                yield from _stage(stage)


def _stage(stage: type[Stage]) -> Iterator[str]:
    said = pipeline.describe(stage)
    summary, _, rest = (stage.__doc__ or "").partition("\n")
    yield f"### {stage.name}\n\n{summary.strip()}\n"
    if said["advice"]:
        yield f"**When:** {said['advice']}\n"
    defaults = [f"`{StageSpec('', (item,))}`".replace("(", "").replace(")", "") for item in parameters(stage).items()]
    yield f"- Parameters: {', '.join(defaults) or 'none'}"
    yield f"- Begins with: {_beginning(stage)}"
    yield f"- Source: {said['source'] or 'fwbench'}"
    if stage.requires:
        yield f"- Needs the package {', '.join(f'`{name}`' for name in map(pipeline.package, stage.requires))}"
    yield "\n" + _paragraphs(rest) + "\n"


def _paragraphs(text: str) -> str:
    """A docstring with a paragraph for each parameter: where a sentence ends and a name in backticks begins a line."""
    return re.sub(r"\.\n(?=``)", ".\n\n", "\n".join(line.strip() for line in text.strip().splitlines()))


def _beginning(stage: type[Stage]) -> str:
    need = needs(stage)
    if need is Needs.NOTHING:
        return " ".join(["nothing", *(f"(a {use} that is there is used)" for use in stage.uses)])
    if need is Needs.POINT:
        return "a fractional point, which a stage before it must leave"
    return f"a {need}; where there is none, `{stage.begin}` is put before it"


def presets() -> Iterator[str]:
    """What each preset stands for, and the specs that run where none is named."""
    yield from _table(
        ["Preset", "Stands for"], [[f"`{name}`", f"`{spec}`"] for name, spec in pipeline.presets().items()]
    )
    names = ", ".join(f"`{spec}`" for spec in pipeline.default_set())
    yield f"\n`fwbench run` without `-s` runs {names}."


# --- problems


def problems() -> Iterator[str]:
    """Every problem of `mini` with its spectrum and what is known of it, then what else the registry holds."""
    known, seen, lines = registry.best_known(), set(), []
    for _, problem in collections.load("mini"):
        seen.add(problem.hash)
        entry = known.get(problem.hash) or BestKnown(problem.name, problem.hash, *problem.shape, str(problem.pattern))
        lines.append([*_problem(entry, entry.name.removeprefix("mini.")), *spectrum(problem.G)])
    header = ["Problem", "Status", "Gap", "Proof", "Best error", "Rows × n", "Pattern"]
    yield "## mini\n\nNames are those after `mini/` in a selector.\n"
    yield from _table([*header, "Condition", "Effective rank"], lines)
    yield "\n## Other problems in the registry\n"
    others = sorted((entry for entry in known.values() if entry.hash not in seen), key=lambda entry: entry.name)
    yield from _table(header, [_problem(entry, entry.name) for entry in others])
    yield "\n## Collections\n"
    rows = [[f"`{item.name}`", str(item.problems), item.sentence] for item in collections.catalog()]
    yield from _table(["Collection", "Problems", "What it is"], rows)


def _problem(entry: BestKnown, name: str) -> list[str]:
    error = NOTHING if entry.upper is None else upward(entry.upper)
    proof = NOTHING if entry.proof is Proof.NONE else str(entry.proof)
    shape = f"{entry.rows} × {entry.n}".replace(" ", "\N{NO-BREAK SPACE}")
    gap = percent(entry.gap).replace(" ", "\N{NO-BREAK SPACE}")
    return [f"`{name}`", status(entry), gap, proof, error, shape, f"`{entry.pattern}`"]


def status(entry: BestKnown) -> str:
    """``easy``, ``hard`` or ``open``, as MIPLIB has it; the rule stands on the page."""
    if entry.gap is None or entry.gap > OPTIMAL:
        return "open"
    return "easy" if entry.n <= EASY else "hard"


def spectrum(G: np.ndarray) -> tuple[str, str]:
    """Condition number and effective rank (Roy and Vetterli 2007: the exponential of the spectrum's entropy)."""
    values = np.linalg.eigvalsh(G)
    rounding = G.shape[0] * np.finfo(np.float64).eps * values[-1]
    condition = "singular" if values[0] <= rounding else f"{values[-1] / values[0]:.1e}"
    share = values[values > rounding] / values[values > rounding].sum()
    return condition, f"{np.exp(-(share * np.log(share)).sum()):.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
