"""What masks need to be good on other texts: more calibration tokens, or shrunk correlations.

    python -m benchmarks.prune.tokens       what is missing in tokens.csv
    python -m benchmarks.prune.page         writes its section

A seeded sample of rows of two blocks' layers, pattern 0.5. Masks are found on ``lee``'s first tokens, with the Gram
matrix's correlations shrunk or not (``fwbench.problem.shrunk``); errors are on the dense model's inputs as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import one_thread
from fwbench import pipeline
from fwbench.perplexity import windows
from fwbench.problem import Problem, row_errors, shrunk
from fwbench.problems.collections import LAYERS
from fwbench.problems.extract import BATCH, batch, grams, named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import load_text, sequences
from fwbench.solvers.bounds.stage import chosen_rows

TOKENS_CSV = "tokens.csv"
MODEL, CALIBRATION, HELD_OUT, HELD_OUT_TOKENS = "smollm2", "lee", ("lee-heldout", "wikipedia"), 8192
METHODS = ("wanda", "wanda+swap", "push(rounds=20)+swap")
BLOCKS, TOKENS, ROWS, PATTERN = (3, 13), (4096, 16384, 65536), 24, "0.5"
SHRINKAGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Line:
    """Errors of the sampled rows, summed, of one mask; those on a text are means over its tokens."""

    layer: str
    tokens: int  # of calibration
    shrink: float
    rows: int
    method: str
    calibration: float
    lee_heldout: float
    wikipedia: float


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--shrink", type=float, nargs="+", default=SHRINKAGES)
    options = parser.parse_args()
    one_thread()
    path = options.out / TOKENS_CSV
    done = {(line.layer, line.tokens, line.shrink) for line in read(path, Line)}
    model = load_model(MODEL)
    names = [f"smollm2.{block:02}.{layer}" for block in options.blocks for layer in LAYERS]
    layers = {name: layer for name, layer in named_layers(model).items() if name in names}
    held_out = [grams(model.network, layers, _batches(model, text)) for text in HELD_OUT]
    for tokens in options.tokens:
        left = {name: [s for s in options.shrink if (name, tokens, s) not in done] for name in layers}
        if missing := {name: layers[name] for name, shrinkages in left.items() if shrinkages}:
            ids = batch(sequences(model.tokenizer, load_text(CALIBRATION), tokens))
            for name, G in grams(model.network, missing, ids).items():
                for shrinkage in left[name]:
                    seen = [found[name] for found in held_out]
                    append(path, measure(name, tokens, shrinkage, layers[name], G, seen))
                print(name, tokens, flush=True)


def _batches(model: Model, text: str) -> Sequence[torch.Tensor]:
    return windows(model, load_text(text), tokens=HELD_OUT_TOKENS).split(BATCH // 512)


def measure(
    name: str, tokens: int, shrinkage: float, layer: torch.nn.Module, G: np.ndarray, held_out: Sequence[np.ndarray]
) -> list[Line]:
    """A line a method of one layer's sampled rows."""
    W = layer.weight.detach().numpy()
    problem = Problem(name, W[chosen_rows(ROWS, len(W))], shrunk(G, shrinkage), PATTERN)
    lines = []
    for method in METHODS:
        keep = pipeline.run(problem, pipeline.resolve(method), threads=1).keep
        lost = np.where(keep, 0.0, problem.W)
        errors = [float(row_errors(gram, lost).sum()) for gram in (G, *held_out)]
        lines.append(Line(name, tokens, shrinkage, problem.rows, method, *errors))
    return lines


if __name__ == "__main__":
    main()
