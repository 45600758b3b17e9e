"""Allocations on SmolLM2-135M: the same zeros in all, given to layers by every method; perplexity beside uniform.

    python -m benchmarks.prune.allocation run           every row that is missing, a process each
    python -m benchmarks.prune.allocation row 0.6 exact  one row
    python -m benchmarks.prune.page

Rows are one-shot, as those of ``boards``; ``row --mode sequential --method "admm, residual=0.3"`` is what
``fwbench prune`` does by default with another solver. Rows are only ever appended to ``allocation.csv``, each layer's
sparsity to ``allocation_layers.csv``; allocations and masks are kept in the cache, so that a kill loses one layer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.prune.boards import MODEL, ONE_SHOT, RESIDUAL, SEQUENTIAL, TEXTS, THREADS, TOKENS, parts, solved
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append_row, read_rows
from fwbench import machine, pipeline
from fwbench.patterns import Pattern
from fwbench.perplexity import perplexity
from fwbench.problems import collections, resources
from fwbench.problems.extract import named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import load_text
from fwbench.pruning import Options, allocation, prune
from fwbench.pruning import plan as plans

ALLOCATION_CSV, LAYERS_CSV = "allocation.csv", "allocation_layers.csv"
METHODS = ("wanda", "wanda+swap")  # of the rows that run adds, cheapest first
ALLOCATIONS = ("uniform", "owl", "alpha", "neuroal", "exact")
PLAN = (("0.6", "exact"), ("0.7", "uniform"), ("0.7", "exact"))  # at 0.6 the boards have the uniform one
PLAN += tuple((pattern, name) for name in ALLOCATIONS[1:-1] for pattern in ("0.6", "0.7"))
FIELDS = ("mode", "pattern", "method", "allocation", *TEXTS, "error", "allocation_cpu_minutes", "solve_cpu_minutes")
FIELDS += ("allocation_full", "commit", "created")
KEY = FIELDS[:4]


def add_row(out: Path, mode: str, pattern: str, method: str, name: str) -> None:
    """Allocate, prune and measure, and add the row to the files in ``out``."""
    torch.set_num_threads(THREADS)
    make = _one_shot if mode == ONE_SHOT else _in_sequence
    model, sparsities, more = make(pattern, method, name)
    row = {"mode": mode, "pattern": pattern, "method": method, "allocation": name, **more}
    for text in TEXTS:
        row[text] = f"{perplexity(model, load_text(text), tokens=TOKENS).value:.4f}"
    row["commit"] = str(machine.describe().get("commit", ""))[:12]
    row["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    line = {key: row[key] for key in KEY} | {layer: f"{share:.5f}" for layer, share in sparsities.items()}
    append_row(out / LAYERS_CSV, line, columns=tuple(line))
    append_row(out / ALLOCATION_CSV, row, FIELDS)
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def _one_shot(pattern: str, method: str, name: str) -> tuple[Model, dict[str, float], dict[str, Any]]:
    plan = plans.make(MODEL, Options(pattern, method, allocation=name, sequential=False, evaluate=""))
    chosen, allocated = allocated_patterns(plan)
    resolved, layers = plan.solver, named_layers(plan.model)
    error, cpu, shares = 0.0, 0.0, {}
    for _, real in collections.load(MODEL):
        problem = replace(real, pattern=chosen[real.name])
        pipeline.warm_up(pipeline.Run(problem, resolved))
        found = solved(problem, resolved)
        error, cpu = error + float(found["error"]), cpu + float(found["cpu"])
        shares[real.name] = 1 - float(found["keep"].mean())
        with torch.no_grad():
            layers[real.name].weight.copy_(torch.from_numpy(found["weights"]))
        print(f"{real.name} {shares[real.name]:.3f}", file=sys.stderr, flush=True)
    return plan.model, shares, {"error": f"{error:.6g}", "solve_cpu_minutes": f"{cpu / 60:.3f}", **allocated}


def allocated_patterns(plan: plans.Plan) -> tuple[Mapping[str, Pattern], dict[str, str]]:
    """The pattern of each layer, from the cache where it can, and what is said of them."""
    setting = allocation.setting(plan.model, plan.layers, plan.batches, plan.pattern)
    full = plan.record["allocation"]
    if plan.allocation is None:
        return dict.fromkeys(setting.shapes, plan.pattern), {"allocation_full": full, "allocation_cpu_minutes": "0"}
    name = f"allocation-{full}-{plan.pattern}-{plan.record['model_sha256'][:12]}.json"
    path = resources.cache_folder() / "studies" / "prune" / name
    if not path.is_file():
        began = time.process_time()
        counts = allocation.allocate(plan.allocation, setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"counts": counts, "cpu": time.process_time() - began}), encoding="utf-8")
    held = json.loads(path.read_text(encoding="utf-8"))
    said = {"allocation_full": full, "allocation_cpu_minutes": f"{held['cpu'] / 60:.3f}"}
    return allocation.patterns(setting, held["counts"]), said


def _in_sequence(pattern: str, method: str, name: str) -> tuple[Model, dict[str, float], dict[str, Any]]:
    """What ``fwbench prune`` makes of the model; its minutes are the whole command's."""
    spec, named, part = method.partition(RESIDUAL)
    options = Options(pattern, spec, allocation=name, evaluate="", **parts(f"{Options.correct}{named}{part}"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        summary = prune(MODEL, Path(folder) / "out", options)
        minutes = (time.process_time() - began) / 60
        model = load_model(Path(folder) / "out")
    shares = {record["layer"]: record["pruned"] / (record["rows"] * record["n"]) for record in summary["layers"]}
    said = {"solve_cpu_minutes": f"{minutes:.3f}", "allocation_full": summary["allocation"]}
    return model, shares, {"error": f"{summary['totals']['error']:.6g}", **said}


def read(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a file by (mode, pattern, method, allocation); a later one counts."""
    return {tuple(row[key] for key in KEY): row for row in read_rows(path)}


def run(out: Path) -> None:
    for method, (pattern, name) in product(METHODS, PLAN):
        if (ONE_SHOT, pattern, method, name) in read(out / ALLOCATION_CSV):
            continue
        print(f"-- {pattern} {name} {method}", flush=True)
        words = ["--out", str(out), "row", pattern, name, "--method", method]
        if subprocess.run([sys.executable, "-m", __spec__.name, *words], stderr=subprocess.DEVNULL).returncode:
            print(f"-- {pattern} {name} {method}: failed", flush=True)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="every row that is missing")
    single = commands.add_parser("row", help="one row")
    single.add_argument("pattern")
    single.add_argument("allocation")
    single.add_argument("--method", default=METHODS[-1])
    single.add_argument("--mode", default=ONE_SHOT, choices=(ONE_SHOT, SEQUENTIAL))
    given = parser.parse_args()
    if given.command == "row":
        add_row(given.out, given.mode, given.pattern, given.method, given.allocation)
    else:
        run(given.out)


if __name__ == "__main__":
    main()
