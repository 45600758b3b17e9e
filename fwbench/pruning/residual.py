"""The residual stream: what is wrong in it, and the layers that write to it and can make good a part of that.

A block adds what some of its layers give, o_proj and down_proj in most models, to its hidden states. What is wrong
there already goes past all layers to the head. With ``D`` the dense model's stream less the pruned one's, where such a
layer adds to it, and ``X̂`` the layer's inputs, ``K = DX̂ᵀ`` is what a regression of ``D`` on ``X̂`` needs
(:class:`fwbench.problems.arriving.Arrived`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fwbench.problems.arriving import Arrived
from fwbench.problems.structure import Conv1D

SAME = 1e-4  # relative to what is added, of the largest difference


@dataclass(frozen=True)
class Writer:
    """A layer whose output, times a factor, is added to a block's hidden states."""

    layer: nn.Module
    factor: float = 1.0  # Granite's residual multiplier


class Residual:
    """The sums ``K`` over tokens, one for each layer that writes to a block's hidden states.

    Args:
        writers: all of a block's, by name.
        wanted: names of layers; other writers' sums are left out.
    """

    def __init__(self, writers: Mapping[str, Writer], wanted: Collection[str]) -> None:
        self.writers, self.wanted = writers, wanted
        self.sums: dict[str, torch.Tensor] = {}  # float64 (hidden, n)
        self.tokens = 0
        self.wrong: torch.Tensor | None = None  # D before the block, (..., hidden); None in the dense model's pass
        self._dense: dict[str, torch.Tensor] = {}  # what the dense model's layers gave in the pass before

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch what the layers read and give in here; a pass may end before the last of them runs."""
        handles = [
            writer.layer.register_forward_pre_hook(self._add(name, writer.factor), with_kwargs=True)
            for name, writer in self.writers.items()
            if name in self.wanted
        ]
        try:
            with _hooked({writer.layer: self._follow(name, writer.factor) for name, writer in self.writers.items()}):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def end_of_pass(self, tokens: int) -> None:
        """Of the pruned model on so many tokens; the next one is the dense model's."""
        self.tokens += tokens
        self.wrong = None

    def beside(self, arrived: Iterator[tuple[list[str], Arrived]]) -> Iterator[tuple[list[str], Arrived]]:
        """What arrives at each input, with the ``K`` of those that read it; sums are given up."""
        for names, sums in arrived:
            own = {name: self.sums.pop(name) for name in names if name in self.sums}
            yield names, replace(sums, K={name: K.cpu().div_(self.tokens).numpy() for name, K in own.items()})

    def _add(self, name: str, factor: float) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self.wrong is None:
                return
            X = next(iter((*args, *kwargs.values())))
            X, D = (part.reshape(-1, part.shape[-1]).float() for part in (X, self.wrong.to(X.device)))
            K = (D.T @ X).double() / factor
            self.sums[name] = self.sums[name].add_(K) if name in self.sums else K

        return hook

    def _follow(self, name: str, factor: float) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
            if self.wrong is None:
                self._dense[name] = output.clone()
                return
            D = self.wrong.to(output.device)
            self.wrong = D + factor * (self._dense.pop(name) - output).reshape(D.shape)  # for those that come after it

        return hook


@torch.no_grad()
def writers(block: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], torch.Tensor]) -> dict[str, Writer]:
    """Those layers of a block whose output it adds to its hidden states, seen by adding to it.

    All other linear layers give meanwhile what they gave before. Where a norm comes between, as in Gemma 2 and 3, there
    is none.

    Args:
        block: holds the layers.
        layers: by name.
        run: the block on a few tokens; its hidden states afterwards.
    """
    given: dict[nn.Module, torch.Tensor] = {}
    linear = [module for module in block.modules() if isinstance(module, nn.Linear | Conv1D)]
    with _hooked({module: lambda own, _, __, output: given.update({own: output.clone()}) for module in linear}):
        before = run()
    step = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    step *= max(float(before.abs().max()), 1.0)
    found = {}
    for name, layer in layers.items():
        if layer not in given or given[layer].numel() != before.numel():
            continue
        held = {**given, layer: given[layer] + step.reshape(given[layer].shape)}
        # copies: some models add in place
        with _hooked({module: lambda own, _, __, ___, held=held: held[own].clone() for module in linear}):
            moved = run() - before
        factor = float((moved * step).sum() / step.square().sum())
        if factor and float((moved - factor * step).abs().max()) <= SAME * abs(factor) * float(step.abs().max()):
            found[name] = Writer(layer, 1.0 if abs(factor - 1) <= SAME else factor)
    return found


@contextlib.contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Call functions of (module, args, keywords, output) after their modules; what they give replaces the output."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
