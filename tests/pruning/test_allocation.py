"""Allocations: budgets to the weight, published densities recomputed, the exact one by brute force, whole runs."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import hashes, options, place, saved

from fwbench import pipeline
from fwbench.cli import cli
from fwbench.patterns import PerRow, Rows, Unstructured, parse
from fwbench.problems import collections
from fwbench.pruning import PruneError, allocation, engine, load_masks, plan, prune
from fwbench.pruning.allocation import counts, exact, knapsack, neuroal, passes, published
from fwbench.spec import SpecError

__all__ = ["place"]  # a fixture
METHODS = ["owl", "alpha", "neuroal(tokens=50)", "exact(tokens=50)"]
SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(2, 60)), min_size=1, max_size=8)


# --- budgets ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.floats(0, 1), st.booleans(), st.data())
def test_counts_sum_to_the_budget(sizes, sparsity, by_row, data):
    pattern = PerRow(sparsity) if by_row else Unstructured(sparsity)
    shapes = {str(number): shape for number, shape in enumerate(sizes)}
    wanted = {name: data.draw(st.floats(-0.2, 1.2)) for name in shapes}
    found = counts.layer_patterns(pattern, shapes, wanted)
    pruned = {name: found[name].counts(shape) for name, shape in shapes.items()}
    assert sum(int(each.sum()) for each in pruned.values()) == counts.budget(pattern, sizes)
    if by_row:
        assert sum(isinstance(each, Rows) for each in found.values()) <= 1
        assert all(np.ptp(each) <= 1 for each in pruned.values())
    for name, shape in shapes.items():
        assert counts.read(pattern, shape, counts.dumped(found[name], shape)) == found[name]


def test_equal_sparsities_are_the_plans_own():
    shapes = {"a": (6, 20), "b": (9, 20), "c": (4, 20)}
    assert counts.layer_patterns(parse("0.6"), shapes, dict.fromkeys(shapes, 0.6)) == dict.fromkeys(shapes, PerRow(0.6))


def test_sparsities_are_kept_to_the_rounding():
    shapes, wanted = {"a": (8, 100), "b": (8, 100), "c": (16, 100)}, {"a": 0.5, "b": 0.58, "c": 0.66}
    found = counts.layer_patterns(parse("0.6"), shapes, wanted)
    assert {name: int(found[name].counts(shape)[0]) for name, shape in shapes.items()} == {"a": 50, "b": 58, "c": 66}


def test_rows_sum_to_their_layer():
    found = counts.row_pattern(np.array([0.2, 0.9, 0.55, 0.551]), 31, 70)
    assert found.pruned.sum() == 70
    assert found.pruned.argsort().tolist() == [0, 2, 3, 1]


# --- densities as published ------------------------------------------------------------------------------------------


def test_owl():
    rng = np.random.default_rng(0)
    blocks = [[rng.exponential(scale, (4, 9)), rng.exponential(1, (3, 5))] for scale in (1, 2, 5)]
    shares = []
    for block in blocks:
        scores = np.concatenate([layer.ravel() for layer in block])
        shares.append((scores > 5 * scores.mean()).mean())
    assert [published.outlier_share(block, 5) for block in blocks] == pytest.approx(shares, rel=0, abs=0)
    ratio = np.array(shares)
    ratio = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * 0.08 * 2)
    ratio = ratio - ratio.mean() + (1 - 0.7)
    found = published.owl_densities(np.array(shares), 0.7, 0.08)
    assert found == pytest.approx(ratio)
    assert np.ptp(found) == pytest.approx(0.16)
    assert found.mean() == pytest.approx(0.3)
    assert published.owl_densities(np.ones(3), 0.7, 0.08) == pytest.approx([0.3] * 3)


def test_alpha():
    alphas, sizes = np.array([2.0, 3.5, 3.0]), np.array([10, 10, 40])
    scaled = 0.8 + (alphas - 2) / 1.5 * 0.4
    assert published.alpha_sparsities(alphas, sizes, 0.6, 0.2) == pytest.approx(
        scaled * 0.6 * sizes.sum() / (scaled * sizes).sum()
    )
    assert published.alpha_sparsities(np.ones(3), sizes, 0.6, 0.2) == pytest.approx([0.6] * 3)


@pytest.mark.parametrize("seed", range(3))
def test_hill_by_hand(seed):
    W = np.random.default_rng(seed).standard_t(3, (40, 25)).astype(np.float32)
    values = sorted(np.linalg.eigvalsh(W.T.astype(float) @ W))
    heights, edges = np.histogram(np.log10(values), bins=100)
    peak = 10 ** edges[list(heights).index(max(heights))]
    best = (9.0, 0.0)
    for cutoff in [value for value in values[:-1] if 0.95 * peak <= value < 1.5 * peak]:
        tail = [value for value in values if value >= cutoff]
        alpha = 1 + len(tail) / sum(np.log(value / cutoff) for value in tail)
        law = [1 - (value / cutoff) ** (1 - alpha) for value in tail]
        best = min(best, (max(abs(law[i] - i / len(tail)) for i in range(len(tail))), alpha))
    assert published.hill(W) == pytest.approx(best[1], rel=1e-6)
    assert published.hill(3 * W) == pytest.approx(published.hill(W), rel=1e-4)


def test_hill_of_a_power_law_and_of_nothing():
    values = (np.arange(1, 301) / 301) ** (-1 / 1.5)  # of a law with exponent 2.5
    assert published.hill(np.diag(np.sqrt(values)).astype(np.float32)) == pytest.approx(2.5, abs=0.1)
    assert [published.hill(W) for W in (np.zeros((3, 4)), np.eye(3), np.ones((3, 4)))] == [1, 1, 1]


def test_neuroal_blocks_and_rows():
    ramp = np.arange(1, 6).astype(float)
    density = (ramp - 1) / 4 * 2 * 0.1
    density = sorted(density - density.mean() + 0.4, reverse=True)
    assert neuroal.block_sparsities(5, 0.6, 0.1) == pytest.approx(np.clip(1 - np.array(density), 0.01, 0.99))
    dense, sparse = np.array([4.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.5])
    lost = dense - sparse
    density = (lost - lost.min()) / (lost.max() - lost.min()) * 2 * 0.15
    density = density - density.mean() + 0.3
    assert neuroal.row_sparsities(lost, 0.7, 0.15) == pytest.approx(1 - density)
    score = np.linalg.norm(dense / 7 - sparse / 4.5) / 3
    assert neuroal.misalignment({"a": dense, "b": dense}, {"a": sparse, "b": dense}) == pytest.approx(score)


# --- the exact one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_programme_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    costs, sizes = rng.normal(size=(4, 5)), rng.choice([2, 4, 6, 10], 4)
    levels = knapsack.choose(costs, sizes)
    feasible = [each for each in itertools.product(range(5), repeat=4) if sizes @ each == 2 * sizes.sum()]
    assert tuple(levels) in feasible
    assert costs[range(4), levels.astype(int)].sum() == pytest.approx(
        min(costs[range(4), each].sum() for each in feasible)
    )


@pytest.mark.parametrize("convex", [True, False])
def test_margins_against_brute_force(monkeypatch, convex):
    monkeypatch.setattr(knapsack, "TABLE", 0)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        steps = rng.exponential(size=(4, 4))
        costs = np.cumsum(np.concatenate([np.zeros((4, 1)), np.sort(steps) if convex else steps], axis=1), axis=1)
        levels = knapsack.choose(costs, np.full(4, 7))
        assert levels.sum() == pytest.approx(8)
        best = min(costs[range(4), each].sum() for each in itertools.product(range(5), repeat=4) if sum(each) == 8)
        found = sum(np.interp(level, range(5), cost) for level, cost in zip(levels, costs, strict=True))
        if convex:  # equal steps of one size: no part of a step is left
            assert found == pytest.approx(best)
        else:
            minorant = [
                np.interp(range(5), corners, cost[corners]) for cost in costs for corners in [knapsack.envelope(cost)]
            ]
            below = sum(np.interp(level, range(5), curve) for level, curve in zip(levels, minorant, strict=True))
            assert below <= best + 1e-12
            assert sum(level in knapsack.envelope(cost) for level, cost in zip(levels, costs, strict=True)) >= 3


# --- whole runs ------------------------------------------------------------------------------------------------------


def setting(place, pattern="0.5", family="llama"):
    """A tiny model's, and its plan."""
    made = plan.make(str(saved(place, family)), options(place, pattern=pattern))
    return allocation.setting(made.model, made.layers, made.batches, made.pattern)


def state(at):
    return {name: weight.clone() for name, weight in at.model.network.state_dict().items()}


@pytest.mark.parametrize(("family", "pattern"), [("llama", "0.5"), ("gpt2", "unstructured:0.61")])
@pytest.mark.parametrize("name", METHODS)
def test_each_meets_the_budget_and_leaves_the_model_as_it_was(place, name, pattern, family):
    at = setting(place, pattern, family)
    before = state(at)
    flags = [parameter.requires_grad for parameter in at.model.network.parameters()]
    allocated = allocation.allocate(allocation.parse(name), at)
    found = allocation.patterns(at, json.loads(json.dumps(allocated)))
    pruned = sum(int(found[layer].counts(shape).sum()) for layer, shape in at.shapes.items())
    assert pruned == counts.budget(at.pattern, list(at.shapes.values()))
    assert len({str(each) for each in found.values()}) > 1
    after = state(at)
    assert all(after[key].equal(weight) for key, weight in before.items())
    assert flags == [parameter.requires_grad for parameter in at.model.network.parameters()]
    assert all(parameter.grad is None for parameter in at.model.network.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_block_may_stay_dense(place, name):
    made = plan.make(str(saved(place, "llama")), options(place, skip=r"\.01\."))
    at = allocation.setting(made.model, made.layers, made.batches, made.pattern)
    whole = setting(place)
    for (_, own), (_, norms) in zip(passes.dense_norms(at), passes.dense_norms(whole), strict=True):
        assert all(np.array_equal(own[layer], norms[layer]) for layer in own)
    found = allocation.patterns(at, allocation.allocate(allocation.parse(name), at))
    assert {layer.split(".")[1] for layer in found} == {"00", "02"}
    pruned = sum(int(found[layer].counts(shape).sum()) for layer, shape in at.shapes.items())
    assert pruned == counts.budget(at.pattern, list(at.shapes.values()))


def test_masks_and_curves_behind_a_dense_block(place):
    made = plan.make(str(saved(place, "llama")), options(place, skip=r"\.01\."))
    at = allocation.setting(made.model, made.layers, made.batches, made.pattern)
    levels = exact.grid(0.5, 0.1)
    (own_curves, own), (curves, masks) = exact.measured(at, levels), exact.measured(setting(place), levels)
    assert all(own[layer].equal(masks[layer]) for layer in own)
    assert all(np.array_equal(own_curves[layer], curves[layer]) for layer in own)


def test_the_parts_are_all_of_the_loss(place):
    """Integrated gradients are complete."""
    at = setting(place)
    pruned = exact.measured(at, exact.grid(0.5, 0.1))[1]
    parts = exact.harm_parts(at, pruned)
    layers = {layer.name: layer for block in at.layers for layer in block}
    before = loss(at)
    for name, mask in pruned.items():
        layers[name].module.weight.data.masked_fill_(mask, 0)
    assert sum(parts.values()) == pytest.approx(loss(at) - before, rel=0.02)


@pytest.mark.parametrize("of", ["hidden", "blocks"])
def test_the_parts_are_all_of_the_hidden_states_errors(place, of):
    """Their sum, against whole models and a formula of numpy's; on a straight path all begin at 0."""
    at = setting(place)
    pruned = exact.measured(at, exact.grid(0.5, 0.1))[1]
    parts = exact.harm_parts(at, pruned, of)
    layers = {layer.name: layer for block in at.layers for layer in block}

    def states():
        with torch.no_grad():
            found = [at.model.network(ids, output_hidden_states=True).hidden_states[1:] for ids in at.batches]
        return [np.concatenate([each[k].numpy().reshape(-1, each[k].shape[-1]) for each in found]) for k in range(3)]

    dense = states()
    for name, mask in pruned.items():
        layers[name].module.weight.data.masked_fill_(mask, 0)
    errors = [
        (np.linalg.norm(own - other, axis=1) ** 2 / np.linalg.norm(other, axis=1) ** 2).mean()
        for own, other in zip(states(), dense, strict=True)
    ]
    assert sum(parts.values()) == pytest.approx(errors[-1] if of == "hidden" else np.mean(errors), rel=0.02)
    assert all(parameter.grad is None for parameter in at.model.network.parameters())


def loss(at):
    with torch.no_grad():
        pairs = [(at.model.network(ids).logits[:, :-1].log_softmax(-1), ids[:, 1:]) for ids in at.batches]
    return float(torch.cat([-logs.gather(2, wanted[..., None]).flatten() for logs, wanted in pairs]).mean())


def test_curves_are_wandas():
    [(_, problem)] = collections.load("mini/n096.gate_proj*", ["0.5"])
    found = exact.curve(problem, np.array([0.4, 0.5, 0.6]))
    wanted = [pipeline.wanda_error(problem.with_pattern(level)) for level in ("0.4", "0.5", "0.6")]
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("sparsity", "reach", "wanted"), [(0.6, 0.15, (0.45, 0.75, 13)), (0.9, 0.15, (0.8, 1.0, 9))])
def test_levels(sparsity, reach, wanted):
    levels = exact.grid(sparsity, reach)
    assert (levels[0], levels[-1], len(levels)) == pytest.approx(wanted)
    assert levels[len(levels) // 2] == pytest.approx(sparsity)
    assert np.diff(levels) == pytest.approx(exact.STEP)


def test_uniform_is_as_before(place, tmp_path):
    source = str(saved(place, "llama"))
    for name, more in {"plain": {}, "uniform": {"allocation": "uniform"}}.items():
        prune(source, tmp_path / name, options(place, **more))
    plain, uniform = hashes(tmp_path / "plain"), hashes(tmp_path / "uniform")
    assert all(plain[name] == uniform[name] for name in ("model.safetensors", "masks.safetensors"))
    summary = json.loads((tmp_path / "plain" / "fwbench.json").read_text())
    assert (summary["allocation"], summary["allocation_sha256"]) == ("uniform", None)
    assert "allocation" not in (tmp_path / "plain" / "report.md").read_text()


@pytest.mark.parametrize(("name", "sequential"), [*zip(METHODS, [True, True, False, True], strict=True)])
def test_killed_and_resumed(place, tmp_path, monkeypatch, name, sequential):
    source = str(saved(place, "llama"))
    asked = options(place, spec="wanda+swap", allocation=name, sequential=sequential, correct=0.3)
    whole = prune(source, tmp_path / "whole", asked)
    real = engine._prune_block

    def stopping(plan, at, number, clock):
        if number == 1:
            raise KeyboardInterrupt
        return real(plan, at, number, clock)

    monkeypatch.setattr(engine, "_prune_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        prune(source, tmp_path / "out", asked)
    monkeypatch.setattr(engine, "_prune_block", real)
    with pytest.raises(PruneError, match="begun with allocation"):
        prune(source, tmp_path / "out", options(place, spec="wanda+swap", sequential=sequential, correct=0.3))
    with monkeypatch.context() as patch:
        patch.setattr(allocation, "allocate", None)  # it is made once
        again = prune(source, tmp_path / "out", asked)
    for file in ("model.safetensors", "masks.safetensors"):
        assert hashes(tmp_path / "out")[file] == hashes(tmp_path / "whole")[file]
    assert again["allocation_sha256"] == whole["allocation_sha256"] is not None
    uniform = prune(source, tmp_path / "uniform", options(place, spec="wanda+swap"))
    assert whole["totals"]["pruned"] == uniform["totals"]["pruned"]
    masks, dense = load_masks(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    for record in again["layers"]:
        assert record["pruned"] == int((~masks[record["parameter"]]).sum())
        assert (dense[record["parameter"]].numpy()[~masks[record["parameter"]]] == 0).all()
    assert f"| allocation | {again['allocation']}: " in (tmp_path / "out" / "report.md").read_text()


def test_by_command(place, tmp_path):
    out, text = tmp_path / "out", str(place / "text.txt")
    words = ["prune", str(saved(place, "llama")), "-o", str(out), "--pattern", "0.5", "-s", "wanda", "--text", text]
    words += ["--tokens", "200", "--evaluate", "none", "--allocation", "owl(spread=0.1)"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "fwbench.json").read_text())
    assert summary["allocation"] == "owl(M=5.0,spread=0.1)"
    shares = [record["pruned"] / (record["rows"] * record["n"]) for record in summary["layers"]]
    assert np.ptp(shares) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("pattern", "name", "error", "match"),
    [
        ("2:4", "owl", PruneError, "pattern 2:4 leaves nothing to allocate; --allocation takes one such as 0.6"),
        ("0.5", "best", SpecError, "unknown allocation 'best'; there are uniform, owl, alpha, neuroal, exact"),
        ("0.5", "owl+alpha", SpecError, "unknown allocation"),
        ("0.5", "owl(m=5)", SpecError, "allocation owl has no parameter 'm'; it takes M, spread"),
        ("0.5", "uniform(x=1)", SpecError, "has no parameter 'x'; it takes none"),
        ("0.5", "owl(M=0)", SpecError, "allocation owl: M must be a number above 0"),
        ("0.5", "exact(of=head)", SpecError, "allocation exact: of must be one of loss, hidden, blocks"),
        ("0.5", "exact(bounds=2)", SpecError, "allocation exact: bounds must be true or false"),
        ("0.5", "exact(tokens=1.5)", SpecError, "allocation exact: tokens must be a whole number above 0"),
    ],
)
def test_refusals(place, tmp_path, pattern, name, error, match):
    with pytest.raises(error, match=re.escape(match)):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, pattern=pattern, allocation=name))


def test_streamed(place, tmp_path):
    source, found = str(saved(place, "llama")), {}
    with pytest.raises(PruneError, match="allocation exact runs the whole model backwards"):
        prune(source, tmp_path / "out", options(place, allocation="exact", stream=True))
    for stream in (False, True):
        made = plan.make(source, options(place, stream=stream))
        at = allocation.setting(made.model, made.layers, made.batches, made.pattern)
        found[stream] = [allocation.allocate(allocation.parse(name), at) for name in METHODS[:3]]
    assert found[False] == found[True]
