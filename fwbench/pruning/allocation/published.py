"""OWL and AlphaPruning: a sparsity for each block, by what is seen in the dense model.

Each keeps its published range and is centred afterwards (``counts``), so that the model has the sparsity asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fwbench.problems.structure import weight_of
from fwbench.pruning.allocation import passes
from fwbench.pruning.allocation.passes import Setting

BINS = 100  # of the histogram that finds the peak of a spectrum
AROUND = (0.95, 1.5)  # of the peak: where its tail may begin


@dataclass(frozen=True)
class Owl:
    """Fewer zeros in blocks with more outliers: Wanda scores above ``M`` times their mean (Yin et al., ICML 2024).

    The published range is ``2 spread`` from the least to the greatest sparsity of a block.
    """

    M: float = 5.0
    spread: float = 0.08

    def sparsities(self, setting: Setting) -> dict[str, float]:
        """Of each layer: its block's."""
        outliers = []
        for number, norms in passes.dense_norms(setting):
            with setting.model.holding(setting.blocks[number]):
                scores = [np.abs(weight_of(layer.module)) * norms[layer.name] for layer in setting.layers[number]]
            if scores:
                outliers.append(outlier_share(scores, self.M))
        return setting.of_blocks(1 - owl_densities(np.array(outliers), setting.sparsity, self.spread))


@dataclass(frozen=True)
class Alpha:
    """Fewer zeros in blocks with heavier tails of the weights' spectra: AlphaPruning (Lu et al., NeurIPS 2024).

    The exponents are PL_Alpha_Hill's, averaged in each block; sparsities run linearly from ``1 - spread`` to
    ``1 + spread`` times a common factor. No text is read.
    """

    spread: float = 0.2

    def sparsities(self, setting: Setting) -> dict[str, float]:
        """Of each layer: its block's."""
        alphas, sizes = [], []
        for number, layers in setting.pruned_blocks():
            with setting.model.holding(setting.blocks[number]):
                weights = [weight_of(layer.module) for layer in layers]
            alphas.append(float(np.mean([hill(W) for W in weights])))
            sizes.append(sum(W.size for W in weights))
            setting.tell(number, "spectra")
        return setting.of_blocks(alpha_sparsities(np.array(alphas), np.array(sizes), setting.sparsity, self.spread))


def outlier_share(scores: Sequence[np.ndarray], multiple: float) -> float:
    """Share of a block's Wanda scores that are above a multiple of their mean."""
    size = sum(score.size for score in scores)
    mean = sum(float(score.sum(dtype=np.float64)) for score in scores) / size
    return sum(int((score > multiple * mean).sum()) for score in scores) / size


def owl_densities(outliers: np.ndarray, sparsity: float, spread: float) -> np.ndarray:
    """Densities linear in the outliers, ``2 spread`` from the least to the greatest, with the mean ``1 - sparsity``."""
    reach = np.ptp(outliers)
    scaled = 2 * spread * (outliers - outliers.min()) / reach if reach else np.zeros(len(outliers))
    return scaled - scaled.mean() + 1 - sparsity


def alpha_sparsities(alphas: np.ndarray, sizes: np.ndarray, sparsity: float, spread: float) -> np.ndarray:
    """Sparsities linear in the exponents, from ``1 - spread`` to ``1 + spread``, scaled to the weighted mean asked."""
    reach = np.ptp(alphas)
    linear = 1 - spread + 2 * spread * (alphas - alphas.min()) / reach if reach else np.ones(len(alphas))
    return sparsity * linear / float(np.average(linear, weights=sizes))


def hill(W: np.ndarray) -> float:
    """PL_Alpha_Hill: exponent of the power law that the greatest eigenvalues of ``W Wᵀ`` follow, by Hill's estimator.

    The tail begins near the peak of the spectrum's histogram ("Fix-finger"), at the eigenvalue from which the law fits
    best by Kolmogorov's and Smirnov's distance. A matrix without a spectrum, such as 0, has exponent 1.
    """
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)[::-1] ** 2
    values = values[values > 1e-12 * values[-1]]
    if len(values) < 2 or values[0] == values[-1]:
        return 1.0
    counts, edges = np.histogram(np.log10(values), BINS)
    first, last = np.searchsorted(values, np.array(AROUND) * 10 ** edges[counts.argmax()])
    first = min(first, len(values) - 2)
    fits = []
    for begin in range(first, max(min(last, len(values) - 1), first + 1)):
        tail = values[begin:] / values[begin]
        alpha = 1 + len(tail) / max(float(np.log(tail).sum()), np.finfo(float).tiny)
        fits.append((float(np.abs(1 - tail ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()), alpha))
    return min(fits)[1]
