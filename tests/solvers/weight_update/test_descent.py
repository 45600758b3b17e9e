"""Rows that a transposable pattern ties decide together, and no others with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from layers import arriving, random_layer

from fwbench.solvers.start.scores import Random, Wanda
from fwbench.solvers.weight_update.alternate import Alternate
from fwbench.solvers.weight_update.descent import Layer
from fwbench.solvers.weight_update.fistapruner import FISTAPruner
from fwbench.solvers.weight_update.iht import IHT
from fwbench.stage import Context, State

EXACT = Context(dtype="float64")


def test_each_band_keeps_the_better_of_two_points():
    problem = random_layer("transposable:2:4", rows=8, n=8)
    pair = [stage.run(problem, State(), Context()).keep for stage in (Wanda(), Random())]
    less = np.subtract(*(problem.mask_errors(keep).reshape(2, 4).sum(axis=1) for keep in pair)) < 0
    good, bad = (np.where(np.repeat(less, 4)[:, None], *each) for each in (pair, pair[::-1]))
    start = State(keep=np.concatenate([good[:4], bad[4:]]))
    layer = Layer.of(problem, EXACT)
    other = State(keep=np.concatenate([bad[:4], good[4:]]))
    keep, weights = layer.better(start, layer.begin(other))
    assert np.array_equal(keep, good)
    assert np.array_equal(weights, np.where(good, problem.W, 0))


@pytest.mark.parametrize("stage", [Alternate(iterations=20), IHT(iterations=20), FISTAPruner(rounds=6, steps=5)])
def test_bands_are_solved_as_if_alone(stage):
    """Also where one has weights a thousand times another's."""
    for seed, wrong in ((0, 1e-12), (1, 0.7)):
        problem, _, _ = arriving("transposable:2:4", rows=12, n=16, seed=seed, wrong=wrong)
        sizes = np.repeat([1.0, 1e-3, 8.0], 4)[:, None]
        problem = replace(
            problem,
            W=(problem.W * sizes).astype(np.float32),
            T=problem.T * sizes,
            offset=problem.offset * sizes[:, 0] ** 2,
        )
        start = Wanda().run(problem, State(), Context())
        whole = stage.run(problem, start, EXACT)
        for band in (slice(0, 4), slice(4, 8), slice(8, 12)):
            alone = stage.run(problem.part(band), State(keep=start.keep[band]), EXACT)
            assert np.array_equal(whole.keep[band], alone.keep)
            np.testing.assert_allclose(whole.weights[band], alone.weights, rtol=1e-5, atol=1e-6 * sizes[band].max())


def test_sums_over_the_layer_keep_their_bits():
    rng = np.random.default_rng(0)
    for rows in (3, 64, 1000):
        layer = Layer.of(random_layer("unstructured:0.5", rows=rows, n=8), Context())
        own = torch.from_numpy(rng.normal(size=(rows, 1)).astype(np.float32))
        assert torch.equal(layer.tied(own), own.sum().expand_as(own))
