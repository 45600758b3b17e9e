"""The plan of a recovery: both models and the text, read and checked before the work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fwbench import __version__, machine
from fwbench.problems.extract import batch, chosen_layers
from fwbench.problems.models import Model, fingerprint, load_model
from fwbench.problems.structure import find_blocks
from fwbench.problems.text import SEQUENCE, TOKENS, Text, load_text, opening_words, sequences
from fwbench.protocols import Passages
from fwbench.pruning import beside, dtypes
from fwbench.pruning import plan as plans
from fwbench.pruning.errors import PruneError
from fwbench.pruning.linear import Layer
from fwbench.pruning.plan import CALIBRATION, HELD_OUT, Progress
from fwbench.pruning.recovery.training import Training, split
from fwbench.pruning.recovery.units import BLOCK, UNITS
from fwbench.pruning.walk import check_chain

FORMAT = "fwbench-recover-1"


@dataclass(frozen=True)
class Recovery:
    """What a person asks for."""

    against: str = ""  # the dense model; empty for the one that the folder names
    text: str = CALIBRATION
    tokens: int = TOKENS
    length: int = SEQUENCE  # tokens of a sequence, cut to what the model takes
    epochs: int = Training.epochs
    rate: float = Training.rate  # of Adam, in units of a layer's root mean square kept weight
    unit: str = BLOCK  # what is trained at once: a block, or its parts one after the other
    device: str = "cpu"
    save_dtype: str = "auto"  # of the output; auto for each tensor's own
    skip: str = ""  # regular expression: layers whose name, or path in the model, it finds stay as they are
    seed: int = 0
    evaluate: str = HELD_OUT  # text of the perplexities, or PROTOCOL=TEXT; empty for none
    trust_remote_code: bool = False
    stream: bool | None = None  # read both models block by block; None where one is large beside the free memory


@dataclass(frozen=True)
class Plan:
    """A checked run. ``record`` is all that the output's bytes depend on, in plain JSON."""

    model: Model  # the pruned one, which becomes the recovered one
    dense: Model
    options: Recovery
    evaluation: Text | Passages | None
    layers: Sequence[Sequence[Layer]] = field(repr=False)  # [block], those with pruned weights
    batches: Sequence[torch.Tensor] = field(repr=False)  # a sequence each
    types: dict[str, torch.dtype]  # of the saved tensors, by their names in the model's state
    record: dict[str, Any]

    @property
    def device(self) -> str:
        return self.options.device


def make(name: str, options: Recovery, progress: Progress | None = None) -> Plan:
    """Read both models and the texts, and check all that can be checked before the work.

    Raises:
        PruneError, ModelError, TextError, ResourceError: one line, what is wrong.
    """
    if options.epochs < 1 or not 0 < options.rate < np.inf:
        raise PruneError(f"epochs must be 1 or more and rate above 0, not {options.epochs} and {options.rate}")
    if options.unit not in UNITS:
        raise PruneError(f"unit is {' or '.join(UNITS)}, not {options.unit!r}")
    if reason := machine.device_error(options.device):
        raise PruneError(reason)
    text, evaluation = load_text(options.text), plans.evaluation_text(options.evaluate)
    if progress:
        progress(0, None, f"{name}: loading", None)
    model = load_model(name, options.trust_remote_code, options.stream)
    summary = beside.summary_of(name)
    dense = beside.find_dense(name, summary, options.against, options.trust_remote_code, options.stream)
    if dense is None:
        known = f"{summary['model']}, from which it was pruned, is not to be had here" if summary else ""
        raise PruneError(f"{name}: {known or 'not of fwbench prune'}; name the dense model with --against")
    _check_fit(model, dense)
    types = dtypes.choose(model, options.save_dtype)
    found = fingerprint(model)
    rounded = dtypes.cast(model, types)
    skip = options.skip or (summary or {}).get("skip", "")
    label = (summary or {}).get("label") or dense.label  # layers are named as they were when they were pruned
    layers = pruned_layers(model, dense, label, skip)
    plans.check_tied(model, layers, skip)
    length = min(options.length, model.max_length)
    rows = sequences(model.tokenizer, text, options.tokens, length)
    model.check_tokens(rows)
    if len(rows) < 2:
        raise PruneError(f"{text.name}: one sequence of {len(rows[0])} tokens leaves none to hold out; more tokens do")
    batches = batch(rows, 1)
    check_chain(model.network, find_blocks(model.network), batches[0])
    record = {
        "format": FORMAT,
        "fwbench": __version__,
        "label": label,
        "model": dense.source,
        "model_sha256": fingerprint(dense),
        "pruned": model.source,
        "pruned_sha256": found,
        "pattern": summary and summary.get("pattern"),
        "solver": summary and summary.get("solver"),
        "calibration": text.source or text.name,
        "calibration_sha256": text.sha256,
        "tokens": sum(ids.numel() for ids in batches),
        "context_length": length,
        "sequences": len(rows),
        "held_out": len(split(len(rows))[1]),
        "opening": opening_words(model.tokenizer),
        "skip": skip,
        "epochs": options.epochs,
        "rate": options.rate,
        "unit": options.unit,
        "seed": options.seed,
        "device": options.device,
        "save_dtype": dtypes.in_words(model.network, types),
        "config_dtype": dtypes.of_config(model, options.save_dtype, types),
        "rounded": rounded,  # tensors whose numbers that changed
        "evaluation": (evaluation.source or evaluation.name) if evaluation else None,
        "evaluation_sha256": evaluation.sha256 if evaluation else None,
    }
    return Plan(model, dense, options, evaluation, layers, batches, types, record)


def _check_fit(model: Model, dense: Model) -> None:
    """Refuse two models of which one is not the other with zeros."""
    shapes, others = ({n: tuple(p.shape) for n, p in m.network.named_parameters()} for m in (model, dense))
    wrong = [name for name in sorted(shapes.keys() | others.keys()) if shapes.get(name) != others.get(name)]
    if wrong:
        sizes = (" x ".join(map(str, found.get(wrong[0], ()))) or "missing" for found in (shapes, others))
        raise PruneError(
            f"{model.label} is not {dense.label} with weights pruned: {wrong[0]} is {' in it and '.join(sizes)} in the "
            "dense model; --against names the model that it was pruned from"
        )


def pruned_layers(model: Model, dense: Model, label: str, skip: str = "") -> list[list[Layer]]:
    """Linear layers of each block with weights that are zero, and not so in the dense model.

    Args:
        label: begins their names.
        skip: regular expression, see ``chosen_layers``.

    Raises:
        PruneError: there are none.
    """
    paths = {id(module): path for path, module in model.network.named_modules()}
    layers: list[list[Layer]] = [[] for _ in find_blocks(model.network)]
    for name, module in chosen_layers(replace(model, label=label), skip=skip).items():
        layer = Layer(name, f"{paths[id(module)]}.weight", module)
        other = dense.network.get_submodule(paths[id(module)])
        with model.holding(module), dense.holding(other):
            if bool(((layer.weight == 0) & (other.weight != 0)).any()):
                layers[int(name.split(".")[1])].append(layer)
    if not any(layers):
        raise PruneError(
            f"{model.label}: no weight of its linear layers is zero that is not so in {dense.label}, so nothing was "
            "pruned; prune it first: fwbench prune"
        )
    return layers
