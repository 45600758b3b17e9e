"""The walk through a model: block by block, each a real forward pass with the arguments the model itself gave it.

The inputs of the first block and the arguments of every block (masks, position embeddings) are caught in the model's
own forward pass, in which the blocks are stubs that do nothing. From then on only one block runs at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from fwbench.problems.extract import GramSum
from fwbench.problems.models import ModelError, find_blocks

CHECK_TOKENS = 8  # of the check that the model is a plain chain of blocks
CHECK_TOLERANCE = 1e-4  # relative to the largest activation
RESIDENT = 0.25  # of the free memory: activations that need more lie in files, which the system pages in and out


@dataclass
class Call:
    """How the model calls one block: everything but the hidden states."""

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tuple_output: bool = False


@dataclass
class Walk:
    """Activations on their way through the blocks, one tensor ``(sequences, length, hidden)`` a batch, on the CPU."""

    blocks: Sequence[nn.Module]
    hidden: list[torch.Tensor]
    calls: list[list[Call]]  # [batch][block]
    device: str = "cpu"

    def run(self, number: int) -> Iterator[torch.Tensor]:
        """Outputs of a block, batch by batch, on its device."""
        for hidden, calls in zip(self.hidden, self.calls, strict=True):
            yield _call(self.blocks[number], hidden.to(self.device), calls[number], self.device)

    @torch.no_grad()
    def advance(self, number: int) -> None:
        """Replace the activations by the block's outputs."""
        for index, output in enumerate(self.run(number)):
            self.hidden[index].copy_(output)

    @torch.no_grad()
    def grams(
        self, number: int, layers: Mapping[str, nn.Module], keep_outputs: bool
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Gram matrix, float64 ``(n, n)``, of each input, with the names of the layers that read it.

        The sums are complete on return; each is turned into its matrix, in place, when its turn comes.

        Args:
            number: of the block.
            layers: of this block, by name.
            keep_outputs: replace the activations by the outputs, as :meth:`advance` does.

        Raises:
            ModelError: a layer that does not see every token once.
        """
        recorder = _Recorder(layers)
        tokens = 0
        with recorder.recording():
            for index, output in enumerate(self.run(number)):
                tokens += self.hidden[index].shape[0] * self.hidden[index].shape[1]
                recorder.end_of_batch(tokens)
                if keep_outputs:
                    self.hidden[index].copy_(output)
        return recorder.grams()


def begin(network: Any, batches: Sequence[torch.Tensor], device: str = "cpu", offload: Path | None = None) -> Walk:
    """Activations before the first block, and how the model calls each block.

    Args:
        network: a causal model of transformers, on the CPU.
        batches: token ids, int64 ``(sequences, length)`` each.
        device: on which blocks will run; moving them there is the caller's.
        offload: folder for the activations if they are large beside the free memory.

    Raises:
        ModelError: the model does more between its blocks than hand on hidden states.
        OSError: no room in ``offload``.
    """
    blocks = find_blocks(network)
    tuples = _check_chain(network, blocks, batches[0][:1, :CHECK_TOKENS])
    walk = Walk(blocks, [], [], device)
    shared = _Shared()
    for ids in batches:
        hidden, calls = _catch(network, blocks, ids, tuples)
        if not walk.hidden:
            needed = sum(ids.numel() for ids in batches) * hidden.shape[-1] * hidden.itemsize
            large = needed > RESIDENT * psutil.virtual_memory().available
        if offload is not None and large:
            hidden = _in_file(hidden, offload / f"{len(walk.hidden):05}")
        walk.hidden.append(hidden)
        walk.calls.append(
            [Call(shared.of(call.args), shared.of(dict(call.kwargs)), call.tuple_output) for call in calls]
        )
    return walk


def _in_file(hidden: torch.Tensor, path: Path) -> torch.Tensor:
    """The same tensor, in a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # room first: a full disk is an error here, and a crash in mapped memory
        if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
            os.posix_fallocate(file.fileno(), 0, hidden.nbytes)
    mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
    return mapped.view(hidden.shape).copy_(hidden)


@torch.no_grad()
def _catch(
    network: Any, blocks: Sequence[nn.Module], ids: torch.Tensor, tuples: Sequence[bool]
) -> tuple[torch.Tensor, list[Call]]:
    """Run the model with stubs for blocks: the first one's input, and each one's other arguments."""
    seen: list[tuple[torch.Tensor, Call]] = []

    def stub(as_tuple: bool) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, rest, named = _split(args, kwargs)
            seen.append((hidden, Call(rest, named, as_tuple)))
            return (hidden,) if as_tuple else hidden

        return forward

    try:
        for block, as_tuple in zip(blocks, tuples, strict=True):
            block.forward = stub(as_tuple)  # type: ignore[method-assign]
        network.base_model(input_ids=ids, use_cache=False)
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
    return seen[0][0].clone(), [call for _, call in seen]


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple, dict[str, Any]]:
    """Hidden states, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _call(block: nn.Module, hidden: torch.Tensor, call: Call, device: str) -> torch.Tensor:
    output = block(hidden, *_moved(call.args, device), **_moved(dict(call.kwargs), device))
    return output[0] if call.tuple_output else output


def _moved(item: Any, device: str) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device)
    if isinstance(item, tuple | list):
        return type(item)(_moved(value, device) for value in item)
    if isinstance(item, dict):
        return {key: _moved(value, device) for key, value in item.items()}
    return item


class _Shared:
    """One tensor in place of many equal ones: masks and position embeddings repeat from batch to batch."""

    def __init__(self) -> None:
        self.known: dict[tuple, list[torch.Tensor]] = {}

    def of(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            same = self.known.setdefault((item.shape, item.dtype), [])
            for known in same:
                if known is item or torch.equal(known, item):
                    return known
            same.append(item)
            return item
        if isinstance(item, tuple | list):
            return type(item)(self.of(value) for value in item)
        if isinstance(item, dict):
            return {key: self.of(value) for key, value in item.items()}
        return item


@torch.no_grad()
def _check_chain(network: Any, blocks: Sequence[nn.Module], ids: torch.Tensor) -> list[bool]:
    """Whether each block returns a tuple; refuses a model that is not a plain chain of its blocks."""
    inputs: list[torch.Tensor] = []
    outputs: list[Any] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(_split(args, kwargs)[0].clone())

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        outputs.append(output)

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        network.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    tuples = [isinstance(output, tuple) for output in outputs]
    if len(inputs) != len(blocks) or not _same_inputs(network, blocks, ids, tuples, inputs):
        raise ModelError(
            f"{type(network).__name__}: more than hidden states passes between its blocks; "
            "it cannot be pruned block by block"
        )
    return tuples


def _same_inputs(
    network: Any,
    blocks: Sequence[nn.Module],
    ids: torch.Tensor,
    tuples: Sequence[bool],
    wanted: Sequence[torch.Tensor],
) -> bool:
    """Whether the blocks, called one after the other, get the inputs that the model gives them."""
    hidden, calls = _catch(network, blocks, ids, tuples)
    for own, block, call in zip(wanted, blocks, calls, strict=True):
        scale = float(own.abs().max())
        if not np.isfinite(scale):
            return True  # what is not finite is refused where it is found
        if hidden.shape != own.shape or not float((hidden - own).abs().max()) <= CHECK_TOLERANCE * scale:
            return False
        hidden = _call(block, hidden, call, "cpu")
    return True


@dataclass
class _Recorder:
    """Adds up the Gram matrices of a block's layers; which layers share a tensor is seen in the first batch."""

    layers: Mapping[str, nn.Module]
    leaders: dict[str, str] = field(default_factory=dict)  # layer -> the one whose sum it shares
    sums: dict[str, GramSum] = field(default_factory=dict)
    seen: list[tuple[tuple, torch.Tensor, str]] = field(default_factory=list)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            X = args[0]
            if name not in self.leaders:
                # a reshaped view is the same input; one that was written to in between is not
                key = (X.data_ptr(), X.numel(), X.shape[-1], X.stride(), X._version)
                self.leaders[name] = next((other for known, _, other in self.seen if known == key), name)
                self.seen.append((key, X, name))  # holds the tensor, so that no address is used twice
            if self.leaders[name] == name:
                self.sums.setdefault(name, GramSum(name)).add(X)

        return hook

    def end_of_batch(self, tokens: int) -> None:
        """Check that every layer has seen every token so far."""
        self.seen.clear()
        for name in self.layers:
            if name not in self.leaders or self.sums[self.leaders[name]].tokens != tokens:
                raise ModelError(f"layer {name} does not see every token once")

    def grams(self) -> Iterator[tuple[list[str], np.ndarray]]:
        for leader in list(self.sums):
            yield [name for name in self.layers if self.leaders[name] == leader], self.sums.pop(leader).gram()
