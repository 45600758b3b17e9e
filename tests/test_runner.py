"""The runner: every bad solver costs its own row alone, and a killed run goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from layers import random_layer

from fwbench import isolate, machine, pipeline, runner, timing
from fwbench.events import MOST_REASONS, JobEnded, JobStarted, Progress, Summary
from fwbench.problem import ProblemError
from fwbench.problems.collections import load
from fwbench.result import Status
from fwbench.runner import grace, run_grid
from fwbench.spec import SpecError
from fwbench.store import Store, StoreError

BAD = Path(__file__).parent / "shared" / "bad_solvers.py"
# name, what the reason must say
KIT = {
    "bad_raises": "bad_raises raised ArithmeticError: on purpose",
    "bad_nan": "not finite",
    "bad_count": "wrong count",
    "bad_lies": "it claims an error of",
    "bad_worse": "made the mask worse",
    "bad_mutates": "changed the problem's arrays",
    "bad_sleeps": "killed: did not stop 2 s after its limit of 0.5 s",
    "bad_allocates": "memory: used",
    "bad_allocates_at_once": "memory:",
    "bad_exits": "exit code 3; it last printed: bye",
    "bad_segfault": "signal SIGSEGV",
    "bad_killed": "signal SIGKILL, which fwbench did not send",
}
GOOD = ["good", "wanda", "magnitude"]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.db") as store:
        yield store


def layers(number):
    return [("tests", random_layer("0.5", seed=seed)) for seed in range(number)]


def test_the_kit_of_bad_solvers_beside_good_ones(store):
    specs = [name for pair in zip(KIT, GOOD * 4, strict=True) for name in pair]  # a good one after each bad one
    summary = run_grid(
        layers(1), specs, store, jobs=2, time_limit=0.5, memory_limit=600 << 20, files=[BAD], warm_up_limit=2.0
    )
    rows = {row.solver: row for row in store.results()}
    for name, reason in KIT.items():
        row = rows[pipeline.resolve(name).text]
        assert (row.status, row.solved) == (Status.FAILED, False)
        assert reason in row.reason
        assert store.mask(row.key) is None
    assert all(rows[name].status is Status.FEASIBLE and store.mask(rows[name].key) is not None for name in GOOD)
    assert (summary.done, summary.failed, summary.solved) == (len(rows), len(KIT), len(GOOD))


def test_rows_carry_machine_timing_and_memory(store):
    run_grid(layers(1), ["wanda"], store, jobs=2, time_limit=5)
    [row] = store.results()
    assert row.machine == machine.describe()
    assert row.machine["packages"]["numpy"]
    assert row.timing["blas_threads"] == 1
    assert row.timing["time_limit"] == 5
    assert 0 < row.timing["reference_before"] < 1
    assert row.peak_memory > 50 << 20


def test_resume_reuses_what_is_there(store):
    specs = ["wanda", "good", "bad_raises"]
    first = run_grid(layers(1), specs, store, files=[BAD])
    before = store.results()
    events = []
    again = run_grid(layers(2), specs, store, files=[BAD], on_event=events.append)
    assert (first.done, first.reused, first.failed, first.solved) == (3, 0, 1, 2)
    assert (again.done, again.reused, again.failed, again.solved) == (3, 3, 2, 4)
    assert store.results()[:3] == before
    assert sum(isinstance(event, JobStarted) for event in events) == 3
    assert Counter(event.reused for event in events if isinstance(event, JobEnded)) == {True: 3, False: 3}
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.done, last.total, last.eta_seconds) == (6, 6, 0)


def test_failures_are_retried_on_request_only(store):
    run_grid(layers(1), ["bad_raises", "wanda"], store, files=[BAD])
    assert run_grid(layers(1), ["bad_raises", "wanda"], store, files=[BAD]).done == 0
    assert run_grid(layers(1), ["bad_raises", "wanda"], store, files=[BAD], retry_failed=True).done == 1
    assert sorted(map(store.attempts, store.keys())) == [1, 2]


def test_the_same_job_twice_runs_once(store):
    problem = random_layer("0.5")
    events = []
    pairs = [("a", problem), ("b", problem)]
    summary = run_grid(pairs, ["wanda", "wanda()"], store, on_event=events.append)
    assert (summary.done, len(store.results())) == (1, 1)
    assert (events[-1].done, events[-1].total) == (1, 1)


def test_seeds_are_jobs_of_their_own_and_a_generator_will_do(store):
    summary = run_grid((pair for pair in layers(2)), ["random"], store, seeds=(0, 1, 2))
    assert summary.done == len(store.results()) == 6


@pytest.mark.parametrize("kind", [list, iter])
def test_no_more_workers_than_jobs_are_started(store, kind, monkeypatch):
    run_grid(layers(2), ["wanda"], store)
    started = []
    monkeypatch.setattr(runner, "Worker", lambda *args, **more: started.append(1) or isolate.Worker(*args, **more))
    summary = run_grid(kind(layers(6)), ["wanda"], store, jobs=50)
    assert (summary.done, summary.reused) == (4, 2)
    assert len(started) <= 4


def test_no_more_problems_are_read_than_workers_can_take(store):
    """Problems are large: they are taken as workers get free."""
    held, most = 0, []

    def problems():
        nonlocal held
        for pair in layers(8):
            held += 1
            yield pair

    def listen(event):
        nonlocal held
        if isinstance(event, JobEnded):
            most.append(held)
            held -= 1

    run_grid(problems(), ["wanda"], store, jobs=2, on_event=listen)
    assert max(most) <= 4  # two in the workers, one for each that gets free


def test_the_total_of_a_generator_is_told_once_it_is_known(store):
    events = []
    run_grid(iter(layers(3)), ["wanda"], store, on_event=events.append)
    told = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert told[-1] == (3, 3)
    assert {total for _, total in told} <= {None, 3}


def test_what_was_read_before_an_error_runs_first(store):
    def problems():
        yield from layers(3)
        raise ProblemError("the fourth is damaged")

    with pytest.raises(ProblemError, match="the fourth is damaged"):
        run_grid(problems(), ["wanda"], store, jobs=2)
    assert len(store.results()) == 3


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused_before_anything_runs(store, seed):
    with pytest.raises(ValueError, match=f"seed {seed} is not in 0..4294967295"):
        run_grid(layers(1), ["random"], store, seeds=(0, seed))
    assert store.results() == []


def test_reasons_are_grouped_and_failures_of_before_say_how_to_go_on(store):
    specs = ["bad_raises", "bad_declines", "wanda"]
    first = run_grid(layers(3), specs, store, files=[BAD])
    declined = "3 skipped by bad_declines: bad_declines: it likes no problem"
    assert first.lines() == [declined]  # failures are told of one by one as they end
    again = run_grid(layers(4), specs, store, files=[BAD])
    assert again.lines() == [
        declined.replace("3", "4"),
        "3 failed before by bad_raises: bad_raises raised ArithmeticError: on purpose",
        "--retry-failed runs again what failed before",
    ]
    assert run_grid(layers(1), specs, store, files=[BAD], retry_failed=True).lines() == [declined.replace("3", "1")]


FALSE_BOUND = """
from dataclasses import dataclass, replace
from typing import ClassVar

from fwbench.stage import Role, Stage, register


@register
@dataclass(frozen=True)
class FalseBound(Stage):
    name: ClassVar[str] = "false_bound"
    role: ClassVar[Role] = Role.BOUND

    def run(self, problem, state, context):
        return replace(state, lower=2 * problem.error(state.keep))
"""


def test_what_became_of_solved_rows_is_said_too(store, tmp_path):
    """A bound that was dropped, a search that was stopped: neither is a failure, and neither is silent."""
    file = tmp_path / "false_bound.py"
    file.write_text(FALSE_BOUND)
    problems, specs = list(load("mini/n064.v_proj*")), ["wanda+false_bound", "bnb(nodes=1)"]
    first = run_grid(problems, specs, store, files=[file])
    assert (first.solved, first.failed) == (2, 0)
    dropped, stopped = sorted(first.lines())
    assert dropped.startswith("1 by wanda+false_bound: its lower bound ")
    assert dropped.endswith("; the mask stays, the bound is dropped")
    assert stopped == "1 by wanda+swap+bnb(nodes=1): stopped early: nodes"
    again = run_grid(problems, specs, store, files=[file])
    assert (again.reused, again.lines()) == (2, first.lines())


def test_reasons_beyond_the_first_ones_are_counted():
    rows = [pipeline_row_failed(f"reason {i}") for i in range(MOST_REASONS + 2)]
    summary = Summary()
    for row in [rows[0], *rows]:
        summary = summary.count(row, reused=True)
    lines = summary.lines()
    assert lines[0] == "2 failed before by wanda: reason 0"
    assert lines[MOST_REASONS] == "and 2 more reasons; 'fwbench results' has those of all rows"
    assert len(lines) == MOST_REASONS + 2


def pipeline_row_failed(reason):
    from fwbench import pipeline

    return pipeline.Run(random_layer("0.5"), pipeline.resolve("wanda")).failed(reason)


def test_nothing_to_do(store):
    assert run_grid([], ["wanda"], store).done == run_grid(layers(1), [], store).done == 0


def test_a_bad_spec_is_refused_before_anything_runs(store):
    with pytest.raises(SpecError, match="unknown solver"):
        run_grid(layers(1), ["wanda", "wandaa"], store)
    assert store.results() == []


def test_a_row_that_was_skipped_for_a_missing_package_is_tried_again(store):
    run_grid(layers(1), ["wanda"], store)
    [row] = store.results()
    skipped = replace(row, status=Status.SKIPPED, reason="wanda needs nothing, which is not installed")
    store._db.execute("DELETE FROM results")
    store.add(skipped)
    assert run_grid(layers(1), ["wanda"], store).done == 1
    assert store.get(row.key).status is Status.FEASIBLE


def test_a_full_disk_ends_the_run_with_its_reason(store):
    store._db.execute("PRAGMA max_page_count = 14")
    with pytest.raises(StoreError, match="disk is full"):
        run_grid(layers(5), ["wanda", "magnitude"], store)
    kept = len(store.results())
    store._db.execute("PRAGMA max_page_count = 4000")
    assert 0 < run_grid(layers(5), ["wanda", "magnitude"], store).reused == kept < 10


SLOW_CHECKER = """
import time
from dataclasses import dataclass
from typing import ClassVar

from fwbench import verify
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.stage import Role, Stage, register

check = verify.check


def slow(problem, certificate):
    time.sleep(3.5)
    return check(problem, certificate)


@register
@dataclass(frozen=True)
class Proving(Stage):
    name: ClassVar[str] = "proving"
    role: ClassVar[Role] = Role.EXACT
    source: ClassVar[str] = "tests"

    def run(self, problem, state, context):
        verify.check = slow  # of the worker's process
        return BranchAndBound().run(problem, state, context)
"""


def test_the_time_of_checking_a_proof_is_not_the_solvers(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_CHECKER)
    with Store(tmp_path / "store.db") as store:
        run_grid(layers(1), ["proving"], store, time_limit=1.0, files=[tmp_path / "slow.py"])
        [result] = store.results()
    assert (result.status, result.proof) == ("optimal", "verified")


def test_grace_grows_with_the_limit_and_the_problem():
    problem = random_layer("0.5")
    assert grace(1.0, problem) == pytest.approx(2.0, abs=1e-3)
    assert grace(100.0, problem) == pytest.approx(10.0, abs=1e-3)
    assert grace(float("inf"), problem) == pytest.approx(2.0, abs=1e-3)


def test_drift_is_marked():
    row = pipeline_row(reference_before=1.0, reference_after=1.2)
    assert not timing.drifted(row)
    assert timing.drifted(row, typical=0.9)
    assert timing.drifted(pipeline_row(reference_before=1.0, reference_after=1.3))
    assert timing.drifted(pipeline_row(drifted=1.0))
    assert not timing.drifted(pipeline_row())
    assert timing.typical_reference([row]) == pytest.approx(1.1)


def pipeline_row(**times):
    from fwbench import pipeline

    return replace(pipeline.Run(random_layer("0.5"), pipeline.resolve("wanda")).failed(""), timing=times)


# --- killed in the middle --------------------------------------------------------------------------------------------

SLOW = """
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from fwbench.stage import Role, Stage, State, register

@register
@dataclass(frozen=True)
class Slow(Stage):
    '''Magnitude, a tenth of a second late; it writes down whom it served.'''
    name: ClassVar[str] = "slow"
    role: ClassVar[Role] = Role.START

    def run(self, problem, state, context):
        if problem.name != "warm-up":
            with Path(__file__).with_name("served.txt").open("a") as file:
                file.write(problem.name + "\\n")
            time.sleep(0.1)
        return State(keep=~problem.pattern.prune(abs(problem.W)))
"""
RUN = """
import sys
sys.path.insert(0, sys.argv[3])
import layers
from layers import random_layer
from fwbench.runner import run_grid
from fwbench.store import Store
with Store(sys.argv[1]) as store:
    print(run_grid([("tests", random_layer("0.5", seed=seed)) for seed in range(20)], ["slow"], store, jobs=2,
                   files=[sys.argv[2]]))
"""


def start(tmp_path):
    solver, script, store = tmp_path / "slow.py", tmp_path / "run.py", tmp_path / "store.db"
    solver.write_text(textwrap.dedent(SLOW))
    script.write_text(RUN)
    command = [sys.executable, str(script), str(store), str(solver), str(BAD.parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True), store


def wait_for_rows(run, path, number):
    while True:
        assert run.poll() is None
        time.sleep(0.05)
        try:
            with Store(path, readonly=True) as store:
                if len(store.keys()) >= number:
                    return
        except StoreError:
            continue


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_where_it_was(tmp_path, how):
    run, path = start(tmp_path)
    with run:
        wait_for_rows(run, path, 4)
        workers = psutil.Process(run.pid).children()
        os.kill(run.pid, how)
        run.wait(timeout=10)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert workers
    assert not alive
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[how]
    with Store(path) as store:
        before = store.results()
    assert 4 <= len(before) < 20
    if how is not signal.SIGKILL:
        return
    again, _ = start(tmp_path)
    with again:
        assert f"done={20 - len(before)}, reused={len(before)}, failed=0, skipped=0, solved=20" in again.stdout.read()
    with Store(path) as store:
        after = store.results()
        assert after[: len(before)] == before
        assert len({row.key for row in after}) == len(after) == 20
        assert all(store.mask(row.key) is not None for row in after)
    served = Counter((tmp_path / "served.txt").read_text().split("\n"))
    assert all(served[row.problem] == 1 for row in before)  # nothing in the store was run twice
    assert sum(served.values()) - 1 <= 20 + 2  # at most the two jobs in flight were
