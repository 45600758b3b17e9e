"""One cell of a grid: a problem, a solver and how it runs; its identity, and its row before there is an answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from fwbench.pipeline.resolving import Solver
from fwbench.problem import Problem
from fwbench.result import Result, Status


@dataclass(frozen=True)
class Run:
    """Whatever a result depends on, and the collection that it is filed under."""

    problem: Problem
    solver: Solver
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"  # in which solvers compute; judged in float64
    collection: str = ""

    @cached_property
    def key(self) -> str:
        """Identity, the machine and library versions aside (hex)."""
        text = "\n".join((self.problem.hash, self.solver.full, str(self.seed), self.device, self.dtype))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def failed(self, reason: str, status: Status = Status.FAILED, seconds: float | None = None) -> Result:
        """The row of a run that gave no answer."""
        return Result(
            problem=self.problem.name,
            problem_hash=self.problem.hash,
            collection=self.collection,
            solver=self.solver.text,
            key=self.key,
            pattern=str(self.problem.pattern),
            rows=self.problem.rows,
            n=self.problem.n,
            status=status,
            reason=reason,
            seconds=seconds,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
            updates_weights=self.solver.updates_weights,
            meta=dict(self.problem.meta),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
