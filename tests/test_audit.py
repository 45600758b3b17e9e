"""Proofs at rest: what `fwbench verify FOLDER` says of a registry, also on a machine that extracts other last bits."""

from dataclasses import replace

import numpy as np
import pytest

from fwbench import audit, bounds
from fwbench.problem import Problem
from fwbench.problems import collections, registry, resources, synthetic
from fwbench.result import Proof


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A registry of one extracted problem, and what extraction gives: a list that the test fills."""
    problem = synthetic.correlated(rows=3, n=16, name="smollm2.07.tiny")
    keep = ~problem.pattern.prune(np.abs(problem.W))
    proof = bounds.certificate(problem, np.full(problem.shape, 0.5))
    entries = registry.improve({}, problem, "magnitude", keep=keep, lower=proof.bound, proof=Proof.VERIFIED)
    registry.save(entries, tmp_path, {problem.hash: proof})
    extracted: list = []

    def load(selector, *_):
        for problem in extracted if selector.startswith("smollm2") else ():
            if isinstance(problem, Exception):
                raise problem
            yield "smollm2", problem

    monkeypatch.setattr(collections, "load", load)
    return problem, extracted, lambda: {item.what: item for item in audit.verify_registry(tmp_path)}


def test_the_same_extraction_is_proved(listed):
    problem, extracted, verify = listed
    extracted.append(problem)
    assert [item.ok for item in verify().values()] == [True, True]


def test_other_last_bits_leave_the_bound_open(listed):
    problem, extracted, verify = listed
    extracted.append(Problem(problem.name, problem.W, problem.G * (1 + 1e-8), problem.pattern))
    mask, bound = verify().values()
    assert mask.ok
    assert bound.ok is None
    assert "another extraction" in bound.detail
    assert problem.hash[:12] in bound.detail


def test_another_problem_of_that_name_fails(listed):
    problem, extracted, verify = listed
    extracted.append(Problem(problem.name, problem.W, problem.G * 1.01, problem.pattern))
    assert next(iter(verify().values())).ok is False


def test_what_is_no_longer_there_fails(listed):
    problem, extracted, verify = listed
    assert [(item.what, item.ok) for item in verify().values()] == [("problem", False)]
    extracted.append(replace(problem, W=problem.W[:2]))
    assert [(item.what, item.ok) for item in verify().values()] == [("problem", False)]


def test_what_cannot_be_extracted_is_open(listed):
    _, extracted, verify = listed
    extracted.append(resources.ResourceError("pip cannot download it"))
    (found,) = verify().values()
    assert found.ok is None
    assert found.detail.startswith("not found: cannot be extracted here: pip cannot download it; --problem PATH says")


def test_a_damaged_certificate_is_no_open_question(listed, tmp_path):
    problem, extracted, verify = listed
    extracted.append(problem)
    (file,) = (tmp_path / registry.CERTIFICATES).iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=file.name):
        verify()
