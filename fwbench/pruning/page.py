"""The report of a pruned model: one self-contained HTML page, and Markdown from the same data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fwbench import report
from fwbench.pruning import page_parts
from fwbench.pruning.recovery import page as recovery_page
from fwbench.report import text

HERE = Path(__file__).parent
STYLE = Path(report.__file__).with_name("style.css")
COLUMNS = ("layer", "rows × inputs", "pruned", "relative error", "error / Wanda's", "certified gap", "time")
GAP = COLUMNS.index("certified gap")
TASKS = ("task", "metric", "samples", "pruned", "dense", "pruned − dense")
PROVING = "fw+push(rounds=20)+swap+safeguard"  # the preset ``fast`` after a stage whose bound is a proof


def render(summary: Mapping[str, Any], tasks: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The pages by their names, ``report.html`` and ``report.md``; ``tasks`` as fwbench.pruning.tasks has them."""
    if "recovered" in summary["sample"]:
        speeds = speed(summary["pattern"] or "", summary["totals"]["sparsity"])
        built = recovery_page.build(summary) | {"speed": speeds}
    else:
        built = build(summary)
    context, pages = {**built, "tasks": task_lines(tasks or {}), "task_columns": TASKS}, {}
    for name, options in (("report.html", {"autoescape": True}), ("report.md", {"finalize": text.markdown})):
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            **options,
        )
        page = environment.get_template(f"{name}.j2").render(context, css=Markup(STYLE.read_text(encoding="utf-8")))
        pages[name] = re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
    return pages


def build(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a page shows, as text."""
    totals = summary["totals"]
    proved = any(record["gap"] is not None for record in summary["layers"])
    shown = [index for index in range(len(COLUMNS)) if proved or index != GAP]
    total = (
        "all layers",
        "",
        text.percent(totals["sparsity"]),
        text.percent(totals["relative_error"]),
        text.number(totals["ratio_to_wanda"]),
        "",
        text.seconds(sum(record["seconds"] or 0 for record in summary["layers"])),
    )
    return {
        "title": f"{summary['label']} pruned to {summary['pattern']}",
        "lead": _lead(summary),
        "perplexity": page_parts.perplexities(summary),
        "samples": page_parts.samples(summary),
        "facts": _facts(summary),
        "command": "prune",
        "table": "Layers",
        "about": "",
        "columns": [COLUMNS[index] for index in shown],
        "lines": [[_line(record)[index] for index in shown] for record in summary["layers"]],
        "total": [total[index] for index in shown],
        "proved": proved,
        "proving": PROVING,
        "early": [f"{r['layer']}: {r['reason']}" for r in summary["layers"] if r["reason"]],
        "speed": speed(summary["pattern"], totals["sparsity"]),
    }


def task_lines(tasks: Mapping[str, Any]) -> list[list[str]]:
    """Cells of a table with the columns ``TASKS``: a line for each task's metric."""
    return [
        [
            name,
            metric,
            "" if task["samples"] is None else f"{task['samples']:,} of {task['of']:,}",
            *(text.with_error(figures[kind]) for kind in ("pruned", "dense", "difference")),
        ]
        for name, task in sorted(tasks.items())
        for metric, figures in task["metrics"].items()
    ]


def _lead(summary: Mapping[str, Any]) -> str:
    totals = summary["totals"]
    sentence = (
        f"{totals['pruned']:,} of {totals['weights']:,} weights in {text.plural(totals['layers'], 'linear layer')} are "
        f"zero ({text.percent(totals['sparsity'])}; {text.percent(totals['sparsity_of_model'])} of all parameters). "
        "Embeddings, head, norms and biases are as they were"
        + (f", rounded to {summary['save_dtype']} before anything else." if summary["rounded"] else ".")
    )
    if totals["ratio_to_wanda"] is not None:
        sentence += f" The summed layer error is {text.number(totals['ratio_to_wanda'])} times that of Wanda's masks."
    return sentence


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    shrunk = f"; correlations shrunk by {text.percent(summary['shrink'])}" if summary["shrink"] else ""
    return [
        ("model", page_parts.model(summary)),
        ("solver", summary["solver"]),
        ("pattern", summary["pattern"]),
        *_allocation(summary),
        ("order", _order(summary)),
        ("calibration", page_parts.calibration(summary) + shrunk),
        ("seed", str(summary["seed"])),
        ("left dense", _left_dense(summary["skip"])),
        *page_parts.run(summary),
    ]


def _allocation(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the zeros were allocated to the layers; nothing where each has the same."""
    if not summary.get("allocation_sha256"):
        return []
    shares = [record["pruned"] / (record["rows"] * record["n"]) for record in summary["layers"]]
    range_ = f"{text.percent(min(shares))} to {text.percent(max(shares))} of a layer"
    made = ("allocation", f"{summary['allocation']}: {range_}, sha256 {summary['allocation_sha256'][:16]}")
    gap = summary.get("allocation_gap")
    return [made, ("allocation's gap", page_parts.allocation_gap(gap))] if gap else [made]


def _left_dense(skip: str) -> str:
    return "embeddings, head, norms and biases" + (f"; layers that {skip} finds" if skip else "")


def _order(summary: Mapping[str, Any]) -> str:
    if summary["mode"] == "sequential":
        before = "layer calibrated with all" if summary.get("true_sequential") else "block calibrated with the blocks"
        order = f"sequential: each {before} before it already pruned"
        parts = {"arrives wrong": summary["correct"], "is wrong in the residual stream": summary.get("residual", 0)}
        if made := [f"{text.percent(part)} of what {what}" for what, part in parts.items() if part]:
            order += f", and makes good {' and '.join(made)} (ridge {summary['ridge']:g})"
        return order
    return "one-shot: every layer calibrated on the dense model"


def _line(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        record["layer"],
        f"{record['rows']} × {record['n']}",
        text.percent(record["pruned"] / (record["rows"] * record["n"])),
        text.percent(record["relative_error"]),
        text.number(record["ratio_to_wanda"]),
        text.percent(record["gap"]),
        text.seconds(record["seconds"]),
    )


def speed(pattern: str, sparsity: float) -> list[str]:
    """What does and does not get faster, or smaller, with this pattern."""
    plain = (
        "The zeros are stored: files and memory are as large as before, and ordinary matrix products as slow. "
        "Compressed (zip, zstd) the files shrink."
    )
    if pattern in ("2:4", "transposable:2:4"):
        transposed = " Of this pattern the transpose is 2:4 too, and so the backward pass may gain as well."
        return [
            plain,
            (
                "2:4 is what the sparse tensor cores of NVIDIA GPUs (Ampere and later) take, in float16 or bfloat16: "
                "torch.sparse.to_sparse_semi_structured converts the weight of an nn.Linear. Large products with many "
                "tokens (prompts, batches) gain, at best twofold; generation of one token at a time gains little. "
                f"Nothing gains on a CPU, or in float32.{transposed if pattern != '2:4' else ''}"
            ),
        ]
    if sparsity >= 0.7:
        return [
            plain,
            (
                "At this sparsity, formats for sparse matrices (such as torch's CSR tensors) save memory, and CPU "
                "kernels made for them can be faster; GPU kernels for unstructured zeros seldom are."
            ),
        ]
    return [
        plain,
        (
            "No common kernel is faster with zeros in these places; what helps is 2:4 on recent NVIDIA GPUs, or 70 % "
            "and more with kernels made for sparse matrices on a CPU."
        ),
    ]
