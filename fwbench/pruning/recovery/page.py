"""What the report of a recovered model shows, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fwbench.pruning import page_parts
from fwbench.pruning.recovery.units import BLOCK
from fwbench.report import text

COLUMNS = ("block", "layers", "fitted, pruned", "recovered", "held out, pruned", "recovered", "best epoch", "time")
ABOUT = (
    "The error of a block is the mean over tokens of ‖output − dense output‖² / ‖dense output‖², with the blocks "
    "before it recovered, on the sequences that were fitted and on those that were held out. Weights are those of the "
    "epoch that was best on the latter, for each part where parts were trained apart; 0 where none was better."
)


def build(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The context of the page's templates, as :func:`fwbench.pruning.page.build` has it."""
    totals = summary["totals"]
    total = ("all blocks", str(totals["layers"]), *_errors(totals), "", _seconds(summary))
    return {
        "command": "recover",
        "title": f"{summary['label']}, pruned and recovered",
        "lead": _lead(summary),
        "perplexity": page_parts.perplexities(summary),
        "samples": page_parts.samples(summary),
        "facts": _facts(summary),
        "table": "Blocks",
        "about": ABOUT,
        "columns": COLUMNS,
        "lines": [_line(block) for block in summary["blocks"]],
        "total": total,
        "early": [],
    }


def _lead(summary: Mapping[str, Any]) -> str:
    totals = summary["totals"]
    before, after = totals["held_out"]
    return (
        f"The {totals['weights'] - totals['pruned']:,} weights that pruning kept in "
        f"{text.plural(totals['layers'], 'linear layer')} were trained, block by block, to give what the dense model "
        f"gives; the {totals['pruned']:,} pruned ones ({text.percent(totals['sparsity'])}) are zero as before. On "
        f"held-out sequences the blocks' mean error went from {text.percent(before)} to {text.percent(after)}."
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", page_parts.model(summary)),
        ("pruned model", f"{summary['pruned']}, sha256 of its parameters {summary['pruned_sha256'][:16]}"),
        ("pruned by", f"{summary['solver']}, {summary['pattern']}" if summary["solver"] else text.NOTHING),
        ("training", _training(summary)),
        ("calibration", page_parts.calibration(summary)),
        ("seed", str(summary["seed"])),
        ("left as they were", _left(summary["skip"])),
        *page_parts.run(summary),
    ]


def _training(summary: Mapping[str, Any]) -> str:
    return (
        f"Adam, {text.plural(summary['epochs'], 'epoch')}, a sequence a step, rate {summary['rate']:g} of a layer's "
        f"root mean square weight, falling to 0; {text.plural(summary['held_out'], 'sequence')} held out; "
        f"trained at once: {'a block' if summary['unit'] == BLOCK else 'a part of a block'}"
    )


def _left(skip: str) -> str:
    return "embeddings, head, norms, biases, layers without pruned weights" + (f" or that {skip} finds" if skip else "")


def _line(block: Mapping[str, Any]) -> tuple[str, ...]:
    errors = _errors(block)
    return str(block["block"]), str(block["layers"]), *errors, _epochs(block), text.seconds(block["seconds"])


def _epochs(block: Mapping[str, Any]) -> str:
    return ", ".join(map(str, block["epochs"]))


def _errors(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(text.percent(value) for value in (*found["fitted"], *found["held_out"]))


def _seconds(summary: Mapping[str, Any]) -> str:
    return text.seconds(sum(block["seconds"] for block in summary["blocks"]))
