"""A block's own reconstruction: its kept weights, trained until it gives what the dense model's block gives.

A pruned block reads what the recovered blocks before it hand on, and its target is the dense block's output on the
dense model's activations, as in EBFT (Guo et al. 2024, arXiv:2402.12419) and in local reconstruction (Wagner et al.
2025, arXiv:2510.14444). Pruned weights get no gradient, so the mask stays. What the fit has learned of its sequences
alone shows on held-out ones, which choose the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

HELD_OUT = 8  # every eighth sequence is held out
TINY = 1e-30  # a target of zeros
EPS = 1e-12  # of Adam, below any gradient: a relative error's are the smaller the more weights there are

Run = Callable[[int], torch.Tensor]  # sequence -> the block's output, (1, length, hidden)


@dataclass(frozen=True)
class Training:
    """How long and how fast; ``rate`` is Adam's, in units of a layer's root mean square kept weight."""

    epochs: int = 4
    rate: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Errors:
    """Means over sequences, see :func:`error`."""

    fitted: float
    held_out: float


@dataclass(frozen=True)
class Trained:
    """What a block's layers hold in the end, in the types that are saved, and how that came about."""

    weights: Mapping[str, torch.Tensor]
    before: Errors
    after: Errors
    epoch: int  # after which it was best on held-out sequences; 0 where it never got better


def error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of ``‖output - target‖² / ‖target‖²``, of ``(..., tokens, hidden)``.

    Relative, because a norm comes first in the blocks after it; else the few tokens with huge activations rule.
    """
    return ((output - target).square().sum(-1) / target.square().sum(-1).clamp_min(TINY)).mean()


def split(sequences: int) -> tuple[list[int], list[int]]:
    """Which sequences are fitted, and which are held out: every eighth, at least one where there are two."""
    held_out = list(range(HELD_OUT - 1, sequences, HELD_OUT)) or [sequences - 1]
    return [index for index in range(sequences) if index not in held_out], held_out


def train(
    run: Run,
    targets: Sequence[torch.Tensor],
    weights: Mapping[str, nn.Parameter],
    types: Mapping[str, torch.dtype],
    training: Training,
) -> Trained:
    """Train weights in place; they end with the values that were best on held-out sequences, or as they were.

    Args:
        run: of the block, as its weights are.
        targets: for each sequence, on any device.
        weights: by name; those that are zero stay so.
        types: in which they are saved, by name: what is compared is what they then are.
        training: epochs, rate, seed.
    """
    fitted, held_out = split(len(targets))
    best = before = errors(run, targets)
    kept, epoch = _saved(weights, types), 0
    if before.fitted == 0:
        return Trained(kept, before, before, 0)
    steps = _steps(run, targets, weights, fitted, training)
    for number in range(1, training.epochs + 1):
        for _ in fitted:
            next(steps)
        exact, rounded = {name: weight.detach().clone() for name, weight in weights.items()}, _saved(weights, types)
        _load(weights, rounded)
        if mean_error(run, targets, held_out) < best.held_out:
            best, kept, epoch = errors(run, targets), rounded, number
        _load(weights, exact)
    _load(weights, kept)
    return Trained(kept, before, best, epoch)


def errors(run: Run, targets: Sequence[torch.Tensor]) -> Errors:
    """Means over the fitted and over the held-out sequences."""
    return Errors(*(mean_error(run, targets, which) for which in split(len(targets))))


@torch.no_grad()
def mean_error(run: Run, targets: Sequence[torch.Tensor], which: Sequence[int]) -> float:
    """Over some sequences."""
    found = 0.0
    for index in which:
        output = run(index)
        found += float(error(output, targets[index].to(output.device)))
    return found / len(which)


def _steps(
    run: Run,
    targets: Sequence[torch.Tensor],
    weights: Mapping[str, nn.Parameter],
    fitted: Sequence[int],
    training: Training,
) -> Iterator[None]:
    """Adam's steps, one for each sequence, in a new order each epoch; the rate falls to 0 in a straight line."""
    kept = [weight != 0 for weight in weights.values()]
    rates = [
        training.rate * float(weight.detach()[mask].square().mean().sqrt())
        for weight, mask in zip(weights.values(), kept, strict=True)
    ]
    optimizer = torch.optim.Adam([{"params": [weight]} for weight in weights.values()], eps=EPS)
    order, steps = torch.Generator().manual_seed(training.seed), training.epochs * len(fitted)
    for epoch in range(training.epochs):
        for place, chosen in enumerate(torch.randperm(len(fitted), generator=order).tolist()):
            left = 1 - (epoch * len(fitted) + place) / steps
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * left
            gradients = gradient(run, targets, weights, fitted[chosen])
            for weight, mask, found in zip(weights.values(), kept, gradients, strict=True):
                weight.grad = found * mask
            optimizer.step()
            yield
    optimizer.zero_grad()


def gradient(
    run: Run, targets: Sequence[torch.Tensor], weights: Mapping[str, nn.Parameter], index: int
) -> tuple[torch.Tensor, ...]:
    """Of one sequence's error, by each of the weights; zero for one that does not run."""
    wanted = list(weights.values())
    for weight in wanted:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            output = run(index)
            found = error(output, targets[index].to(output.device))
        return torch.autograd.grad(found, wanted, allow_unused=True, materialize_grads=True)
    finally:
        for weight in wanted:
            weight.requires_grad_(False)


def _saved(weights: Mapping[str, nn.Parameter], types: Mapping[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """Copies, as they are saved."""
    return {name: weight.detach().to("cpu", types[name], copy=True) for name, weight in weights.items()}


@torch.no_grad()
def _load(weights: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
