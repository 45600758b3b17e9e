"""The contract suite catches every bad solver, for its true reason, and passes the good ones."""

from __future__ import annotations

from pathlib import Path

import brute
import pytest

from fwbench import contract, pipeline
from fwbench.patterns import Unstructured
from fwbench.result import Status
from fwbench.spec import SpecError

BAD = Path(__file__).parent / "shared" / "bad_solvers.py"
FIRST = "answers: pattern 0.5"
# solver: the line that must fail, and what it must say
CAUGHT = {
    "bad_raises": (FIRST, "ArithmeticError: on purpose"),
    "bad_nan": (FIRST, "not finite"),
    "bad_count": (FIRST, "wrong count in 1 of 3 groups"),
    "bad_lies": ("honest error and bound", "it claims an error of"),
    "bad_bound": ("honest error and bound", "exceeds the optimum"),
    "bad_untargeted_error": ("honest error and bound", "with a target: it claims an error of"),
    "bad_untargeted_bound": ("honest error and bound", "with a target: its lower bound"),
    "bad_worse": (FIRST, "made the mask worse"),
    "bad_mutates": ("purity", "it wrote into problem.W"),
    "bad_mutates_state": ("purity", "it wrote into state.keep (by bad_mutates_state)"),
    "bad_random": ("determinism", "two masks for one seed"),
    "bad_sleeps": ("deadline kept", "killed: did not stop"),
    "bad_allocates": ("memory kept", "memory: used"),
    "bad_allocates_at_once": (FIRST, "memory:"),
    "bad_exits": ("the process survives", "exit code 3; it last printed: bye"),
    "bad_segfault": ("the process survives", "SIGSEGV"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_every_bad_solver_is_caught(name, monkeypatch):
    monkeypatch.setattr(contract, "GIVE_UP", 1)
    wanted, reason = CAUGHT[name]
    checks = contract.check(name, files=[BAD], time_limit=0.5, memory_limit=600 << 20, warm_up_limit=2.0)
    [line] = [check for check in checks if check.name == wanted]
    assert not line.ok
    assert reason in line.reason


def test_a_file_of_ones_own(tmp_path):
    text = BAD.read_text()
    own = tmp_path / "own.py"
    own.write_text(
        text[: text.index("@register\n@dataclass(frozen=True)\nclass Raises")].replace('"good"', '"own_good"')
    )
    told = []
    checks = contract.check(own, on_check=told.append)
    assert checks == told
    assert [check for check in checks if not check.ok] == []
    assert len(checks) > 30


def test_a_good_solver_passes():
    assert [check for check in contract.check("wanda+swap") if not check.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(pipeline.load_solvers()))
def test_every_registered_stage_passes(name):
    assert [check for check in contract.check(contract._spec_of(name)) if not check.ok] == []


def test_a_declined_problem_passes_with_its_reason():
    case = contract.cases(1.0)[0]
    solver = pipeline.resolve("wanda")
    row = pipeline.Run(case.problem, solver).failed("wanda: too large", Status.SKIPPED)
    checks = contract.judge_trial(contract._Trial([(case, contract.Finding(row, True))]))
    assert all(check.ok for check in checks)
    assert checks[0].reason == "declined: wanda: too large"


def test_unknown_solvers_and_files():
    with pytest.raises(SpecError, match="unknown solver"):
        contract.check("wandaa")
    with pytest.raises(SpecError, match="not a Python file"):
        contract.check("nowhere.py")


def test_the_optimum_is_the_one_of_another_enumeration():
    every = [case for case in contract.cases(1.0) if case.optimum is not None]
    small = [case for case in every if not isinstance(case.problem.pattern, Unstructured)]
    for case in small:
        assert case.optimum == pytest.approx(brute.best_mask(case.problem)[0], rel=1e-9, abs=1e-12 * case.problem.total)
    tiny = contract._case("tiny", small[0].problem.W[:, :4], small[0].problem.W[:, :4].T, "unstructured:0.5", 1.0)
    assert tiny.optimum == pytest.approx(brute.best_mask(tiny.problem)[0], rel=1e-9)
