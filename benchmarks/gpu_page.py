"""The page of the CUDA path: the files of ``gpu.py`` to Markdown.

python benchmarks/gpu_page.py reports/gpu
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from md_table import table

Row = Mapping[str, str]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def iterations(rows: Sequence[Row]) -> str:
    header = ("loop", "layer", "rows × n", "product", "bare product, µs", "kernel, µs", "iteration, µs")
    header += ("iteration / product", "without graph, µs", "torch loop, µs")
    return table(
        header,
        [
            (
                row["loop"], row["layer"], f"{row['rows']} × {row['n']}", row["dtype"],
                *(f"{float(row[name]):.1f}" for name in ("product_us", "kernel_us", "iteration_us")),
                f"**{float(row['ratio']):.2f}**",
                *(f"{float(row[name]):.0f}" for name in ("without_graph_us", "torch_loop_us")),
            )
            for row in rows
        ],
    )  # fmt: skip


def swaps(rows: Sequence[Row]) -> str:
    header = ("layer", "rows × n", "plain pair search, ms", "batches, ms", "kernel, ms", "`enough=0.1`, ms")
    header += ("times faster", "with `enough=0.1`", "same masks", "error, `enough=0.1`")
    found = []
    for row in rows:
        seconds = {name: float(row[f"{name}_s"]) for name in ("plain", "batches", "kernel", "kernel_0.1")}
        found.append(
            (
                row["layer"], f"{row['rows']} × {row['n']}",
                *(f"{1e3 * value:.1f}" for value in seconds.values()),
                f"**{seconds['plain'] / seconds['kernel']:.1f}**",
                f"{seconds['plain'] / seconds['kernel_0.1']:.1f}",
                f"{row['kernel_same_masks']} of {row['rows']}",
                f"{100 * (float(row['kernel_0.1_error']) / float(row['kernel_error']) - 1):+.2f} %",
            )
        )  # fmt: skip
    return table(header, found)


def precision(rows: Sequence[Row]) -> str:
    header = ("layer", "pipeline", "error, float32", "error, TF32", "change", "float32, s", "TF32, s")
    return table(
        header,
        [
            (
                row["layer"], f"`{row['spec']}`", row["float32_error"], row["tf32_error"],
                f"{100 * (float(row['tf32_error']) / float(row['float32_error']) - 1):+.3f} %",
                *(f"{float(row[name]):.2f}" for name in ("float32_s", "tf32_s")),
            )
            for row in rows
        ],
    )  # fmt: skip


def models(rows: Sequence[Row]) -> str:
    header = ("method", "pattern", "mode", "lee.cor", "Wikipedia", "error / Wanda's")
    header += ("load, s", "evaluate, s", "forward, s", "solve, s", "save, s", "**total, s**", "device's peak, MB")
    kinds = ("load", "evaluate", "forward", "solve", "save", "total", "device_peak_mb")
    return table(
        header,
        [
            (
                f"`{row['method']}`", row["pattern"], row["mode"],
                *(f"{float(row[name]):.2f}" for name in ("lee-heldout", "wikipedia")),
                f"{float(row['ratio_to_wanda']):.3f}", *(row[kind] for kind in kinds),
            )
            for row in rows
        ],
    )  # fmt: skip


HEAD = """# The CUDA path, measured

{device}, torch {torch}, {cores} cores; one run, by `benchmarks/gpu.py`; block 7 of SmolLM2-135M at 0.5, 16,384
calibration tokens."""
ITERATIONS = """## An iteration of Frank-Wolfe and its one product

Microseconds on the device: medians of 20 replays of a graph of 50. `bare product` is `torch.mm` of the same matrices,
`kernel` the fused kernel alone (`solvers/_fw_triton.py`), whose launches overlap; `without graph` is as the host
launches them, `torch loop` the plain loop of `solvers/fw_torch.py`."""
SWAPS = """## 1-swap descent from Wanda's mask, a whole layer

Wall time, transfers included. The plain search (`benchmarks/peer_swap.py`) looks at every pair of every row in float32
on the same device; `batches` is `solvers/swap_torch.py`, `kernel` is `solvers/_swap_triton.py`, which examines a line
only where a bound lets it win; both in float64. Rows whose masks differ differ by rounding in float32."""
PRECISION = """## TF32

The judge's error of whole pipelines with products in float32 (the default) and in TF32
(`torch.backends.cuda.matmul.allow_tf32`)."""
MODELS = """## Whole models

All 210 layers of SmolLM2-135M, 16,384 calibration tokens, `fwbench prune smollm2 --device cuda --evaluate none` by
`benchmarks/study_prune.py row … --device cuda`: seconds by kind of work as `fwbench.json` tells them, from loading to
the saved folder. `solve` holds judging every layer, which the host does in float64, and for SparseFW the bound and its
proof, too. `push(rounds=20)+swap` is the preset `fast`. The first row's layer errors are those of the CPU
(sum 7506.47 there too), and an earlier run of SparseFW at 0.5 here gave the CPU's 65.1 and 53.5."""


def main() -> None:
    folder = Path(sys.argv[1])
    about = read(folder / "machine.csv")[0]
    parts = [HEAD.format(device=about["device"], torch=about["torch"], cores=about["cores"])]
    parts += [ITERATIONS, iterations(read(folder / "iterations.csv")), SWAPS, swaps(read(folder / "swaps.csv"))]
    parts += [PRECISION, precision(read(folder / "tf32.csv"))]
    parts += [MODELS, models(read(folder / "models.csv"))]
    (folder / "index.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
