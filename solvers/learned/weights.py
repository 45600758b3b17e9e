"""The trained weights, a few kB, and the input-convex network that one set of them is for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


@cache
def load(name: str) -> Mapping[str, np.ndarray]:
    """The arrays of ``NAME.npz`` beside this file, float32; not to be written to."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    for array in found.values():
        array.setflags(write=False)
    return found


def input_convex(net: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """A positive convex function of each row of ``x (points, features)``, float64 ``(points,)``.

    ``z ← relu(max(P, 0) z + A x + b)``, two hidden layers, then ``softplus``: with nonnegative weights between layers
    and activations that rise and are convex it is convex in ``x`` (Amos, Xu, Kolter, Input Convex Neural Networks, ICML
    2017).
    """
    x = (x - net["mean"]) / net["spread"]
    z = np.maximum(x @ net["A0"] + net["b0"], 0)
    z = np.maximum(z @ np.maximum(net["P1"], 0) + x @ net["A1"] + net["b1"], 0)
    return np.logaddexp(0, z @ np.maximum(net["P2"], 0) + x @ net["A2"] + net["b2"])
