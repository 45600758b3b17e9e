"""Why less layer error is not less perplexity: two mask sets of SmolLM2-135M at 0.5, one-shot, taken apart.

    python benchmarks/study_why.py errors     errors of their masks on held-out inputs, beside the calibration's
    python benchmarks/study_why.py hybrids    perplexities of mixed models: a group of layers has the other set's masks
    python benchmarks/study_prune.py page     writes their section

``ours`` (the preset ``fast``) has less error than ``wanda+swap`` in nearly every layer, yet more perplexity on
Wikipedia. Masks come from the cache of ``study_prune``. Lines are appended to ``why_errors.csv`` and
``why_hybrids.csv`` in ``reports/prune``; what is there is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from csv_lines import append, read
from study_prune import MODEL, OURS, OUT, TEXTS, THREADS, TOKENS, solved

from fwbench import pipeline
from fwbench.perplexity import perplexity, windows
from fwbench.problem import row_errors
from fwbench.problems import collections
from fwbench.problems.extract import BATCH, batch, grams, named_layers
from fwbench.problems.models import load_model
from fwbench.problems.text import TOKENS as CALIBRATION_TOKENS
from fwbench.problems.text import load_text, sequences

ERRORS, HYBRIDS = "why_errors.csv", "why_hybrids.csv"
PATTERN, SWAP, WANDA, CALIBRATION = "0.5", "wanda+swap", "wanda", "lee"
KINDS = {
    "q, k, v": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
SETS = {"wanda+swap": SWAP, "ours": OURS}
DEPTHS = {f"blocks {start} to {start + 9}": range(start, start + 10) for start in (0, 10, 20)}


@dataclass(frozen=True)
class Errors:
    """A layer's errors ``‖(W - m∘W)X‖² / tokens`` on a text's inputs in the dense model, for three mask sets."""

    layer: str
    text: str
    first: bool  # of the sequences' first tokens alone
    tokens: int
    wanda: float
    swap: float
    ours: float


@dataclass(frozen=True)
class Hybrid:
    """Perplexities of the model with masks of ``base``, and of the other set in the layers of ``group``."""

    base: str
    group: str
    lee_heldout: float
    wikipedia: float


def group_of(layer: str) -> tuple[str, str]:
    """Kind and depth of a layer, by its name ``smollm2.BLOCK.LAYER``."""
    _, block, name = layer.split(".")
    [kind] = [kind for kind, names in KINDS.items() if name in names]
    [depth] = [depth for depth, blocks in DEPTHS.items() if int(block) in blocks]
    return kind, depth


def errors() -> None:
    """Layer errors on the inputs of every text; those of the first tokens apart."""
    model, out = load_model(MODEL), OUT / ERRORS
    done = {(line.text, line.first) for line in read(out, Errors)}
    layers = named_layers(model)
    lines = [pipeline.resolve(method) for method in (WANDA, SWAP, OURS)]
    for name in (CALIBRATION, *TEXTS):
        if name == CALIBRATION:
            parts = batch(sequences(model.tokenizer, load_text(name), CALIBRATION_TOKENS))
        else:
            parts = list(windows(model, load_text(name), tokens=TOKENS).split(BATCH // 512))
        for first in (True, False):
            if (name, first) in done:
                continue
            ids = [part[:, :1] if first else part for part in parts]  # causal: a first token sees itself alone
            found: dict[str, np.ndarray] = {}
            if first or name != CALIBRATION:  # the calibration's are in the problems
                found = grams(model.network, layers, ids, lambda done: print(done, end=" ", flush=True))
            measured = []
            for _, problem in collections.load(MODEL, [PATTERN]):
                G = found.get(problem.name, problem.G)
                values = [
                    float(row_errors(G, np.where(solved(problem, line)["keep"], 0.0, problem.W)).sum())
                    for line in lines
                ]
                measured.append(Errors(problem.name, name, first, sum(part.numel() for part in ids), *values))
            append(out, measured)
            print(name, first, [sum(getattr(line, key) for line in measured) for key in ("wanda", "swap", "ours")])


def hybrids(bases: Sequence[str]) -> None:
    """Perplexities of the hybrids of these bases, one group of layers at a time."""
    model, out = load_model(MODEL), OUT / HYBRIDS
    layers = named_layers(model)
    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, method in SETS.items():
        line = pipeline.resolve(method)
        problems = (problem for _, problem in collections.load(MODEL, [PATTERN]))
        weights[name] = {problem.name: solved(problem, line)["keep"] for problem in problems}
    dense = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    done = {(line.base, line.group) for line in read(out, Hybrid)}
    for base in bases:
        [other] = {*SETS} - {base}
        for group in (*KINDS, *DEPTHS):
            if (base, group) in done:
                continue
            _load(layers, dense, {n: weights[other if group in group_of(n) else base][n] for n in layers})
            values = [perplexity(model, load_text(text), tokens=TOKENS).value for text in TEXTS]
            append(out, [Hybrid(base, group, *(round(value, 4) for value in values))])
            print(base, group, *values, flush=True)


@torch.no_grad()
def _load(
    layers: Mapping[str, torch.nn.Module], dense: Mapping[str, torch.Tensor], keeps: Mapping[str, np.ndarray]
) -> None:
    for name, layer in layers.items():
        layer.weight.copy_(dense[name] * torch.from_numpy(keeps[name]))  # type: ignore[operator, union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("errors", "hybrids"))
    parser.add_argument("--base", choices=tuple(SETS), help="hybrids of this one only, beside another process")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.what == "errors":
        errors()
    else:
        hybrids([given.base] if given.base else list(SETS))


if __name__ == "__main__":
    main()
