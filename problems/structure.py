"""Networks: decoder blocks and the linear layers in them, found by structure and by what runs on text.

The blocks are the items of the outermost ``ModuleList``s with linear layers; where a network has several such lists, a
forward pass on a few tokens tells which of them text runs through. The layers are the ``nn.Linear`` and ``Conv1D``
modules in a block. Embeddings and head lie outside.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fwbench.problems.listening import running

with warnings.catch_warnings():  # what transformers' own imports deprecate is not ours to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

FEW = 8  # tokens that show what runs
OUTSIDE = 1 / 3  # of a block's weights outside of linear layers: with more, its linear layers are not the model
LENGTHS = (  # names under which configurations say the longest sequence
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
    "n_ctx",
)


class ModelError(ValueError):
    """A model that cannot be used; the message is one line."""


def longest(network: Any) -> int:
    """Longest sequence, in tokens, that a network takes; 2^30 where nothing limits it."""
    config = network.config.get_text_config(decoder=True)
    stated = (getattr(config, name, None) for name in LENGTHS)
    limits = [value for value in stated if isinstance(value, int) and value > 0][:1]
    tables = {
        id(module.weight): module
        for path, module in network.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and "position" in path.split(".")[-1]
    }
    if tables:  # positions begin behind the padding's, and some models look further than the last token (ProphetNet)
        for table, beyond in _beyond(network, tables).items():
            limits.append(tables[table].num_embeddings - max(beyond, (tables[table].padding_idx or 0) + 1))
    return min(limits, default=1 << 30)


class _Lookups(TorchFunctionMode):
    """Keeps the highest index looked up in each embedding's weight, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.highest: dict[int, int] = {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function is nn.functional.embedding:
            weight = id(args[1])
            self.highest[weight] = max(self.highest.get(weight, 0), int(args[0].max()))
        return function(*args, **(kwargs or {}))


def _beyond(network: Any, tables: Container[int]) -> dict[int, int]:
    """How far beyond the number of tokens a pass looks into each of some tables that it looks into at all.

    Raises:
        ModelError: a forward pass on text fails.
    """
    ids = few_tokens(network)
    with _Lookups() as lookups:
        run_body(network, ids)
    return {table: index + 1 - ids.numel() for table, index in lookups.highest.items() if table in tables}


def body_of(network: Any) -> Any:
    """The part of a causal model that makes hidden states, which the head reads; the model itself if it has none."""
    bodies = [child for child in network.children() if isinstance(child, PreTrainedModel)]
    return bodies[0] if len(bodies) == 1 else network


@contextlib.contextmanager
def on_text(network: Any, ids: torch.Tensor) -> Iterator[None]:
    """A forward pass that gets nothing but token ids: what it says becomes notes, what it raises a ModelError."""
    try:
        with running(network):
            yield
    except ModelError:
        raise
    except Exception as error:  # each model raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{type(network).__name__}: a forward pass on {ids.shape[-1]} tokens and nothing else fails ({reason})"
        ) from error


@torch.no_grad()
def run_body(network: Any, ids: torch.Tensor) -> None:
    """A forward pass without the head on token ids, int64 ``(sequences, length)``. Raises ModelError if it fails."""
    with on_text(network, ids):
        body_of(network)(input_ids=ids.to(next(network.parameters()).device), use_cache=False)


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Decoder blocks that text runs through, in order.

    Lists whose items take turns give each block an item: such a block is a ``ModuleDict`` of them, and no layer itself.

    Raises:
        ModelError: there are none, or a forward pass on text fails.
    """
    lists = {path: items for path, items in outermost_lists(network) if _holds_blocks(items)}
    groups = [[path] for path in lists] if len(lists) < 2 else _stacks(lists, runs(network))
    if not groups:
        raise ModelError(f"{type(network).__name__}: no decoder blocks with linear layers found")
    return [
        lists[group[0]][index]
        if len(group) == 1
        else nn.ModuleDict({path.replace(".", "_"): lists[path][index] for path in group})
        for group in groups
        for index in range(len(lists[group[0]]))
    ]


def find_layers(block: nn.Module, skip: str = "", prefix: str = "") -> dict[str, nn.Module]:
    """Linear layers of a block by name, in the order of definition.

    The name is the last part of the module's path, or the whole path where two layers end alike (GPT-2's ``c_proj``).

    Args:
        skip: regular expression: weights outside of linear layers whose path it finds are known to stay dense.
        prefix: of the block's paths in the model.

    Raises:
        ModelError: quantised weights, or most weights outside of linear layers as in a mixture of experts.
    """
    paths = {}
    for path, module in block.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear | Conv1D):
            if not module.weight.is_floating_point() or module.weight.ndim != 2:
                raise ModelError(f"layer {path} ({kind}) is quantised; load the model unquantised")
            paths[path] = module
        elif hasattr(module, "qweight"):
            raise ModelError(f"layer {path} ({kind}) is quantised; load the model unquantised")
    _check_outside(block, sum(layer.weight.numel() for layer in paths.values()), skip, prefix)
    ends = [path.rpartition(".")[2] for path in paths]
    return {end if ends.count(end) == 1 else path: paths[path] for path, end in zip(paths, ends, strict=True)}


def left_out(network: Any) -> list[str]:
    """Parameters that text runs through and that are no linear layer's of a block, embeddings and head aside.

    Raises:
        ModelError: no blocks, or a forward pass on text fails.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    blocks, ran = find_blocks(network), runs(network)
    inside = {paths[id(layer)] for block in blocks for layer in block.modules() if id(layer) in paths}
    head = paths.get(id(network.get_output_embeddings()))
    found = [f"{path}.weight" for path in ran if path not in inside and path != head]
    for block in blocks:
        if any(paths.get(id(layer)) in ran for layer in block.modules()):
            found += [names[id(parameter)] for _, _, parameter in outside(block) if id(parameter) in names]
    return found


@torch.no_grad()
def runs(network: Any) -> list[str]:
    """Paths of the linear layers that text runs through, in the order of their first calls.

    Raises:
        ModelError: a forward pass on text fails.
    """
    seen: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: seen.setdefault(path))
        for path, module in network.named_modules()
        if _prunable(module)
    ]
    ids = few_tokens(network)
    try:
        with on_text(network, ids):
            network(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen)


def few_tokens(network: Any) -> torch.Tensor:
    """A few tokens that every model knows, int64 ``(1, 8)``, on the network's device; the first are often special."""
    weight = network.get_input_embeddings().weight
    return (torch.arange(3, 3 + FEW, device=weight.device) % len(weight))[None]


def weight_of(layer: nn.Module) -> np.ndarray:
    """Weights of a layer, float32 ``(rows, n)``, one row per output; ``Conv1D`` stores them transposed."""
    weight: torch.Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, Conv1D):
        weight = weight.T
    return weight.to("cpu", torch.float32).numpy()


def outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Path and items of each ``ModuleList`` that lies in no other."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + name, child
        else:
            yield from outermost_lists(child, f"{prefix}{name}.")


def _holds_blocks(items: nn.ModuleList) -> bool:
    """Whether something of a list could be pruned, quantised layers too; single layers side by side are no blocks."""
    if all(isinstance(item, nn.Linear | Conv1D) for item in items):
        return False
    return any(map(_prunable, items.modules()))


def _prunable(module: nn.Module) -> bool:
    """Whether a module is a linear layer; quantised ones count, so that their refusal names them."""
    return isinstance(module, nn.Linear | Conv1D) or hasattr(module, "qweight")


def _stacks(lists: dict[str, nn.ModuleList], ran: list[str]) -> list[list[str]]:
    """Paths of the lists that run, in order; lists of one length whose items take turns (XLM's) are one stack."""
    begins: dict[tuple[str, str], int] = {}  # (list, index of an item) -> when it first runs
    for place, layer in enumerate(ran):
        for path in lists:
            if layer.startswith(f"{path}."):
                begins.setdefault((path, layer[len(path) + 1 :].partition(".")[0]), place)
    stacks: list[list[str]] = []
    for path in dict.fromkeys(path for path, _ in begins):
        first, second = begins.get((path, "0"), 0), begins.get((stacks[-1][0], "1"), -1) if stacks else -1
        if first < second and len(lists[path]) == len(lists[stacks[-1][0]]):
            stacks[-1].append(path)
        else:
            stacks.append([path])
    return stacks


def outside(block: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Weights of two dimensions and more that are no linear layer's: path, module, parameter."""
    for path, module in block.named_modules():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding | nn.modules.conv._ConvNd):
            for name, parameter in module.named_parameters(recurse=False):
                if sum(size > 1 for size in parameter.shape) > 1 and not name.endswith("bias"):
                    yield f"{path}.{name}".lstrip("."), module, parameter


def _check_outside(block: nn.Module, linear: int, skip: str, prefix: str) -> None:
    found = [item for item in outside(block) if not (skip and re.search(skip, prefix + item[0]))]
    found.sort(key=lambda item: -item[2].numel())
    weights = rest = sum(parameter.numel() for _, _, parameter in found)
    if weights <= OUTSIDE * (weights + linear):
        return
    places: dict[str, None] = {skip: None} if skip else {}  # the fewest that leave a block of linear layers
    for path, _, parameter in found:
        if rest > OUTSIDE * (rest + linear):
            places[re.escape(path.rpartition(".")[0] or path)] = None
            rest -= parameter.numel()
    way_out = f"; --skip '{'|'.join(places)}' leaves such layers out" if linear else ""
    path, module, parameter = found[0]
    shape = " x ".join(map(str, parameter.shape))
    raise ModelError(
        f"{path} ({shape}, of {type(module).__name__}) is no linear layer's weight, and such hold "
        f"{weights / (weights + linear):.0%} of its block; such models, mixtures of experts among them, are not "
        f"supported{way_out}"
    )
