"""Packed masks and rows as text. (Certificate files: verify/test_verify.py.)"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fwbench.result import Proof, Result, StageRecord, Status, TracePoint, Verdict, pack_mask, unpack_mask


@given(arrays.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 20))))
def test_masks_survive_packing(keep):
    packed = pack_mask(keep)
    assert len(packed) == math.ceil(keep.size / 8)
    assert np.array_equal(unpack_mask(packed, keep.shape), keep)
    assert pack_mask(np.asfortranarray(keep)) == packed


def row(**changes: object) -> Result:
    return Result("p", "hash", "c", "wanda", "key", "0.5", 2, 4, **{"status": Status.FEASIBLE, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"error": 0.1 + 0.2, "relative_error": 1e-300, "ratio_to_wanda": math.inf, "lower_bound": 5e-324},
        {"status": Status.FAILED, "verdict": Verdict.NONFINITE, "reason": 'it said: "\u00fc\n\\"'},
        {"proof": Proof.VERIFIED, "counters": {"swaps": 3}, "meta": {"layer": "07.q_proj"}, "machine": {"cores": 2}},
        {"stages": (StageRecord("fw", "relax", 0.5, None, 1.5, 1.25, {"lmo_calls": 3}),)},
        {
            "trace": (TracePoint(0.1, lower=1.0, iterations=10, relaxed=2.0), TracePoint(0.2, 3.0)),
            "timing": {"load": 0.5},
        },
    ],
)
def test_rows_survive_json(changes):
    back = Result.from_json(row(**changes).to_json())
    assert back == row(**changes)
    assert type(back.status) is Status
    assert type(back.verdict) is Verdict


@pytest.mark.parametrize("verdict", Verdict)
def test_solved_is_the_judges_word(verdict):
    accepted = verdict in ("optimal", "certified", "feasible")
    for status in Status:
        assert row(verdict=verdict, status=status).solved == accepted
