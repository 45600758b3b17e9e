"""The residual stream: what is wrong in it, and the layers that write to it and can make good a part of that.

A block adds what some of its layers give, o_proj and down_proj in most models, to its hidden states. What is wrong
there already goes past all layers to the head. With ``D`` the dense model's stream less the pruned one's, where such a
layer adds to it, and ``X̂`` the layer's inputs, ``K = DX̂ᵀ`` is what a regression of ``D`` on ``X̂`` needs
(:class:`fwbench.problems.arriving.Arrived`). Where a norm comes between, as in Gemma 2 and 3, ``D`` is divided by what
the norm multiplies each number with, as if that stayed as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fwbench.problems.arriving import Arrived
from fwbench.problems.structure import Conv1D

SAME = 1e-4  # relative to what is added, of the largest difference


@dataclass(frozen=True)
class Writer:
    """A layer whose output, maybe normed, is added to a block's hidden states."""

    layer: nn.Module
    factor: float = 1.0  # of what is added: Granite's residual multiplier
    norm: nn.Module | None = None  # that reads the layer's output


class Residual:
    """The sums ``K`` over tokens, one for each layer that writes to a block's hidden states.

    Args:
        layers: these, by name.
    """

    def __init__(self, layers: Mapping[str, Writer]) -> None:
        self.layers = layers
        self.sums: dict[str, torch.Tensor] = {}  # float64 (hidden, n)
        self.tokens = 0
        self.wrong: torch.Tensor | None = None  # D before the block, (..., hidden); None in the dense model's pass
        self._dense: dict[str, torch.Tensor] = {}  # what the dense model added in the pass before
        self._read: dict[str, torch.Tensor] = {}  # inputs of layers whose norm has not run yet

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch what the layers read and give in here."""
        hooks: dict[nn.Module, Callable] = {}
        for name, writer in self.layers.items():
            hooks[writer.layer] = self._reads(name, writer)
            if writer.norm is not None:
                hooks[writer.norm] = self._norms(name, writer)
        with _hooked(hooks):
            yield

    def end_of_pass(self, tokens: int) -> None:
        """Of the pruned model on so many tokens; the next one is the dense model's."""
        self.tokens += tokens
        self.wrong = None

    def beside(self, arrived: Iterator[tuple[list[str], Arrived]]) -> Iterator[tuple[list[str], Arrived]]:
        """What arrives at each input, with the ``K`` of those that read it; sums are given up."""
        for names, sums in arrived:
            own = {name: self.sums.pop(name) for name in names if name in self.sums}
            yield names, replace(sums, K={name: K.cpu().div_(self.tokens).numpy() for name, K in own.items()})

    def _reads(self, name: str, writer: Writer) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
            if writer.norm is None:
                self._adds(name, _first(args, kwargs), output, torch.tensor(writer.factor), writer.factor)
            elif self.wrong is not None:
                self._read[name] = _first(args, kwargs).clone()

        return hook

    def _norms(self, name: str, writer: Writer) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
            times = (output / _first(args, kwargs)).nan_to_num(0.0, 0.0, 0.0) * writer.factor
            self._adds(name, self._read.pop(name, output), output, times, writer.factor)

        return hook

    def _adds(self, name: str, X: torch.Tensor, added: torch.Tensor, times: torch.Tensor, factor: float) -> None:
        """A layer that read ``X`` adds to the hidden states: its own output as often as ``times`` says."""
        if self.wrong is None:
            self._dense[name] = added.clone()
            return
        X, D = (part.reshape(-1, part.shape[-1]).float() for part in (X, self.wrong.to(added.device)))
        own = (D / times.to(D).reshape(-1, times.shape[-1] if times.ndim else 1)).nan_to_num(0.0, 0.0, 0.0)
        K = (own.T @ X).double()
        self.sums[name] = self.sums[name].add_(K) if name in self.sums else K
        self.wrong = D + factor * (self._dense.pop(name) - added).reshape(D.shape)  # for those that come after it


@torch.no_grad()
def writers(block: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], torch.Tensor]) -> dict[str, Writer]:
    """Those layers of a block whose output it adds to its hidden states, maybe normed, seen by adding to it.

    All other linear layers give meanwhile what they gave before.

    Args:
        block: holds the layers.
        layers: by name.
        run: the block on a few tokens; its hidden states afterwards.
    """
    linear = [module for module in block.modules() if isinstance(module, nn.Linear | Conv1D)]
    others = [module for module in block.modules() if module not in linear and not list(module.children())]
    given: dict[nn.Module, torch.Tensor] = {}  # copies: some models add in place
    outputs: dict[nn.Module, torch.Tensor] = {}
    inputs: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            given[module], outputs[module], inputs[module] = output.clone(), output, _first(args, kwargs)

    with _hooked(dict.fromkeys((*linear, *others), note)):
        before = run()
    kept = {module: given[module] for module in linear if module in given}
    step = torch.randn(before.shape, generator=torch.Generator().manual_seed(0)).to(before)
    step *= max(float(before.abs().max()), 1.0)
    found = {}
    for name, layer in layers.items():
        if layer not in given or given[layer].numel() != before.numel():
            continue
        norms = [other for other in others if other in inputs and _same(inputs[other], outputs[layer])]
        for adding in (layer, *norms):
            held = {**kept, adding: given[adding] + step.reshape(given[adding].shape)}
            with _hooked({module: lambda own, _, __, ___, held=held: held[own].clone() for module in held}):
                moved = run() - before
            factor = float((moved * step).sum() / step.square().sum())
            if factor and float((moved - factor * step).abs().max()) <= SAME * abs(factor) * float(step.abs().max()):
                factor = 1.0 if abs(factor - 1) <= SAME else factor
                found[name] = Writer(layer, factor, None if adding is layer else adding)
                break
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


def _first(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
    return next(iter((*args, *kwargs.values())))


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that are both held are one, or views of one."""
    return tensor.data_ptr() == other.data_ptr() and tensor.numel() == other.numel()
