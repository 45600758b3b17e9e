"""What a run that is killed had by then: its finished rows and proofs are judged and kept, whatever ended it."""

from __future__ import annotations

import pickle
import textwrap

import numpy as np
import pytest
from brute import best_mask
from layers import random_layer

from fwbench import pipeline, verify
from fwbench.pipeline.running import Part
from fwbench.result import Proof, Status
from fwbench.runner import run_grid
from fwbench.stage import Stage
from fwbench.store import Store

HANDING_IN = {
    "bnb": ("0.5", "2:4", "unstructured:0.4"),
    "gurobi": ("0.5", "unstructured:0.4"),
    "scip": ("0.5",),
    "bound": ("0.5", "2:4", "unstructured:0.4"),
    "learned_bound": ("0.5", "unstructured:0.4"),
    "dwave": ("0.5", "2:4", "unstructured:0.4"),
}


def test_the_stages_that_hand_in_are_tried_here():
    known = pipeline.load_solvers()
    own = {name for name, stage in known.items() if stage.__module__.startswith("fwbench.")}
    assert {name for name in own if known[name].salvage is not Stage.salvage} == set(HANDING_IN)


@pytest.mark.parametrize(
    ("spec", "pattern"), [(name, pattern) for name, patterns in HANDING_IN.items() for pattern in patterns]
)
def test_wherever_it_ends_what_it_had_is_true(spec, pattern):
    problem, line, told = random_layer(pattern, rows=3, n=8), pipeline.resolve(spec), []
    optimum, _ = best_mask(problem)
    whole = pipeline.run(problem, line, hand_in=lambda item, afresh: told.append((pickle.dumps(item), afresh)))
    assert any(isinstance(pickle.loads(data), Part) for data, _ in told)
    start = pipeline.run(problem, pipeline.resolve("wanda")).result.error
    last = None
    for end in range(1, len(told) + 1):
        handed: list = []
        for data, afresh in told[:end]:
            handed = [*([] if afresh else handed), pickle.loads(data)]
        had = pipeline.salvage(pipeline.Run(problem, line), handed)
        row = had.result
        assert row.status is Status.TIMEOUT
        assert optimum * (1 - 1e-9) <= row.error <= start * (1 + 1e-9)
        if row.lower_bound is not None:
            assert row.lower_bound <= optimum * (1 + 1e-9)
        if had.certificate is not None:
            assert verify.check(problem, had.certificate).ok
        assert last is None or row.error <= last * (1 + 1e-9)
        last = row.error
    assert last == pytest.approx(whole.result.error, rel=1e-12)
    bound = whole.result.lower_bound  # None of a stage that refines
    assert row.lower_bound == (None if bound is None else pytest.approx(bound, rel=1e-9))
    assert row.proof == whole.result.proof


def test_nothing_handed_in_is_nothing():
    found = pipeline.salvage(pipeline.Run(random_layer("0.5"), pipeline.resolve("bnb")), [])
    assert (found.result.status, found.keep, found.certificate) == (Status.FAILED, None, None)


KILLED = """
import os
import time
from dataclasses import dataclass, replace
from typing import ClassVar

from fwbench.solvers.branch_and_bound import stage as bnb
from fwbench.stage import Role, Stage, State, register


class Search(bnb.Search):
    def run(self, left, nodes):
        if self.seed == 1:  # of the second row
            time.sleep(3600)
        super().run(left, nodes)


@register
@dataclass(frozen=True)
class Hanging(bnb.BranchAndBound):
    name: ClassVar[str] = "hanging"

    def run(self, problem, state, context):
        bnb.Search = Search
        return super().run(problem, state, replace(context, threads=3))


class Ends(Stage):
    role: ClassVar[Role] = Role.REFINE

    def run(self, problem, state, context):
        if problem.name != "warm-up":
            self.end()
        return state


@register
@dataclass(frozen=True)
class Sleeps(Ends):
    name: ClassVar[str] = "sleeps"

    def end(self):
        time.sleep(3600)


@register
@dataclass(frozen=True)
class Dies(Ends):
    name: ClassVar[str] = "dies"

    def end(self):
        os._exit(3)
"""


def test_a_killed_job_keeps_what_its_finished_rows_had(tmp_path):
    file = tmp_path / "killed.py"
    file.write_text(textwrap.dedent(KILLED))
    problem, specs = random_layer("0.5", rows=3, n=8), ["hanging", "wanda+sleeps", "fw+dies", "dies"]
    with Store(tmp_path / "s.sqlite") as store:
        summary = run_grid([("own", problem)], specs, store, time_limit=2.0, files=[file])
        rows = {row.solver: row for row in store.results()}
        assert (summary.solved, summary.failed) == (2, 2)
        row, keep = rows["wanda+swap+hanging"], store.mask(rows["wanda+swap+hanging"].key)
        best = best_mask(problem)[1]
        assert np.array_equal(problem.row_errors(~keep)[[0, 2]], problem.row_errors(~best)[[0, 2]])
        assert row.status is Status.TIMEOUT
        assert row.reason == "killed: did not stop 2 s after its limit of 2 s; what it had by then is kept"
        assert row.seconds > 4
        assert row.proof is Proof.VERIFIED
        assert row.lower_bound == pytest.approx(problem.row_errors(~best)[[0, 2]].sum(), rel=1e-6)
        wanda = pipeline.run(problem, pipeline.resolve("wanda")).result
        assert (rows["wanda+sleeps"].status, rows["wanda+sleeps"].error) == (Status.TIMEOUT, wanda.error)
        dead = rows["wanda+fw+round+dies"]
        assert (dead.status, dead.reason, store.mask(dead.key)) == (
            Status.FAILED,
            "the process died: exit code 3; the proof that it had by then is kept",
            None,
        )
        proofs = {proof.source: proof for proof in store.certificates(problem.hash)}
        assert set(proofs) == {"wanda+swap+hanging", "wanda+fw+round+dies"}
        assert all(verify.check(problem, proof).ok for proof in proofs.values())
        assert rows["wanda+dies"].reason == "the process died: exit code 3"  # nothing to prove, and a mask is no answer
        longer = run_grid([("own", problem)], ["wanda+sleeps"], store, time_limit=2.5, files=[file])
        assert (longer.done, longer.reused) == (1, 0)  # as after any timeout
