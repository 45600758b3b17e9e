"""The embedded collection: what is committed is what the recipe says."""

import numpy as np
import pytest

from fwbench.problems import mini
from fwbench.problems.collections import load
from fwbench.problems.mini import MINI, PARTS


@pytest.fixture(scope="module")
def problems():
    return {problem.name: problem for _, problem in load("mini")}


def test_the_recipe_s_list(problems):
    assert sorted(problems) == sorted(part.name for part in PARTS)
    for part in PARTS:
        problem = problems[part.name]
        assert problem.shape == (part.rows, part.n)
        assert str(problem.pattern) == part.pattern
        assert problem.meta["layer"] == part.layer
        assert int(problem.meta["tokens"]) == mini.TOKENS
        assert problem.meta["license"] == "Apache-2.0"
        assert (problem.T is not None) == part.target == ("target" in problem.meta)


def test_small_enough_to_commit():
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 8e6


def test_unstructured_fits_a_free_licence():
    assert all(part.rows * part.n <= 192 for part in PARTS if part.pattern.startswith("unstructured"))


def test_parts_of_one_layer_agree(problems):
    """The whole v_proj layer and the recipe cut from it: columns and rows in ``source`` lead back to the numbers."""
    whole = problems["mini.n576.v_proj.whole.0.5"]
    assert whole.shape == (192, 576)
    part = problems["mini.n016.v_proj.top.2:4"]
    _, _, recipe = part.meta["source"].partition("07.v_proj, rows ")
    rows, columns = (indices(text) for text in recipe.split(", columns "))
    assert np.array_equal(part.W, whole.W[np.ix_(rows, columns)])
    assert np.array_equal(part.G, whole.G[np.ix_(columns, columns)])


def indices(text: str) -> list[int]:
    ends = [[int(end) for end in run.split("-")] for run in text.split()]
    return [i for run in ends for i in range(run[0], run[-1] + 1)]


def test_ranges():
    assert mini._ranges(np.array([0, 1, 2, 5, 8, 9])) == "0-2 5 8-9"
    assert indices("0-2 5 8-9") == [0, 1, 2, 5, 8, 9]


def test_most_correlated_finds_the_cluster():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 400))
    cluster = [3, 7, 11, 20, 29]
    X[cluster] += 3 * rng.standard_normal(400)
    X[5] = 0  # a dead input is never chosen before a living one
    assert sorted(mini.most_correlated(X @ X.T, 5, 11)) == cluster
    assert 5 not in mini.most_correlated(X @ X.T, 29, 11)


def test_build_repeats_and_changes_with_the_name(problems):
    whole = problems["mini.n576.v_proj.whole.0.5"]
    part = mini.Part(32, "07.v_proj", "random", "0.5", 2)
    first = mini.build(part, whole)
    assert first.hash == mini.build(part, whole).hash
    assert first.hash != mini.build(mini.Part(32, "07.v_proj", "random", "0.6", 2), whole).hash


@pytest.mark.slow
def test_rebuild(tmp_path, monkeypatch, problems):
    """To rounding on any machine (bit for bit on the one that wrote the files)."""
    monkeypatch.setattr(mini, "MINI", tmp_path)
    mini.write()
    for _, problem in load(tmp_path):
        committed = problems[problem.name]
        assert np.array_equal(problem.W, committed.W)
        np.testing.assert_allclose(problem.G, committed.G, rtol=1e-3, atol=1e-5 * committed.G.max())
        for found, wanted in ((problem.T, committed.T), (problem.offset, committed.offset)):
            assert (found is None) == (wanted is None)
            if wanted is not None:
                np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-4 * np.abs(wanted).max())
