"""The section of the boards' page on recovery: lines of ``recover`` to Markdown."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prune.recover import PRUNED, RECOVER_CSV, Line
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import least_bold, method_cell, table

COLUMNS = (
    "pattern",
    "method",
    "mode",
    "tokens",
    "epochs",
    "at once",
    "times",
    "lee.cor",
    "Wikipedia",
    "error, held out",
    "CPU min",
)


def section(folder: Path) -> str:
    """The section, empty where nothing was measured."""
    lines = read(folder / RECOVER_CSV, Line)
    rows = []
    for key in sorted({(line.pattern, line.method, line.mode) for line in lines}):
        own = [line for line in lines if (line.pattern, line.method, line.mode) == key]
        own.sort(key=lambda line: (line.epochs != PRUNED, line.tokens, line.epochs, line.unit, line.times))
        texts = [least_bold([getattr(line, text) for line in own], 2) for text in ("lee_heldout", "wikipedia")]
        rows += [(*_key(key), *_asked(line), *cells, *_cost(line)) for line, *cells in zip(own, *texts, strict=True)]
    return f"{HEAD}\n\n{table(COLUMNS, rows, left=3)}".rstrip() if rows else ""


def _key(key: tuple[str, str, str]) -> tuple[str, str, str]:
    pattern, method, mode = key
    return pattern, method_cell(method), mode


def _asked(line: Line) -> tuple[str, ...]:
    return ("–",) * 4 if line.epochs == PRUNED else (f"{line.tokens:,}", str(line.epochs), line.unit, str(line.times))


def _cost(line: Line) -> tuple[str, str]:
    return ("–", "–") if line.epochs == PRUNED else (f"{line.held_out:.4f}", f"{line.cpu_minutes:.1f}")


HEAD = """## Recovered

`fwbench recover` trains the weights that pruning kept, block by block, to give what the dense model's blocks give; the
masks stay. A line without tokens is the model as it was pruned. *At once* is what is trained together: a block, or its
attention and MLP (parts), each on its own output; *times* 2 is a recovered model recovered once more. The error is the
mean over blocks of `‖output − dense output‖² / ‖dense output‖²` a token, on held-out sequences of the calibration text,
with the blocks before recovered. The least perplexity of a model is bold. By `python -m benchmarks.prune.recover`, from
`recover.csv`; one thread."""
