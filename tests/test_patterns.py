"""Patterns against a stable sort, an LP solver, and their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from layers import PATTERNS, pattern_of
from scipy.optimize import linprog

from fwbench.patterns import NM, Pattern, PatternError, PerRow, Rows, Unstructured, parse, smallest

UNKNOWN = (
    "x 1.5 -0.1 nan inf 60% unstructured unstructured: unstructured:2 structured:0.5 2:4:8 -2:4 2: :4 :0.5 a:4 0,5"
)
SHAPES = [(1, 4), (3, 8), (4, 12), (2, 40)]


def by_stable_sort(pattern: Pattern, score: np.ndarray) -> np.ndarray:
    """The definition of ``prune``: rank within each group, ties by index, the first ``count`` are pruned."""
    shape = score.shape[-2:]
    groups = score.reshape(-1, pattern.group_size(shape))
    counts = np.tile(pattern.counts(shape), len(groups) // len(pattern.counts(shape)))
    pruned = np.zeros(groups.shape, dtype=bool)
    for group, mark, count in zip(groups, pruned, counts, strict=True):
        mark[np.argsort(group, kind="stable")[:count]] = True
    return pruned.reshape(score.shape)


def by_linear_program(pattern: Pattern, g: np.ndarray) -> float:
    """``min gᵀv`` over the polytope, by HiGHS."""
    counts = pattern.counts(g.shape)
    sums = np.kron(np.eye(len(counts)), np.ones((1, g.size // len(counts))))
    return linprog(g.ravel(), A_eq=sums, b_eq=counts, bounds=(0, 1), method="highs").fun


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("0.6", PerRow(0.6)),
        (" 0.5 ", PerRow(0.5)),
        ("0", PerRow(0.0)),
        ("1", PerRow(1.0)),
        ("5e-1", PerRow(0.5)),
        ("unstructured:0.6", Unstructured(0.6)),
        ("2:4", NM(2, 4)),
        ("0:4", NM(0, 4)),
        ("4:4", NM(4, 4)),
    ],
)
def test_known_answers(text, pattern):
    assert parse(text) == pattern
    assert parse(str(parse(text))) == pattern
    assert parse(pattern) is pattern
    assert hash(parse(text)) == hash(pattern)


@given(st.floats(0, 1), st.sampled_from([PerRow, Unstructured]))
def test_text_keeps_the_fraction(fraction, kind):
    assert parse(str(kind(fraction))) == kind(fraction)


@pytest.mark.parametrize("text", UNKNOWN.split())
def test_unknown_text_is_refused(text):
    with pytest.raises(PatternError, match="unknown pattern"):
        parse(text)


def test_empty_text_is_refused():
    with pytest.raises(PatternError, match="unknown pattern ''"):
        parse("  ")


@pytest.mark.parametrize("counts", [[1.5], [np.nan], [np.inf], [[1, 2]], ["1"], [True], [None]])
def test_counts_that_are_not_whole_numbers_are_refused(counts):
    with pytest.raises(PatternError, match="whole numbers"):
        Rows(np.array(counts))


@pytest.mark.parametrize("text", ["5:4", "0:0", "1:0"])
def test_impossible_groups_are_refused(text):
    with pytest.raises(PatternError, match="N must not exceed M"):
        parse(text)


def test_counts_from_files(tmp_path):
    counts = np.array([0, 3, 8])
    np.save(tmp_path / "counts.npy", counts)
    (tmp_path / "counts.txt").write_text("0 3\n8\n")
    (tmp_path / "windows.txt").write_bytes("\ufeff0 3\r\n8\r\n".encode())
    (tmp_path / "powershell.txt").write_text("0 3\r\n8\r\n", encoding="utf-16")
    (tmp_path / "big-endian.txt").write_bytes("\ufeff0 3\n8\n".encode("utf-16-be"))
    for name in ("counts.npy", "counts.txt", "windows.txt", "powershell.txt", "big-endian.txt"):
        pattern = parse(f"rows:{tmp_path / name}")
        assert pattern == Rows(counts) == parse(counts)
        assert pattern.counts((3, 8)).tolist() == [0, 3, 8]
        assert str(pattern) == str(Rows(counts)) != str(Rows(counts[::-1]))
        assert hash(pattern) == hash(Rows(counts))


def test_bad_count_files_are_refused(tmp_path):
    (tmp_path / "words").write_text("one two")
    (tmp_path / "fractions").write_text("0.5 1")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "matrix.npy", np.ones((2, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}, 1]), allow_pickle=True)
    np.save(tmp_path / "halves.npy", np.array([0.5, 1.0]))
    np.save(tmp_path / "nan.npy", np.array([np.nan, 1.0]))
    for name in [*(path.name for path in tmp_path.iterdir()), "missing", ""]:
        with pytest.raises(PatternError, match="rows") as caught:
            parse(f"rows:{tmp_path / name}")
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("3:8", "8 does not divide the 12 inputs"),
        (np.array([1, 2]), "2 counts for a layer of 3 rows"),
        (np.array([1, 2, 13]), "outside 0..12"),
        (np.array([1, -1, 2]), "outside 0..12"),
    ],
)
def test_what_does_not_fit_is_refused(pattern, reason):
    with pytest.raises(PatternError, match=reason):
        parse(pattern).counts((3, 12))


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape", "size", "counts"),
    [
        ("0.6", (3, 10), 10, [6, 6, 6]),
        ("0.5", (2, 5), 5, [2, 2]),  # round(2.5): Python rounds half to even
        ("0.26", (1, 4), 4, [1]),
        ("unstructured:0.6", (3, 10), 30, [18]),
        ("unstructured:0.5", (3, 5), 15, [8]),  # round(7.5)
        ("2:4", (2, 8), 4, [2, 2, 2, 2]),
        ("1:4", (1, 8), 4, [3, 3]),  # one of four is *kept*
        ("0:2", (1, 4), 2, [2, 2]),
    ],
)
def test_counts_are_the_definition(text, shape, size, counts):
    pattern = parse(text)
    assert pattern.group_size(shape) == size
    assert pattern.counts(shape).tolist() == counts
    assert pattern.separable == (not text.startswith("unstructured"))


def test_row_counts():
    assert parse("2:4").row_counts((2, 12)).tolist() == [6, 6]
    assert parse(np.array([1, 5])).row_counts((2, 12)).tolist() == [1, 5]
    with pytest.raises(PatternError, match="does not fix the count of a row"):
        parse("unstructured:0.5").row_counts((2, 12))


# --- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PATTERNS)
def test_minimises_like_a_linear_program(name, shape):
    rng = np.random.default_rng(0)
    pattern = parse(pattern_of(name, *shape))
    for g in (rng.standard_normal(shape), rng.integers(-2, 3, shape).astype(float), np.zeros(shape)):
        chosen = pattern.prune(g)
        assert (pattern.groups(chosen).sum(-1) == pattern.counts(shape)).all()
        assert g[chosen].sum() == pytest.approx(by_linear_program(pattern, g), abs=1e-12 * g.size)


scores = arrays.arrays(
    np.float64, st.sampled_from(SHAPES), elements=st.integers(-3, 3) | st.sampled_from([0.0, -0.0, np.inf, -np.inf])
)


@given(scores, st.sampled_from(PATTERNS))
def test_equals_a_stable_sort(score, name):
    pattern = parse(pattern_of(name, *score.shape))
    assert np.array_equal(pattern.prune(score), by_stable_sort(pattern, score))


@given(scores, st.sampled_from(PATTERNS), st.sampled_from([torch.float32, torch.float64]))
def test_torch_equals_numpy(score, name, dtype):
    pattern = parse(pattern_of(name, *score.shape))
    chosen = pattern.prune(torch.tensor(score, dtype=dtype))
    assert chosen.dtype == torch.bool
    assert np.array_equal(chosen.numpy(), pattern.prune(score))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", PATTERNS)
def test_batches_equal_their_members(name, library):
    pattern = parse(pattern_of(name, 3, 8))
    scores = np.random.default_rng(0).integers(0, 4, (2, 5, 3, 8))
    chosen = pattern.prune(scores if library == "numpy" else torch.tensor(scores))
    assert np.array_equal(np.asarray(chosen), by_stable_sort(pattern, scores))


def test_the_input_is_not_written_to():
    score = np.random.default_rng(0).integers(0, 3, (3, 8)).astype(float)
    before = score.copy()
    score.setflags(write=False)
    for name in PATTERNS:
        parse(pattern_of(name, 3, 8)).prune(score)
    assert np.array_equal(score, before)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_counts_from_none_to_all(kind):
    x = np.tile(np.array([2, 1, 1, 0], dtype=kind), (5, 1))
    marked = smallest(x, np.arange(5))
    assert marked.astype(int).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
