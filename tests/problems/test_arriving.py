"""What arrives at a layer, and its target: sums, the ridge, and extraction from a pruned model beside the dense one."""

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from hooked import inputs
from small_models import saved

from fwbench import pipeline
from fwbench.cli import cli
from fwbench.problem import Problem
from fwbench.problems import extract, structure
from fwbench.problems.arriving import Arrived
from fwbench.problems.files import read_folder
from fwbench.problems.models import ModelError
from fwbench.problems.text import Text

TEXT = Text("letters", " ".join("abcde"[number * number % 5] for number in range(400)))
TOKENS, LENGTH = 96, 16


def arrived(n=6, tokens=50, wrong=0.5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, tokens))
    reads = X + wrong * rng.standard_normal((n, tokens))
    D = X - reads
    return X, reads, Arrived(reads @ reads.T / tokens, D @ reads.T / tokens, D @ D.T / tokens)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_without_a_ridge_it_is_the_dense_output(strength):
    X, reads, sums = arrived()
    W = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    problem = Problem("p", W, sums.G, "0.5", **sums.target(W, strength)._asdict())
    problem.check_psd()
    u = np.random.default_rng(2).uniform(size=W.shape)
    W = W.astype(np.float64)
    Y = (1 - strength) * W @ reads + strength * W @ X
    assert problem.row_errors(u) == pytest.approx(((Y - (W * (1 - u)) @ reads) ** 2).mean(axis=1), rel=1e-10)


@pytest.mark.parametrize("ridge", [1e-9, 0.1, 10.0])
def test_a_ridge_leaves_what_it_explains(ridge):
    """Weights that answer for all of it have no error: the target is a map of what is read."""
    X, reads, sums = arrived()
    W = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    found = sums.target(W, 0.4, ridge)
    problem = Problem("p", W, sums.G, "0.5", **found._asdict())
    problem.check_psd()
    damping = ridge * sums.G.diagonal().mean() * np.eye(6)  # regression by its normal equations, tokens counted
    S = (W @ (X - reads)) @ reads.T @ np.linalg.inv(reads @ reads.T + 50 * damping)
    wanted = W + 0.4 * S
    assert problem.weight_errors(wanted) == pytest.approx(np.zeros(4), abs=1e-12)
    assert problem.weight_errors(np.zeros((4, 6))) == pytest.approx(((wanted @ reads) ** 2).mean(axis=1), rel=1e-10)


def test_nothing_arrives_wrong_nothing_is_added():
    _, _, sums = arrived(wrong=0.0)
    W = np.ones((2, 6), np.float32)
    assert sums.target(W, 1.0) == (None, None)
    assert arrived()[2].target(W, 0.0) == (None, None)
    assert Arrived(sums.G).target(W, 1.0) == (None, None)


def pruned_copy(model):
    """The model with the smallest half of each weight pruned."""
    other = tiny.model("llama")
    with torch.no_grad():
        for layer in extract.named_layers(other).values():
            layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    assert other.network is not model.network
    return other


def test_extraction_beside_the_dense_model():
    dense = tiny.model("llama")
    pruned = pruned_copy(dense)
    X, reads = (inputs(model, TEXT, TOKENS, LENGTH) for model in (dense, pruned))
    weights = {name: structure.weight_of(layer) for name, layer in extract.named_layers(dense).items()}
    problems = list(extract.extract(pruned, TEXT, None, TOKENS, length=LENGTH, against=dense))
    assert [problem.name for problem in problems] == list(weights)
    for problem in problems:
        name, W = problem.name, weights[problem.name].astype(np.float64)
        assert np.array_equal(problem.W, weights[name])
        if name.endswith("00.q_proj"):  # nothing before it is pruned
            assert problem.T is None
            continue
        keep = pipeline.run(problem, "wanda").keep
        wanted = ((W @ X[name] - np.where(keep, W, 0) @ reads[name]) ** 2).mean(axis=1).sum()
        assert problem.error(keep) == pytest.approx(wanted, rel=1e-5)
        problem.check_psd()


def test_another_model_is_no_dense_one():
    with pytest.raises(ModelError, match="gpt2 is not the dense model of llama: it has no 00"):
        next(extract.extract(tiny.model("llama"), TEXT, None, TOKENS, length=LENGTH, against=tiny.model("gpt2")))


def test_by_command(tmp_path):
    """From a folder pruned by the command to problems whose target is the dense model's output."""
    runner = CliRunner()
    (tmp_path / "text.txt").write_text(TEXT.content, encoding="utf-8")
    source, text = str(saved(tmp_path, "llama")), str(tmp_path / "text.txt")
    asked = ["--text", text, "--tokens", str(TOKENS), "--pattern", "0.5"]
    pruned = str(tmp_path / "pruned")
    done = runner.invoke(cli, ["prune", source, "-o", pruned, "-s", "wanda", "--evaluate", "none", *asked])
    assert done.exit_code == 0, done.output
    out = tmp_path / "problems"
    done = runner.invoke(cli, ["extract", pruned, "-o", str(out), "--against", source, *asked])
    assert done.exit_code == 0, done.output
    found = list(read_folder(out))
    assert any(problem.T is not None for problem in found)
    assert all("dense model" in problem.meta["target"] for problem in found)
