"""An allocation that is exact for what it measures: error curves of the layers, weighted by the loss that they cost.

The loss of the pruned model, or another harm, is divided among the layers: along the straight path from the dense
weights ``W`` to the pruned ones ``W + D`` it rises by ``Σ_l a_l``, ``a_l = ∫⟨∇_l L(W + tD), D_l⟩dt`` (integrated
gradients, Sundararajan et al. 2017), errors propagated and all interactions counted. With another sparsity
a layer's part is taken to change as its error does: ``a_l c_l(s) / c_l(s₀)``. The sum of these is
minimised exactly (``knapsack``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fwbench.patterns import PerRow, Shape
from fwbench.problem import Problem
from fwbench.problems.structure import on_text, weight_of
from fwbench.pruning.allocation import knapsack, passes
from fwbench.pruning.allocation.passes import Setting
from fwbench.pruning.linear import Layer
from fwbench.pruning.recovery.training import error
from fwbench.solvers.start.scores import wanda_score

ROWS = 16  # of each layer, evenly spaced: what a curve is of
STEP = 0.025  # of sparsity, between the levels of a curve
POINTS = 3  # of Gauss's rule on the path


@dataclass(frozen=True)
class Exact:
    """The least loss that parts of the loss and error curves predict, solved exactly.

    In place of the loss, ``of`` takes the error of the last hidden state, or its mean over the blocks' outputs, each
    relative to the dense one of its token; the first chooses about as well as the loss, the second worse.

    Both are of Wanda's masks, the curves of some rows of each layer: beside those of masks improved by swaps they have
    another scale and the same shape. A layer whose part is negative counts as free. No layer's sparsity is further from
    the mean than ``reach``. The passes backwards take three times the model's weights in memory, and its activations.
    """

    tokens: int = 2048  # of the calibration: for the curves, and for the loss
    reach: float = 0.15
    of: Literal["loss", "hidden", "blocks"] = "loss"
    bounds: bool = False  # whether to prove how far the allocation can be from the best

    def sparsities(self, setting: Setting) -> dict[str, float]:
        """Of each layer."""
        setting = setting.first(self.tokens)
        levels = grid(setting.sparsity, self.reach)
        curves, pruned = measured(setting, levels)
        return chosen(harm_parts(setting, pruned, self.of), curves, setting.shapes, levels)


def chosen(
    parts: Mapping[str, float], curves: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], levels: np.ndarray
) -> dict[str, float]:
    """The sparsity of each layer at which parts that change as the curves do sum to the least."""
    costs = np.array([max(parts[name], 0.0) * curves[name] for name in shapes])
    sizes = np.array([rows * n for rows, n in shapes.values()])
    found = np.interp(knapsack.choose(costs, sizes), np.arange(len(levels)), levels)
    return dict(zip(shapes, found.tolist(), strict=True))


def measured(setting: Setting, levels: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """By layer: its curve, relative to the error at the middle level, and Wanda's mask of that one.

    Returns:
        curves, ``(levels,)``; masks, True = pruned, in the weights' own orientation.
    """
    curves: dict[str, np.ndarray] = {}
    pruned: dict[str, torch.Tensor] = {}
    for layer, problem in problems(setting, "error curves"):
        pruned[layer.name] = wanda_pruned(layer, problem)
        errors = curve(problem.part(sampled(problem.rows), pattern=PerRow(setting.sparsity)), levels)
        curves[layer.name] = errors / (errors[len(levels) // 2] or 1.0)
    return curves, pruned


def problems(setting: Setting, what: str) -> Iterator[tuple[Layer, Problem]]:
    """Each layer, on the dense model's activations, under the plan's pattern; ``what`` is reported."""
    walk = setting.walk()
    for number, layers in enumerate(setting.layers):
        setting.tell(number, what)
        by_name = {layer.name: layer for layer in layers}
        with passes.on_device(setting, number):
            arrived = walk.arrived(number, {name: layer.module for name, layer in by_name.items()})
        for names, inputs in arrived:
            for name in names:
                yield by_name[name], Problem(name, weight_of(by_name[name].module), inputs.G, setting.pattern)


def wanda_pruned(layer: Layer, problem: Problem) -> torch.Tensor:
    """Wanda's mask, True = pruned, in the weights' own orientation."""
    mask = problem.pattern.prune(wanda_score(problem.W, problem.G))
    return torch.from_numpy(mask.T if layer.transposed else mask)


def sampled(rows: int) -> np.ndarray:
    """The rows of a layer that its curve is of."""
    return np.unique(np.linspace(0, rows - 1, ROWS).astype(int))


def harm_parts(setting: Setting, pruned: Mapping[str, torch.Tensor], of: str = "loss") -> dict[str, float]:
    """What each layer's pruning adds to the harm done to the model that is pruned so; their sum is all of it.

    Args:
        pruned: mask of each layer, True = pruned, in the weights' own orientation.
        of: see :class:`Exact`; a loss is in nats a token.
    """
    network = setting.model.network.to(setting.device)
    layers = [layer for block in setting.layers for layer in block]
    weights = {layer.name: layer.weight for layer in layers}
    dense = {name: weight.detach().clone() for name, weight in weights.items()}
    masks = {name: mask.to(setting.device) for name, mask in pruned.items()}
    targets = [_hidden(network, ids.to(setting.device), of) for ids in setting.batches]
    learning = {parameter: parameter.requires_grad for parameter in network.parameters()}
    parts = dict.fromkeys(weights, 0.0)
    points, shares = np.polynomial.legendre.leggauss(POINTS)
    try:
        network.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for point, share in zip((1 + points) / 2, shares / 2, strict=True):
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(torch.where(masks[name], (1 - point) * dense[name], dense[name]))
            _backwards(setting, network, targets, of)
            for name, weight in weights.items():
                change = torch.where(masks[name], -dense[name], 0)
                assert weight.grad is not None  # each layer runs: the plan has seen it
                parts[name] += float(share * (weight.grad * change).sum(dtype=torch.float64))
                weight.grad = None
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(dense[name])
                weight.grad = None
        for parameter, flag in learning.items():
            parameter.requires_grad_(flag)
        network.to("cpu")
    return parts


def _backwards(setting: Setting, network: Any, targets: list[list[torch.Tensor]], of: str) -> None:
    """Add the gradient of the harm, a mean over the batches' tokens."""
    scored = [len(ids) * (ids.shape[1] - (of == "loss")) for ids in setting.batches]
    for number, (ids, dense) in enumerate(zip(setting.batches, targets, strict=True)):
        setting.tell(number * len(setting.layers) // len(setting.batches), "loss" if of == "loss" else "errors")
        ids = ids.to(setting.device)
        with torch.enable_grad(), on_text(network, ids):
            if of == "loss":
                logits = network(input_ids=ids, use_cache=False).logits[:, :-1].float()
                harm = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            else:
                harm = torch.stack(list(map(error, _states(network, ids, of), dense))).mean()
            (harm * (scored[number] / sum(scored))).backward()


@torch.no_grad()
def _hidden(network: Any, ids: torch.Tensor, of: str) -> list[torch.Tensor]:
    """The dense model's hidden states that are compared; none for the loss."""
    with on_text(network, ids):
        return [] if of == "loss" else _states(network, ids, of)


def _states(network: Any, ids: torch.Tensor, of: str) -> list[torch.Tensor]:
    states = network(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return list(states[-1:] if of == "hidden" else states[1:])


def grid(sparsity: float, reach: float) -> np.ndarray:
    """Sparsities in equal steps around the one asked for, which is the middle one, within ``reach``, 0 and 1."""
    side = max(1, round(min(reach, sparsity, 1 - sparsity) / STEP))
    return sparsity + min(reach, sparsity, 1 - sparsity) * np.arange(-side, side + 1) / side


def curve(problem: Problem, sparsities: np.ndarray) -> np.ndarray:
    """Errors of Wanda's masks at some sparsities of each row, ``(levels,)``."""
    saliency, levels = wanda_score(problem.W, problem.G), map(PerRow, sparsities.tolist())
    return np.array([problem.row_errors(level.prune(saliency)).sum() for level in levels])
