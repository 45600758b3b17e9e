"""The page of the boards, from the files of ``boards`` and of the other studies of this folder that are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.prune import (
    allocation_page,
    calibration_page,
    perplexity_page,
    recover_page,
    sequence_page,
    tokens_page,
    trimmed_page,
)
from benchmarks.prune.boards import (
    CALIBRATED,
    CORRECTED,
    DENSE,
    IN_TURN,
    LAYERS_CSV,
    PATTERNS,
    PUSHED,
    RESIDUAL,
    RESULTS_CSV,
    TEXTS,
    TOKENED,
    plan,
    read,
)
from benchmarks.prune.llmcompressor import PEERS_CSV
from benchmarks.prune.profile import PROFILE_CSV
from benchmarks.shared import command
from benchmarks.shared.csv_lines import read_rows
from benchmarks.shared.markdown import least_bold, method_cell, table, write_page
from fwbench import pipeline

Key = tuple[str, str, str]  # mode, pattern, method
Rows = Mapping[Key, Mapping[str, str]]
SAFE = "+safeguard"  # a method without it is not on a board where it stands with it
TIE = 1 + 1e-6  # errors this close are equal
COLUMNS = ("method", "lee.cor", "Wikipedia", "error", "error / Wanda's", "best in layers", "solver, CPU min", "peak MB")


def write(folder: Path, rows: Rows, layers: Rows, masks: Collection[str], missing: Sequence[Key]) -> None:
    """Write ``index.md`` beside the rows; methods in ``masks`` stand on the first board, all others on the second."""
    parts = [HEAD]
    corrected = sorted(key for key in rows if CORRECTED in key[2])
    for title, note, updating in BOARDS:
        parts.append(f"## {title}\n\n{note}")
        for pattern in PATTERNS:
            keys = [key for key in rows if key[:2] == ("one-shot", pattern) and (key[2] not in masks) == updating]
            keys = [key for key in keys if TOKENED not in key[2] and (*key[:2], key[2] + SAFE) not in rows]
            better = [key for key in corrected if key[1] == pattern and (key[2] not in masks) == updating]
            better = [key for key in better if not {TOKENED, CALIBRATED} & _options(key[2])]
            better = [key for key in better if _as_by_default(key, rows, updating)]
            keys = [("dense", "", "dense"), *_sorted(better, rows), *_sorted(keys, rows)]
            if keys[1:]:
                parts.append(_board(f"### {pattern}", keys, rows, layers))
    if corrected:
        parts.append(_corrected(corrected, rows))
    plain = [key for key in rows if key[0] == "sequential" and not {TOKENED, CORRECTED} & _options(key[2])]
    if keys := sorted(plain):
        parts.append(_sequential(keys, rows))
        if why := sequence_page.section(folder):
            parts.append(why)
    if allocations := allocation_page.section(folder):
        parts.append(allocations)
    if recovered := recover_page.section(folder):
        parts.append(recovered)
    if more := sorted(key for key in rows if _options(key[2]) == {TOKENED}):
        parts.append(MORE_TOKENS.rstrip())
        for pattern in sorted({key[1] for key in more}):
            keys = [key for key in more if key[1] == pattern]
            fewer = sorted({(mode, pattern, method.partition(TOKENED)[0]) for mode, _, method in keys} & set(rows))
            parts.append(
                _board(f"### {pattern}, with more tokens too", [("dense", "", "dense"), *fewer, *keys], rows, {})
            )
    if why := perplexity_page.section(folder, rows, PUSHED):
        parts.append(why)
    if tokens := tokens_page.section(folder):
        parts.append(tokens)
    if samples := calibration_page.section(folder):
        parts.append(samples)
    if outliers := trimmed_page.section(folder):
        parts.append(outliers)
    if peers := read_rows(folder / PEERS_CSV):
        parts.append(_peers(peers))
    if profiles := read_rows(folder / PROFILE_CSV):
        parts.append(_profiles(profiles))
    if missing:
        parts.append(f"## Not run yet\n\n{_missing(missing)}")
    write_page(folder, "\n\n".join(parts) + "\n")


def _missing(keys: Sequence[Key]) -> str:
    """Methods with the patterns that their boards lack."""
    found: dict[str, list[str]] = {}
    for mode, pattern, method in keys:
        found.setdefault(f"{method} ({mode})", []).append(pattern)
    return "\n".join(f"- {method}: {', '.join(patterns)}" for method, patterns in found.items())


def _sorted(keys: Sequence[Key], rows: Rows) -> list[Key]:
    return sorted(keys, key=lambda key: float(rows[key]["ratio_to_wanda"]))


def _board(title: str, keys: Sequence[Key], rows: Rows, layers: Rows) -> str:
    wins = best_layers({key: layers[key] for key in keys if key in layers and CORRECTED not in key[2]})
    lines = []
    for key in keys:
        row = rows.get(key)
        if row is None:
            continue
        name = key[2] if key[2] == "dense" else method_cell(key[2])
        name += "" if key[0] in ("one-shot", "dense") else f" ({key[0]})"
        ratio = f"{float(row['ratio_to_wanda']):.3f}" if row["ratio_to_wanda"] else "–"
        corrected = CORRECTED in key[2]  # its errors are those of other targets
        cells = (
            name,
            *(f"{float(row[text]):.2f}" for text in TEXTS),
            "–" if corrected else row["error"] or "–",
            "–" if corrected else ratio,
        )
        minutes = f"{float(row['solve_cpu_minutes']):.1f}" if row["solve_cpu_minutes"] else "–"
        if row["device"] not in ("", "cpu"):
            minutes = f"{float(row['solve_wall_minutes']):.1f} (GPU)"
        lines.append((*cells, wins.get(key, "–"), minutes, row["peak_mb"]))
    return f"{title}\n\n{table(COLUMNS, lines)}".rstrip()


def _options(method: str) -> set[str]:
    """Which of the options a method has that follow its spec."""
    return {option for option in (CALIBRATED, TOKENED, CORRECTED) if option in method}


def _as_by_default(key: Key, rows: Rows, updating: bool) -> bool:
    """Whether of all ways in which a method was run, its own is the nearest to what `prune` does by default."""
    mode, pattern, method = key
    plain = method.partition(CORRECTED)[0]
    ways = [
        other[2] for other in rows if other[:2] == (mode, pattern) and other[2].partition(CORRECTED)[:1] == (plain,)
    ]
    ways = [way for way in ways if CORRECTED in way]
    return method == max(ways, key=lambda way: ((RESIDUAL in way) == updating, (IN_TURN in way) == updating))


def _corrected(keys: Sequence[Key], rows: Rows) -> str:
    """Perplexities of each method one-shot, in sequence, and in sequence with each part made good."""
    parts = sorted({key[2].partition(CORRECTED)[2] for key in keys})
    lines = []
    for pattern, method in sorted({(key[1], key[2].partition(CORRECTED)[0]) for key in keys}):
        found = [rows.get((mode, pattern, method)) for mode in ("one-shot", "sequential")]
        found += [rows.get(("sequential", pattern, f"{method}{CORRECTED}{part}")) for part in parts]
        pairs = [least_bold([float(row[text]) if row else float("inf") for row in found], 2) for text in TEXTS]
        cells = ["–" if row is None else " / ".join(pair) for row, *pair in zip(found, *pairs, strict=True)]
        lines.append((pattern, method_cell(method), *cells))
    named = [part.replace(RESIDUAL, " --residual ").replace(IN_TURN, " --true-sequential") for part in parts]
    named = [f"`--correct {options}`" for options in named]
    head = ("pattern", "method", "one-shot", "in sequence", *named)
    return f"{MADE_GOOD}\n{table(head, lines, left=2)}".rstrip()


def _sequential(keys: Sequence[Key], rows: Rows) -> str:
    """Perplexities of each method in both modes; the lesser of a text is bold."""
    lines = []
    for _, pattern, method in keys:
        pair = [rows.get((mode, pattern, method)) for mode in ("one-shot", "sequential")]
        cells = []
        for text in ("lee-heldout", "wikipedia"):
            cells += least_bold([float(row[text]) if row else float("inf") for row in pair], 2)
        lines.append((pattern, method_cell(method), *cells))
    head = ("pattern", "method", "lee.cor, one-shot", "sequential", "Wikipedia, one-shot", "sequential")
    return f"{SEQUENTIAL}\n{table(head, lines, left=2)}".rstrip()


def best_layers(errors: Rows) -> dict[Key, str]:
    """In how many layers each method's error is the least of its board, ties counted for all."""
    names = [name for name in next(iter(errors.values()), {}) if name not in ("mode", "pattern", "method")]
    least = {name: min(float(row[name]) for row in errors.values()) for name in names}
    return {
        key: f"{sum(float(row[name]) <= TIE * least[name] for name in names)} of {len(names)}"
        for key, row in errors.items()
    }


def _peers(rows: Sequence[Mapping[str, str]]) -> str:
    lines = []
    pairs: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        pairs.setdefault((row["pattern"], row["method"], row["tool"]), []).append(row)
    for _, runs in sorted(pairs.items()):
        row = min(runs, key=lambda run: float(run["cpu_minutes"]))  # others on the machine only ever add to it
        peak = next((run["peak_mb"] for run in reversed(runs) if run["peak_mb"]), "–")
        cells = [row["tool"], method_cell(row["method"]), row["pattern"]]
        cells += [_span([float(run[text]) for run in runs]) for text in ("lee-heldout", "wikipedia")]
        cells += [f"{float(row[name]):.1f}" for name in ("cpu_minutes", "wall_minutes")] + [peak]
        lines.append(cells)
    versions = sorted({row["versions"] for row in rows})
    head = ("tool", "method", "pattern", "lee.cor", "Wikipedia", "CPU min", "wall min", "peak MB")
    return f"{PEERS}\n\n{table(head, lines, left=3)}\nVersions: {'; '.join(versions)}."


def _span(values: Sequence[float]) -> str:
    return " to ".join(sorted({f"{min(values):.2f}", f"{max(values):.2f}"}, key=float))


def _profiles(rows: Sequence[Mapping[str, str]]) -> str:
    """Shares of a run's time, and its memory beside what it needs; a later run of the same counts."""
    latest = {(row["tokens"], row["spec"]): row for row in rows}
    lines = []
    for row in sorted(latest.values(), key=lambda row: (int(row["tokens"]), float(row["total"]))):
        seconds = {name: float(row[name]) for name in (*PARTS, *OTHER)}
        total = float(row["total"])
        shares = [*(seconds[name] for name in PARTS), sum(seconds[name] for name in OTHER)]
        cells = [row["spec"], row["tokens"], f"{total:.0f}", *(f"{100 * share / total:.1f} %" for share in shares)]
        taken = float(row["peak_mb"]) - float(row["base_mb"])
        lines.append([*cells, f"{taken / float(row['needed_mb']):.2f}"])
    head = ("spec", "tokens", "total, s", *PARTS, "other work", "peak / needed")
    return f"{PROFILES}\n\n{table(head, lines)}".rstrip()


HEAD = """# SmolLM2-135M pruned, on two boards

All 210 linear layers, calibrated on the first 16,384 tokens of `lee_background.cor` in sequences of 512. Perplexity in
whole windows of 512 tokens that do not overlap: `lee.cor`, 9 windows; Wikipedia, 16 windows; neither text calibrated.
Error is the sum over layers of ‖(W − Ŵ)X‖² / tokens on the dense model's inputs; its ratio to Wanda's is the geometric
mean over layers. Minutes are the solver's CPU time (one or two threads on two shared cores); "(GPU)" marks wall minutes
of the whole command on an H200 ([reports/gpu](../gpu/index.md)). Peak is the whole resident size of the process,
libraries included; in the first row (Wanda at 0.5) also the extraction of all layers.
Written by `python -m benchmarks.prune.page` from `results.csv` and `layers.csv`, with each row's spec and
commit. `fast` is the default of `fwbench prune`; what begins with
`push(rounds=20)+swap` without it was measured before `fast` had it."""
MASK_ONLY = """The kept weights are as they were. The least error is not always the least perplexity on Wikipedia: a
section below says why, another that more calibration text mends it."""
WITH_UPDATE = """The kept weights answer for the pruned ones. Time includes that of the mask which is updated.
`shrink=0.1` solves with all correlations a tenth smaller: more error on the calibration text, mostly less perplexity
on the others."""
BOARDS = (("Mask only", MASK_ONLY, False), ("With weight update", WITH_UPDATE, True))
MADE_GOOD = """## What arrives, made good

In sequence a layer reads what the pruned blocks before it hand on. With `--correct PART` its target is not what its own
weights would give there, but that and a part of what is missing to the dense model's output, as far as a ridge
regression on its inputs explains it. With `--residual PART` layers that write to the residual stream, o_proj and
down_proj, make good a part of what is wrong in the stream too, which else goes past all layers to the head
(`--ridge 0.1`; docs/mathematics.md, "A target"). Perplexity on `lee.cor` / Wikipedia; the least of a line is bold.
Where neither is named, both are 0. With `--true-sequential` the layers of a block are pruned one input after the other,
so that o_proj reads what the pruned q, k and v leave; without it (`--block-sequential`) all at once.
`text=wikipedia` is calibrated on Wikipedia in place of `lee`, on articles behind those that are evaluated.
"""
SEQUENTIAL = """## Sequential or one-shot

Sequential: each block calibrated with the blocks before it already pruned; its layer errors are on those inputs, so
they do not compare with one-shot's (both are in `results.csv`). SparseGPT, which updates weights, gains by it at every
pattern; `reswap`, run so at 0.5 only, loses a little on `lee.cor` and gains a little on Wikipedia. Masks alone gain
little at 0.5, and lose at 0.6 and 2:4; the next section says why. All of this is with `--correct 0 --residual 0`.
"""
MORE_TOKENS = """## More calibration tokens

The same text, read on. Errors are on each row's own inputs; where tokens are named, minutes include the forward passes.
With four times as much of it `push(rounds=20)+swap` has the least perplexity of all masks on both texts, at every
pattern. SparseFW was not run on so much.
"""
PEERS = """## Beside llm-compressor

The same model folder, tokens, pattern and machine; both calibrate block by block, in float32, with two threads. Minutes
and peak are of the whole process, from start to saved folder, on a machine that others used too; of several runs, the
minutes of the one with the least CPU time, and the least and the greatest perplexity: other threads and machines give
other last bits of the Gram matrices, and by that SparseGPT at 2:4 other masks. A dash: not measured."""
PARTS, OTHER = ("forward", "evaluate", "solver"), ("load", "judge", "save", "rest")
PROFILES = """## Where the time and the memory go

`fwbench prune smollm2 --pattern 0.5 -s SPEC --tokens TOKENS --correct 0` (sequential), one thread; wall time on two
cores that others used too. `forward`: the blocks and their Gram matrices; `evaluate`: perplexity and a sample before
and after, forward passes too; `solver`: the stages. Other work is all the rest: loading, hashing and judging each
layer in float64 beside Wanda's mask, writing blocks, saving. Peak is the resident memory while pruning, libraries and
compiled kernels taken off (as another process holds them); needed are the model in float32, one block's Gram matrices
in float64 and all activations. By `python -m benchmarks.prune.profile`."""


def masks_of(rows: Rows) -> set[str]:
    """Methods that leave the kept weights as they are."""
    specs = {method: method.partition(", ")[0] for _, _, method in rows if method != DENSE}
    return {method for method, spec in specs.items() if not pipeline.resolve(spec).updates_weights}


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    rows = read(out / RESULTS_CSV)
    write(out, rows, read(out / LAYERS_CSV), masks_of(rows), [key for key in plan() if key not in rows])


if __name__ == "__main__":
    main()
