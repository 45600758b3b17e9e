"""Comparing stores: what is worse is found, what is noise is not, and times are told without drifted rows."""

import pytest
from make_rows import result

from fwbench.report import rows
from fwbench.report.compare import CompareError, compare, lines
from fwbench.result import Status, Verdict


def joined(*results):
    return rows.join(results)


def test_errors():
    old = joined(result("a", error=1.0), result("b", error=1.0), result("c", error=1.0), result("d", error=0.0))
    new = joined(
        result("a", error=1 + 1e-10), result("b", error=1 + 1e-8), result("c", error=0.5), result("d", error=0.0)
    )
    found = compare(old, new)
    assert [pair.new["problem"] for pair in found.regressions] == ["b"]
    assert [pair.new["problem"] for pair in found.pairs if pair.better] == ["c"]
    assert "error 1 before, 1.00000001 now (+1.00e-08)" in lines(found)[1]
    assert compare(new, old).regressions[0].new["problem"] == "c"
    assert compare(joined(result("d", error=0.0)), joined(result("d", error=1e-30))).regressions


def test_statuses():
    failed = {"status": Status.FAILED, "verdict": Verdict.NONE, "error": None, "reason": "it raised ValueError"}
    order = [
        {"status": Status.OPTIMAL},
        {"status": Status.FEASIBLE},
        {"status": Status.TIMEOUT},
        {**failed, "status": Status.SKIPPED},
        failed,
    ]
    for i, first in enumerate(order):
        for j, second in enumerate(order):
            found = compare(joined(result("a", **first)), joined(result("a", **second)))
            assert bool(found.regressions) == (j > i)
    found = compare(joined(result("a")), joined(result("a", **failed)))
    assert found.regressions[0].regression == "feasible before, failed now (it raised ValueError)"


def test_matching():
    old = joined(result("a", "wanda", seed=0), result("a", "wanda", seed=1), result("a", "fw"), result("b", "wanda"))
    new = joined(result("a", "wanda", seed=0), result("a", "swap"))
    found = compare(old, new)
    assert (len(found.pairs), found.only_old, found.only_new) == (1, 3, 1)
    with pytest.raises(CompareError, match="1 and 1 rows, and none in common"):
        compare(joined(result("a")), joined(result("b")))


def test_times():
    loads = {"reference_before": 0.005, "reference_after": 0.005}
    slow = {"timing": {"reference_before": 0.005, "reference_after": 0.05}}
    old = joined(*(result(name, seconds=1.0, timing=loads) for name in "abc"))
    new = joined(
        result("a", seconds=2.0, timing=loads),
        result("b", seconds=8.0, timing=loads),
        result("c", seconds=99.0, **slow),
    )
    found = compare(old, new)
    assert [pair.time_ratio for pair in found.pairs] == [2.0, 8.0, None]
    assert "4 times as long (geometric mean of 2)" in lines(found)[0]
    assert not found.regressions
