"""Where the time and the memory of ``fwbench prune smollm2`` go: one line of ``profile.csv`` a call.

    python -m benchmarks.prune.profile wanda+swap 4096       spec, calibration tokens
    python -m benchmarks.prune.page                          writes the table

Sequential, 0.5 of each row, everything else by default; in a process of its own. Seconds are wall time: ``solver`` is
the stages' own, ``judge`` the rest of each layer's turn (the problem's hash, the mask judged in float64, Wanda's error
beside), ``rest`` what no part's clock saw. Memory is resident: ``peak_mb`` the largest of the process while pruning;
``base_mb`` of another process that has loaded the libraries, compiled the spec's kernels on a layer of ``mini`` and let
a model of a few weights generate; ``needed_mb`` the model's float32 parameters, one block's float64 Gram matrices and
all tokens' float32 activations. What pruning takes is ``peak_mb - base_mb``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.prune.boards import MODEL, THREADS
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append
from benchmarks.shared.memory import resident
from fwbench import pipeline
from fwbench.problems.collections import SHAPES, load
from fwbench.pruning import Options, prune

PROFILE_CSV = "profile.csv"
LAYER = "mini/n576.v_proj.whole*"  # real, and small
INPUTS = ("q_proj", "o_proj", "gate_proj", "down_proj")  # a layer of each input: a block's Gram matrices


@dataclass(frozen=True)
class Profile:
    """One run; seconds by part, and memory in 1e6 bytes."""

    spec: str
    tokens: int
    threads: int
    load: float
    forward: float
    solver: float
    judge: float
    evaluate: float
    save: float
    rest: float
    total: float
    base_mb: float
    peak_mb: float
    needed_mb: float
    created: str


def base(spec: str) -> int:
    """Resident size, bytes, of what stays whatever model is pruned: libraries and compiled kernels."""
    import transformers as t

    [(_, problem)] = load(LAYER)
    pipeline.run(problem, pipeline.resolve(spec), threads=THREADS)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = t.AutoModelForCausalLM.from_config(t.LlamaConfig(vocab_size=8, **sizes))
    network.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2, do_sample=False, pad_token_id=0)
    return resident("VmRSS")


def profile(spec: str, tokens: int) -> Profile:
    command = [sys.executable, "-m", __spec__.name, "--base", spec, str(tokens)]
    libraries = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pipeline.warm_up(pipeline.Run(next(load(LAYER))[1], pipeline.resolve(spec)))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # compiling may have taken more
    with tempfile.TemporaryDirectory() as folder:
        plain = Options(pattern="0.5", spec=spec, tokens=tokens, correct=0.0, residual=0.0)
        summary = prune(MODEL, Path(folder) / "out", plain)
        seconds = json.loads((Path(folder) / "out" / "fwbench.json").read_text(encoding="utf-8"))["seconds"]
    peak = resident("VmHWM")
    solver = sum(record["seconds"] for record in summary["layers"])
    parts = {name: seconds[name] for name in ("load", "forward", "evaluate", "save")}
    grams = 8 * sum(SHAPES[layer][1] ** 2 for layer in INPUTS)
    needed = 4 * summary["totals"]["parameters"] + grams + 4 * tokens * SHAPES["q_proj"][1]
    return Profile(
        spec=spec,
        tokens=summary["tokens"],
        threads=THREADS,
        **{name: round(value, 2) for name, value in parts.items()},
        solver=round(solver, 2),
        judge=round(seconds["solve"] - solver, 2),
        rest=round(seconds["total"] - seconds["solve"] - sum(parts.values()), 2),
        total=round(seconds["total"], 2),
        base_mb=round(libraries / 1e6, 1),
        peak_mb=round(peak / 1e6, 1),
        needed_mb=round(needed / 1e6, 1),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("spec")
    parser.add_argument("tokens", type=int)
    parser.add_argument("--base", action="store_true", help="print the resident size without a model, in bytes")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.base:
        print(base(given.spec))
        return
    found = profile(given.spec, given.tokens)
    append(given.out / PROFILE_CSV, [found])
    print(found)


if __name__ == "__main__":
    main()
