"""llm-compressor's Wanda and SparseGPT beside ``fwbench prune``: the same model folder, tokens and pattern.

    python -m venv PEER && PEER/bin/pip install llmcompressor torch==2.13.0
    python benchmarks/peer_llmcompressor.py PEER/bin/python                    all rows that are missing
    python benchmarks/peer_llmcompressor.py PEER/bin/python --only wanda 2:4   one pair

Each row is a process of its own, from start to saved folder; the system says its CPU time and largest resident size.
Both calibrate block by block on the first 16,384 tokens of ``lee`` in sequences of 512, in float32 on the CPU, with two
threads, and the folders' perplexities are measured by fwbench. Rows are appended to ``reports/prune/peers.csv``; a pair
whose rows all lack the peak is measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

OUT = Path(__file__).parents[1] / "reports" / "prune" / "peers.csv"
FIELDS = ("tool", "method", "pattern", "lee-heldout", "wikipedia", "cpu_minutes", "wall_minutes", "peak_mb")
FIELDS += ("versions", "created")
METHODS, PATTERNS, OWN = ("wanda", "sparsegpt"), ("0.5", "2:4"), "wanda+swap"
THREADS, TOKENS = 2, 8192  # TOKENS: of each held-out text


def peer(folder: str, tokens: str, method: str, pattern: str, out: str) -> None:
    """What runs in llm-compressor's environment."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(THREADS)
    kind = WandaPruningModifier if method == "wanda" else SparseGPTModifier
    structure = pattern if ":" in pattern else "0:0"
    recipe = kind(sparsity=0.5 if ":" in pattern else float(pattern), mask_structure=structure, ignore=["re:.*lm_head"])
    rows = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        for ids in json.loads(Path(tokens).read_text())
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=DataLoader(rows, batch_size=1),
        recipe=recipe,
        num_calibration_samples=len(rows),
        pipeline="sequential",
    )
    model.save_pretrained(out, save_compressed=False)
    tokenizer.save_pretrained(out)


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
            peak = max(peak, _high_water(process.pid))
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


def _high_water(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def row(python: str, tool: str, method: str, pattern: str) -> dict[str, str]:
    import torch

    from fwbench.perplexity import perplexity
    from fwbench.problems.models import load_model
    from fwbench.problems.text import TOKENS as CALIBRATION
    from fwbench.problems.text import load_text, sequences

    torch.set_num_threads(THREADS)
    model = load_model("smollm2")  # makes the folder, where it is not there yet
    folder, versions = model.network.config.name_or_path, f"torch {torch.__version__}"
    with tempfile.TemporaryDirectory() as place:
        out = f"{place}/out"
        if tool == "fwbench":
            command = [str(Path(sys.executable).with_name("fwbench")), "prune", folder, "-o", out, "--pattern", pattern]
            command += ["-s", method, "--evaluate", "none"]
        else:
            tokens = Path(place) / "tokens.json"
            tokens.write_text(json.dumps(sequences(model.tokenizer, load_text("lee"), CALIBRATION)))
            command = [python, __file__, "--peer", folder, str(tokens), method, pattern, out]
            asked = (
                "import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in ('llmcompressor', 'torch')))"
            )
            versions = subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout.strip()
        del model
        found = {"tool": tool, "method": method, "pattern": pattern, **measured(command), "versions": versions}
        pruned = load_model(out)
        for name in ("lee-heldout", "wikipedia"):
            found[name] = f"{perplexity(pruned, load_text(name), tokens=TOKENS).value:.4f}"
    return found | {"created": datetime.now(UTC).isoformat(timespec="seconds")}


def main() -> None:
    if sys.argv[1] == "--peer":
        peer(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of llm-compressor's environment")
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "PATTERN"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    pairs = [tuple(given.only)] if given.only else [(m, p) for m in METHODS for p in PATTERNS]
    rows = [(tool, *pair) for pair in pairs for tool in ("llm-compressor", "fwbench")]
    rows += [] if given.only else [("fwbench", OWN, pattern) for pattern in PATTERNS]
    for wanted in rows:
        done = set()
        if given.out.is_file():
            with given.out.open(newline="") as file:
                kept = [line for line in csv.DictReader(file) if line["peak_mb"]]  # without, it is measured again
            done = {(line["tool"], line["method"], line["pattern"]) for line in kept}
        if wanted in done:
            continue
        found = row(given.python, *wanted)
        new = not given.out.is_file()
        with given.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(found)
        print(found, flush=True)


if __name__ == "__main__":
    main()
