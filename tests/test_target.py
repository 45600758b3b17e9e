"""Problems whose inputs arrive wrong: the error is that of the target, for masks, weights, bounds, files and parts."""

from dataclasses import replace

import gurobipy
import numpy as np
import pyscipopt
import pytest
from brute import best_mask
from hypothesis import given
from hypothesis import strategies as st
from layers import PATTERNS, arriving, hostile_targets

from fwbench import bounds, pipeline, verify
from fwbench.contract import enumerated
from fwbench.judge import judge
from fwbench.problem import Problem, ProblemError
from fwbench.problems import export
from fwbench.problems.files import read_problem, write_problem
from fwbench.result import Certificate
from fwbench.verify.tree import BRANCH, DIAGONAL, LEAF, NOTHING, POINT


def row_masks(problem, seed=0):
    """A random mask of the pattern, True = stays."""
    score = np.random.default_rng(seed).standard_normal(problem.shape)
    return ~problem.pattern.prune(score)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_error_is_the_distance_to_the_target(pattern):
    problem, Y, X = arriving(pattern)
    keep = row_masks(problem)
    for weights in (None, np.where(keep, problem.W + 0.1, 0).astype(np.float32)):
        final = np.where(keep, problem.W, 0) if weights is None else weights
        wanted = ((Y - final.astype(np.float64) @ X) ** 2).sum() / X.shape[1]
        assert judge(problem, keep, weights).error == pytest.approx(wanted, rel=1e-12)
    u = np.random.default_rng(1).uniform(size=problem.shape)
    wanted = ((Y - (problem.W * (1 - u)) @ X) ** 2).sum(axis=1) / X.shape[1]
    assert problem.row_errors(u) == pytest.approx(wanted, rel=1e-12)
    assert problem.total == pytest.approx((Y**2).sum() / X.shape[1], rel=1e-12)


def test_a_target_is_part_of_the_hash():
    """That of ``mini`` stands in the registry, see tests/problems; here, that each part of a target changes it."""
    problem, _, _ = arriving("0.5")
    others = [replace(problem, T=2 * problem.T), replace(problem, offset=2 * problem.offset)]
    others.append(replace(problem, T=None, offset=None))
    assert len({problem.hash, *(other.hash for other in others)}) == 4


@pytest.mark.parametrize("changes", [{"T": None}, {"offset": None}, {"offset": np.zeros(2)}, {"T": np.zeros((3, 5))}])
def test_half_a_target_is_refused(changes):
    with pytest.raises(ProblemError, match=r"T|offset"):
        replace(arriving("0.5")[0], **changes)


def test_a_target_that_is_none_is_refused():
    problem, _, _ = arriving("0.5")
    problem.check_psd()
    with pytest.raises(ProblemError, match="of no target: row 0"):
        replace(problem, offset=0.5 * problem.offset - problem.row_totals).check_psd()
    for case in hostile_targets("0.5"):
        case.check_psd()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_files_and_parts(tmp_path, pattern):
    problem, _, _ = arriving(pattern)
    write_problem(problem, tmp_path / "p.safetensors")
    found = read_problem(tmp_path / "p.safetensors")
    assert found.hash == problem.hash
    part = problem.part([2, 0]) if pattern != "unstructured:0.4" else problem.part([2, 0], pattern="unstructured:0.4")
    u = np.random.default_rng(3).uniform(size=problem.shape)
    assert part.row_errors(u[[2, 0]]) == pytest.approx(problem.row_errors(u)[[2, 0]], rel=1e-12)


@pytest.mark.parametrize("suffix", [".lp", ".mps", ".qplib", ".npz"])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4"])
def test_exported_instances_have_the_target(tmp_path, pattern, suffix):
    problem, _, _ = arriving(pattern, rows=2, n=8)
    path = tmp_path / f"instance{suffix}"
    export.write(problem, path)
    best, _ = best_mask(problem)
    if suffix == ".npz":
        found = np.load(path)
        again = Problem("again", found["W"], found["G"], pattern, T=found["T"], offset=found["offset"])
        assert again.hash == problem.hash
    elif suffix == ".qplib":
        text = path.read_text()
        [constant] = [line for line in text.splitlines() if "# constant" in line]
        assert float(constant.split()[0]) == pytest.approx(problem.offset.sum(), rel=1e-15)
        assert f"{np.count_nonzero(problem.linear)} # others" in text
    else:
        with gurobipy.Env(params={"OutputFlag": 0}) as env:
            model = gurobipy.read(str(path), env)
            model.Params.MIPGap = 0
            model.optimize()
            assert model.ObjVal == pytest.approx(best, rel=1e-6)
        other = pyscipopt.Model()
        other.hideOutput()
        other.readProblem(str(path))
        other.optimize()
        assert other.getObjVal() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_enumerations_agree(pattern):
    problem, _, _ = arriving(pattern, rows=2, n=8)
    best, keep = best_mask(problem)
    assert problem.error(keep) == pytest.approx(best, rel=1e-12)
    assert enumerated(problem) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 10_000))
def test_tangents_bound_every_mask(pattern, seed):
    rng = np.random.default_rng(seed)
    problem, _, _ = arriving(pattern, rows=2, n=8, seed=seed, wrong=10 ** rng.uniform(-2, 2))
    best, keep = best_mask(problem)
    e = 0.9 * float(np.linalg.eigvalsh(problem.G)[0]) * np.ones(8)
    for u in (rng.uniform(size=problem.shape), (~keep).astype(float)):
        found = verify.check(problem, bounds.certificate(problem, u, e))
        assert found.ok, found.reason
        assert found.bound <= best
        assert found.bound == pytest.approx(bounds.lower_bound(problem, u.astype(np.float32), e), rel=1e-9, abs=1e-9)


def test_hostile_targets_are_bounded():
    for pattern in PATTERNS:
        for problem in hostile_targets(pattern, rows=2):
            best, keep = best_mask(problem)
            certificate = bounds.certificate(problem, ~keep, None)
            found = verify.check(problem, certificate)
            assert found.ok, found.reason
            assert found.bound <= best + 1e-12 * abs(best)


def test_a_forged_target_proves_nothing():
    problem, _, _ = arriving("0.5", n=8)
    best, keep = best_mask(problem)
    certificate = bounds.certificate(problem, ~keep)
    other = replace(problem, T=problem.T + 1)
    assert "another problem" in verify.check(other, certificate).reason
    lie = replace(certificate, bound=best + 1)
    assert "can be proved" in verify.check(problem, lie).reason


def tree(problem, **arrays):
    blank = {"step": np.uint8, "variable": np.uint16, "point": np.uint8, "digits": np.uint8, "diagonal": np.float32}
    arrays = {name: np.array(arrays.get(name, ()), dtype) for name, dtype in blank.items()}
    arrays["rho"] = np.zeros(problem.rows)
    return verify.check(problem, Certificate(problem.hash, -1e300, "tree", arrays, "test"))


def test_a_leaf_of_nothing_costs_what_the_linear_term_says():
    """``vᵀQv ≥ 0``, and no more: a negative linear term lowers the bound below the offset."""
    problem, _, _ = arriving("0.5", rows=2, n=8, wrong=3.0)
    found = tree(problem, step=[NOTHING, NOTHING])
    wanted = problem.offset + np.sort(problem.linear, axis=1)[:, :4].sum(axis=1)
    assert found.ok, found.reason
    assert found.rows == pytest.approx(wanted, rel=1e-12)
    assert (wanted < problem.offset).all()
    assert found.bound <= best_mask(problem)[0]


def test_a_branch_of_nothing_fixes_its_linear_term():
    problem, _, _ = arriving("0.5", rows=1, n=4, wrong=3.0)
    found = tree(problem, step=[BRANCH, NOTHING, NOTHING], variable=[0])
    c = np.sort(problem.linear[0][1:])
    without, with_it = c[:2].sum(), problem.linear[0, 0] + c[:1].sum()
    assert found.bound == pytest.approx(problem.offset[0] + min(without, with_it), rel=1e-12)


def test_a_tree_of_one_leaf_is_a_tangent():
    problem, _, _ = arriving("0.5", rows=1, n=4)
    found = tree(problem, step=[DIAGONAL, POINT, LEAF], diagonal=[0] * 4, point=[64] * 4, digits=[0] * 4)
    u = np.full((1, 4), 0.5)
    assert found.ok, found.reason
    assert found.bound == pytest.approx(bounds.lower_bound(problem, u), rel=1e-9)


def test_wanda_is_judged_against_the_target():
    problem, Y, X = arriving("0.5")
    answer = pipeline.run(problem, "wanda")
    wanted = ((Y - np.where(answer.keep, problem.W, 0) @ X) ** 2).sum() / X.shape[1]
    assert answer.result.error == pytest.approx(wanted, rel=1e-12)
    assert answer.result.ratio_to_wanda == 1
