"""From a spec to a judged row: what is filled in, what is refused, and what becomes of stages that misbehave."""

import json
import math
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from layers import PATTERNS, hostile_layers, random_layer
from oracles import relaxed_minimum

from fwbench import bounds, pipeline, presets, stage
from fwbench.judge import count_reason
from fwbench.pipeline import Run, resolve, run
from fwbench.problem import Problem
from fwbench.result import Certificate, Proof, Result, Status, Verdict
from fwbench.spec import SpecError
from fwbench.stage import Context, Needs, Role, Stage, State, needs

PROBLEM = random_layer("0.5", n=12)


@pytest.mark.parametrize(
    "spec", ["admm+swap", "wanda+refit+swap", "refit+fw", "sparsegpt+tabu(iterations=50)", "admm+bnb"]
)
def test_another_mask_takes_the_weights_as_they_were(spec):
    """The error is that of the mask alone, and a refit after it is that of the new mask."""
    for seed in range(4):
        problem = random_layer("0.5", n=12, seed=seed)
        answer = run(problem, resolve(spec))
        assert answer.result.solved, answer.result.reason
        assert not answer.result.updates_weights
        assert answer.weights is None
        assert answer.result.error == pytest.approx(problem.error(answer.keep))
        again = run(problem, resolve(f"{spec}+refit"))
        assert again.result.updates_weights
        assert again.result.error <= answer.result.error * (1 + 1e-9)
        assert np.array_equal(again.keep, answer.keep)


def test_an_update_before_another_mask_does_not_count_where_time_ends():
    run_ = Run(PROBLEM, resolve("refit+tabu"))
    answer = pipeline.execute(run_, time_limit=0.0)
    assert (answer.result.status, answer.weights, answer.result.updates_weights) == (Status.TIMEOUT, None, False)
    assert answer.result.error == pytest.approx(PROBLEM.error(answer.keep))


# --- resolve ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("wanda", "wanda"),
        ("swap", "wanda+swap"),
        ("magnitude+swap", "magnitude+swap"),
        ("fw", "wanda+fw+round"),
        ("magnitude+fw", "magnitude+fw+round"),
        ("wanda+fw+round", "wanda+fw+round"),
        ("wanda+fw+swap", "wanda+fw+round+swap"),
        ("fw+qp", "wanda+fw+qp+round"),
        ("fw+gurobi", "wanda+fw+round+gurobi"),
        ("gurobi", "wanda+gurobi"),
        ("bnb", "wanda+swap+bnb"),
        ("magnitude+bnb", "magnitude+bnb"),
        ("refit", "wanda+refit"),
        ("reswap", "wanda+reswap"),
        ("qp", "wanda+qp+round"),
        ("push", "push+round"),
        ("fw+push", "wanda+fw+push+round"),
        ("admm", "admm"),
        ("wanda+admm", "wanda+admm"),
        ("fw+sparsegpt", "wanda+fw+round+sparsegpt"),
        ("bound", "wanda+bound"),
        ("fw+bound+swap", "wanda+fw+bound+round+swap"),
        ("fw+swap+fw", "wanda+fw+round+swap+fw+round"),
        ("fw(steps=1000,gap=1e-4)", "wanda+fw+round"),
        ("fw( gap=0, steps=5 )", "wanda+fw(gap=0.0,steps=5)+round"),
        ("fw+round(method=topk)", "wanda+fw+round"),
    ],
)
def test_what_is_left_out_is_filled_in(text, filled):
    solver = resolve(text)
    assert solver.text == filled
    assert resolve(solver.text) == solver
    assert hash(resolve(solver.text)) == hash(solver)


def test_full_text_holds_every_parameter_and_version():
    full = resolve("swap").full
    assert full == "wanda+swap(enough=1.0,limit=0) versions 1,2"
    assert "convexify=none" in resolve("fw").full


@pytest.mark.parametrize("name", sorted(pipeline.load_solvers()))
def test_what_stands_before_a_stage_has_an_effect(name):
    """A stage that ignores the mask before it would claim a start that it has not, as ``wanda+push`` once did."""
    stage = pipeline.load_solvers()[name]
    if stage.role in (Role.START, Role.BOUND) or not stage.__module__.startswith("fwbench."):
        return  # a start comes first, and a bound is of the problem: masks only order its rows
    problem = random_layer("0.5", rows=2, n=12)
    masks = [~problem.pattern.prune(np.random.default_rng(seed).random(problem.shape)) for seed in (0, 1)]
    if needs(stage) is not Needs.NOTHING:
        with pytest.raises(ValueError, match="there is no"):
            stage().run(problem, State(), Context())
        return
    after = [stage().run(problem, State(keep=keep), Context()) for keep in masks]
    if Needs.MASK in stage.uses:
        assert all(np.array_equal(one.keep, keep) for one, keep in zip(after, masks, strict=True))
    else:
        assert np.array_equal(after[0].relaxed, after[1].relaxed)
        with pytest.raises(SpecError, match="has no effect"):
            resolve(f"random+{name}")


@pytest.mark.parametrize("name", sorted(pipeline.presets()))
def test_presets_stand_for_specs(name):
    spec = pipeline.presets()[name]
    assert resolve(name) == resolve(name.upper()) == resolve(spec)
    assert resolve(name).text == spec, "written out, so that a result's spec leads back to the name"
    assert (presets.title(spec), presets.title(spec + "+tabu")) == (name, name + "+tabu")
    assert resolve(f"{name}+swap").text == f"{resolve(name).text}+swap"
    with pytest.raises(SpecError, match=f"{name} is a preset and takes no parameters"):
        resolve(f"{name}(steps=3)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wnada", "unknown solver 'wnada'; did you mean 'wanda'?"),
        ("wanda+swop", "unknown solver 'swop'; did you mean 'swap'?"),
        ("sparsefww", "did you mean 'SparseFW'?"),
        ("qqqqqq", "unknown solver 'qqqqqq'; known: "),
        ("fw(gapp=3)", "fw has no parameter 'gapp'; did you mean 'gap'?"),
        ("wanda(x=1)", "wanda has no parameter 'x'; known: none"),
        ("fw(steps=1.5)", "fw(steps=...): expected a int such as 1000, got 1.5"),
        ("fw(steps=True)", "expected a int"),
        ("fw(steps='3')", "expected a int"),
        ("fw(gap=small)", "expected a float"),
        ("fw(step=3)", "expected a str"),
        ("fw(steps=None)", "expected a int"),
        ("fw(step=fast)", "fw: unknown step 'fast'; known: "),
        ("fw(steps=-1)", "fw: steps"),
        ("wanda+magnitude", "magnitude in 'wanda+magnitude' makes a mask from nothing: it can only come first"),
        ("round", "round in 'round' has no fractional point to round"),
        ("wanda+round", "no fractional point to round"),
        ("fw+round+round", "no fractional point to round"),
        ("wanda(", "cannot read the solver spec"),
        ("wanda+push", "wanda in 'wanda+push' has no effect: push does not begin with a mask; leave it out"),
        ("fw+swap+push", "swap in 'fw+swap+push' has no effect"),
    ],
)
def test_refusals_are_one_line(text, reason):
    with pytest.raises(SpecError) as caught:
        resolve(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_stand_for_floats():
    assert resolve("fw(gap=0)") == resolve("fw(gap=0.0)")


def test_the_key_depends_on_whatever_the_result_does(monkeypatch):
    base = (PROBLEM, resolve("fw"), 0, "cpu", "float32")
    same = (PROBLEM, resolve("wanda + fw( steps=1000 )+round"), 0, "cpu", "float32")
    others = [
        (random_layer("0.5", n=12, seed=1), *base[1:]),
        *((base[0], resolve(text), *base[2:]) for text in ("fw(steps=999)", "magnitude+fw", "fw+swap", "fw(gap=1e-5)")),
        (*base[:2], 1, *base[3:]),
        (*base[:3], "cuda", base[4]),
        (*base[:4], "float64"),
    ]
    assert Run(*base).key == Run(*same).key == Run(*base, collection="elsewhere").key
    keys = {Run(*args).key for args in (base, *others)}
    assert len(keys) == len(others) + 1
    monkeypatch.setattr(pipeline.load_solvers()["fw"], "version", 99)
    assert Run(*base).key not in keys


STAGE = """
from dataclasses import dataclass
from fwbench.stage import Role, Stage, register
@register
@dataclass(frozen=True)
class Mine(Stage):
    name, role = "mine", Role.START
"""


def test_a_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "registry", dict(pipeline.load_solvers()))
    (tmp_path / "my solver.py").write_text(STAGE)
    for _ in range(2):  # again is no conflict
        assert pipeline.load_file(tmp_path / "my solver.py") == ["mine"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "not a Python file with a solver"),
        ("1/0", "loading it raised ZeroDivisionError: division by zero"),
        ("def", "loading it raised SyntaxError"),
        ("import no_such_package", "loading it raised ModuleNotFoundError"),
        ("x = 1", "it registers no stage"),
        (STAGE.replace('"mine"', '"wanda"'), "stage name 'wanda' is taken"),
    ],
)
def test_a_file_without_a_solver_is_refused(tmp_path, text, reason):
    path = tmp_path / "solver.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError) as caught:
        pipeline.load_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


# --- stages for the tests --------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """Make a stage of a function and run ``wanda+it`` (or it alone where it is a start)."""

    def make(does, role=Role.REFINE, supports=None, requires=(), name="made"):
        @dataclass(frozen=True)
        class Made(Stage):
            def run(self, problem: Problem, state: State, context: Context) -> State:
                return does(problem, state, context)

            def supports(self, problem: Problem) -> str | None:
                return supports(problem) if supports else None

        Made.name, Made.role, Made.requires = name, role, requires
        monkeypatch.setitem(stage.registry, name, Made)
        return run(PROBLEM, resolve(name if role is Role.START else f"wanda+{name}"))

    return make


def assert_failed(outcome: pipeline.Answer, reason: str, verdict: Verdict = Verdict.NONE) -> None:
    row = outcome.result
    assert (row.status, row.verdict) == (Status.FAILED, verdict), row.reason
    assert reason in row.reason
    assert "\n" not in row.reason
    assert (row.error, row.lower_bound, row.proof, row.ratio_to_wanda) == (None, None, Proof.NONE, None)
    assert not row.solved
    assert outcome.certificate is None
    assert Result.from_json(row.to_json()) == row


def raises(error: BaseException):
    def does(problem: Problem, state: State, context: Context) -> State:
        raise error

    return does


def returns(**changes: object):
    return lambda problem, state, context: replace(state, **changes)


WANDA = resolve("wanda")
KEEP = run(PROBLEM, WANDA).keep
ERROR = PROBLEM.error(KEEP)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (raises(ArithmeticError("on\npurpose")), "made raised ArithmeticError: on purpose"),
        (raises(AssertionError()), "made raised AssertionError"),
        (raises(MemoryError()), "memory: made ran out of memory"),
        (raises(RuntimeError("CUDA out of memory. Tried")), "memory: made: CUDA out of memory"),
        (lambda *_: None, "made returned a NoneType, not a State"),
        (lambda *_: KEEP, "made returned a ndarray, not a State"),
        (returns(keep=KEEP[:1]), "made returned keep of shape (1, 12), not (3, 12)"),
        (returns(keep=KEEP.tolist()), "made returned keep of shape"),
        (returns(keep=KEEP.astype(int)), "made returned a mask of dtype int64, not bool"),
        (returns(lower=math.nan), "made returned a lower bound that is NaN"),
        (returns(relaxed=np.full(KEEP.shape, np.nan)), "made returned a relaxed point that is not finite"),
        (returns(relaxed=np.where(KEEP, 2.0, -1.0)), "made returned a relaxed point outside [0, 1]: -1 to 2"),
        (returns(relaxed=np.zeros(KEEP.shape)), "made returned a relaxed point whose count is off by 6"),
        (returns(relaxed=np.zeros((2, 2))), "made returned relaxed of shape (2, 2)"),
        (returns(weights=np.zeros(3)), "made returned weights of shape (3,)"),
        (returns(lower="12"), "made returned lower of type str, not a number"),
        (returns(claimed_error=[1.0]), "made returned claimed_error of type list, not a number"),
        (returns(certificate="trust me"), "made returned a str, not a Certificate"),
    ],
)
def test_a_broken_contract_is_a_failed_row(made, does, reason):
    assert_failed(made(does), reason)


def test_no_mask_is_a_failed_row(made):
    assert_failed(made(lambda *_: State(), role=Role.START), "the solver returned no mask")


@pytest.mark.parametrize(
    ("changes", "reason", "verdict"),
    [
        ({"keep": np.ones_like(KEEP)}, "wrong count in 3 of 3 groups", Verdict.INFEASIBLE),
        ({"keep": np.roll(KEEP, 1, axis=0) | KEEP}, "wrong count", Verdict.INFEASIBLE),
        ({"weights": np.where(KEEP, np.nan, 0)}, "not finite", Verdict.NONFINITE),
        ({"weights": np.ones(KEEP.shape)}, "18 pruned weights are not zero", Verdict.INFEASIBLE),
    ],
)
def test_the_judge_rejects(made, changes, reason, verdict):
    assert_failed(made(returns(**changes), role=Role.UPDATE), reason, verdict)


def test_a_refinement_may_not_be_worse(made):
    worst = ~PROBLEM.pattern.prune(-np.abs(PROBLEM.W) * np.sqrt(PROBLEM.G.diagonal()))
    assert_failed(made(returns(keep=worst)), f"made made the mask worse: {ERROR:.6g} before")
    allowed = made(returns(keep=worst), role=Role.EXACT).result
    assert (allowed.verdict, allowed.error) == (Verdict.FEASIBLE, PROBLEM.error(worst))


@pytest.mark.parametrize("claim", [0.0, ERROR / 2, -1.0, math.nan, math.inf])
def test_a_lie_about_the_error_fails(made, claim):
    row = made(returns(claimed_error=claim)).result
    assert (row.status, row.verdict) == (Status.FAILED, Verdict.ERROR_MISMATCH)
    assert "claims an error of" in row.reason
    assert not row.solved


@pytest.mark.parametrize("lower", [ERROR * 1.001, ERROR * 100, math.inf])
def test_a_bound_above_the_error_costs_the_bound_and_not_the_mask(made, lower):
    row = made(returns(lower=lower, proven=True), role=Role.EXACT).result
    assert (row.status, row.verdict, row.proof) == (Status.FEASIBLE, Verdict.FEASIBLE, Proof.REFUTED)
    assert (row.error, row.lower_bound) == (pytest.approx(ERROR), None)
    assert "exceeds the error" in row.reason
    assert all(record.lower_bound is None for record in row.stages)


def test_a_claimed_bound_is_never_verified(made):
    row = made(returns(lower=ERROR, proven=True), role=Role.EXACT).result
    assert (row.status, row.verdict, row.proof) == (Status.OPTIMAL, Verdict.FEASIBLE, Proof.CLAIMED)
    assert row.lower_bound == ERROR


GOOD = bounds.certificate(PROBLEM, relaxed_minimum(PROBLEM)[1])


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (replace(GOOD, bound=ERROR), "only"),
        (replace(GOOD, problem="0" * 64), "another problem"),
        (replace(GOOD, arrays={"u": GOOD.arrays["u"], "e": PROBLEM.G.diagonal()}), "cannot be proved"),
        (replace(GOOD, arrays={"u": [0.5], "e": None}), "no array"),
    ],
)
def test_a_false_certificate_is_dropped_and_not_the_mask(made, certificate, reason):
    outcome = made(returns(lower=0.0, certificate=certificate))
    row = outcome.result
    assert (row.verdict, row.proof, row.lower_bound) == (Verdict.FEASIBLE, Proof.REFUTED, None)
    assert row.error == pytest.approx(ERROR)
    assert reason in row.reason
    assert outcome.certificate is None


def test_an_honest_certificate_is_verified(made):
    outcome = made(returns(lower=GOOD.bound, certificate=GOOD))
    row = outcome.result
    assert (row.verdict, row.proof) == (Verdict.CERTIFIED, Proof.VERIFIED)
    assert row.lower_bound == pytest.approx(GOOD.bound, rel=1e-9)
    assert isinstance(outcome.certificate, Certificate)


def test_a_proof_that_meets_the_error_is_optimal():
    diagonal = Problem("diagonal", PROBLEM.W, np.diag(PROBLEM.G.diagonal()), "0.5")
    row = run(diagonal, resolve("fw(convexify=shared)+swap"), threads=1).result
    assert (row.verdict, row.proof) in [(Verdict.OPTIMAL, Proof.VERIFIED), (Verdict.CERTIFIED, Proof.VERIFIED)]
    assert row.lower_bound == pytest.approx(row.error, rel=1e-3)


@pytest.mark.parametrize("name", ["keep", "relaxed"])
def test_what_stages_are_given_is_read_only(made, name):
    def writes(problem: Problem, state: State, context: Context) -> State:
        array = getattr(state, name)
        (problem.G if array is None else array)[0, 0] = 1
        return state

    assert_failed(made(writes), "read-only")


def test_stages_that_decline_are_skipped(made):
    row = made(raises(AssertionError), supports=lambda problem: f"{problem.n} inputs are too many").result
    assert (row.status, row.verdict, row.reason) == (Status.SKIPPED, Verdict.NONE, "made: 12 inputs are too many")
    row = made(raises(AssertionError), requires=("numpy", "no_such_package")).result
    assert (row.status, row.reason) == (
        Status.SKIPPED,
        "made needs no_such_package, which is not installed (pip install no_such_package)",
    )
    assert not row.solved


def test_a_support_check_that_raises_is_a_failed_row(made):
    def supports(problem: Problem) -> str | None:
        raise ArithmeticError("on purpose")

    assert_failed(
        made(returns(), supports=supports), "whether the problem is supported raised ArithmeticError: on purpose"
    )


# --- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("spec", ["wanda+swap", "fw", "fw+swap", "fw(convexify=shared)+swap", "greedy+swap"])
def test_no_time_leaves_a_feasible_mask(spec, pattern):
    problem = random_layer(pattern, n=12)
    outcome = run(problem, resolve(spec), time_limit=0.0)
    assert outcome.result.status is Status.TIMEOUT
    assert outcome.result.solved
    assert not count_reason(problem, outcome.keep)
    assert "deadline" in outcome.result.reason or "no time left for" in outcome.result.reason


def test_a_stage_that_stops_itself_is_a_timeout(made):
    row = made(returns(stopped="deadline")).result
    assert (row.status, row.verdict, row.reason) == (Status.TIMEOUT, Verdict.FEASIBLE, "stopped early: deadline")


def test_seconds_are_those_of_the_stages(made):
    def sleeps(problem: Problem, state: State, context: Context) -> State:
        time.sleep(0.05)
        return state.count(naps=2)

    row = made(sleeps).result
    assert row.stages[1].seconds >= 0.05
    assert row.seconds == sum(record.seconds for record in row.stages)
    assert (row.counters["naps"], row.stages[1].counters) == (2, {"naps": 2})


# --- the row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_number_of_a_row(pattern):
    problem = replace(random_layer(pattern, n=12), meta={"layer": "tiny"})
    outcome = run(problem, resolve("fw(steps=200)+swap"), collection="tests", seed=3, threads=1)
    row = outcome.result
    wanda = run(problem, WANDA).result.error
    assert (row.problem, row.problem_hash, row.collection) == (problem.name, problem.hash, "tests")
    assert (row.rows, row.n, row.pattern, row.seed, row.meta) == (3, 12, str(problem.pattern), 3, {"layer": "tiny"})
    assert row.error == problem.error(outcome.keep)
    assert row.relative_error == row.error / problem.total
    assert row.ratio_to_wanda == row.error / wanda
    relaxed, rounded = row.stages[1].relaxed_error, row.stages[2].error
    assert [record.stage for record in row.stages] == ["wanda", "fw", "round", "swap"]
    assert row.relaxed_error == relaxed
    assert row.rounding_error == pytest.approx(1 - relaxed / rounded)
    assert row.lower_bound <= relaxed * (1 + 1e-6)
    assert row.lower_bound <= row.error <= rounded
    assert len(row.mask_sha256) == 64
    assert Result.from_json(row.to_json()) == row
    assert json.loads(row.to_json())["verdict"] == row.verdict


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4", "rows"])
def test_hostile_layers_give_finite_honest_rows(pattern):
    for problem in hostile_layers(pattern):
        row = run(problem, resolve("fw(steps=50)+swap"), threads=1).result
        assert row.solved, (problem.name, row.reason)
        assert math.isfinite(row.relative_error)
        assert Result.from_json(row.to_json()) == row
