"""One model pruned by llm-compressor: what ``llmcompressor`` runs in that package's environment, which has no fwbench.

    OMP_NUM_THREADS=2 PEER/bin/python -m benchmarks.prune.llmcompressor_child MODEL TOKENS wanda 2:4 OUT

TOKENS is a JSON file of the sequences' token ids.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.shared import command


def prune(folder: str, tokens: Path, method: str, pattern: str, out: Path) -> None:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind = WandaPruningModifier if method == "wanda" else SparseGPTModifier
    structure = pattern if ":" in pattern else "0:0"
    recipe = kind(sparsity=0.5 if ":" in pattern else float(pattern), mask_structure=structure, ignore=["re:.*lm_head"])
    rows = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        for ids in json.loads(tokens.read_text(encoding="utf-8"))
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


def main() -> None:
    parser = command.parser(__spec__, __doc__)
    parser.add_argument("folder", help="of the model")
    parser.add_argument("tokens", type=Path)
    parser.add_argument("method", choices=("wanda", "sparsegpt"))
    parser.add_argument("pattern")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    prune(given.folder, given.tokens, given.method, given.pattern, given.out)


if __name__ == "__main__":
    main()
