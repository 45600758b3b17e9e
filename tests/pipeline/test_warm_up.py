"""The warm-up before a clock starts: every stage is reached, also where those before it compile for long."""

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from layers import random_layer

from fwbench import job, pipeline
from fwbench.pipeline import Solver, running
from fwbench.problem import Problem
from fwbench.stage import Context, Role, Stage, State


@dataclass(frozen=True)
class Slow(Stage):
    """Takes ``first`` seconds when it is first called, as compilation does, and ``always`` seconds in every call."""

    first: float = 0.0
    always: float = 0.0
    number: int = 0

    name: ClassVar[str] = "slow"
    role: ClassVar[Role] = Role.REFINE
    calls: ClassVar[dict[int, int]] = {}

    def run(self, problem: Problem, state: State, context: Context) -> State:
        if context.expired():
            return state
        known = Slow.calls.get(self.number, 0)
        Slow.calls[self.number] = known + 1
        time.sleep(self.always if known else self.first + self.always)
        return replace(state, stopped="deadline") if context.expired() else state


@dataclass(frozen=True)
class Start(Stage):
    name: ClassVar[str] = "some-mask"
    role: ClassVar[Role] = Role.START

    def run(self, problem: Problem, state: State, context: Context) -> State:
        return State(keep=~problem.pattern.prune(np.abs(problem.W)))


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(running, "WARM_UP_LIMIT", 0.05)
    monkeypatch.setattr(Slow, "calls", {})
    running._warm_up.cache_clear()
    yield Slow.calls
    running._warm_up.cache_clear()


def warm(*stages: Stage) -> None:
    pipeline.warm_up(pipeline.Run(random_layer("0.5", n=8), Solver((Start(), *stages))))


def test_stages_after_one_that_compiles_are_reached(calls):
    warm(*(Slow(first=0.1 + 0.1 * i, number=i) for i in range(4)))
    assert all(calls.get(i, 0) >= 1 for i in range(4))


def test_a_stage_that_always_takes_too_long_is_not_tried_again_and_again(calls):
    warm(Slow(always=0.2))
    assert calls[0] == 3


def test_a_stage_that_compiles_in_parts_is_reached_again(calls):
    """Its first part ends just past the limit, so that the try as a whole takes hardly longer than the limit."""
    warm(Slow(first=0.051, number=0), Slow(first=0.051, number=1), Slow(first=0.2, number=2))
    assert calls.keys() == {0, 1, 2}


def test_quick_stages_run_once(calls):
    warm(Slow(), Slow(number=1))
    assert calls == {0: 1, 1: 1}


def test_our_own_stages_have_longer_to_compile_than_a_plug_in():
    settings = job.Settings(time_limit=20.0, warm_up_limit=2.0)
    assert settings.warm_up_seconds(pipeline.resolve("best")) == job.OWN_WARM_UP_SECONDS
    assert settings.warm_up_seconds(Solver((*pipeline.resolve("wanda").stages, Slow()))) == 2.0
    assert job.Settings(warm_up_limit=2.0).warm_up_seconds(Solver((Start(),))) == math.inf


@pytest.mark.parametrize(("device", "sizes"), [("cpu", {16}), ("cuda", {40, 64})])
def test_on_a_gpu_the_warm_up_is_as_wide_as_the_layer(device, sizes, monkeypatch):
    """There kernels are compiled for a width; on the CPU one for all."""
    seen = []

    def execute(run, **given):
        seen.append(run.problem.n)
        return real(replace(run, device="cpu"))

    real = running.execute
    monkeypatch.setattr(running, "execute", execute)
    running._warm_up.cache_clear()
    for n in (40, 64, 40):
        pipeline.warm_up(pipeline.Run(random_layer("0.5", rows=3, n=n), pipeline.resolve("wanda"), device=device))
    running._warm_up.cache_clear()
    assert set(seen) == sizes
    assert len(seen) == len(sizes)
