"""The plan of a run: everything that its bytes depend on, read and checked before the work begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from fwbench import __version__, machine, patterns, pipeline, protocols
from fwbench.notes import note
from fwbench.patterns import Pattern, PatternError
from fwbench.problem import Problem
from fwbench.problems.extract import batch, chosen_layers, say_left_out, shared_inputs
from fwbench.problems.gram import way_out
from fwbench.problems.models import Model, fingerprint, load_model
from fwbench.problems.structure import FEW, ModelError, find_blocks, left_out, weight_of
from fwbench.problems.text import SEQUENCE, TOKENS, Text, load_text, opening_words, sequences
from fwbench.protocols import Passages
from fwbench.pruning import allocation, dtypes
from fwbench.pruning.errors import PruneError
from fwbench.pruning.linear import Layer
from fwbench.pruning.walk import check_chain

FORMAT = "fwbench-prune-1"
RESIDUAL = 0.3  # where a solver updates weights; masks alone lose more by it than they gain, and have 0
DEFAULT = "fast"  # the preset that solves where no solver is named
CALIBRATION, HELD_OUT = "lee", "lee-heldout"
BATCH = 512  # tokens of a forward pass: a quarter of extraction's, for memory

Progress = Callable[[int, int | None, str, float | None], None]  # done, total, what, seconds left


@dataclass(frozen=True)
class Options:
    """What a person asks for."""

    pattern: str
    spec: str = ""  # empty for DEFAULT
    text: str = CALIBRATION
    tokens: int = TOKENS
    length: int = SEQUENCE  # tokens of a calibration sequence, cut to what the model takes
    shrink: float = 0.0  # of the Grams' correlations towards zero, see fwbench.problem.shrunk
    sequential: bool = True  # each block calibrated with the blocks before it already pruned
    true_sequential: bool | None = None  # and layers with those before them in the block; None: if weights are updated
    correct: float = 0.3  # part of what arrives wrong that each layer makes good (problems.arriving); sequential only
    residual: float | None = None  # of what is wrong in the residual stream, by layers that write to it; see RESIDUAL
    ridge: float = 0.1  # of both parts, relative to the mean diagonal of G
    device: str = "cpu"
    dtype: str = "float32"  # in which solvers compute
    save_dtype: str = "auto"  # of the output, and of what is pruned; auto for each tensor's own
    allocation: str = "uniform"  # of the pattern's zeros to layers and rows, see fwbench.pruning.allocation
    skip: str = ""  # regular expression: layers whose name, or path in the model, it finds stay dense
    time_limit: float = float("inf")  # seconds for each layer
    seed: int = 0
    evaluate: str = HELD_OUT  # text of the perplexities before and after, or PROTOCOL=TEXT; empty for none
    trust_remote_code: bool = False  # run the code that comes with the model
    stream: bool | None = None  # read the model block by block; None where it is large beside the free memory


class Prepared(Protocol):
    """What is measured, told and saved needs no more of a plan than this."""

    @property
    def model(self) -> Model: ...
    @property
    def device(self) -> str: ...
    @property
    def evaluation(self) -> Text | Passages | None: ...
    @property
    def layers(self) -> Sequence[Sequence[Layer]]: ...
    @property
    def types(self) -> Mapping[str, torch.dtype]: ...
    @property
    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """A checked run. ``record`` is all that the output's bytes depend on, in plain JSON."""

    model: Model
    options: Options
    pattern: Pattern
    allocation: allocation.Method | None  # None for the same in every layer
    solver: pipeline.Solver
    text: Text
    evaluation: Text | Passages | None
    layers: Sequence[Sequence[Layer]] = field(repr=False)  # [block]
    batches: Sequence[torch.Tensor] = field(repr=False)
    left_out: Sequence[str]  # parameters that text runs through and nobody prunes, see problems.structure
    types: Mapping[str, torch.dtype]  # of the saved tensors, by their names in the model's state
    record: dict[str, Any]
    allocated: Mapping[str, Pattern] = field(default_factory=dict)  # by layer, where an allocation was made

    @property
    def device(self) -> str:
        return self.options.device

    @property
    def correcting(self) -> bool:
        """Whether layers make good a part of what arrives wrong."""
        return self.options.sequential and (self.options.correct > 0 or self.residual > 0)

    @property
    def residual(self) -> float:
        """Part of what is wrong in the residual stream that layers make good which write to it."""
        return self.options.residual or 0.0

    def pattern_of(self, layer: Layer) -> Pattern:
        """The pattern of a layer: the plan's own, or what the allocation gave it."""
        return self.allocated.get(layer.name, self.pattern)


def make(name: str, options: Options, progress: Progress | None = None) -> Plan:
    """Read the model and the texts, and check all that can be checked before the work.

    Raises:
        PruneError, ModelError, TextError, PatternError, SpecError, ResourceError: one line, what is wrong.
    """
    pattern = patterns.parse(options.pattern)
    method = allocation.parse(options.allocation)
    if reason := allocation.refusal(method, pattern):
        raise PruneError(reason)
    solver = pipeline.resolve(options.spec or DEFAULT)
    if options.residual is None:
        options = replace(options, residual=RESIDUAL if solver.updates_weights else 0.0)
    if options.true_sequential is None:
        options = replace(options, true_sequential=solver.updates_weights)
    _check_parts(options)
    if reason := machine.device_error(options.device):
        raise PruneError(reason)
    text = load_text(options.text)
    evaluation = evaluation_text(options.evaluate)
    if progress:
        progress(0, None, f"{name}: loading", None)
    model = load_model(name, options.trust_remote_code, options.stream)
    if reason := allocation.refusal(method, pattern, streamed=model.stream is not None):
        raise PruneError(reason)
    types = dtypes.choose(model, options.save_dtype)
    found = fingerprint(model)
    rounded = dtypes.cast(model, types)
    layers = _layers(model, options.skip)
    check_tied(model, layers, options.skip)
    _check_layers(model, layers, pattern, solver)
    length = min(options.length, model.max_length)
    rows = sequences(model.tokenizer, text, options.tokens, length)
    model.check_tokens(rows)
    batches = batch(rows, BATCH)
    if missed := left_out(model.network):
        note(f"{model.label}: {say_left_out(missed)}")
    _check_runs(model, layers, batches[0])
    record = {
        "format": FORMAT,
        "fwbench": __version__,
        "label": model.label,
        "model": model.source,
        "model_sha256": found,
        "pattern": str(pattern),
        "allocation": allocation.full(method),
        "allocation_sha256": None,  # of the counts, once they are known
        "solver": solver.text,
        "solver_full": solver.full,
        "calibration": text.source or text.name,
        "calibration_sha256": text.sha256,
        "tokens": sum(ids.numel() for ids in batches),
        "context_length": length,
        "sequences": len(rows),
        "opening": opening_words(model.tokenizer),
        "mode": "sequential" if options.sequential else "one-shot",
        "true_sequential": options.sequential and bool(options.true_sequential),
        "shrink": options.shrink,
        "correct": options.correct if options.sequential else 0.0,
        "residual": options.residual if options.sequential else 0.0,
        "ridge": options.ridge if options.sequential and (options.correct or options.residual) else None,
        "skip": options.skip,
        "time_limit": options.time_limit if np.isfinite(options.time_limit) else None,
        "seed": options.seed,
        "device": options.device,
        "dtype": options.dtype,
        "save_dtype": dtypes.in_words(model.network, types),
        "config_dtype": dtypes.of_config(model, options.save_dtype, types),
        "rounded": rounded,  # tensors whose numbers that changed
        "evaluation": (evaluation.source or evaluation.name) if evaluation else None,
        "evaluation_sha256": evaluation.sha256 if evaluation else None,
    }
    return Plan(model, options, pattern, method, solver, text, evaluation, layers, batches, missed, types, record)


def evaluation_text(name: str) -> Text | Passages | None:
    if protocol := protocols.named(name):
        return protocols.load(*protocol)
    return load_text(name) if name else None


def _check_parts(options: Options) -> None:
    parts = options.correct, options.residual or 0.0
    if not 0 <= options.shrink <= 1:
        raise PruneError(f"shrink must lie between 0 and 1, not {options.shrink}")
    if not all(0 <= part <= 1 for part in parts):
        raise PruneError("correct and residual must lie between 0 and 1, not {}, {}".format(*parts))
    if not 0 < options.ridge < np.inf:
        raise PruneError(f"ridge must lie above 0, not {options.ridge}")


def _layers(model: Model, skip: str) -> list[list[Layer]]:
    paths = {id(module): path for path, module in model.network.named_modules()}
    layers: list[list[Layer]] = [[] for _ in find_blocks(model.network)]
    for name, module in chosen_layers(model, skip=skip).items():
        layers[int(name.split(".")[1])].append(Layer(name, f"{paths[id(module)]}.weight", module))
    return layers


def check_tied(model: Model, layers: Sequence[Sequence[Layer]], skip: str) -> None:
    """Refuse to prune a weight that is used in several places, and what could not be saved; before the work."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.network.named_parameters(remove_duplicate=False):
        places.setdefault(parameter.data_ptr(), []).append(name)
    tied = [key for module in model.network.modules() for key in getattr(module, "_tied_weights_keys", None) or ()]
    for names in places.values():
        unknown = [name for name in names if not any(re.search(key, name) for key in tied)]
        if len(unknown) > 1:
            raise PruneError(
                f"{model.label}: {unknown[0]} and {unknown[1]} are one tensor, which transformers cannot save: the "
                "model's code does not declare it in _tied_weights_keys; declare it there"
            )
    every = {f"{layer.name} {layer.parameter}": layer for block in layers for layer in block}
    used = {place: places[layer.weight.data_ptr()] for place, layer in every.items()}
    if wrong := [place for place, names in used.items() if len(names) > 1]:
        names = used[wrong[0]]
        raise PruneError(
            f"layer {every[wrong[0]].name}: its weight is used in {len(names)} places ({', '.join(names)}), each with "
            f"inputs of its own{way_out(wrong, list(every), skip)}"
        )


def _check_layers(model: Model, layers: Sequence[Sequence[Layer]], pattern: Pattern, solver: pipeline.Solver) -> None:
    """Finite weights, a pattern that fits, a solver that does not decline; before the work, not after it."""
    seen = set()
    for layer in (layer for block in layers for layer in block):
        with model.holding(layer.module):
            W = weight_of(layer.module)
        if not np.isfinite(W).all():
            raise ModelError(f"layer {layer.name} has weights that are not finite")
        if W.shape in seen:
            continue
        seen.add(W.shape)
        try:
            pattern.counts(W.shape)
        except PatternError as error:
            raise PatternError(f"layer {layer.name}: {error}; --skip leaves layers out") from None
        if reason := pipeline.skip_reason(Problem(layer.name, W, np.zeros((W.shape[1],) * 2), pattern), solver):
            raise PruneError(f"layer {layer.name} cannot be pruned: {reason}")


def _check_runs(model: Model, layers: Sequence[Sequence[Layer]], ids: torch.Tensor) -> None:
    """Every layer reads each token once, and the blocks are a chain; before the work, not after it."""
    modules = {layer.name: layer.module for block in layers for layer in block}
    shared_inputs(model.network, modules, ids[:1, :FEW])
    check_chain(model.network, find_blocks(model.network), ids)
