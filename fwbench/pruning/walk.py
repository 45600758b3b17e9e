"""The walk through a model: block by block, each a real forward pass with the arguments the model itself gave it.

The inputs of the first block and the arguments of every block (masks, position embeddings) are caught in the model's
own forward pass, in which the blocks are stubs that do nothing. From then on only one block runs at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fwbench.problems.arriving import Arrived
from fwbench.problems.gram import Recorder
from fwbench.problems.listening import running
from fwbench.problems.models import Model
from fwbench.problems.structure import FEW, ModelError, find_blocks, run_body
from fwbench.pruning.residual import Residual, Writer
from fwbench.pruning.room import Room

CHECK_TOLERANCE = 1e-4  # relative to the largest activation


@dataclass
class Call:
    """How the model calls one block: everything but the hidden states."""

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Walk:
    """Activations on their way through the blocks, one tensor a batch, on the CPU.

    They are ``(sequences, length, hidden)`` in most models; some keep several streams of them.
    """

    network: Any  # of transformers
    blocks: Sequence[nn.Module]
    hidden: list[torch.Tensor]
    calls: list[dict[int, Call]]  # [batch][block]; a block that text does not run through has none
    tokens: list[int]  # of each batch
    device: str = "cpu"
    outputs: Mapping[int, Any] = field(default_factory=dict)  # of each block on a few tokens
    dense: list[torch.Tensor] = field(default_factory=list)  # the dense model's activations, where they are asked for

    def run(self, number: int, activations: Sequence[torch.Tensor] | None = None) -> Iterator[torch.Tensor]:
        """Outputs of a block, batch by batch, on its device; of other activations than its own if they are given."""
        for index in range(len(self.calls)):
            yield self.output(number, index, activations)

    def output(self, number: int, index: int, activations: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """The same of one batch."""
        hidden, calls = (self.hidden if activations is None else activations)[index], self.calls[index]
        if number not in calls:
            return hidden
        inputs = hidden.to(self.device, copy=True)
        with running(self.network):
            return _call(self.blocks[number], inputs, calls[number], self.device)

    @torch.no_grad()
    def advance(self, number: int, activations: Sequence[torch.Tensor] | None = None) -> None:
        """Replace the activations, or others that are given, by the block's outputs."""
        replaced = self.hidden if activations is None else activations
        for held, output in zip(replaced, self.run(number, activations), strict=True):
            held.copy_(output)

    @torch.no_grad()
    def arrived(self, number: int, layers: Mapping[str, nn.Module]) -> Iterator[tuple[list[str], Arrived]]:
        """What arrives at each input, with the names of the layers that read it; activations are advanced.

        The sums are complete on return; each is turned into its matrix, in place, when its turn comes.

        Args:
            number: of the block.
            layers: of this block, by name.

        Raises:
            ModelError: a layer that does not see every token once.
        """
        recorder = Recorder(layers)
        with recorder.recording():
            for index, tokens in enumerate(self.tokens):
                with recorder.passing(tokens):
                    self.hidden[index].copy_(self.output(number, index))
        return recorder.arrived()

    @torch.no_grad()
    def in_sequence(
        self, number: int, layers: Mapping[str, nn.Module], in_turn: bool, adding: Mapping[str, Writer] | None = None
    ) -> Iterator[tuple[list[str], Arrived]]:
        """The same where the blocks before are pruned; dense activations are advanced, the others are not.

        Args:
            number: of the block, which is still dense.
            layers: of this block, by name.
            in_turn: make the sums of an input when the one before has been taken, and the layers that read that pruned.
            adding: those that write to the residual stream, for what is wrong in it; needs dense activations.

        Raises:
            ModelError: a layer that does not see every token once.
        """
        turns = self._inputs(number, layers) if in_turn else [list(layers)]
        changes = self.dense and len(turns) > 1
        weights = [layer.get_parameter("weight") for layer in layers.values()] if changes else []
        dense = {weight: weight.detach().clone() for weight in weights}
        for turn in turns:
            recorder = Recorder({name: layers[name] for name in turn}, last=turn[-1] if in_turn else "")
            residual = Residual(adding or {}, turn)
            with residual.recording(), recorder.recording():  # in this order: the second may end a pass
                for index, tokens in enumerate(self.tokens):
                    if self.dense:
                        last = turn is turns[-1]
                        wrong = self.dense[index] - self.hidden[index] if adding else None
                        with _having(dense), recorder.showing() as recorder.dense, recorder.passing(tokens, last):
                            output = self.output(number, index, self.dense)
                        if last:
                            self.dense[index].copy_(output)
                        residual.wrong = wrong
                    with recorder.passing(tokens):
                        self.output(number, index)
                    residual.end_of_pass(tokens)
            yield from residual.beside(recorder.arrived())

    def _inputs(self, number: int, layers: Mapping[str, nn.Module]) -> list[list[str]]:
        """Layers of a block by what they read, in the order of their calls."""
        recorder = Recorder(layers)
        with recorder.recording(), recorder.showing(), recorder.passing(self.tokens[0]):
            self.output(number, 0)
        return recorder.groups()


@contextlib.contextmanager
def _having(numbers: Mapping[nn.Parameter, torch.Tensor]) -> Iterator[None]:
    """Have parameters hold other numbers in here."""
    own = {parameter: parameter.data for parameter in numbers}
    try:
        for parameter, other in numbers.items():
            parameter.data = other
        yield
    finally:
        for parameter, before in own.items():
            parameter.data = before


def begin(
    network: Any,
    batches: Sequence[torch.Tensor],
    device: str = "cpu",
    room: Room | None = None,
    with_dense: bool = False,
) -> Walk:
    """Activations before the first block, and how the model calls each block.

    Args:
        network: a causal model of transformers, on the CPU.
        batches: token ids, int64 ``(sequences, length)`` each.
        device: on which blocks will run; moving them there is the caller's.
        room: for the activations; None for one of its own, with its files in fwbench's cache.
        with_dense: keep the dense model's activations beside those of the blocks as they are pruned.

    Raises:
        ModelError: the model does more between its blocks than hand on hidden states.
        PruneError: the activations need files, which cannot be written.
    """
    blocks = find_blocks(network)
    outputs = check_chain(network, blocks, batches[0])
    walk = Walk(network, blocks, [], [], [ids.numel() for ids in batches], device, outputs)
    room, shared = room or Room(), _Shared()
    for ids in batches:
        hidden, calls = _catch(network, blocks, ids, outputs)
        walk.hidden.append(room.keep(hidden))
        if with_dense:
            walk.dense.append(room.keep(hidden.clone()))
        walk.calls.append(
            {number: Call(shared.of(call.args), shared.of(dict(call.kwargs))) for number, call in calls.items()}
        )
    return walk


@torch.no_grad()
def _catch(
    network: Any, blocks: Sequence[nn.Module], ids: torch.Tensor, outputs: Mapping[int, Any]
) -> tuple[torch.Tensor, dict[int, Call]]:
    """Run the model with stubs for blocks: the first one's input, and each one's other arguments.

    Args:
        outputs: by block, what it gave in a real pass: the stub gives hidden states in the same wrapping.
    """
    inputs: list[torch.Tensor] = []
    calls: dict[int, Call] = {}

    def stub(number: int) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = _split(args, kwargs)
            inputs.append(hidden)
            calls[number] = call
            return _wrapped(hidden, outputs[number])

        return forward

    with _in_place_of(blocks, {number: stub(number) for number in outputs}):
        run_body(network, ids)
    if len(inputs) != len(outputs):
        raise _no_chain(network, "its blocks do not all run once in every forward pass")
    return inputs[0].clone(), calls


@contextlib.contextmanager
def _in_place_of(blocks: Sequence[nn.Module], forwards: Mapping[int, Callable]) -> Iterator[None]:
    """Have other functions run for some blocks."""
    try:
        for number, forward in forwards.items():
            blocks[number].forward = forward
        yield
    finally:
        for number in forwards:
            blocks[number].__dict__.pop("forward", None)


def by_block(
    model: Model,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    offload: Path | None = None,
) -> Callable[[Sequence[torch.Tensor]], Iterator[contextlib.AbstractContextManager[None]]]:
    """For :func:`fwbench.perplexity.perplexity`: all windows go through one block after the other, each read once.

    A model that is no chain of its blocks runs window by window.

    Args:
        model: whose parameters are streamed.
        device: on which blocks run.
        progress: called with (blocks done, blocks in all, what).
        offload: folder for activations that are large beside the free memory; None for fwbench's cache.
    """

    def through(rows: Sequence[torch.Tensor]) -> Iterator[contextlib.AbstractContextManager[None]]:
        network = model.network
        try:
            walk = begin(network, [ids[None] for ids in rows], device, Room(offload))
        except ModelError:
            yield from (contextlib.nullcontext() for _ in rows)
            return
        for number, block in enumerate(walk.blocks):
            if progress:
                progress(number, len(walk.blocks), f"{model.label}: {len(rows)} windows through block {number}")
            with model.holding(block):
                block.to(device)
                walk.advance(number)
            block.to("cpu")
        with model.holding(*filter(None, (network.get_input_embeddings(), network.get_output_embeddings()))):
            for hidden in walk.hidden:
                yield _in_place_of(
                    walk.blocks, {number: _giving(hidden, like) for number, like in walk.outputs.items()}
                )

    return through


def _giving(hidden: torch.Tensor, like: Any) -> Callable:
    """A block that always gives these hidden states."""
    return lambda *_, **__: _wrapped(hidden, like)


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.Tensor, Call]:
    """Hidden states, and the other arguments."""
    if args:
        return args[0], Call(args[1:], kwargs)
    first = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return kwargs[first], Call((), {key: value for key, value in kwargs.items() if key != first})


def _wrapped(hidden: torch.Tensor, like: Any) -> Any:
    """Hidden states as a block hands them out: alone, or first in a tuple or list; other tensors in it are unknown."""
    if isinstance(like, tuple | list):
        return type(like)([hidden, *(None if isinstance(item, torch.Tensor) else item for item in like[1:])])
    return hidden


def _call(block: nn.Module, hidden: torch.Tensor, call: Call, device: str) -> torch.Tensor:
    output = block(hidden, *_moved(call.args, device), **_moved(dict(call.kwargs), device))
    return output[0] if isinstance(output, tuple | list) else output


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
def check_chain(network: Any, blocks: Sequence[nn.Module], ids: torch.Tensor) -> dict[int, Any]:
    """What each block that runs gives on a few tokens.

    Raises:
        ModelError: the model is not a plain chain of its blocks.
    """
    ids = ids[:1, :FEW]
    inputs: list[tuple[int, Any]] = []
    outputs: dict[int, Any] = {}

    def before(number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = _split(args, kwargs)[0]
            inputs.append((number, hidden.clone() if isinstance(hidden, torch.Tensor) else None))

        return hook

    def after(number: int) -> Callable:
        return lambda module, args, output: outputs.update({number: output})

    handles = [block.register_forward_pre_hook(before(number), with_kwargs=True) for number, block in enumerate(blocks)]
    handles += [block.register_forward_hook(after(number)) for number, block in enumerate(blocks)]
    try:
        run_body(network, ids)
    finally:
        for handle in handles:
            handle.remove()
    order = [number for number, _ in inputs]
    if again := [number for number in outputs if order.count(number) > 1]:
        raise _no_chain(network, f"block {again[0]} runs {order.count(again[0])} times in a forward pass")
    if not order or order != sorted(order):
        raise _no_chain(network, "its blocks are no modules that run one after the other")
    if not _same_inputs(network, blocks, ids, outputs, inputs):
        raise _no_chain(network, "more than hidden states passes between its blocks")
    return outputs


def _no_chain(network: Any, why: str) -> ModelError:
    return ModelError(f"{type(network).__name__}: {why}; it cannot be pruned block by block, but extract takes it")


def _same_inputs(
    network: Any,
    blocks: Sequence[nn.Module],
    ids: torch.Tensor,
    outputs: Mapping[int, Any],
    wanted: Sequence[tuple[int, Any]],
) -> bool:
    """Whether the blocks, called one after the other, get the inputs that the model gives them."""
    try:
        hidden, calls = _catch(network, blocks, ids, outputs)
        for number, own in wanted:
            scale = float(own.abs().max())
            if not np.isfinite(scale):
                return True  # what is not finite is refused where it is found
            if hidden.shape != own.shape or not float((hidden - own).abs().max()) <= CHECK_TOLERANCE * scale:
                return False
            with running(network):
                hidden = _call(blocks[number], hidden, calls[number], "cpu")
    except Exception:  # the model, or a block, misses what the stubs do not hand on: each says so in its own way
        return False
    return True
