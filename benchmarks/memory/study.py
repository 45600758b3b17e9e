"""Peak memory of ``fwbench prune`` on random models of few blocks, read block by block and loaded whole.

    python -m benchmarks.memory.study
    python -m benchmarks.memory.page

The models have the shapes of TinyLlama-1.1B (a Llama of 2048 inputs, 5632 inner ones, 32 heads, 4 of keys), random
bfloat16 weights in a file for each block, and a small vocabulary; the tokens are random too. Each run is a process of
its own in which a tiny model was pruned before, so that libraries and kernels are in the memory that is taken off.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.memory import resident
from benchmarks.shared.threads import one_thread, restart_on_one_thread
from fwbench.pruning import Options, prune

MEMORY_CSV = "memory.csv"
HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 2048, 5632, 32, 4, 4096
BLOCKS = (2, 6)
TOKENS, LENGTH, SOLVER, PATTERN = 1024, 512, "wanda", "0.5"
SEED = 0


@dataclass(frozen=True)
class Measured:
    """A line of the CSV: sizes in bytes, of the model as float32; ``peak`` is what the run added; seconds by kind."""

    blocks: int
    stream: bool
    model: int
    block: int
    grams: int
    peak: int
    load: float
    forward: float
    solve: float
    evaluate: float
    save: float
    total: float
    sha256: str


def make(folder: Path, hidden: int, inner: int, blocks: int, vocabulary: int = VOCABULARY) -> None:
    """Write a random model, one block in memory at a time, its tokenizer and a text."""
    folder.mkdir(parents=True)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        vocab_size=vocabulary,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    parts: dict[str, list[str]] = {}
    for name in state:
        parts.setdefault(name.split(".")[2] if ".layers." in name else "ends", []).append(name)
    generator, files, size = torch.Generator().manual_seed(SEED), {}, 0
    for part, names in parts.items():
        tensors = {}
        for name in names:
            tensor = torch.empty(state[name].shape, dtype=torch.bfloat16)
            tensors[name] = tensor.fill_(1) if tensor.ndim == 1 else tensor.normal_(0, 0.02, generator=generator)
            files[name], size = f"model-{part}.safetensors", size + tensor.nbytes
        save_file(tensors, folder / f"model-{part}.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = [f"w{number}" for number in range(64)]
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{w: n for n, w in enumerate(words, 1)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "text.txt").write_text(" ".join(random.Random(SEED).choices(words, k=2 * TOKENS)))


def run(source: Path, out: Path, stream: bool) -> None:
    """Prune the first block of a model, after a tiny one, and say on the last line of the output how it was."""
    one_thread()
    tiny, text = source.with_name("tiny"), str(source / "text.txt")
    if not tiny.exists():
        make(tiny, 64, 96, 2, 80)
    given = Options(PATTERN, SOLVER, text, TOKENS, LENGTH, correct=0.0, residual=0.0, evaluate=text, stream=stream)
    prune(str(tiny), out.with_name(f"{out.name}-tiny"), given)
    gc.collect()
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins anew
    others = r"\.0[1-9]\."  # every block is like the first: they stay dense, and only run
    begun = time.monotonic()
    summary = prune(str(source), out, Options(**{**asdict(given), "skip": others}))
    digest = hashlib.sha256((out / "model.safetensors").read_bytes())
    measured = {"peak": resident("VmHWM") - base, "seconds": summary["seconds"], "sha256": digest.hexdigest()[:16]}
    measured |= {"parameters": summary["totals"]["parameters"], "total": time.monotonic() - begun}
    print(json.dumps(measured))


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--run", nargs=3, metavar=("MODEL", "OUT", "STREAM"), help="one run, for this command itself")
    given = parser.parse_args()
    restart_on_one_thread()
    if given.run:
        run(Path(given.run[0]), Path(given.run[1]), given.run[2] == "True")
        return
    done = {(line.blocks, line.stream) for line in read(given.out / MEMORY_CSV, Measured)}
    with tempfile.TemporaryDirectory() as folder:
        for blocks in BLOCKS:
            source = Path(folder) / f"model{blocks}"
            for stream in (True, False):
                if (blocks, stream) in done:
                    continue
                if not source.exists():
                    make(source, HIDDEN, INNER, blocks)
                out = Path(folder) / f"out-{blocks}-{stream}"
                asked = [sys.executable, "-m", "benchmarks.memory.study", "--run", str(source), str(out), str(stream)]
                found = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
                seconds = found["seconds"]
                line = Measured(
                    blocks,
                    stream,
                    4 * found["parameters"],
                    4 * (found["parameters"] - 2 * VOCABULARY * HIDDEN) // blocks,
                    8 * (3 * HIDDEN**2 + INNER**2),
                    found["peak"],
                    *(round(seconds[kind], 1) for kind in ("load", "forward", "solve", "evaluate", "save")),
                    round(found["total"], 1),
                    found["sha256"],
                )
                append(given.out / MEMORY_CSV, [line])
                print(line)


if __name__ == "__main__":
    main()
