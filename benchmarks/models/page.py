"""The page of the second model: its figures beside those of SmolLM2-135M from the files of the other reports.

python -m benchmarks.models.page
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.models.study import BOUND, BOUNDS_CSV, MASKS, METHODS_CSV, UPDATES, Bound, Line, plan
from benchmarks.prune import boards
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read, read_rows, required
from benchmarks.shared.markdown import method_cell, named, table, write_page
from benchmarks.shared.samples import PATTERNS
from fwbench.metrics import shifted_geometric_mean as mean
from fwbench.problems.collections import LAYERS

MODELS = {"smollm2": "SmolLM2-135M", "gemma3": "Gemma 3 270M"}
OLD = {"fast": "push(rounds=20)+swap"}  # what stands in reports/masks under another name: without its safeguard
COMPARED = (  # what is added to a layer's error, from one pipeline to another
    ("swaps after Wanda", "wanda", "wanda+swap"),
    ("RIA's scores in place of Wanda's", "wanda", "ria"),
    ("greedy as the start of swaps", "wanda+swap", "greedy+swap"),
    ("SparseFW in place of SparseSwaps", "wanda+swap", "sparsefw"),
    ("`fast` in place of SparseSwaps", "wanda+swap", "fast"),
    ("splitting and swaps in place of `fast`", "fast", "splitting+swap"),
    ("ADMM in place of SparseGPT", "sparsegpt", "admm"),
    ("a refit after ADMM", "admm", "admm+refit"),
    ("`reswap` in place of ADMM", "admm", "wanda+swap+reswap"),
)

Ratios = Mapping[str, Mapping[tuple[str, str, str], float]]  # spec -> (block, matrix, pattern) -> error over Wanda's


def ratios(lines: Iterable[Line]) -> Ratios:
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for line in lines:
        found.setdefault(line.spec, {})[line.block, line.layer, line.pattern] = line.ratio_to_wanda
    return found


def of_reports(reports: Path) -> Ratios:
    """SmolLM2's errors as the reports on masks and updates have them."""
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    back = {old: spec for spec, old in OLD.items()}
    for file, column, wanted in (("masks/problems.csv", "solver", MASKS), ("updates/updates.csv", "spec", UPDATES)):
        for row in read_rows(reports / file):
            spec = back.get(row[column], row[column])
            if spec in wanted:
                cell = row["block"], row["layer"], row["pattern"]
                found.setdefault(spec, {})[cell] = float(row["ratio_to_wanda"])
    return found


def complete(found: Ratios) -> dict[str, Mapping[tuple[str, str, str], float]]:
    """The specs that have run on all problems."""
    whole = max(map(len, found.values()), default=0)
    return {spec: cells for spec, cells in found.items() if len(cells) == whole}


def over(cells: Mapping[tuple[str, str, str], float], chosen: Callable[[str, str], bool]) -> str:
    """Mean over the matrices and patterns that are chosen."""
    values = [value for (_, layer, pattern), value in cells.items() if chosen(layer, pattern)]
    return f"{mean(values):.3f}" if values else "–"


def errors(found: Mapping[str, Ratios], specs: Sequence[str]) -> str:
    """Error over Wanda's of both models, all problems and parts of them; the order is Gemma's."""
    chosen: list[tuple[str, Callable[[str, str], bool]]] = [("all", lambda layer, pattern: True)]
    chosen += [(pattern, lambda layer, own, pattern=pattern: own == pattern) for pattern in PATTERNS.split(",")]
    chosen.append(("o_proj", lambda layer, own: layer == "o_proj"))
    whole = {model: complete(lines) for model, lines in found.items()}
    lines = []
    for spec in sorted((spec for spec in specs if spec in whole["gemma3"]), key=lambda spec: mean_of(whole, spec)):
        cells = []
        for _, part in chosen:
            cells += [over(whole[model].get(spec, {}), part) for model in MODELS]
        lines.append([method_cell(spec), *cells])
    head = [f"{part}, {name.partition(' ')[0]}" for part, _ in chosen for name in MODELS.values()]
    return table(["Pipeline", *head], lines)


def mean_of(whole: Mapping[str, Ratios], spec: str) -> float:
    return mean(whole["gemma3"][spec].values())


def order(found: Ratios, specs: Sequence[str]) -> list[str]:
    """The specs from the least error on."""
    return sorted((spec for spec in specs if spec in found), key=lambda spec: mean(found[spec].values()))


def change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def compared(found: Mapping[str, Ratios]) -> str:
    """On the problems where both pipelines have run; their number where Gemma lacks some."""
    lines = []
    for what, one, other in COMPARED:
        cells, counts = [], []
        for model in MODELS:
            a, b = (found[model].get(spec, {}) for spec in (one, other))
            pairs = {cell: b[cell] / a[cell] for cell in a if cell in b}
            for wanted in (True, False):
                own = [ratio for cell, ratio in pairs.items() if (cell[1] == "o_proj") == wanted]
                cells.append(change(mean(own)) if own else "–")
            counts.append(len(pairs))
        few = f" ({counts[1]} problems of Gemma)" if 0 < counts[1] < len(found["gemma3"]["wanda"]) else ""
        lines.append([what + few, *cells])
    head = [f"{name.partition(' ')[0]}, {part}" for name in MODELS.values() for part in ("o_proj", "others")]
    return table(["In a layer's error", *head], lines)


def whole_models(reports: Path, out: Path) -> str:
    """Perplexities of both models; SmolLM2's of as many tokens as its report has."""
    own = boards.read(out / boards.RESULTS_CSV)
    other = boards.read(reports / "prune" / boards.RESULTS_CSV)
    dense = boards.DENSE, "", boards.DENSE
    lines = []
    for key in sorted(own, key=lambda key: (key != dense, key[1], float(own[key][boards.TEXTS[0]]))):
        mode, pattern, method = key
        plain = (mode, pattern, method.replace(f"{boards.TOKENED}8192", ""))
        name = f"{method_cell(plain[2])}, {mode}" if key != dense else "dense"
        cells = []
        for rows, one in ((other, plain), (own, key)):
            for text in boards.TEXTS:
                if (row := rows.get(one)) is None:
                    cells.append("–")
                    continue
                value, base = float(row[text]), float(rows[dense][text])
                cells.append(f"{value:.2f}" if one == dense else f"{value:.2f} ({value / base:.2f})")
        lines.append([pattern or "–", name, *cells])
    head = [f"{name.partition(' ')[0]}, {text}" for name in MODELS.values() for text in ("lee.cor", "Wikipedia")]
    missing = len(set(plan()) - set(own))
    note = f"\nOf the {len(plan())} lines that the study plans, {missing} are not measured yet.\n" if missing else ""
    return table(["Pattern", "Method", *head], lines, left=2) + note


def corrected(reports: Path, out: Path) -> str:
    """What the part made good changes in perplexity, in sequence."""
    files = {"smollm2": boards.read(reports / "prune" / boards.RESULTS_CSV)}
    files["gemma3"] = boards.read(out / boards.RESULTS_CSV)
    suffix = f"{boards.CORRECTED}0.3"
    lines = []
    for pattern in boards.PATTERNS:
        for method in ("admm", "wanda+swap"):
            cells = []
            for model, rows in files.items():
                base = method + (f"{boards.TOKENED}8192" if model == "gemma3" else "")
                one = rows.get((boards.SEQUENTIAL, pattern, base))
                two = rows.get((boards.SEQUENTIAL, pattern, base + suffix))
                for text in boards.TEXTS:
                    cells.append(change(float(two[text]) / float(one[text])) if one and two else "–")
            if set(cells) != {"–"}:
                lines.append([pattern, method_cell(method), *cells])
    head = [f"{name.partition(' ')[0]}, {text}" for name in MODELS.values() for text in ("lee.cor", "Wikipedia")]
    return table(["Pattern", "Method", *head], lines, left=2)


def gaps(reports: Path, out: Path) -> str:
    """Median distance of the masks of ``fast`` from Shor's bound, by matrix."""
    found: dict[tuple[str, str], list[float]] = {}
    for line in read(out / BOUNDS_CSV, Bound):
        found.setdefault((line.model, line.layer), []).append(line.gap)
    masks = {
        (row["problem"], row["row"]): float(row["error"])
        for row in read_rows(reports / "bounds" / "methods.csv")
        if row["method"] == "fast"
    }
    for row in read_rows(reports / "bounds" / "rows.csv"):
        block, layer = row["problem"].split(".")[1:3]
        upper = masks.get((row["problem"], row["row"]))
        if row["kind"] == BOUND and upper and block in ("03", "13", "23"):
            found.setdefault(("smollm2", layer), []).append(1 - float(row["lower"]) / upper)
    lines = []
    for layer in LAYERS:
        cells = []
        for model in MODELS:
            own = found.get((model, layer), [])
            cells += [f"{100 * np.median(own):.1f} %" if own else "–", str(len(own))]
        lines.append([layer, *cells])
    head = [part for name in MODELS.values() for part in (name.partition(" ")[0], "rows")]
    return table(["Matrix", *head], lines)


def page(reports: Path, out: Path) -> str:
    measured = required(out / METHODS_CSV, Line, "benchmarks.models.study methods")
    found = {model: ratios(line for line in measured if line.model == model) for model in MODELS}
    found["smollm2"] = {**found["smollm2"], **of_reports(reports)}
    orders = []
    for title, specs in (("masks", MASKS), ("weight updates", UPDATES)):
        both = [spec for spec in specs if all(spec in complete(found[model]) for model in MODELS)]
        for model, name in MODELS.items():
            ranking = " < ".join(f"`{named(spec)}`" for spec in order(complete(found[model]), both))
            orders.append(f"- {title}, {name}: {ranking}\n")
    blocks = sorted({line.block for line in measured if line.model == "gemma3"})
    return PAGE.format(
        problems=len({line.key[:4] for line in measured if line.model == "gemma3"}),
        blocks=", ".join(blocks),
        orders="".join(orders),
        masks=errors(found, MASKS),
        updates=errors(found, UPDATES),
        compared=compared(found),
        gaps=gaps(reports, out),
        whole=whole_models(reports, out),
        corrected=corrected(reports, out),
    )


PAGE = """# Which conclusions survive a change of model

Gemma 3 270M (18 blocks; n = 640, 1024 for o_proj, 2048 for down_proj; four heads of queries to one of keys, norms of
queries and keys, sliding windows, four norms a block; Q4_K_M made float32) beside SmolLM2-135M (30 blocks; n = 576,
1536 for down_proj). Its tokenizer begins every sequence and every window with `<bos>`. Layers: {problems} problems, the
seven matrices of blocks {blocks}, the depths of SmolLM2's blocks 3, 13 and 23; 24 sampled rows, patterns 0.5, 0.6, 2:4,
16,384 calibration tokens of `lee`, one seed; one thread on a machine that others loaded. SmolLM2's figures are those of
[masks](../masks/index.md), [updates](../updates/index.md), [bounds](../bounds/index.md) and
[prune](../prune/index.md); `fast` stands there without its `safeguard`; `splitting` was measured here. Bounds: Shor's,
pattern 0.5, of the rows that [bounds](../bounds/index.md) has of SmolLM2's blocks and of four of Gemma's sampled rows
a layer; their distances are from the masks of `fast`. Whole models: all linear layers, Gemma's calibrated on 8,192
tokens, SmolLM2's on 16,384; perplexity as in [prune](../prune/index.md), but Gemma's in the first 8 windows of each
text; each model has its own tokens, so ratios compare, values do not. What ran on a part of Gemma's problems only
(SparseFW: pattern 0.5) stands in the changes, not in the means. Written by `python -m benchmarks.models.page` from
`methods.csv`, `bounds.csv`, `results.csv` and `layers.csv` of `python -m benchmarks.models.study`. Gemma is used under
the [Gemma Terms of Use](https://ai.google.dev/gemma/terms); no weights, Gram matrices or masks of it are here.

## Order of methods

From the least error on, of those measured on both:

{orders}
## Changes from one pipeline to another

{compared}
## Masks

Layer error over Wanda's, means over problems.

{masks}
## Weight updates

The same, over Wanda's masks without update.

{updates}
## How far from the best possible

Median distance of the masks of `fast` from Shor's bound, pattern 0.5: no mask of these rows can be better by more.

{gaps}
## Whole models

Perplexity; in brackets over the dense model's.

{whole}
### What the part made good changes

Perplexity in sequence with 0.3 of what arrives wrong made good, over that with none.

{corrected}"""


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    write_page(out, page(command.REPORTS, out))


if __name__ == "__main__":
    main()
