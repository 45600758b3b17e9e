"""The page of the CUDA path, from the files of ``loops``, ``bounds`` and ``stages``, and ``models.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.shared import command
from benchmarks.shared.csv_lines import read_rows
from benchmarks.shared.markdown import method_cell, table, write_page

Row = Mapping[str, str]


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
                row["layer"], method_cell(row['spec']), row["float32_error"], row["tf32_error"],
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
                method_cell(row['method']), row["pattern"], row["mode"],
                *(f"{float(row[name]):.2f}" for name in ("lee-heldout", "wikipedia")),
                f"{float(row['ratio_to_wanda']):.3f}", *(row[kind] for kind in kinds),
            )
            for row in rows
        ],
    )  # fmt: skip


def bounds(rows: Sequence[Row]) -> str:
    header = ("bound", "layer", "rows", "device, s", "device, ms a row", "host, ms a row", "times faster")
    header += ("bound / host's", "checker", "checked in, s", "device's peak, GB")
    return table(
        header,
        [
            (
                row["kind"], row["layer"], row["rows"], f"{float(row['seconds']):.1f}", f"{float(row['row_ms']):.1f}",
                f"{float(row['host_row_ms']):.0f}", f"**{float(row['host_row_ms']) / float(row['row_ms']):.1f}**",
                f"{row['least_ratio']} to {row['greatest_ratio']}", row["verified"], f"{float(row['verify_s']):.1f}",
                f"{float(row['device_peak_mb']) / 1e3:.1f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def stages(rows: Sequence[Row]) -> str:
    """Each spec's last stages, those that it does not share with another one."""
    header = ("stage", "pipeline", "layer", "device, ms", "host, ms", "times faster", "error, device", "error, host")
    shown = [row for row in rows if row["stage"] in SHOWN and (row["spec"] == "fast") == (row["stage"] in FAST)]
    shown.sort(key=lambda row: SHOWN.index(row["stage"]))
    return table(
        header,
        [
            (
                f"`{row['stage']}`", method_cell(row['spec']), row["layer"],
                *(f"{1e3 * float(row[name]):.1f}" for name in ("device_s", "host_s")),
                f"**{float(row['host_s']) / float(row['device_s']):.1f}**", row["device_error"], row["host_error"],
            )
            for row in shown
        ],
    )  # fmt: skip


FAST = ("push", "swap")
SHOWN = (*FAST, "tabu", "refit", "reswap", "admm", "sparsegpt")
HEAD = """# The CUDA path, measured

{device}, torch {torch}, {cores} cores; SmolLM2-135M at 0.5, 16,384 calibration tokens, block 7 where no other is named;
by `python -m benchmarks.gpu.loops`, `.bounds` and `.stages`. Not measured: 2:4 through torch's semi-structured tensors
(`python -m benchmarks.gpu.sparse` would), whole models whose layers of one input are solved together, and models that
are larger."""
ITERATIONS = """## An iteration of Frank-Wolfe and its one product

Microseconds on the device: medians of 20 replays of a graph of 50. `bare product` is `torch.mm` of the same matrices,
`kernel` the fused kernel alone (`solvers/frank_wolfe/loop_triton.py`), whose launches overlap; `without graph` is as
the host launches them, `torch loop` the plain loop of `loop_torch.py` beside it."""
SWAPS = """## 1-swap descent from Wanda's mask, a whole layer

Wall time, transfers included. The plain search (`benchmarks/peers/swap.py`) looks at every pair of every row in float32
on the same device; `batches` is `solvers/local_search/swap_torch.py`, `kernel` is `swap_triton.py` beside it, which
examines a line only where a bound lets it win; both in float64. Rows whose masks differ do so by float32 rounding."""
BOUNDS = """## Bounds of all rows of a layer

`python -m benchmarks.gpu.bounds`: every row in batches (`solvers/bounds/batch.py`), each kind from where the one above
it in the table ended, so that the times add up; in the same run the host's {cores} cores, a row each (they slow one
another: a row alone takes less). `bound / host's`: least and greatest over those rows. The checker proves the device's
bounds as it does any other."""
STAGES = """## Stages beside the host's cores

`python -m benchmarks.gpu.stages`: wall time of a stage on a whole layer, transfers included, on the device and on the
host's {cores} cores, torch and Numba given all of them; such short loops gain little from so many. `tabu` makes the
same moves on both; `reswap` makes the best exchange of all on the device and the best of some on the host, and either
may end lower."""
PRECISION = """## TF32

The judge's error of whole pipelines with products in float32 (the default) and in TF32
(`torch.backends.cuda.matmul.allow_tf32`)."""
MODELS = """## Whole models

All 210 layers of SmolLM2-135M, 16,384 calibration tokens, `fwbench prune smollm2 --device cuda --evaluate none` by
`python -m benchmarks.prune.boards row … --device cuda`: seconds by kind of work as `fwbench.json` tells them, from
loading to the saved folder, measured before layers of one input were solved together. `solve` holds judging every
layer, which the host does in float64, and for SparseFW the bound and its proof, too. `push(rounds=20)+swap`, here and
above, is the preset `fast` before it had `safeguard`. The first row's layer errors are those of the CPU (sum 7506.47
there too), and an earlier run of SparseFW at 0.5 here gave the CPU's 65.1 and 53.5."""
SECTIONS = (
    ("iterations", ITERATIONS, iterations),
    ("swaps", SWAPS, swaps),
    ("bounds", BOUNDS, bounds),
    ("stages", STAGES, stages),
    ("tf32", PRECISION, precision),
    ("models", MODELS, models),
)


def main() -> None:
    folder = command.study(__spec__, __doc__).parse_args().out
    about = read_rows(folder / "machine.csv")[0]
    parts = [HEAD.format(device=about["device"], torch=about["torch"], cores=about["cores"])]
    for name, head, section in SECTIONS:
        parts += [head.format(cores=about["cores"]), section(read_rows(folder / f"{name}.csv")).rstrip()]
    write_page(folder, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
