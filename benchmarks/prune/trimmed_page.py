"""The section of the boards' page on tokens that are left out: lines of ``trimmed`` to Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.prune.trimmed import FIRST, PARTS, TRIMMED_CSV, Line
from benchmarks.shared.csv_lines import read
from benchmarks.shared.markdown import method_cell, table
from fwbench.metrics import shifted_geometric_mean as mean

TEXTS = ("lee_heldout", "wikipedia")
NOTHING, MOST = str(PARTS[0]), str(PARTS[-1])
OUTS = (*map(str, PARTS[1:]), FIRST)
HEAD = """## Tokens of large error left out

{finding}

Cells: error on `lee.cor` / Wikipedia (8,192 tokens of each, none left out) in units of the line's own with nothing
left out, geometric means over the {layers} layers of block {blocks}, {rows} rows of each. *Held out*: error on
`lee.cor` over that on the calibration tokens, nothing left out. *First*: without the first token of each sequence of
512, which has {least:.1g} % to {most:.1g} % of a layer's output energy here. By
`python -m benchmarks.prune.trimmed`."""
HOW = """\
The tokens of `lee` whose error `‖(W − Ŵ)x‖²` is largest are left out, the layer is pruned for the others, and so on, \
as robust phase retrieval does (`fwbench.solvers.weight_update.trimmed`)."""

Cell = tuple[str, int, str]  # pattern, tokens, method


def section(folder: Path) -> str:
    """The section, empty where nothing was measured; cells that do not have all layers are left out."""
    lines = read(folder / TRIMMED_CSV, Line)
    layers = {(line.block, line.layer) for line in lines}
    by_cell: dict[Cell, dict[str, list[Line]]] = {}
    for line in lines:
        cell = line.pattern, line.tokens, line.method
        by_cell.setdefault(cell, {}).setdefault(line.out, []).append(line)
    whole = {
        cell: outs
        for cell, outs in by_cell.items()
        if all(len(outs.get(out, ())) == len(layers) for out in (NOTHING, *OUTS))
    }
    if not whole:
        return ""
    rows = []
    for cell in sorted(whole):
        own = whole[cell][NOTHING]
        fit = mean(line.lee_heldout / line.calibration for line in own)
        ratios = (" / ".join(f"{ratio(whole[cell], out, text):.3f}" for text in TEXTS) for out in OUTS)
        rows.append((cell[0], f"{cell[1]:,}", method_cell(cell[2]), f"{fit:.3f}", *ratios))
    energies = [100 * line.first_energy for line in lines]
    head = HEAD.format(
        finding=textwrap.fill(f"{_verdict(whole)} {HOW} {_figures(whole)}", 120),
        layers=len(layers),
        blocks=", ".join(str(block) for block in sorted({line.block for line in lines})),
        rows=" or ".join(str(count) for count in sorted({line.rows for line in lines})),
        least=min(energies),
        most=max(energies),
    )
    names = ("pattern", "tokens", "method", "held out", *map(_percent, OUTS[:-1]), FIRST)
    return f"{head}\n\n{table(names, rows, left=3)}".rstrip()


def ratio(outs: Mapping[str, Sequence[Line]], out: str, text: str) -> float:
    """Error in units of that with nothing left out, geometric mean over layers."""
    own = {(line.block, line.layer): getattr(line, text) for line in outs[NOTHING]}
    return mean(getattr(line, text) / own[line.block, line.layer] for line in outs[out])


def _verdict(whole: Mapping[Cell, Mapping[str, Sequence[Line]]]) -> str:
    trimmed = [ratio(outs, out, text) for outs in whole.values() for out in OUTS[:-1] for text in TEXTS]
    gains = sum(value < 1 for value in trimmed)
    answer = "It does not answer the over-fit" if 2 * gains < len(trimmed) else "It answers a part of the over-fit"
    return f"**{answer}: of {len(trimmed)} errors on held-out text {gains} are lower for it.**"


def _figures(whole: Mapping[Cell, Mapping[str, Sequence[Line]]]) -> str:
    """What each part does to the errors, means over all cells, and whether the first tokens are among those that go."""
    said = []
    for out in OUTS:
        changes = [100 * (mean(ratio(outs, out, text) for outs in whole.values()) - 1) for text in TEXTS]
        name = "the first tokens" if out == FIRST else _percent(out)
        said.append(f"{changes[0]:+.2f} % / {changes[1]:+.2f} % without {name}")
    gone = [line.first_out for outs in whole.values() for line in outs[MOST]]
    return (
        f"On the mean the errors on `lee.cor` / Wikipedia change by {', '.join(said)}. Of the first tokens of "
        f"sequences {100 * sum(gone) / len(gone):.0f} % are among the {_percent(MOST)} that go."
    )


def _percent(out: str) -> str:
    return f"{100 * float(out):g} %"
