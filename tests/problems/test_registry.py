"""The registry: it only improves, believes nobody, and comes back from disk as it was."""

from dataclasses import replace

import numpy as np
import pytest

from fwbench import bounds, verify
from fwbench.problems import registry, synthetic
from fwbench.problems.registry import BestKnown, RegistryError, best_known, improve, save
from fwbench.result import Proof


@pytest.fixture
def problem():
    return synthetic.correlated(rows=3, n=16, name="odd/name: 2:4")


def masks(problem):
    """A good and a bad mask, by error."""
    rng = np.random.default_rng(0)
    found = [~problem.pattern.prune(rng.standard_normal(problem.shape)) for _ in range(2)]
    return sorted(found, key=problem.error)


def test_upper_bounds_only_fall(problem):
    good, bad = masks(problem)
    first = improve({}, problem, "wanda", keep=bad, date="2026-01-01")
    entry = first[problem.hash]
    assert (entry.upper, entry.upper_by, entry.date) == (problem.error(bad), "wanda", "2026-01-01")
    second = improve(first, problem, "tabu", keep=good)
    assert second[problem.hash].upper == problem.error(good)
    assert np.array_equal(second[problem.hash].keep, good)
    assert first[problem.hash] is entry  # the argument is not changed
    assert improve(second, problem, "wanda", keep=bad) == second
    assert improve(second, problem, "other", keep=good) == second  # who was first stays


def test_lower_bounds_only_rise(problem):
    entries = improve({}, problem, "fw", lower=1.0, proof=Proof.VERIFIED)
    assert improve(entries, problem, "x", lower=0.5, proof=Proof.VERIFIED) == entries
    assert improve(entries, problem, "x", lower=1.5) == entries  # no proof at all
    both = improve(entries, problem, "gurobi", lower=1.5, proof=Proof.CLAIMED)[problem.hash]
    assert (both.verified, both.claimed, both.lower, both.proof) == (1.0, 1.5, 1.5, Proof.CLAIMED)
    assert improve(entries, problem, "x", lower=float("nan"), proof=Proof.VERIFIED) == entries
    assert improve(entries, problem, "sdp", lower=1.5, proof=Proof.VERIFIED)[problem.hash].verified_by == "sdp"
    claimed = improve({}, problem, "gurobi", lower=1.5, proof=Proof.CLAIMED)
    joined = improve(claimed, problem, "bnb", lower=1.5, proof=Proof.VERIFIED)[problem.hash]
    assert (joined.lower, joined.proof) == (1.5, Proof.VERIFIED)


def test_gap(problem):
    good, _ = masks(problem)
    assert improve({}, problem, "x", keep=good)[problem.hash].gap is None
    error = problem.error(good)
    entries = improve({}, problem, "x", keep=good, lower=0.75 * error, proof=Proof.VERIFIED)
    assert entries[problem.hash].gap == pytest.approx(0.25)
    planted, keep = synthetic.planted()
    assert improve({}, planted, "x", keep=keep, lower=0.0, proof=Proof.VERIFIED)[planted.hash].gap == 0.0


def test_bounds_below_zero(problem):
    """As of a problem with a target: the same claim adds nothing, and a higher bound is higher."""
    entries = improve({}, problem, "bnb", lower=-1.0, proof=Proof.VERIFIED)
    same = improve(entries, problem, "gurobi", lower=-1.0, proof=Proof.CLAIMED)[problem.hash]
    assert (same.lower, same.proof) == (-1.0, Proof.VERIFIED)
    assert improve(entries, problem, "x", lower=-2.0, proof=Proof.VERIFIED) == entries
    assert improve(entries, problem, "x", lower=-0.5, proof=Proof.VERIFIED)[problem.hash].verified == -0.5


def test_contradictions_are_refused(problem):
    good, bad = masks(problem)
    entries = improve({}, problem, "wanda", keep=good)
    with pytest.raises(RegistryError, match=r"verified lower bound .* of liar exceeds the error .* of wanda"):
        improve(entries, problem, "liar", lower=2 * problem.error(good), proof=Proof.VERIFIED)
    entries = improve({}, problem, "liar", lower=2 * problem.error(bad), proof=Proof.CLAIMED)
    with pytest.raises(RegistryError, match="claimed lower bound"):
        improve(entries, problem, "wanda", keep=good)


def test_a_wrong_count_is_refused(problem):
    with pytest.raises(RegistryError, match="of cheat is refused: wrong count"):
        improve({}, problem, "cheat", keep=np.ones(problem.shape, bool))


def test_round_trip(tmp_path, problem):
    good, _ = masks(problem)
    wide, keep = synthetic.planted(rows=8, n=120, name="planted")
    entries = improve({}, problem, 'fw(steps=1000,step="a,b")', keep=good, lower=0.1 + 0.2, proof=Proof.VERIFIED)
    entries = improve(entries, wide, "planted", keep=keep)
    entries = improve(entries, synthetic.ties(), "bound alone", lower=0.25, proof=Proof.CLAIMED)
    save(entries, tmp_path)
    assert best_known(tmp_path) == entries
    assert [line.split(",")[0] for line in (tmp_path / "best_known.csv").read_text().splitlines()] == [
        "name",
        "odd/name: 2:4",
        "planted",
        "ties-32",
    ]
    texts = [path.read_text().splitlines() for path in (tmp_path / "best_masks").iterdir()]
    assert sorted(len(lines) for lines in texts) == [1, 3]
    assert max(len(line) for lines in texts for line in lines) == 100
    save({wide.hash: entries[wide.hash]}, tmp_path)
    assert len(list((tmp_path / "best_masks").iterdir())) == 1


def test_proofs_stay_with_their_bounds(tmp_path, problem):
    proof = bounds.certificate(problem, np.full(problem.shape, 0.5), source="by hand")
    entries = improve({}, problem, "by hand", lower=proof.bound, proof=Proof.VERIFIED)
    save(entries, tmp_path, {problem.hash: proof})
    save(entries, tmp_path)  # once more without it
    assert verify.check(problem, registry.certificate(entries[problem.hash], tmp_path)).ok
    save({}, tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        registry.certificate(entries[problem.hash], tmp_path)


def test_the_committed_registry_reads():
    for key, entry in best_known().items():
        assert isinstance(entry, BestKnown)
        assert key == entry.hash


def test_unreadable(tmp_path, problem):
    with pytest.raises(RegistryError, match=r"best_known\.csv: cannot be read \(No such file"):
        best_known(tmp_path)
    (tmp_path / "best_known.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RegistryError, match="its columns are not name,hash"):
        best_known(tmp_path)
    save(improve({}, problem, "x", keep=masks(problem)[0]), tmp_path)
    (mask,) = (tmp_path / "best_masks").iterdir()
    mask.write_text("ff\n")
    with pytest.raises(RegistryError, match="has 1 bytes"):
        best_known(tmp_path)
    mask.unlink()
    with pytest.raises(RegistryError, match="No such file"):
        best_known(tmp_path)
    (tmp_path / "best_known.csv").write_text("".join(f"{c}," for c in registry.COLUMNS)[:-1] + "\nx,y,wide\n")
    with pytest.raises(RegistryError, match="cannot be read"):
        best_known(tmp_path)
    assert registry.COLUMNS[-1] == "date"


def test_solu(tmp_path, problem):
    good, _ = masks(problem)
    error = problem.error(good)
    wide, keep = synthetic.planted(rows=2, n=12, name="planted")
    entries = improve({}, problem, "x", keep=good, lower=0.5 * error, proof=Proof.VERIFIED)
    entries = improve(entries, problem, "gurobi", lower=error, proof=Proof.CLAIMED)  # a claim is no optimum
    entries = improve(entries, wide, "planted", keep=keep, lower=0.0, proof=Proof.VERIFIED)
    entries = improve(entries, synthetic.ties(), "bound alone", lower=0.25, proof=Proof.VERIFIED)
    save(entries, tmp_path)
    assert (tmp_path / "best_known.solu").read_text().splitlines() == [
        f"=best= odd/name:_2:4 {error!r}",
        f"=bestdual= odd/name:_2:4 {0.5 * error!r}",
        "=opt= planted 0.0",
        "=bestdual= ties-32 0.25",
    ]


def test_names_that_a_spreadsheet_would_run_come_back(tmp_path, problem):
    odd = replace(problem, name="=1+1")
    entries = improve({}, odd, "@me", keep=masks(problem)[0])
    save(entries, tmp_path)
    assert "\n'=1+1," in (tmp_path / "best_known.csv").read_text()
    assert best_known(tmp_path) == entries


def test_equal_names_in_a_solu(problem):
    good, _ = masks(problem)
    other = problem.with_pattern("2:4")
    entries = improve({}, problem, "x", keep=good)
    entries = improve(entries, other, "x", keep=~other.pattern.prune(np.abs(other.W)))
    names = {line.split()[1] for line in registry.solu(entries).splitlines()}
    assert names == {"odd/name:_2:4_(0.5)", "odd/name:_2:4_(2:4)"}


def test_a_registry_to_be_begun(tmp_path, problem):
    assert registry.to_improve(tmp_path / "nowhere") == {}
    save(improve({}, problem, "x", keep=masks(problem)[0]), tmp_path)
    assert registry.to_improve(tmp_path) == best_known(tmp_path)
    (tmp_path / "best_known.csv").unlink()
    with pytest.raises(RegistryError, match=r"holds best_masks but no best_known\.csv"):
        registry.to_improve(tmp_path)


def test_the_committed_solu_is_the_table():
    table, solu = registry.FOLDER / registry.TABLE, registry.FOLDER / registry.SOLU
    assert solu.is_file() or not best_known(), f"{table} was written by hand: save it"
    if solu.is_file():
        assert solu.read_text() == registry.solu(best_known())
