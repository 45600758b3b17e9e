"""Why masks alone lose when a model is pruned in sequence, while SparseGPT gains: SmolLM2-135M in both modes.

    python -m benchmarks.prune.sequence 0.6 wanda+swap    one pattern and method: both models, and what their layers do
    python -m benchmarks.prune.sequence 0.6 "wanda+swap, correct=0.3"    with a part of what arrives made good
    python -m benchmarks.prune.page                       writes their section

In sequence, a layer's mask or weights ``Ŵ`` are chosen for the inputs ``X̂`` that the pruned blocks before it give, to
keep ``W X̂``; the dense model's output is ``W X``. So what a layer hands on is wrong by two parts, ``W X − Ŵ X̂ =
W (X − X̂) + (W − Ŵ) X̂``: what arrives, and its own error, which is all that its solver sees. Both are measured in the
sequential model for its own ``Ŵ`` and, on the same ``X̂``, for the one-shot model's; with the whole, and the
perplexities of both models on the calibration text too. First tokens of a window, whose activations are unlike all
others, are left out of the layers. What arrives is measured in the one-shot model too. Lines are appended to
``sequence.csv``, ``sequence_layers.csv`` and ``sequence_arriving.csv``; what is there is not measured again. The
sequential model is kept in the cache until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.prune.boards import CORRECTED, MODEL, ONE_SHOT, SEQUENTIAL, TEXTS, THREADS, one_shot, parts
from benchmarks.prune.groups import CALIBRATION, DEPTHS, KINDS, group_of
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from fwbench.perplexity import perplexity, windows
from fwbench.problems import resources
from fwbench.problems.extract import named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import load_text
from fwbench.pruning import Options, prune

SEQUENCE_CSV, LAYERS_CSV, ARRIVING_CSV = "sequence.csv", "sequence_layers.csv", "sequence_arriving.csv"
TOKENS, BATCH = 8192, 4  # of each text, and windows at a time
PARTS = ("arriving", "own", "whole", "own_one_shot", "whole_one_shot")


@dataclass(frozen=True)
class Perplexities:
    """Of one model, on the calibration's first tokens and on the others."""

    pattern: str
    method: str
    mode: str
    lee: float
    lee_heldout: float
    wikipedia: float


@dataclass(frozen=True)
class Arriving:
    """A squared error in units of the dense output's ``‖W X‖²``, a mean over a group of layers."""

    pattern: str
    method: str
    text: str
    kind: str
    depth: str
    layers: int
    arriving: float  # ‖W (X - X̂)‖², X̂ of one of the models


@dataclass(frozen=True)
class Errors(Arriving):
    """On the sequential model's X̂: with its own Ŵ, and with the one-shot model's."""

    own: float  # ‖(W - Ŵ) X̂‖²
    whole: float  # ‖W X - Ŵ X̂‖²
    own_one_shot: float
    whole_one_shot: float


def study(out: Path, pattern: str, method: str) -> None:
    """Add to the files in ``out`` what is missing of a pattern and method."""
    key = (pattern, method)
    files = ((LAYERS_CSV, Errors), (ARRIVING_CSV, Arriving))
    layers, arriving = (key in {(line.pattern, line.method) for line in read(out / name, kind)} for name, kind in files)
    if layers and arriving:
        return
    dense, pruned = load_model(MODEL), load_model(MODEL)
    one_shot(pruned, pattern, method.partition(CORRECTED)[0], {})
    if not layers:
        _in_sequence(out, dense, pruned, key)
    if not arriving:
        lines = []
        for text in (CALIBRATION, *TEXTS):
            for group, (count, means) in _by_group(layer_errors(dense, pruned, pruned, text)).items():
                lines.append(Arriving(*key, text, *group, count, means[0]))
        append(out / ARRIVING_CSV, lines)


def _by_group(found: Mapping[str, np.ndarray]) -> dict[tuple[str, str], tuple[int, list[float]]]:
    """Layers and means over them of each part in units of the dense output, by kind and depth."""
    groups: dict[tuple[str, str], list[np.ndarray]] = {(kind, depth): [] for kind in KINDS for depth in DEPTHS}
    for name, sums in found.items():
        groups[group_of(name)].append(sums[1:] / sums[0])
    return {key: (len(own), [float(f"{mean:.5g}") for mean in np.mean(own, 0)]) for key, own in groups.items()}


def _in_sequence(out: Path, dense: Model, pruned: Model, key: tuple[str, str]) -> None:
    """Prune in sequence, and measure both models' perplexities and the sequential one's layers."""
    pattern, method = key
    spec, _, part = method.partition(CORRECTED)
    folder = resources.cache_folder() / "studies" / "sequence" / f"{pattern}-{method}"
    if not folder.is_dir():
        prune(MODEL, folder, Options(pattern, spec, evaluate="", **parts(part)))
    models = {ONE_SHOT: pruned, SEQUENTIAL: load_model(folder)}
    measured = {(line.pattern, line.method, line.mode) for line in read(out / SEQUENCE_CSV, Perplexities)}
    for mode, model in models.items():
        if (*key, mode) not in measured:
            values = [perplexity(model, load_text(text), tokens=TOKENS).value for text in (CALIBRATION, *TEXTS)]
            append(out / SEQUENCE_CSV, [Perplexities(*key, mode, *(round(value, 4) for value in values))])
            print(*key, mode, *values, flush=True)
    lines = []
    for text in (CALIBRATION, *TEXTS):
        found = layer_errors(dense, models[SEQUENTIAL], pruned, text)
        for group, (layers, means) in _by_group(found).items():
            lines.append(Errors(*key, text, *group, layers, *means))
            print(*key, text, *group, *means, flush=True)
    append(out / LAYERS_CSV, lines)
    shutil.rmtree(folder)


@torch.no_grad()
def layer_errors(dense: Model, sequential: Model, rival: Model, text: str) -> dict[str, np.ndarray]:
    """Sums over a text's tokens, by layer: ``‖W X‖²``, then ``PARTS``; ``rival`` is the one-shot model."""
    rows = windows(dense, load_text(text), tokens=TOKENS)
    inputs: dict[str, torch.Tensor] = {}
    seen_inputs: dict[str, torch.Tensor] = {}
    handles = [*_catch_inputs(dense, inputs), *_catch_inputs(sequential, seen_inputs)]
    layers = [named_layers(model) for model in (dense, sequential, rival)]
    names = {named: name for name, named in zip(layers[1], layers[0], strict=True)}  # by the dense model's name
    sums = {name: np.zeros(1 + len(PARTS)) for name in layers[0]}
    for ids in rows.split(BATCH):
        for model in (dense, sequential):
            model.network.base_model(input_ids=ids, use_cache=False)
        for name, total in sums.items():
            W, pruned, other = (own[named].weight for own, named in zip(layers, (name, names[name], name), strict=True))
            X, seen = inputs[name], seen_inputs[names[name]]
            arriving, own, own_one_shot = (X - seen) @ W.T, seen @ (W - pruned).T, seen @ (W - other).T
            parts = (X @ W.T, arriving, own, arriving + own, own_one_shot, arriving + own_one_shot)
            total += [float(part.double().square().sum()) for part in parts]
    for handle in handles:
        handle.remove()
    return sums


def _catch_inputs(model: Model, caught: dict[str, torch.Tensor]) -> list[Any]:
    """Until the handles are removed, each layer's last input without first tokens, ``(tokens, n)``, by its name."""
    handles = []
    for name, layer in named_layers(model).items():

        def hook(_: torch.nn.Module, args: tuple, name: str = name) -> None:
            caught[name] = args[0][:, 1:].flatten(0, 1)

        handles.append(layer.register_forward_pre_hook(hook))
    return handles


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("pattern")
    parser.add_argument("method")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    study(given.out, given.pattern, given.method)


if __name__ == "__main__":
    main()
