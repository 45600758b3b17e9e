"""llm-compressor's Wanda and SparseGPT beside ``fwbench prune``: the same model folder, tokens and pattern.

    python -m venv PEER && PEER/bin/pip install llmcompressor torch==2.13.0
    python -m benchmarks.prune.llmcompressor PEER/bin/python                    all rows that are missing
    python -m benchmarks.prune.llmcompressor PEER/bin/python --only wanda 2:4   one pair

Each row is a process of its own, from start to saved folder; the system says its CPU time and largest resident size.
Both calibrate block by block on the first 16,384 tokens of ``lee`` in sequences of 512, in float32 on the CPU, with two
threads, and the folders' perplexities are measured by fwbench. Rows are appended to ``peers.csv``; a pair
whose rows all lack the peak is measured again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.prune.boards import MODEL, TEXTS, TOKENS
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append_row, read_rows
from benchmarks.shared.memory import resident
from fwbench.perplexity import perplexity
from fwbench.problems.models import load_model
from fwbench.problems.text import TOKENS as CALIBRATION
from fwbench.problems.text import load_text, sequences

PEERS_CSV = "peers.csv"
FIELDS = ("tool", "method", "pattern", *TEXTS, "cpu_minutes", "wall_minutes", "peak_mb")
FIELDS += ("versions", "created")
METHODS, PATTERNS, OWN = ("wanda", "sparsegpt"), ("0.5", "2:4"), "wanda+swap"
THREADS = 2


def measured(command: list[str]) -> dict[str, str]:
    """Minutes and the largest resident size of a process.

    The size is read from the process while it runs: the ``ru_maxrss`` of a child begins at what its parent held.
    """
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # on a machine with others, threads that spin count as work
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        pid, peak = 0, 0
        while not pid:
            peak = max(peak, resident("VmHWM", process.pid))
            time.sleep(0.2)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{said.read()[-3000:].decode(errors='replace')}")
    return {
        "cpu_minutes": f"{(usage.ru_utime + usage.ru_stime) / 60:.3f}",
        "wall_minutes": f"{(time.monotonic() - began) / 60:.3f}",
        "peak_mb": str(round(peak / 1e6)),
    }


def row(python: str, tool: str, method: str, pattern: str) -> dict[str, str]:
    torch.set_num_threads(THREADS)
    model = load_model(MODEL)  # makes the folder, where it is not there yet
    folder, versions = model.network.config.name_or_path, f"torch {torch.__version__}"
    with tempfile.TemporaryDirectory() as place:
        out = f"{place}/out"
        if tool == "fwbench":
            words = [str(Path(sys.executable).with_name("fwbench")), "prune", folder, "-o", out, "--pattern", pattern]
            words += ["-s", method, "--evaluate", "none"]
        else:
            tokens = Path(place) / "tokens.json"
            tokens.write_text(json.dumps(sequences(model.tokenizer, load_text("lee"), CALIBRATION)), encoding="utf-8")
            words = [python, "-m", "benchmarks.prune.llmcompressor_child", folder, str(tokens), method, pattern, out]
            asked = (
                "import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in ('llmcompressor', 'torch')))"
            )
            versions = subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout.strip()
        del model
        found = {"tool": tool, "method": method, "pattern": pattern, **measured(words), "versions": versions}
        pruned = load_model(out)
        for name in TEXTS:
            found[name] = f"{perplexity(pruned, load_text(name), tokens=TOKENS).value:.4f}"
    return found | {"created": datetime.now(UTC).isoformat(timespec="seconds")}


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("python", help="of llm-compressor's environment")
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "PATTERN"))
    given = parser.parse_args()
    path = given.out / PEERS_CSV
    pairs = [tuple(given.only)] if given.only else [(m, p) for m in METHODS for p in PATTERNS]
    rows = [(tool, *pair) for pair in pairs for tool in ("llm-compressor", "fwbench")]
    rows += [] if given.only else [("fwbench", OWN, pattern) for pattern in PATTERNS]
    for wanted in rows:
        kept = [line for line in read_rows(path) if line["peak_mb"]]  # without, it is measured again
        if wanted not in {(line["tool"], line["method"], line["pattern"]) for line in kept}:
            found = row(given.python, *wanted)
            append_row(path, found, FIELDS)
            print(found, flush=True)


if __name__ == "__main__":
    main()
