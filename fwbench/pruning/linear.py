"""A linear layer of a model: its name, its module, and how its weights lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from fwbench.patterns import Shape
from fwbench.problems.structure import Conv1D


@dataclass(frozen=True)
class Layer:
    """One linear layer to prune; ``parameter`` is the name of its weight in the model's state."""

    name: str
    parameter: str
    module: nn.Module = field(repr=False)

    @property
    def transposed(self) -> bool:
        """True if the model stores the weight with one column per output (GPT-2's ``Conv1D``)."""
        return isinstance(self.module, Conv1D)

    @property
    def weight(self) -> nn.Parameter:
        """The module's own, in the model's orientation."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def shape(self) -> Shape:
        """Rows, one for each output, and inputs."""
        rows, n = self.weight.shape
        return (n, rows) if self.transposed else (rows, n)

    @torch.no_grad()
    def load(self, weight: torch.Tensor) -> None:
        """Overwrite the weight, given in the model's own orientation."""
        self.weight.copy_(weight)
