"""Frank-Wolfe with momentum: one calibration batch a step, the whole layer's Gram matrix never needed.

For layers whose calibration streams by: ``iterates`` takes the batches from its caller (``benchmarks/momentum/study``
streams a model's), as Gram matrices, or as the inputs themselves (``Tokens``) where a matrix of the size of ``G`` does
not fit. A problem holds the sum of all batches, so the stage ``momentum`` makes batches of its own, which cost as much
as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import ClassVar

import numpy as np
import torch

from fwbench import patterns
from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.solvers.numerics.scaling import in_range
from fwbench.stage import Context, Role, Stage, State, register


@dataclass(frozen=True)
class Averaging:
    """How gradients are averaged, and the steps.

    ``alpha``: part of the newest gradient in the average: constant, as in Scion (Pethick et al., arXiv 2502.07529), or
    0 for ``4 / (t + 8)^(2/3)`` (Mokhtari, Hassani and Karbasi, arXiv 1804.09554).
    ``transport``: move the average along with ``u``, by the newest batch's curvature, before the newest gradient enters
    (Zhang et al., One Sample Stochastic Frank-Wolfe, arXiv 1910.04322). Gradients are linear here: it costs no product.
    ``ell``: of the open loop's step ``ell / (t + ell)``.

    Raises:
        ValueError: ``alpha`` outside [0, 1], ``ell`` not positive.
    """

    alpha: float = 0.0
    transport: bool = False
    ell: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.ell <= 0:
            raise ValueError(f"ell must be positive, got {self.ell}")

    def weight(self, t: int) -> float:
        """Part of the gradient of step ``t`` in the average."""
        return self.alpha or 4 / (t + 8) ** (2 / 3)


@dataclass(frozen=True)
class Tokens:
    """A batch's inputs ``X (tokens, n)`` in place of ``XᵀX / tokens``: a product takes ``4 rows n tokens`` operations
    in place of ``2 rows n²``, and no memory beside ``X``."""

    X: torch.Tensor

    def diagonal(self) -> torch.Tensor:
        """Of the Gram matrix, ``(n,)``."""
        return self.X.square().mean(dim=0)


def iterates(
    W: torch.Tensor,
    batches: Iterable[torch.Tensor | Tokens],
    pattern: Pattern,
    u: torch.Tensor,
    options: Averaging | None = None,
    linear: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """The iterate after each batch: one Gram product and one call of the oracle a step, all rows at once.

    With ``d₀ = ∇₀(u₀)``, ``d_t = (1 - α_t) d_{t-1} + α_t ∇_t(u_t)``, where ``∇_t(u) = 2 w∘((w∘u) G_t)``;
    ``u_{t+1} = u_t + ell / (t + ell) (LMO(d_t) - u_t)``. Every iterate lies in the pattern's polytope if ``u`` does.

    Args:
        W: weights ``(rows, n)``; the work is done on their device, in their precision.
        batches: the Gram matrix ``(n, n)`` over tokens of each, or its inputs: the *mean* is the layer's ``G``. As many
            steps are made as it yields; one that goes round and round never ends by itself.
        pattern: of the mask.
        u: where to start, ``(rows, n)``, 1 = pruned; it is not written to.
        options: the defaults if None.
        linear: of a target, ``(rows, n)`` float64: it is known whole, and enters every average whole.
    """
    options = options or Averaging()
    u = before = u.to(W)
    d = torch.zeros_like(W)
    ordinary = None
    for t, batch in enumerate(batches):
        if ordinary is None:  # the range of the first batch is that of all; the oracle sees each row by itself
            size = W.double().cpu().numpy(), batch.diagonal().double().cpu().numpy()
            terms = None if linear is None else linear.cpu().numpy()
            scales = in_range(*size, pattern.separable, terms)
            rows, columns = (torch.from_numpy(x).to(W.device) for x in scales)
            linear = None if linear is None else (linear * rows**2).to(W)
            ordinary = bool((rows == 1).all() and (columns == 1).all())
            W, back = (W if ordinary else (W * rows * columns).to(W)), torch.where(columns > 0, columns, 1.0)
        times = _product(batch, W, None if ordinary else back)
        alpha = options.weight(t) if t else 1.0
        # both gradients of the transport, (1 - α)(∇_t(u_t) - ∇_t(u_{t-1})) + α ∇_t(u_t), in one product
        at = u - (1 - alpha) * before if options.transport else alpha * u
        d = (1 - alpha) * d + 2 * W * times(W * at)
        d = d if linear is None else d.add_(linear, alpha=alpha)
        before, u = u, u + options.ell / (t + options.ell) * (pattern.prune(d).to(u.dtype) - u)
        yield u


def _product(batch: torch.Tensor | Tokens, like: torch.Tensor, back: torch.Tensor | None) -> Callable:
    """The product of rows with a batch's Gram matrix, inputs divided by ``back``, in the precision of a tensor."""
    if isinstance(batch, Tokens):
        X = (batch.X if back is None else batch.X / back).to(like)
        return lambda rows: (rows @ X.T) @ X / len(X)
    G = (batch if back is None else batch / back / back[:, None]).to(like)
    return lambda rows: rows @ G


@register
@dataclass(frozen=True)
class Momentum(Stage):
    """Frank-Wolfe on averaged gradients of batches, one a step: Scion's update over a mask's polytope.

    As a problem holds ``G`` alone, its batches are made: ``n`` tokens that have its Gram matrix (a root of ``G`` turned
    by a random rotation of the seed) are dealt into ``batches`` parts, taken in turn. So a step costs a product like
    one with ``G``, and nothing is saved: streams, of Gram matrices or of inputs, are for callers of ``iterates``.
    ``alpha``: part of the newest gradient in the average, constant (Scion's is 0.1), or 0 for ``4 / (t + 8)^(2/3)``.
    ``transport``: move the average along with the point. ``ell``: of the step ``ell / (t + ell)``.
    It begins with the point or mask at hand, and proves nothing.
    """

    name: ClassVar[str] = "momentum"
    role: ClassVar[Role] = Role.RELAX
    advice: ClassVar[str] = (
        "For comparing stochastic steps with exact ones; not to prune: `fw` has the whole Gram matrix for the same "
        "price, and fewer steps to the same error."
    )
    source: ClassVar[str] = "Pethick et al., Scion, arXiv 2502.07529; Mokhtari et al. 2018; Zhang et al. 2019"
    steps: int = 500
    batches: int = 8
    alpha: float = 0.0
    transport: bool = False
    ell: float = 2.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batches) < 1:
            raise ValueError("steps and batches must be at least 1")
        Averaging(self.alpha, self.transport, self.ell)

    def run(self, problem: Problem, state: State, context: Context) -> State:
        kind = {"dtype": getattr(torch, context.dtype), "device": context.device}
        start = state.relaxed if state.relaxed is not None else ~state.mask
        u = torch.tensor(np.asarray(start, np.float64), device=context.device)
        linear = None if problem.linear is None else torch.tensor(problem.linear, device=context.device)
        grams = cycle_of_grams(problem.G, self.batches, context.seed)
        steps = iterates(
            torch.tensor(problem.W, **kind),
            (torch.from_numpy(gram).to(context.device) for gram in grams),
            problem.pattern,
            u,
            Averaging(self.alpha, self.transport, self.ell),
            linear,
        )
        done = 0
        while done < self.steps and not context.expired():
            u, done = next(steps), done + 1
        stopped = "deadline" if done < self.steps else ""
        relaxed = patterns.project(problem.pattern, u.clamp(0, 1).cpu().numpy(), patterns.DRIFT)
        return replace(state, relaxed=relaxed, stopped=stopped).count(iterations=done, gram_products=done)


def cycle_of_grams(G: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Gram matrices ``(n, n)`` of batches of tokens, again and again; ``G`` is the mean of a round.

    The tokens are the columns of ``X = G^½ R``, ``R`` a random rotation: ``XXᵀ = G``, and no token is like one input.

    Args:
        count: of the batches; at most ``n``.
    """
    n = len(G)
    norm = np.sqrt(np.maximum(G.diagonal(), 0.0))
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    values, vectors = np.linalg.eigh(G * inverse * inverse[:, None])
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    X = norm[:, None] * (vectors * np.sqrt(np.maximum(values, 0.0))) @ rotation
    count = min(count, n)
    for part in cycle(np.array_split(np.arange(n), count)):
        yield count * (X[:, part] @ X[:, part].T)
