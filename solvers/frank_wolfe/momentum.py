"""Frank-Wolfe with momentum: one calibration batch's Gram matrix a step, the whole layer's never needed.

For layers whose calibration streams by. A problem file holds the sum of all batches, so no spec leads here; the caller
hands in the batches (``benchmarks/momentum/study.py`` streams a model's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fwbench.patterns import Pattern
from fwbench.solvers.frank_wolfe.objective import Objective
from fwbench.solvers.numerics.scaling import in_range


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


def iterates(
    W: torch.Tensor,
    grams: Iterable[torch.Tensor],
    pattern: Pattern,
    u: torch.Tensor,
    options: Averaging | None = None,
) -> Iterator[torch.Tensor]:
    """The iterate after each batch: one Gram product and one call of the oracle a step, all rows at once.

    With ``d₀ = ∇₀(u₀)``, ``d_t = (1 - α_t) d_{t-1} + α_t ∇_t(u_t)``, where ``∇_t(u) = 2 w∘((w∘u) G_t)``;
    ``u_{t+1} = u_t + ell / (t + ell) (LMO(d_t) - u_t)``. Every iterate lies in the pattern's polytope if ``u`` does.

    Args:
        W: weights ``(rows, n)``; the work is done on their device, in their precision.
        grams: of the batches, ``(n, n)`` each, ``X_t X_tᵀ / tokens``: their *mean* is the layer's ``G``. As many steps
            are made as it yields; one that goes round and round never ends by itself.
        pattern: of the mask.
        u: where to start, ``(rows, n)``, 1 = pruned; it is not written to.
        options: the defaults if None.
    """
    options = options or Averaging()
    u = before = u.to(W)
    d = torch.zeros_like(W)
    ordinary = None
    for t, gram in enumerate(grams):
        if ordinary is None:  # the range of the first batch is that of all; the oracle sees each row by itself
            size = W.double().cpu().numpy(), gram.double().cpu().diagonal().numpy()
            rows, columns = (torch.from_numpy(x).to(W.device) for x in in_range(*size, pattern.separable))
            ordinary = bool((rows == 1).all() and (columns == 1).all())
            W, back = (W if ordinary else (W * rows * columns).to(W)), torch.where(columns > 0, columns, 1.0)
        batch = Objective(W, (gram if ordinary else gram / back / back[:, None]).to(W), None, pattern)
        alpha = options.weight(t) if t else 1.0
        # both gradients of the transport, (1 - α)(∇_t(u_t) - ∇_t(u_{t-1})) + α ∇_t(u_t), in one product
        at = u - (1 - alpha) * before if options.transport else alpha * u
        d = (1 - alpha) * d + batch.gradient(at, batch.product(at))
        before, u = u, u + options.ell / (t + options.ell) * (pattern.prune(d).to(u.dtype) - u)
        yield u
