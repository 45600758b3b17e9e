"""Layers of one input, solved together: the same masks, weights and records as one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import options, place, saved

from fwbench import pipeline
from fwbench.patterns import parse
from fwbench.problems.arriving import Arrived
from fwbench.pruning import layers, plan, prune

__all__ = ["place"]  # a fixture


def gram(n=32, tokens=80):
    X = np.random.default_rng(0).standard_normal((n, tokens))
    return X @ X.T / tokens


def planned(place, family="llama", **more):
    return plan.make(str(saved(place, family)), options(place, **more))


def of_one_input(made):
    """Query, key and value of the first block: 32, 16 and 16 rows."""
    found = [layer for layer in made.layers[0] if layer.name[-6:] in ("q_proj", "k_proj", "v_proj")]
    assert len(found) == 3
    return found


def timeless(record):
    return {key: value for key, value in record.items() if key != "seconds"}


@pytest.mark.parametrize("pattern", ["0.6", "2:4"])
@pytest.mark.parametrize(
    ("spec", "shrink"), [("fast", 0.0), ("wanda+swap", 0.3), ("wanda+refit", 0.0), ("sparsegpt", 0.2), ("fw+swap", 0.0)]
)
def test_together_as_one_by_one(place, spec, shrink, pattern):
    made, G = planned(place, spec=spec, shrink=shrink, pattern=pattern), gram()
    parts = of_one_input(made)
    assert layers.together(made, parts) == [parts]
    joined = layers.solve(made, parts, Arrived(G))
    assert list(joined) == [layer.name for layer in parts]
    for layer in parts:
        [alone] = layers.solve(made, [layer], Arrived(G)).values()
        found = joined[layer.name]
        assert np.array_equal(found.keep, alone.keep)
        torch.testing.assert_close(found.weight, alone.weight)
        assert not found.weight[torch.from_numpy(~found.keep)].any()
        record, expected = timeless(found.record), timeless(alone.record)
        assert {key: record[key] for key in record if not isinstance(record[key], float)} == {
            key: expected[key] for key in expected if not isinstance(expected[key], float)
        }
        numbers = [key for key in record if isinstance(record[key], float)]
        if spec == "fw+swap":  # the relaxation ends when all its rows have: its bounds differ within its own gap
            assert record["proof"] == "verified"
            assert record["lower_bound"] == pytest.approx(expected["lower_bound"], rel=1e-2)
            numbers = [key for key in numbers if key not in ("lower_bound", "gap")]
        assert {key: record[key] for key in numbers} == pytest.approx({key: expected[key] for key in numbers})
    rows = [record.record["rows"] for record in joined.values()]
    seconds = [record.record["seconds"] for record in joined.values()]
    np.testing.assert_allclose(np.divide(seconds, sum(seconds)), np.divide(rows, sum(rows)))


def test_each_layer_keeps_its_orientation(place):
    """GPT-2 stores weights with one column per output."""
    made, G = planned(place, "gpt2", spec="wanda"), gram()
    parts = [layer for layer in made.layers[0] if layer.module.weight.shape[0] == 32][:2]
    assert all(layer.transposed for layer in parts)
    for name, found in layers.solve(made, parts, Arrived(G)).items():
        [layer] = [layer for layer in parts if layer.name == name]
        assert found.weight.shape == found.keep.shape == layer.module.weight.shape
        assert set(found.keep.sum(0).tolist()) == {16}
        kept = torch.from_numpy(found.keep)
        assert torch.equal(found.weight[kept], layer.module.weight.detach()[kept])


def test_bounds_of_each_layer(place):
    """They sum to the bound of all, none exceeds its layer's error, and a claim for all is none for one."""
    made, G = planned(place, spec="fw(convexify=shared)+swap"), gram()
    parts = of_one_input(made)
    seen = []

    def spying(*args, execute=pipeline.execute, **more):
        seen.append(execute(*args, **more))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "execute", spying)
        found = layers.solve(made, parts, Arrived(G))
    whole = seen[-1]  # earlier ones are of the warm-up
    lower = [item.record["lower_bound"] for item in found.values()]
    assert sum(lower) == pytest.approx(whole.result.lower_bound, rel=1e-12)
    for item in found.values():
        assert 0 < item.record["lower_bound"] <= item.record["error"]
        assert item.record["gap"] == pytest.approx(1 - item.record["lower_bound"] / item.record["error"])
    claimed = replace(whole, row_bounds=(), result=replace(whole.result, proof="claimed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "execute", lambda *args, **more: claimed)
        for item in layers.solve(made, parts, Arrived(G)).values():
            assert (item.record["lower_bound"], item.record["gap"], item.record["proof"]) == (None, None, "none")


ALONE = [
    {"pattern": "unstructured:0.5"},
    {"spec": "bnb"},
    {"spec": "wanda+bound(kind=shor)"},
    {"spec": "wanda+tabu(seconds=5)"},
    {"spec": "fw(seconds=5)+swap"},
]


@pytest.mark.parametrize("more", ALONE)
def test_layers_that_stay_alone(place, more):
    made = planned(place, **more)
    parts = of_one_input(made)
    assert layers.together(made, parts) == [[layer] for layer in parts]


def test_counts_of_rows_stay_with_their_layer(place):
    made = planned(place)
    parts = of_one_input(made)[1:]
    own = replace(made, pattern=parse(np.arange(16)))
    assert layers.together(own, parts) == [[layer] for layer in parts]
    [found] = layers.solve(own, parts[:1], Arrived(gram())).values()
    assert (~found.keep).sum(1).tolist() == list(range(16))


def test_large_layers_are_not_joined(place, monkeypatch):
    made = planned(place)
    q, k, v = of_one_input(made)
    for room, expected in ((0, [[q], [k], [v]]), (1100, [[q], [k, v]]), (1600, [[q, k], [v]]), (2048, [[q, k, v]])):
        monkeypatch.setattr(layers, "BATCH_WEIGHTS", room)
        assert layers.together(made, [q, k, v]) == expected, room


def test_the_time_limit_is_for_each_layer(place, monkeypatch):
    made, limits = planned(place, time_limit=5.0), []

    def spying(*args, execute=pipeline.execute, time_limit=0.0, **more):
        limits.append(time_limit)
        return execute(*args, time_limit=time_limit, **more)

    monkeypatch.setattr(pipeline, "execute", spying)
    layers.solve(made, of_one_input(made), Arrived(gram()))
    assert limits[-1] == 15.0


def test_a_failure_names_its_layers(place, monkeypatch):
    made = planned(place)
    parts = of_one_input(made)
    failed = replace(pipeline.Answer(pipeline.Run(*_problem(made, parts)).failed("no luck")))
    monkeypatch.setattr(pipeline, "execute", lambda *args, **more: failed)
    with pytest.raises(plan.PruneError, match=r"layer .*q_proj, .*k_proj, .*v_proj: wanda failed \(no luck\)"):
        layers.solve(made, parts, Arrived(gram()))


def _problem(made, parts):
    own = [layers.Problem(layer.name, layers.weight_of(layer.module), gram(), made.pattern) for layer in parts]
    return layers._joined(own), made.solver


@pytest.mark.parametrize("spec", ["wanda+swap", "fast"])
def test_a_whole_model(place, tmp_path, monkeypatch, spec):
    source, given = str(saved(place, "llama")), options(place, spec=spec)
    together = prune(source, tmp_path / "together", given)
    monkeypatch.setattr(layers, "BATCH_WEIGHTS", 0)
    alone = prune(source, tmp_path / "alone", given)
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    for one, other in zip(together["layers"], alone["layers"], strict=True):
        assert one["mask_sha256"] == other["mask_sha256"]
        assert one["error"] == pytest.approx(other["error"], rel=1e-9)
