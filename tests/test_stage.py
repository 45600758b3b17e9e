"""What stages hand on, what they may ask, and what the registry refuses."""

import time
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import numpy as np
import pytest

from fwbench import stage
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.stage import Context, Role, Stage, State, parameters, register


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(stage, "registry", {})
    return stage.registry


@dataclass(frozen=True)
class Good(Stage):
    """A stage."""

    name: ClassVar[str] = "good"
    role: ClassVar[Role] = Role.REFINE
    steps: int = 3
    rule: str = "x"


def test_a_stage_is_registered_under_its_name(registry):
    assert register(Good) is Good
    assert registry == {"good": Good}
    register(Good)  # a module loaded again is no conflict
    assert parameters(Good) == {"steps": 3, "rule": "x"}
    assert parameters(Good(steps=5)) == {"steps": 5, "rule": "x"}


def test_what_is_no_stage_is_refused():
    class Plain(Stage):
        name = "plain"

    @dataclass
    class Changeable(Stage):
        name: ClassVar[str] = "changeable"

    for kind in (Plain, Changeable):
        with pytest.raises(TypeError, match="must be a frozen dataclass"):
            register(kind)

    @dataclass(frozen=True)
    class Demanding(Stage):
        steps: int
        name: ClassVar[str] = "demanding"

    with pytest.raises(TypeError, match="parameter 'steps' needs a default"):
        register(Demanding)

    @dataclass(frozen=True)
    class Thief(Stage):
        name: ClassVar[str] = "good"

    register(Good)
    with pytest.raises(TypeError, match=r"stage name 'good' is taken by test_stage\.Good"):
        register(Thief)


def test_the_base_supports_everything_and_does_nothing():
    problem = Problem("p", np.ones((1, 2)), np.eye(2), "0.5")
    assert Good().supports(problem) is None
    with pytest.raises(NotImplementedError, match="good"):
        Good().run(problem, State(), Context())
    with pytest.raises(FrozenInstanceError):
        Good().steps = 4


def proof(bound: float) -> Certificate:
    return Certificate("hash", bound, "diagonal", {})


def test_a_bound_is_only_ever_raised():
    weak, strong = proof(1.0), proof(2.0)
    state = State().bound(1.0, weak)
    assert (state.lower, state.certificate) == (1.0, weak)
    assert state.bound(0.5) == state
    assert state.bound(0.5, proof(0.5)) == state
    better = state.bound(2.0, strong)
    assert (better.lower, better.certificate) == (2.0, strong)
    assert better.bound(1.0, weak) == better
    claimed = better.bound(3.0)  # unproved: the proof of the weaker bound stays beside it
    assert (claimed.lower, claimed.certificate) == (3.0, strong)
    proved = State(lower=3.0).bound(2.0, strong)
    assert (proved.lower, proved.certificate) == (3.0, strong)


def test_counters_add_up():
    state = State().count(swaps=2).count(swaps=3, nodes=1)
    assert state.counters == {"swaps": 5, "nodes": 1}
    assert State().counters == {}


def test_the_clock():
    now = time.monotonic()
    context = Context(deadline=now + 100, started=now - 5)
    assert not context.expired()
    assert 99 < context.left() <= 100
    assert context.left(3.0) == 3.0
    assert 5 <= context.seconds() < 6
    late = Context(deadline=now - 1)
    assert late.expired()
    assert late.left() < 0
    assert Context().left() == float("inf")
    assert not Context().expired()
