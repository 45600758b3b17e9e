"""Extraction: a model and a text give the Gram matrix of each layer's input, and with it the problems.

Layers that read the same tensor (q, k and v; gate and up) share one Gram; which do is seen in a forward pass, not
guessed from names. The text streams through in batches; inputs are folded into the sums and dropped.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fwbench.notes import note
from fwbench.patterns import Pattern, parse
from fwbench.problem import Problem
from fwbench.problems.arriving import Arrived
from fwbench.problems.gram import Recorder
from fwbench.problems.models import Model
from fwbench.problems.structure import FEW, ModelError, find_blocks, find_layers, left_out, outside, weight_of
from fwbench.problems.text import EXTRACTION, SEQUENCE, TOKENS, Text, opening_words, sequences

BATCH = 2048  # tokens; with more the products slow down, with fewer the forward pass

Progress = Callable[[int, int, str], None]  # done, total, what


def extract(
    model: Model,
    text: Text,
    blocks: Sequence[int] | None = None,
    tokens: int = TOKENS,
    pattern: Pattern | str = "0.5",
    progress: Progress | None = None,
    select: Callable[[str], bool] = lambda name: True,
    length: int = SEQUENCE,
    layers: str = "",
    skip: str = "",
    against: Model | None = None,
) -> Iterator[Problem]:
    """Extract problems, in the order of the model's layers.

    Beside a dense model, a layer's weights are the dense ones, its inputs those that arrive in ``model``, which was
    pruned, and its target is the dense layer's output (``problems.arriving``).

    Args:
        model: with its tokenizer.
        text: to calibrate on.
        blocks: numbers of decoder blocks, from 0; None for all.
        tokens: of calibration; a shorter text gives fewer, and ``meta["tokens"]`` says how many.
        pattern: of the problems.
        progress: called with (tokens done, tokens in all, what).
        select: of the problems' names (``smollm2.07.gate_proj``), those wanted.
        length: tokens of a sequence, cut to what the model takes.
        layers, skip: regular expressions, see :func:`chosen_layers`.
        against: the dense model that ``model`` was made from.

    Raises:
        ModelError: no such block or layer, or layers that are not plain matrices; ``against`` is another model.
        TextError: a text shorter than one sequence.
        PatternError: the pattern does not fit a layer.
        ProblemError: the model's activations are not finite.
    """
    pattern = parse(pattern)
    chosen = {name: layer for name, layer in chosen_layers(model, blocks, layers, skip).items() if select(name)}
    if not chosen:
        return
    for layer in chosen.values():
        pattern.counts(weight_of(layer).shape)  # before the work, not after it
    length = min(length, model.max_length)
    rows = sequences(model.tokenizer, text, tokens, length)
    model.check_tokens(rows)
    batches = batch(rows)
    begin = " ".join(opening_words(model.tokenizer))
    if missed := left_out(model.network):
        note(f"{model.label}: {say_left_out(missed)}")
    beside = _beside(model, chosen, against, rows) if against else None
    found = sum(ids.numel() for ids in batches)
    what = f"{model.label}: calibrating {len(chosen)} layers"
    tell = (lambda done: progress(done, found, what)) if progress else None
    sums = arriving(model.network, chosen, batches, tell, beside)
    meta = {
        "model": model.label,
        "calibration": f"{text.name} sha256:{text.sha256} first {found} tokens in sequences of {length}"
        + (f", each begun with {begin}" if begin else ""),
        "tokens": str(found),
        "license": model.license,
        "source": f"model {model.source}; text {text.source or text.name}; fwbench extraction {EXTRACTION}",
    }
    if against:
        meta["target"] = f"output of the dense model {against.source}"
    for name, layer in chosen.items():
        arrived, own = sums.pop(name), beside[1][name] if beside else layer
        with (against or model).holding(own):
            W = weight_of(own)
        more = {**meta, "layer": name.partition(".")[2]}
        target = arrived.target(W, 1.0)
        yield Problem(name, W, arrived.G, pattern, more, T=target.T, offset=target.offset)


def _beside(
    model: Model, chosen: Mapping[str, nn.Module], against: Model, rows: Sequence[Sequence[int]]
) -> tuple[Any, dict[str, nn.Module]]:
    """The dense model's network, and its layers by the names of the other's. Raises ModelError if they differ."""
    against.check_tokens(rows)
    theirs = {name.removeprefix(f"{against.label}."): layer for name, layer in named_layers(against).items()}
    found = {}
    for name, layer in chosen.items():
        other = theirs.get(name.removeprefix(f"{model.label}."))
        if other is None or weight_of(other).shape != weight_of(layer).shape:
            raise ModelError(
                f"{against.label} is not the dense model of {model.label}: "
                f"{'it has no' if other is None else 'another shape has its'} {name.removeprefix(f'{model.label}.')}"
            )
        found[name] = other
    return against.network, found


def named_layers(model: Model, blocks: Sequence[int] | None = None, skip: str = "") -> dict[str, nn.Module]:
    """Linear layers of the blocks asked for (None = all) by problem name, ``LABEL.BLOCK.LAYER``. Raises ModelError.

    ``skip`` finds weights that are no linear layer's and stay dense, see ``find_layers``.
    """
    paths = {id(module): path for path, module in model.network.named_modules()}
    every = find_blocks(model.network)
    digits = max(2, len(str(len(every) - 1)))
    chosen = range(len(every)) if blocks is None else sorted(set(blocks))
    if wrong := [block for block in chosen if not 0 <= block < len(every)]:
        raise ModelError(f"{model.label}: no block {wrong[0]}; its blocks are 0..{len(every) - 1}")
    return {
        f"{model.label}.{block:0{digits}}.{name}": layer
        for block in chosen
        for name, layer in find_layers(every[block], skip, f"{paths.get(id(every[block]), '')}.").items()
    }


def chosen_layers(
    model: Model, blocks: Sequence[int] | None = None, layers: str = "", skip: str = ""
) -> dict[str, nn.Module]:
    """The layers of :func:`named_layers` that two regular expressions leave.

    Args:
        model, blocks: as for :func:`named_layers`.
        layers: only those whose name, or path in the model, it finds; empty for all.
        skip: none of those whose name, or path in the model, it finds.

    Raises:
        ModelError: an expression that is none, that finds no layer, or both leave none.
    """
    for option, expression in (("--layers", layers), ("--skip", skip)):
        try:
            re.compile(expression)
        except re.error as error:
            raise ModelError(f"{option} {expression!r} is not a regular expression ({error})") from None
    every = named_layers(model, blocks, skip)
    paths = {id(module): f"{path}.weight" for path, module in model.network.named_modules()}
    others = [path for block in find_blocks(model.network) for path, _, _ in outside(block)] if skip else []

    def in_name(expression: str, name: str) -> bool:  # a match in the model's label alone says nothing of a layer
        return any(match.end() > len(model.label) for match in re.finditer(expression, name))

    def found(option: str, expression: str) -> set[str]:
        search = re.compile(expression).search
        names = {name for name, layer in every.items() if in_name(expression, name) or search(paths[id(layer)])}
        if not names and not (option == "--skip" and any(map(search, others))):
            name, layer = next(iter(every.items()))
            raise ModelError(
                f"{model.label}: {option} {expression!r} finds no layer; one is {name}, in the model "
                f"{paths[id(layer)]} (embeddings, head and norms stay dense anyway)"
            )
        return names

    names = (found("--layers", layers) if layers else set(every)) - (found("--skip", skip) if skip else set())
    if every and not names:
        raise ModelError(f"{model.label}: --skip {skip!r} leaves no layer{' of --layers' if layers else ' to prune'}")
    return {name: layer for name, layer in every.items() if name in names}


def say_left_out(names: Sequence[str]) -> str:
    """One line about what is neither extracted nor pruned, see :func:`fwbench.problems.structure.left_out`."""
    count, first = ("1 weight", "") if len(names) == 1 else (f"{len(names)} weights", "the first is ")
    return f"left out, besides embeddings and head: {count} that text runs through, {first}{names[0]}"


def batch(ids: Sequence[Sequence[int]], tokens: int = BATCH) -> list[torch.Tensor]:
    """Stack sequences of equal length to batches int64 ``(sequences, length)`` of about ``tokens`` tokens."""
    batches: list[torch.Tensor] = []
    pending: list[Sequence[int]] = []
    for item in ids:
        if pending and (len(item) != len(pending[0]) or (len(pending) + 1) * len(item) > tokens):
            batches.append(torch.tensor(pending))
            pending = []
        pending.append(item)
    return [*batches, torch.tensor(pending)] if pending else batches


def grams(
    network: Any,
    layers: Mapping[str, nn.Module],
    batches: Sequence[torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Gram matrix ``X Xᵀ / tokens`` of each layer's input, float64 ``(n, n)``; layers of one input share the array.

    See :func:`arriving`, of which it is a part.
    """
    return {name: arrived.G for name, arrived in arriving(network, layers, batches, progress).items()}


def arriving(
    network: Any,
    layers: Mapping[str, nn.Module],
    batches: Sequence[torch.Tensor],
    progress: Callable[[int], None] | None = None,
    beside: tuple[Any, Mapping[str, nn.Module]] | None = None,
) -> dict[str, Arrived]:
    """What arrives at each layer; layers of one input share it.

    The forward pass ends at the last layer asked for. Memory: one batch and the sums.

    Args:
        network: a model of transformers in evaluation mode.
        layers: modules of it by name.
        batches: token ids, int64 ``(sequences, length)`` each.
        progress: called with the tokens done after each batch.
        beside: the dense network, and its layers by the same names.

    Raises:
        ModelError: a layer that does not run exactly once in a forward pass, or not on every token.
    """
    few, done = batches[0][:1, :FEW], 0
    recorder = Recorder(layers, network, exact=True)
    dense = Recorder(beside[1], beside[0]) if beside else None
    with recorder.recording(), dense.recording() if dense else contextlib.nullcontext():
        recorder.look(network, few)
        if dense and beside:
            dense.look(beside[0], few)
            if dense.groups() != recorder.groups():
                raise ModelError("the dense model's layers share other inputs than the pruned one's")
        for ids in batches:
            if dense and beside:
                with dense.showing() as recorder.dense:
                    dense.add(beside[0], ids)
            recorder.add(network, ids)
            done += ids.numel()
            if progress:
                progress(done)
    result = {name: arrived for names, arrived in recorder.arrived() for name in names}
    return {name: result[name] for name in layers}


def shared_inputs(network: Any, layers: Mapping[str, nn.Module], ids: torch.Tensor) -> list[list[str]]:
    """Group layers that read the very same tensor, in the order in which a forward pass reaches the groups.

    Args:
        network, layers: as for :func:`grams`.
        ids: any few tokens, int64 ``(sequences, length)``.

    Raises:
        ModelError: as for :func:`grams`.
    """
    recorder = Recorder(layers, network)
    with recorder.recording():
        recorder.look(network, ids)
    return recorder.groups()
