"""The report as files: one self-contained HTML page, Markdown from the same data, the rows as CSV and JSON lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fwbench.problem import labels
from fwbench.problems.files import write_atomic
from fwbench.report import latex, rows, summary, text, view
from fwbench.report.rows import Row


def write(
    results: Sequence[Row],
    out_dir: Path | str,
    title: str = "fwbench report",
    machine: Mapping[str, Any] | None = None,
    registry: Mapping[str, Any] | None = None,
) -> Path:
    """Write a report and return the path of its ``index.html``.

    Beside it: ``index.md`` with ``figures/*.svg``, ``results.csv``, ``results.jsonl``, ``solvers.tex``.

    Args:
        results: rows from :func:`fwbench.report.rows.load`, any number of them.
        out_dir: a folder, made where it is missing.
        machine: shown in place of the machines that the rows name.
        registry: problem hash -> ``BestKnown``; what beats it is listed.

    Raises:
        ProblemError: a file cannot be written; the message names it.
    """
    out = Path(out_dir)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    context = build(results, title, machine, registry)
    for figure in (figure for group in context["groups"] for figure in group["figures"]):
        _write(out / "figures" / f"{figure['name']}.svg", figure["standalone"])
    _write(out / "results.csv", rows.to_csv(results))
    _write(out / "results.jsonl", rows.to_json(results))
    _write(out / "solvers.tex", latex.document(results))
    _write(out / "index.md", markdown(context))
    _write(out / "index.html", html(context))
    return out / "index.html"


def _write(path: Path, content: str) -> None:
    write_atomic(path, content.encode(errors="replace"))


def build(
    results: Sequence[Row],
    title: str = "fwbench report",
    machine: Mapping[str, Any] | None = None,
    registry: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a page shows, as text; the templates only lay it out."""
    names = labels(((row["problem_hash"], row["problem"], row["pattern"]) for row in results), pattern_shown=True)
    results = [{**row, "problem": names[row["problem_hash"]]} for row in results]
    solvers = [row for row in results if not rows.bounds_only(row)]  # certifying runs have lent the others their bounds
    groups = summary.groups(solvers)
    style, drawn = _figures(solvers, groups)
    return {
        "title": text.clip(title, 200),
        "sentences": view.sentences(solvers),
        "facts": view.facts(results, machine, registry),
        "contradictions": view.contradiction_table(results),
        "records": view.record_table(results, registry),
        "groups": [_section(i, group, drawn[i]) for i, group in enumerate(groups)],
        "failures": view.failure_table(results),
        "declined": view.declined_table(results),
        "glossary": view.GLOSSARY,
        "colours": {text.clip(name, 300): colour for name, (colour, _) in style.items()},
    }


def _section(index: int, group: summary.Group, figures: list[dict]) -> dict[str, Any]:
    return {
        "id": f"g{index}",
        "title": view.group_title(group),
        "problems": len(group.problems),
        "solvers": view.solver_table(group),
        "figures": figures,
        "best": view.problem_table(group),
        "runs": view.run_table(group),
        "budget": view.budget_table(group),
    }


def _figures(results: Sequence[Row], groups: Sequence[summary.Group]) -> tuple[dict, list[list[dict]]]:
    if not groups:
        return {}, []
    from fwbench.report import figures  # here, so that tables alone do not load matplotlib

    style = figures.styles(results)
    drawn: list[list[dict]] = []
    for index, group in enumerate(groups):
        drawn.append([])
        for title, (draw, caption) in figures.FIGURES.items():
            names = {"name": f"g{index}-{title.lower().replace(' ', '-')}", "title": title}
            if svg := draw(names["name"], group, style):
                pictures = {"inline": Markup(figures.inline(svg)), "standalone": figures.standalone(svg)}
                drawn[-1].append({**names, "caption": caption, **pictures})
    return style, drawn


def html(context: Mapping[str, Any]) -> str:
    """The page: everything inline, nothing loaded, no script."""
    environment = _environment(autoescape=True)
    environment.filters["spec"] = _breakable
    css = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html.j2").render(context, css=css)


def markdown(context: Mapping[str, Any]) -> str:
    """The same as Markdown; whatever the rows hold is escaped, as autoescape does for HTML."""
    environment = _environment(autoescape=False, finalize=text.markdown)
    return re.sub(r"\n{3,}", "\n\n", environment.get_template("page.md.j2").render(context)).strip() + "\n"


def _environment(**options: Any) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, **options
    )


def _breakable(name: str) -> Markup:
    """A spec that may break into lines after its separators."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[+,(=./_])", name) if part)
