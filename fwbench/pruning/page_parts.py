"""What the reports of a pruned and of a recovered model both say, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fwbench import metrics
from fwbench.report import text

KINDS = ("dense", "pruned", "recovered")  # of models, as they are shown


def perplexities(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures by their models' names, the dense one first, and how they were measured; None without."""
    found = summary["perplexity"]
    dense = found["dense"]
    if None in found.values():
        return None
    return {
        "figures": [(name, text.perplexity(found[name]["value"])) for name in KINDS if name in found],
        "how": f"on {dense['text']}: {text.plural(dense['windows'], 'window')} of {dense['length']} tokens"
        f"{begun(dense['opening'])}, {dense['scored']:,} tokens scored; lower is better",
    }


def samples(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each model's name, the prompt, and what it makes of it."""
    sample = summary["sample"]
    return [(name, sample["prompt"], sample[name]) for name in KINDS if name in sample]


def begun(opening: Sequence[str]) -> str:
    """A phrase on the tokens that each sequence begins with."""
    return f", each begun with {' '.join(opening)}" if opening else ""


def model(summary: Mapping[str, Any]) -> str:
    """The dense model, known by its hash."""
    return f"{summary['model']}, sha256 of its parameters {summary['model_sha256'][:16]}"


def calibration(summary: Mapping[str, Any]) -> str:
    """The text and how it was cut."""
    return (
        f"{summary['calibration']}, sha256 {summary['calibration_sha256'][:16]}: {summary['tokens']:,} tokens "
        f"in {text.plural(summary['sequences'], 'sequence')} of at most {summary['context_length']}"
        f"{begun(summary['opening'])}"
    )


def allocation_gap(gap: Mapping[str, Any]) -> str:
    """What an exact allocation costs and what any costs at least, see fwbench.pruning.allocation.proved."""
    upper, here, least = (gap[key] for key in ("upper", "lower_here", "lower"))
    within = text.percent(metrics.certified_gap(upper, least))
    return (
        f"{text.number(upper)} of harm predicted by {gap['rows']} rows of each layer with {gap['solver']}'s masks "
        f"({text.number(gap['wanda'])} with Wanda's); proved: at least {text.number(here)} with these layers' "
        f"sparsities, whatever the masks, and {text.number(least)} whatever the layers' sparsities within reach. So "
        f"layers' sparsities and masks together are within {within} of the best"
    )


def run(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was saved, what it took and where, and what was noted meanwhile."""
    seconds, machine = summary["seconds"], summary["machine"]
    parts = ", ".join(f"{key} {text.seconds(value)}" for key, value in seconds.items() if key != "total")
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())
    facts = [
        ("saved as", _saved_as(summary)),
        ("time", f"{text.seconds(seconds.get('total'))} ({parts})"),
        ("peak memory", f"{summary['peak_memory'] / 2**30:.2f} GiB" if summary["peak_memory"] else text.NOTHING),
        ("machine", f"{machine.get('cpu', '')}, {machine.get('threads', '')} threads; device {summary['device']}"),
        ("versions", versions),
        *(("note", sentence) for sentence in summary["notes"]),
    ]
    if summary["blocks_resumed"]:
        facts.append(
            ("resumed", f"{text.plural(summary['blocks_resumed'], 'block')} came from an earlier, stopped run")
        )
    return facts


def _saved_as(summary: Mapping[str, Any]) -> str:
    rounded = text.plural(summary["rounded"], "tensor")
    return summary["save_dtype"] + (f"; {rounded} rounded to it before the work" if summary["rounded"] else "")
