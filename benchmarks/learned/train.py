"""Train the weights that ``fwbench.solvers.learned`` reads, and write them there: minutes of one thread.

    python -m benchmarks.learned.train

The data are parts of SmolLM2's blocks ``TRAINED`` and of none other; ``benchmarks.learned.study`` measures on others.
Everything is seeded. The net of ``learned_bound`` is trained without answers: its loss is the value that the checker
would confirm, ``Σ c e`` with ``e`` scaled to the border of ``G - diag(e) ⪰ 0``, as a part of the best diagonal's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.shared import command
from benchmarks.shared.threads import restart_on_one_thread
from fwbench import bounds
from fwbench.patterns import Pattern
from fwbench.problem import Problem
from fwbench.problems.collections import LAYERS, one
from fwbench.solvers.frank_wolfe.stage import FrankWolfe
from fwbench.solvers.learned import weights
from fwbench.solvers.learned.diagonal import alone, features
from fwbench.solvers.learned.unrolled import curvatures, numbers, project, scaling
from fwbench.solvers.semidefinite.shared_diagonal import maximise_diagonal
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

TRAINED = (1, 5, 10, 20)  # blocks
SIZES = (48, 96, 192)
ROWS = 16
PATTERNS = ("0.5", "0.6", "2:4")
HIDDEN = 12
EPOCHS, RATE = 60, 0.02
STEPS, UNROLLED_EPOCHS = 20, 60
BEGIN = (0.0, -3.0, 1.5)  # near the majorant, with momentum
DESCENT, DUAL_RATE = 0.02, 2.0


def parts(rng: np.random.Generator) -> Iterator[Problem]:
    """Some rows and columns of every matrix of the blocks, one of each size, the patterns in turn."""
    for turn, (block, layer) in enumerate(product(TRAINED, LAYERS)):
        _, whole = one(f"smollm2/{block:02}.{layer}")
        for number, n in enumerate(SIZES):
            rows = np.sort(rng.choice(whole.rows, ROWS, replace=False))
            columns = np.sort(rng.choice(whole.n, n, replace=False))
            G, pattern = whole.G[np.ix_(columns, columns)], PATTERNS[(turn + number) % len(PATTERNS)]
            yield Problem(whole.name, whole.W[np.ix_(rows, columns)], G, pattern)


@dataclass(frozen=True)
class Example:
    """What the loss of one part needs; ``value``: the best diagonal's ``Σ c e``."""

    x: torch.Tensor  # (n, features)
    a: torch.Tensor  # (n,), c∘τ / value
    H: torch.Tensor  # (n, n)

    @classmethod
    def of(cls, problem: Problem) -> Example:
        start = Wanda().run(problem, State(), Context())
        u = FrankWolfe(steps=100, gap=1e-2).run(problem, start, Context()).relaxed
        assert u is not None
        c = bounds.slope(problem, u)
        tau, H = alone(problem.G)
        value = float(c @ maximise_diagonal(problem.G, c))
        return cls(*(torch.from_numpy(x) for x in (features(problem.G, tau, H, c), c * tau / value, H)))


def convex_net(net: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``weights.input_convex`` in torch."""
    x = (x - net["mean"]) / net["spread"]
    z = torch.relu(x @ net["A0"] + net["b0"])
    z = torch.relu(z @ net["P1"].clamp(min=0) + x @ net["A1"] + net["b1"])
    return torch.nn.functional.softplus(z @ net["P2"].clamp(min=0) + x @ net["A2"] + net["b2"])


def part_of_best(v: torch.Tensor, example: Example) -> torch.Tensor:
    """``Σ c e`` of ``e = τ∘v`` scaled to the border, as a part of the best; differentiable at a simple eigenvalue."""
    root = v.sqrt()
    z = torch.linalg.eigh((example.H * root * root[:, None]).detach()).eigenvectors[:, -1]
    return (example.a @ v) / ((z * root) @ example.H @ (z * root))


def diagonal() -> dict[str, np.ndarray]:
    """The net of ``learned_bound``; prints what part of the best it has on the parts of its training."""
    rng = np.random.default_rng(0)
    examples = [Example.of(problem) for problem in parts(rng)]
    every = torch.cat([example.x for example in examples])
    wide = every.shape[1]

    def drawn(*shape: int, scale: float) -> torch.Tensor:
        return torch.from_numpy(scale * rng.standard_normal(shape)).requires_grad_()

    net = {"A0": drawn(wide, HIDDEN, scale=0.4), "A1": drawn(wide, HIDDEN, scale=0.4), "A2": drawn(wide, scale=0.05)}
    net |= {"P1": drawn(HIDDEN, HIDDEN, scale=0.2), "P2": drawn(HIDDEN, scale=0.05)}
    net |= {"b0": drawn(HIDDEN, scale=0.0), "b1": drawn(HIDDEN, scale=0.0), "b2": drawn(1, scale=0.0)}
    steps = torch.optim.Adam(list(net.values()), RATE)
    net |= {"mean": every.mean(dim=0), "spread": every.std(dim=0).clamp(min=1e-3)}
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(steps, EPOCHS)
    for epoch in range(EPOCHS):
        order, found = rng.permutation(len(examples)), []
        for batch in np.array_split(order, len(examples) // 12):
            loss = torch.stack([-part_of_best(convex_net(net, examples[i].x), examples[i]).log() for i in batch])
            steps.zero_grad()
            loss.mean().backward()
            steps.step()
            found += loss.detach().exp().reciprocal().tolist()
        rate.step()
        if epoch % 10 == 0 or epoch == EPOCHS - 1:
            plain = np.mean([float(part_of_best(torch.ones_like(one.a), one)) for one in examples])
            print(f"epoch {epoch}: {np.mean(found):.4f} of the best; v = 1 has {plain:.4f}", flush=True)
    return {name: tensor.detach().numpy().astype(np.float32) for name, tensor in net.items()}


def unrolled() -> dict[str, np.ndarray]:
    """The steps of ``unrolled``: lengths, scalings and momenta; prints errors, gaps and multipliers.

    ``min E f(u_T) / f(u_0)`` subject to ``E gap(u_t) ≤ (1 - DESCENT) E gap(u_{t-1})`` for every step, in units of the
    error where it begins: gradient steps on the weights and on the multipliers of the constraints (primal and dual).
    What is kept is the least error at which all of them held.
    """
    rng = np.random.default_rng(1)
    every = [problem for problem in parts(rng) if problem.n == SIZES[-1]]
    batches = [Batch.of([problem for problem in every if str(problem.pattern) == kind]) for kind in PATTERNS]
    trained = torch.tensor([list(BEGIN)] * STEPS, dtype=torch.float64, requires_grad=True)
    multipliers = torch.zeros(STEPS, dtype=torch.float64)
    least, best = float("inf"), trained.detach().clone()
    steps = torch.optim.Adam([trained], 0.01)  # longer ones leave what is stable
    for epoch in range(UNROLLED_EPOCHS):
        seen = [batch.run(trained) for batch in batches]
        error = torch.stack([final for final, _ in seen]).mean()
        gaps = torch.stack([each for _, each in seen]).mean(dim=0)
        excess = gaps[1:] - (1 - DESCENT) * gaps[:-1]
        held = int((excess <= 0).sum())
        if held == STEPS and error.item() < least:
            least, best = error.item(), trained.detach().clone()
        steps.zero_grad()
        (error + multipliers @ excess).backward()
        steps.step()
        multipliers = (multipliers + DUAL_RATE * excess.detach()).clamp(min=0)
        if epoch % 10 == 0 or epoch == UNROLLED_EPOCHS - 1:
            print(f"epoch {epoch}: error {error.item():.4f}, {held} of {STEPS} constraints hold", flush=True)
    print(f"kept: error {least:.4f}")
    return {"steps": best.numpy().astype(np.float32)}


@dataclass(frozen=True)
class Batch:
    """Parts of one pattern and size, and Wanda's masks of them."""

    W: torch.Tensor  # (parts, rows, n)
    G: torch.Tensor  # (parts, n, n)
    start: torch.Tensor  # (parts, rows, n)
    pattern: Pattern
    counts: torch.Tensor  # (groups of a part, 1)

    @classmethod
    def of(cls, problems: list[Problem]) -> Batch:
        masks = [Wanda().run(problem, State(), Context()).mask for problem in problems]
        W, G, start = (
            torch.from_numpy(np.stack(arrays).astype(np.float64))
            for arrays in ([p.W for p in problems], [p.G for p in problems], [~mask for mask in masks])
        )
        return cls(W, G, start, problems[0].pattern, torch.tensor(problems[0].counts)[:, None])

    def run(self, trained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean error at the end, and the mean gap ``(steps + 1,)`` at every step, by that at the start."""
        own, bound = curvatures(self.W, self.G)
        u = before = self.start
        first = self._error(u, self._product(u))
        gaps = [self._gap(u)]
        for length, exponent, momentum in numbers(trained):
            y = u + momentum * (u - before)
            s = scaling(own, bound, length, exponent)
            z = y - s * 2 * self.W * self._product(y)
            before, u = u, project(z, s, self.pattern.groups, self.counts)
            gaps.append(self._gap(u))
        final = self._error(u, self._product(u))
        return (final / first).mean(), torch.stack([(gap / first).mean() for gap in gaps])

    def _product(self, u: torch.Tensor) -> torch.Tensor:
        return (self.W * u) @ self.G

    def _error(self, u: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        return (self.W * u * product).sum(dim=-1)

    def _gap(self, u: torch.Tensor) -> torch.Tensor:
        g = 2 * self.W * self._product(u)
        vertex = torch.stack([self.pattern.prune(part) for part in g.detach()]).to(g.dtype)
        return (g * (u - vertex)).sum(dim=-1)


def save(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)


def main() -> None:
    parser = command.parser(__spec__, __doc__)
    parser.add_argument("-o", "--out", type=Path, default=weights.FOLDER, help="default: where the solvers read them")
    parser.add_argument("--only", choices=("unrolled", "diagonal"), default="", help="default: both")
    options = parser.parse_args()
    restart_on_one_thread()
    for name, train in (("unrolled", unrolled), ("diagonal", diagonal)):
        if options.only in ("", name):
            save(options.out, name, train())


if __name__ == "__main__":
    main()
