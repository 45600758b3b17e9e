"""What of a block is trained at once: all of it, or its parts, attention and MLP, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fwbench.pruning.linear import Layer
from fwbench.pruning.walk import Walk

BLOCK, PARTS = UNITS = ("block", "parts")


@dataclass(frozen=True)
class Unit:
    """Layers that are trained together, until a module gives what the dense model's gives."""

    path: str  # of the module in its block; empty for the block itself
    layers: Sequence[Layer]


def units(block: nn.Module, layers: Sequence[Layer], kind: str) -> list[Unit]:
    """The layers of a block by what is trained at once, in the order of the block's modules.

    Args:
        block: a module of the model.
        layers: those with pruned weights.
        kind: ``block`` for one unit, ``parts`` for one a child of the block; layers that are children themselves
            come last, and are trained on the block's output.
    """
    if kind == BLOCK:
        return [Unit("", layers)]
    found = []
    for name, child in block.named_children():
        inside = {id(module) for module in child.modules() if module is not child}
        if own := [layer for layer in layers if id(layer.module) in inside]:
            found.append(Unit(name, own))
    known = {layer.name for unit in found for layer in unit.layers}
    rest = [layer for layer in layers if layer.name not in known]
    return [*found, Unit("", rest)] if rest else found


def output(walk: Walk, number: int, index: int, path: str) -> torch.Tensor:
    """What a part of a block gives on a sequence, ``(1, length, hidden)``; what comes after it does not run.

    Args:
        walk: through the model, at this block.
        number: of the block.
        index: of the sequence.
        path: of the part in its block; empty for the block itself.
    """
    if not path:
        return walk.output(number, index)
    handle = walk.blocks[number].get_submodule(path).register_forward_hook(_stop)
    try:
        return walk.output(number, index)  # of a block that this text does not run through
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()


class _Reached(Exception):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Reached(output[0] if isinstance(output, tuple | list) else output)
