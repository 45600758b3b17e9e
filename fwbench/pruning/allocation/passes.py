"""What allocations look at: a setting taken from the plan, and passes through the dense model, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fwbench.patterns import Pattern, PerRow, Shape, Unstructured
from fwbench.problems.models import Model
from fwbench.problems.structure import find_blocks
from fwbench.pruning.linear import Layer
from fwbench.pruning.room import Room
from fwbench.pruning.walk import Walk, begin


@dataclass(frozen=True)
class Setting:
    """What is to be allocated."""

    model: Model  # dense
    layers: Sequence[Sequence[Layer]]  # [block]
    blocks: Sequence[torch.nn.Module]
    batches: Sequence[torch.Tensor]  # token ids of the calibration
    pattern: Pattern
    device: str
    report: Callable[[int, int, str], None] | None = None
    offload: Path | None = None  # folder for activations that are large beside the free memory; None for the cache

    @property
    def sparsity(self) -> float:
        """Part of the weights that the pattern prunes."""
        assert isinstance(self.pattern, PerRow | Unstructured)
        return self.pattern.fraction

    @property
    def shapes(self) -> dict[str, Shape]:
        """Rows and inputs of each layer."""
        return {layer.name: layer.shape for block in self.layers for layer in block}

    def pruned_blocks(self) -> Iterator[tuple[int, Sequence[Layer]]]:
        """Those with layers to prune."""
        return ((number, layers) for number, layers in enumerate(self.layers) if layers)

    def of_blocks(self, values: np.ndarray) -> dict[str, float]:
        """By layer, from a value for each block that has layers to prune."""
        pairs = zip(self.pruned_blocks(), values.tolist(), strict=True)
        return {layer.name: value for (_, layers), value in pairs for layer in layers}

    def walk(self) -> Walk:
        """Through the model, before its first block."""
        return begin(self.model.network, self.batches, self.device, Room(self.offload))

    def tell(self, number: int, what: str) -> None:
        """Report a block's turn."""
        if self.report:
            self.report(number, len(self.layers), f"{self.model.label}: allocation, {what}")

    def first(self, tokens: int) -> Setting:
        """The same with the first batches that have so many tokens, or with all."""
        chosen: list[torch.Tensor] = []
        for ids in self.batches:
            if sum(map(torch.numel, chosen)) < tokens:
                chosen.append(ids)
        return replace(self, batches=chosen)


def setting(
    model: Model,
    layers: Sequence[Sequence[Layer]],
    batches: Sequence[torch.Tensor],
    pattern: Pattern,
    device: str = "cpu",
    report: Callable[[int, int, str], None] | None = None,
    offload: Path | None = None,
) -> Setting:
    """What is to be allocated in a dense model."""
    return Setting(model, layers, find_blocks(model.network), batches, pattern, device, report, offload)


class Norms:
    """Adds up the squares of what layers read, for each input."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.sums: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        handles = [
            layer.module.register_forward_pre_hook(self._hook(layer.name), with_kwargs=True) for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def norms(self) -> dict[str, np.ndarray]:
        """Euclidean norm of each input over all tokens, float64 ``(n,)``, by layer."""
        return {name: total.sqrt().cpu().numpy() for name, total in self.sums.items()}

    def _hook(self, name: str) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            X = next(iter((*args, *kwargs.values())))
            squares = X.reshape(-1, X.shape[-1]).double().square().sum(0)
            self.sums[name] = self.sums[name] + squares if name in self.sums else squares

        return hook


def dense_norms(setting: Setting) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    """Number of each block and the norms of what its layers read in the dense model."""
    walk = setting.walk()
    for number, layers in enumerate(setting.layers):
        setting.tell(number, "dense model")
        with on_device(setting, number):
            recorder = Norms(layers)
            with recorder.recording():
                walk.advance(number)
        yield number, recorder.norms()


@contextlib.contextmanager
def on_device(setting: Setting, number: int) -> Iterator[torch.nn.Module]:
    """A block, in memory and on the device in here."""
    block = setting.blocks[number]
    with setting.model.holding(block):
        block.to(setting.device)
        try:
            yield block
        finally:
            block.to("cpu")
