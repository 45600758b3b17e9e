"""Why less layer error is not less perplexity: two mask sets of SmolLM2-135M at 0.5, one-shot, taken apart.

    python -m benchmarks.prune.perplexity errors     errors of their masks on held-out inputs, beside the calibration's
    python -m benchmarks.prune.perplexity hybrids    perplexities of mixed models: some layers have the other's masks
    python -m benchmarks.prune.perplexity first      perplexities with the dense model's keys and values of first tokens
    python -m benchmarks.prune.page                  writes their section

``ours`` (the preset ``fast``, but for its ``safeguard``) has less error than ``wanda+swap`` in nearly every layer, yet
more perplexity on Wikipedia. Masks come from the cache of ``boards``. Lines are appended to ``why_errors.csv`` and
``why_hybrids.csv``; what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.prune.boards import MODEL, PUSHED, TEXTS, THREADS, TOKENS, solved
from benchmarks.prune.groups import CALIBRATION, DEPTHS, KINDS, group_of
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from fwbench import pipeline
from fwbench.perplexity import perplexity, windows
from fwbench.problem import row_errors
from fwbench.problems import collections
from fwbench.problems.extract import BATCH, batch, grams, named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import TOKENS as CALIBRATION_TOKENS
from fwbench.problems.text import load_text, sequences

ERRORS_CSV, HYBRIDS_CSV = "why_errors.csv", "why_hybrids.csv"
PATTERN, SWAP, WANDA = "0.5", "wanda+swap", "wanda"
FIRST = "first tokens dense"
SETS = {"wanda+swap": SWAP, "ours": PUSHED}


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


def errors(folder: Path) -> None:
    """Layer errors on the inputs of every text; those of the first tokens apart."""
    model, out = load_model(MODEL), folder / ERRORS_CSV
    done = {(line.text, line.first) for line in read(out, Errors)}
    layers = named_layers(model)
    lines = [pipeline.resolve(method) for method in (WANDA, SWAP, PUSHED)]
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


def hybrids(folder: Path, bases: Sequence[str]) -> None:
    """Perplexities of the hybrids of these bases, one group of layers at a time."""
    model = load_model(MODEL)
    done = {(line.base, line.group) for line in read(folder / HYBRIDS_CSV, Hybrid)}
    layers, keeps = named_layers(model), _keeps()
    dense = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for base in bases:
        [other] = {*SETS} - {base}
        for group in (*KINDS, *DEPTHS):
            if (base, group) not in done:
                _load(layers, dense, {n: keeps[other if group in group_of(n) else base][n] for n in layers})
                _measure(folder, model, base, group)


def first_tokens(folder: Path, bases: Sequence[str]) -> None:
    """Perplexities where every later token sees the windows' first tokens as in the dense model.

    A first token attends to itself alone, and others see of it the outputs of ``k_proj`` and ``v_proj``; so those two,
    put in place of the pruned model's at position 0 of each block, undo all that pruning did to it.
    """
    model = load_model(MODEL)
    layers, keeps = named_layers(model), _keeps()
    watched = {name: layer for name, layer in layers.items() if name.endswith(("k_proj", "v_proj"))}
    known: dict[int, dict[str, torch.Tensor]] = {}  # by the first token's id
    for token in {int(ids[0]) for text in TEXTS for ids in windows(model, load_text(text), tokens=TOKENS)}:
        known[token] = {}
        handles = [
            layer.register_forward_hook(
                lambda _, __, output, token=token, name=name: known[token].update({name: output})
            )
            for name, layer in watched.items()
        ]
        with torch.no_grad():
            model.network.base_model(input_ids=torch.tensor([[token]]), use_cache=False)
        for handle in handles:
            handle.remove()
    current: list[int] = [0]

    def note(_: torch.nn.Module, __: tuple, named: dict) -> None:
        current[0] = int(named["input_ids"][0, 0])

    def restore(name: str) -> Callable:
        def hook(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
            return torch.cat([known[current[0]][name], output[:, 1:]], 1)

        return hook

    model.network.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    for name, layer in watched.items():
        layer.register_forward_hook(restore(name))
    dense = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for base in bases:
        _load(layers, dense, keeps[base])
        _measure(folder, model, base, FIRST)


def _keeps() -> dict[str, dict[str, np.ndarray]]:
    """Masks of both sets by layer."""
    lines = {name: pipeline.resolve(method) for name, method in SETS.items()}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in lines}
    for _, problem in collections.load(MODEL, [PATTERN]):
        for name, line in lines.items():
            found[name][problem.name] = solved(problem, line)["keep"]
    return found


def _measure(folder: Path, model: Model, base: str, group: str) -> None:
    values = [perplexity(model, load_text(text), tokens=TOKENS).value for text in TEXTS]
    append(folder / HYBRIDS_CSV, [Hybrid(base, group, *(round(value, 4) for value in values))])
    print(base, group, *values, flush=True)


@torch.no_grad()
def _load(
    layers: Mapping[str, torch.nn.Module], dense: Mapping[str, torch.Tensor], keeps: Mapping[str, np.ndarray]
) -> None:
    for name, layer in layers.items():
        layer.weight.copy_(dense[name] * torch.from_numpy(keeps[name]))


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("what", choices=("errors", "hybrids", "first"))
    parser.add_argument("--base", choices=tuple(SETS), help="of this one only, beside another process")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.what == "errors":
        errors(given.out)
    else:
        bases = [given.base] if given.base else list(SETS)
        {"hybrids": hybrids, "first": first_tokens}[given.what](given.out, bases)


if __name__ == "__main__":
    main()
