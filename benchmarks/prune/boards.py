"""The boards of the production path: SmolLM2-135M pruned by every method, held-out perplexity beside layer error.

    python -m benchmarks.prune.boards run                 every row that is missing, cheapest first, a process each
    python -m benchmarks.prune.boards row 0.5 wanda+swap  one row
    python -m benchmarks.prune.boards row 0.6 sparsefw --device cuda
    python -m benchmarks.prune.page

One-shot rows solve the problems of the collection ``smollm2``: the dense model's Grams of 16,384 tokens of ``lee``,
computed once and cached. Sequential rows, those of more tokens and of a GPU call ``fwbench.pruning``. Rows are only
ever appended to ``results.csv``, each layer's error to ``layers.csv``; masks are kept in the cache layer by layer, and
updated weights until their row is written, so that a kill loses one layer. A method with a weight update begins from
the mask that it updates.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append_row, read_rows
from fwbench import machine, pipeline
from fwbench.judge import count_reason
from fwbench.metrics import shifted_geometric_mean
from fwbench.perplexity import perplexity
from fwbench.problem import Problem, shrunk
from fwbench.problems import collections, resources
from fwbench.problems.extract import named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import load_text
from fwbench.pruning.engine import peak_memory
from fwbench.result import pack_mask, unpack_mask
from fwbench.stage import Context, Role, State

RESULTS_CSV, LAYERS_CSV = "results.csv", "layers.csv"
MODEL, TEXTS, TOKENS = "smollm2", ("lee-heldout", "wikipedia"), 8192
EVALUATED = 20 * TOKENS  # characters of a text that are left out of the calibration: more than the tokens have
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
PATTERNS = ("0.5", "0.6", "2:4")
DENSE, ONE_SHOT, SEQUENTIAL = "dense", "one-shot", "sequential"
SHRUNK = ", shrink="  # what follows in a method's name: see fwbench.problem.shrunk
CALIBRATED = ", text="  # the same: another text than lee, its part behind what is evaluated on
TOKENED = ", tokens="  # the same: calibration tokens, where not the collection's 16,384
CORRECTED = ", correct="  # the same, in sequence: see fwbench.problems.arriving
RESIDUAL = ", residual="  # the same, after that: see fwbench.pruning.residual
IN_TURN = ", true sequential"  # the same, last: a block's layers one input after the other
PUSHED = "push(rounds=20)+swap"
OURS = f"{PUSHED}+safeguard"  # the preset ``fast``, the default of `fwbench prune`
MASKS = ("magnitude", "wanda", "ria", "wanda+swap", "sparsefw", PUSHED, OURS)
UPDATES = ("sparsegpt", "wanda+refit", "admm", "wanda+admm", "wanda+swap+refit", f"{PUSHED}+refit")
UPDATES += (f"{PUSHED}+sparsegpt", f"{PUSHED}+admm", "wanda+swap+reswap", f"wanda+swap+reswap{SHRUNK}0.1")
IN_SEQUENCE = ("wanda", "wanda+swap", "sparsegpt", PUSHED)
FIELDS = ("mode", "pattern", "method", *TEXTS, "error", "relative_error", "ratio_to_wanda")
FIELDS += ("solve_cpu_minutes", "solve_wall_minutes", "peak_mb", "solver", "commit", "created", "device")


def plan() -> list[tuple[str, str, str]]:
    """Rows (mode, pattern, method), cheapest first."""
    rows = [(DENSE, "", DENSE)]
    cheap = ("wanda", "magnitude", "ria", "sparsegpt", "wanda+swap", "wanda+refit", "wanda+swap+refit")
    ours = (PUSHED, OURS, f"{PUSHED}+refit", f"{PUSHED}+sparsegpt")
    dear = ("admm", "wanda+admm", f"{PUSHED}+admm", "sparsefw", "wanda+swap+reswap", f"wanda+swap+reswap{SHRUNK}0.1")
    assert {*cheap, *ours, *dear} == {*MASKS, *UPDATES}
    for methods, mode in ((cheap, ONE_SHOT), (ours, ONE_SHOT), (IN_SEQUENCE, SEQUENTIAL), (dear, ONE_SHOT)):
        rows += [(mode, pattern, method) for method in methods for pattern in PATTERNS]
    return rows


# --- one row ---------------------------------------------------------------------------------------------------------


def add_row(
    out: Path, mode: str, pattern: str, method: str, device: str = "cpu", name: str = MODEL, tokens: int = TOKENS
) -> None:
    """Prune the model of that name, measure it on so many tokens of each text, and add the row to the files."""
    torch.set_num_threads(THREADS)
    model = load_model(name)
    errors: dict[str, float] = {}
    row: dict[str, Any] = {"mode": mode, "pattern": pattern, "method": method}
    if mode == SEQUENTIAL or TOKENED in method or (device != "cpu" and mode != DENSE):
        model, more = _by_command(name, mode, pattern, method, device, errors)
        row |= more
    elif mode == ONE_SHOT:
        row |= one_shot(model, pattern, method, errors)
    model.network.to(device)
    for text in TEXTS:
        row[text] = f"{perplexity(model, load_text(text), tokens=tokens).value:.4f}"
    held = row.pop("held", ())
    row["peak_mb"] = round((peak_memory() or 0) / 1e6)
    row["commit"] = str(machine.describe().get("commit", ""))[:12]
    row["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    row["device"] = torch.cuda.get_device_name(device) if device != "cpu" else device
    if errors:
        values = {layer: f"{error:.6g}" for layer, error in errors.items()}
        line = {"mode": mode, "pattern": pattern, "method": method, **values}
        append_row(out / LAYERS_CSV, line, columns=tuple(line))  # the file's own order: rows by command have another
    append_row(out / RESULTS_CSV, row, FIELDS)
    for path in held:
        path.unlink(missing_ok=True)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def one_shot(model: Model, pattern: str, method: str, errors: dict[str, float]) -> dict[str, Any]:
    layers = named_layers(model)
    spec, _, shrinkage = method.partition(SHRUNK)
    base = spec.rpartition("+")[0]
    full = pipeline.resolve(spec)
    update = _last_update(full) if base else None
    resolved = pipeline.resolve(base) if update else full
    held: list[Path] = []  # updated weights, in case of a kill
    wanda, total, cpu, wall = [], 0.0, 0.0, 0.0
    for _, real in collections.load(model.label, [pattern]):
        problem = replace(real, G=shrunk(real.G, float(shrinkage))) if shrinkage else real
        pipeline.warm_up(pipeline.Run(problem, resolved))
        found = solved(problem, resolved)
        weights = found["weights"]
        cpu, wall = cpu + float(found["cpu"]), wall + float(found["wall"])
        if update is not None:
            after = updated(problem, full, update, found["keep"])
            weights = after["weights"]
            cpu, wall = cpu + float(after["cpu"]), wall + float(after["wall"])
            held.append(after["path"])
        error = float(found["error"])
        if update is not None or shrinkage:
            error = real.error_of_weights(weights)
        errors[problem.name] = error
        total += real.total
        wanda.append(pipeline.wanda_error(real) if shrinkage else float(found["wanda"]))
        with torch.no_grad():
            layers[problem.name].weight.copy_(torch.from_numpy(weights))
        print(f"{problem.name} {error / wanda[-1]:.4f}", file=sys.stderr, flush=True)
    solver = f"{resolved.full} then {update}" if update else resolved.full
    return {**_summary(errors, wanda, total), **_minutes(cpu, wall), "solver": solver, "held": held}


def _last_update(solver: pipeline.Solver) -> Any:
    """The weight update that ends a pipeline, or None: the method is then one pipeline."""
    return solver.stages[-1] if solver.stages[-1].role is Role.UPDATE else None


def _file(problem: Problem, solver: pipeline.Solver) -> Path:
    folder = resources.cache_folder() / "studies" / "prune"
    return folder / f"{pipeline.Run(problem, solver).key}.npz"


def _write(path: Path, keep: np.ndarray, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, bits=np.frombuffer(pack_mask(keep), np.uint8), **more)
    partial.rename(path)


def updated(problem: Problem, solver: pipeline.Solver, update: Any, keep: np.ndarray) -> dict[str, Any]:
    """Mask, weights and seconds of the update that ends a solver, from a mask; in a file until the row is written."""
    path = _file(problem, solver)
    if path.is_file():
        held = dict(np.load(path))
        keep = unpack_mask(held["bits"].tobytes(), problem.shape)
        weights = np.zeros(problem.shape, np.float32)
        weights[keep] = held["kept"]
        return {**held, "keep": keep, "weights": weights, "path": path}
    began = time.process_time(), time.monotonic()
    after = update.run(problem, State(keep=keep), Context(threads=THREADS))
    seconds = {"cpu": time.process_time() - began[0], "wall": time.monotonic() - began[1]}
    assert not after.weights[~after.keep].any()
    assert not count_reason(problem, after.keep)
    _write(path, after.keep, kept=after.weights[after.keep], **seconds)
    return {**seconds, "keep": after.keep, "weights": after.weights, "path": path}


def solved(problem: Problem, solver: pipeline.Solver) -> dict[str, Any]:
    """Mask, weights, error, Wanda's error and seconds of a layer; masks alone come from the cache where they can."""
    path = _file(problem, solver)
    if path.is_file():
        held = dict(np.load(path))
        keep = unpack_mask(held["bits"].tobytes(), problem.shape)
        return {**held, "keep": keep, "weights": np.where(keep, problem.W, 0)}
    began = time.process_time(), time.monotonic()
    outcome = pipeline.run(problem, solver, threads=THREADS)
    cpu, wall = time.process_time() - began[0], time.monotonic() - began[1]
    row, keep = outcome.result, outcome.keep
    if not row.solved or keep is None or row.error is None:
        raise SystemExit(f"{problem.name}: {solver.text} failed ({row.reason})")
    wanda = row.error / row.ratio_to_wanda if row.ratio_to_wanda else 0.0
    found = {"error": row.error, "wanda": wanda, "cpu": cpu, "wall": wall}
    if outcome.weights is None:
        _write(path, keep, **found)
    weights = np.where(keep, problem.W if outcome.weights is None else outcome.weights, 0)
    return {**found, "keep": keep, "weights": weights}


def parts(named: str) -> dict[str, Any]:
    """What ``prune`` makes good, and in which order, from what follows ``CORRECTED`` in a method's name."""
    named, in_turn, _ = named.partition(IN_TURN)
    correct, _, residual = named.partition(RESIDUAL)
    return {"correct": float(correct or 0), "residual": float(residual or 0), "true_sequential": bool(in_turn)}


def _by_command(
    name: str, mode: str, pattern: str, method: str, device: str, errors: dict[str, float]
) -> tuple[Model, dict[str, Any]]:
    """What ``fwbench prune`` makes of the model; its minutes are of the whole command."""
    from fwbench.pruning import Options, prune

    method, _, part = method.partition(CORRECTED)
    method, _, tokens = method.partition(TOKENED)
    method, _, text = method.partition(CALIBRATED)
    spec, _, shrinkage = method.partition(SHRUNK)
    options = Options(pattern=pattern, spec=spec, sequential=mode == SEQUENTIAL, evaluate="", device=device)
    options = replace(options, tokens=int(tokens)) if tokens else options
    options = replace(options, shrink=float(shrinkage)) if shrinkage else options
    options = replace(options, **parts(part))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if text:
            behind = Path(folder) / f"{text}.txt"
            behind.write_text(load_text(text).content[EVALUATED:].partition("\n")[2], encoding="utf-8")
            options = replace(options, text=str(behind))
        began = time.process_time(), time.monotonic()
        summary = prune(name, out, options)
        cpu, wall = time.process_time() - began[0], time.monotonic() - began[1]
        model = load_model(out)
    print(", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in summary["seconds"].items()), flush=True)
    records = summary["layers"]
    errors |= {record["layer"]: record["error"] for record in records}
    wanda = [record["error"] / record["ratio_to_wanda"] for record in records]
    total = sum(record["dense_power"] for record in records)
    return model, {**_summary(errors, wanda, total), **_minutes(cpu, wall), "solver": summary["solver_full"]}


def _summary(errors: Mapping[str, float], wanda: Sequence[float], total: float) -> dict[str, Any]:
    """Sums, and the geometric mean of the layers' ratios to Wanda's error on the same inputs."""
    ratios = [error / other for error, other in zip(errors.values(), wanda, strict=True)]
    error = sum(errors.values())
    return {
        "error": f"{error:.6g}",
        "relative_error": f"{error / total:.6g}",
        "ratio_to_wanda": f"{shifted_geometric_mean(ratios):.6g}",
    }


def _minutes(cpu: float, wall: float) -> dict[str, str]:
    return {"solve_cpu_minutes": f"{cpu / 60:.3f}", "solve_wall_minutes": f"{wall / 60:.3f}"}


# --- all rows --------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of a file by (mode, pattern, method); a later one counts."""
    return {(row["mode"], row["pattern"], row["method"]): row for row in read_rows(path)}


def run(out: Path) -> None:
    for mode, pattern, method in plan():
        if (mode, pattern, method) in read(out / RESULTS_CSV):
            continue
        print(f"-- {mode} {pattern} {method}", flush=True)
        words = ["--out", str(out), "row", pattern or "-", method, "--mode", mode]
        if subprocess.run([sys.executable, "-m", __spec__.name, *words], stderr=subprocess.DEVNULL).returncode:
            print(f"-- {mode} {pattern} {method}: failed", flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="every row that is missing")
    single = commands.add_parser("row", help="one row")
    single.add_argument("pattern")
    single.add_argument("method")
    single.add_argument("--mode", default=ONE_SHOT, choices=(DENSE, ONE_SHOT, SEQUENTIAL))
    single.add_argument("--device", default="cpu")
    single.add_argument("--model", default=MODEL)
    single.add_argument("--tokens", type=int, default=TOKENS, help="of each text, for the perplexity")
    given = parser.parse_args()
    if given.command == "row":
        what = given.mode, given.pattern.strip("-"), given.method
        add_row(given.out, *what, given.device, given.model, given.tokens)
    else:
        run(given.out)


if __name__ == "__main__":
    main()
