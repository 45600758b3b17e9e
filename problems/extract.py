"""Extraction: a model and a text give the Gram matrix of each layer's input, and with it the problems.

Layers that read the same tensor (q, k and v; gate and up) share one Gram; which do is seen in a forward pass, not
guessed from names. The text streams through in batches; inputs are folded into the sums and dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fwbench.patterns import Pattern, parse
from fwbench.problem import Problem
from fwbench.problems.models import Model, ModelError, find_blocks, find_layers, weight_of
from fwbench.problems.text import EXTRACTION, SEQUENCE, TOKENS, Text, opening_words, sequences

BATCH = 2048  # tokens; with more the products slow down, with fewer the forward pass
PANEL = 256  # columns of one product

Progress = Callable[[int, int, str], None]  # done, total, what


class _Enough(Exception):
    """Ends a forward pass: no later layer is wanted."""


def extract(
    model: Model,
    text: Text,
    blocks: Sequence[int] | None = None,
    tokens: int = TOKENS,
    pattern: Pattern | str = "0.5",
    progress: Progress | None = None,
    select: Callable[[str], bool] = lambda name: True,
    length: int = SEQUENCE,
) -> Iterator[Problem]:
    """Extract problems, in the order of the model's layers.

    Args:
        model: with its tokenizer.
        text: to calibrate on.
        blocks: numbers of decoder blocks, from 0; None for all.
        tokens: of calibration; a shorter text gives fewer, and ``meta["tokens"]`` says how many.
        pattern: of the problems.
        progress: called with (tokens done, tokens in all, what).
        select: of the problems' names (``smollm2.07.gate_proj``), those wanted.
        length: tokens of a sequence, cut to what the model takes.

    Raises:
        ModelError: no such block, or layers that are not plain matrices.
        TextError: a text shorter than one sequence.
        PatternError: the pattern does not fit a layer.
        ProblemError: the model's activations are not finite.
    """
    pattern = parse(pattern)
    layers = {name: layer for name, layer in named_layers(model, blocks).items() if select(name)}
    if not layers:
        return
    for layer in layers.values():
        pattern.counts(weight_of(layer).shape)  # before the work, not after it
    length = min(length, model.max_length)
    rows = sequences(model.tokenizer, text, tokens, length)
    model.check_tokens(rows)
    batches = batch(rows)
    begin = " ".join(opening_words(model.tokenizer))
    found = sum(ids.numel() for ids in batches)
    what = f"{model.label}: calibrating {len(layers)} layers"
    sums = grams(model.network, layers, batches, (lambda done: progress(done, found, what)) if progress else None)
    meta = {
        "model": model.label,
        "calibration": f"{text.name} sha256:{text.sha256} first {found} tokens in sequences of {length}"
        + (f", each begun with {begin}" if begin else ""),
        "tokens": str(found),
        "license": model.license,
        "source": f"model {model.source}; text {text.source or text.name}; fwbench extraction {EXTRACTION}",
    }
    for name, layer in layers.items():
        yield Problem(name, weight_of(layer), sums.pop(name), pattern, {**meta, "layer": name.partition(".")[2]})


def named_layers(model: Model, blocks: Sequence[int] | None = None) -> dict[str, nn.Module]:
    """Linear layers of the blocks asked for (None = all) by problem name, ``LABEL.BLOCK.LAYER``. Raises ModelError."""
    every = find_blocks(model.network)
    digits = max(2, len(str(len(every) - 1)))
    chosen = range(len(every)) if blocks is None else sorted(set(blocks))
    if wrong := [block for block in chosen if not 0 <= block < len(every)]:
        raise ModelError(f"{model.label}: no block {wrong[0]}; its blocks are 0..{len(every) - 1}")
    return {
        f"{model.label}.{block:0{digits}}.{name}": layer
        for block in chosen
        for name, layer in find_layers(every[block]).items()
    }


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

    The forward pass ends at the last layer asked for. Memory: one batch and the sums.

    Args:
        network: a model of transformers in evaluation mode.
        layers: modules of it by name.
        batches: token ids, int64 ``(sequences, length)`` each.
        progress: called with the tokens done after each batch.

    Raises:
        ModelError: a layer that does not run exactly once in a forward pass, or not on every token.
    """
    inputs = shared_inputs(network, layers, batches[0][:1, :8])
    sums = [GramSum(names[0]) for names in inputs]
    handles = [
        layers[names[0]].register_forward_pre_hook(_adder(item, last=item is sums[-1]))
        for names, item in zip(inputs, sums, strict=True)
    ]
    done = 0
    try:
        for ids in batches:
            _forward(network, ids)
            done += ids.numel()
            if wrong := [item.name for item in sums if item.tokens != done]:
                raise ModelError(f"layer {wrong[0]} does not see every token once")
            if progress:
                progress(done)
    finally:
        for handle in handles:
            handle.remove()
    result: dict[str, np.ndarray] = {}
    for names, item in zip(inputs, sums, strict=True):
        result |= dict.fromkeys(names, item.gram())
    return {name: result[name] for name in layers}


def shared_inputs(network: Any, layers: Mapping[str, nn.Module], ids: torch.Tensor) -> list[list[str]]:
    """Group layers that read the very same tensor, in the order in which a forward pass reaches the groups.

    Args:
        network, layers: as for :func:`grams`.
        ids: any few tokens, int64 ``(sequences, length)``.

    Raises:
        ModelError: a layer runs more than once in a forward pass, or not at all.
    """
    seen: list[tuple[str, torch.Tensor]] = []  # holds the tensors, so that no address is used twice
    versions: list[tuple] = []

    def look(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            seen.append((name, args[0]))
            # a reshaped view is the same input; one that was written to in between is not
            versions.append(
                (args[0].data_ptr(), args[0].numel(), args[0].shape[-1], args[0].stride(), args[0]._version)
            )

        return hook

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        _forward(network, ids)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple, list[str]] = {}
    for (name, _), version in zip(seen, versions, strict=True):
        groups.setdefault(version, []).append(name)
    names = [name for name, _ in seen]
    for name in layers:
        if names.count(name) != 1:
            raise ModelError(f"layer {name} runs {names.count(name)} times in a forward pass, not once")
    return list(groups.values())


@dataclass
class GramSum:
    """``X Xᵀ`` so far, float64, the lower triangle only."""

    name: str  # of a layer that reads this input
    tokens: int = 0
    lower: torch.Tensor | None = None

    def add(self, X: torch.Tensor) -> None:
        # float64 products: G is then positive semidefinite to 1e-15, and a proof loses nothing. By panels of the
        # lower triangle they cost 1.5 times the full float32 product and no second thread pool beside torch's;
        # scipy's dsyrk took 1.7 to 2.1 times (its threads and torch's fight), a full float64 product 2.3 times.
        X = X.reshape(-1, X.shape[-1]).double()
        n = X.shape[1]
        if self.lower is None:
            self.lower = torch.zeros(n, n, dtype=torch.float64, device=X.device)
        for start in range(0, n, PANEL):
            end = min(start + PANEL, n)
            self.lower[start:, start:end].addmm_(X[:, start:].T, X[:, start:end])
        self.tokens += X.shape[0]

    def gram(self) -> np.ndarray:
        """The Gram matrix, float64 ``(n, n)``; the sum is given up for it, in place: of a wide layer it is large."""
        assert self.lower is not None
        lower, self.lower = self.lower.cpu().div_(self.tokens), None
        n = len(lower)
        for start in range(0, n, PANEL):
            end = min(start + PANEL, n)
            lower[start:end, end:] = lower[end:, start:end].T
            corner = lower[start:end, start:end].tril()
            lower[start:end, start:end] = corner + corner.tril(-1).T
        return lower.numpy()


def _adder(item: GramSum, last: bool) -> Callable:
    def hook(module: nn.Module, args: tuple) -> None:
        item.add(args[0])
        if last:
            raise _Enough

    return hook


@torch.no_grad()
def _forward(network: Any, ids: torch.Tensor) -> None:
    """Run the decoder without its head; ends early where a hook has seen enough."""
    device = next(network.parameters()).device
    with contextlib.suppress(_Enough):
        network.base_model(input_ids=ids.to(device), use_cache=False)
