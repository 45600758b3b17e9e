"""NeuroAL: blocks, then rows, get sparsities by how well the pruned model's activations align with the dense ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fwbench.patterns import Pattern, PerRow
from fwbench.problems.extract import shared_inputs
from fwbench.problems.structure import FEW, weight_of
from fwbench.pruning.allocation import passes
from fwbench.pruning.allocation.counts import layer_patterns, row_pattern
from fwbench.pruning.allocation.passes import Norms, Setting

# of the paper; 0, which is uniform, is ours
GRID = (0.0, 0.01, 0.02, 0.03, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2, 0.25)
LOWEST, HIGHEST = 0.01, 0.99  # sparsities

Activations = Mapping[str, np.ndarray]  # norms of what each layer reads, (n,)


@dataclass(frozen=True)
class NeuroAL:
    """NeuroAL (Cunegatti et al., TMLR 2025): first blocks, then rows, by Wanda's masks in sequence.

    A block's sparsity rises linearly with its depth, and a row's falls with what pruning takes from the activation that
    it feeds; each range is the one of a grid whose pruned activations are nearest to the dense ones. Rows differ only
    where the next layers read what they write, and only under a pattern of each row.
    """

    tokens: int = 2048  # of the calibration that are run for each range

    def patterns(self, setting: Setting) -> dict[str, Pattern]:
        """Of each layer."""
        setting = setting.first(self.tokens)
        dense: dict[str, np.ndarray] = {}
        for _, norms in passes.dense_norms(setting):
            dense |= norms
        blocks = [self._by_block(setting, spread) for spread in GRID]
        chosen, sparse = _best(setting, blocks, dense, "blocks")
        if not isinstance(setting.pattern, PerRow):
            return chosen
        alignment = alignments(setting, dense, sparse)
        return _best(setting, [by_row(setting, chosen, alignment, spread) for spread in GRID], dense, "rows")[0]

    @staticmethod
    def _by_block(setting: Setting, spread: float) -> dict[str, Pattern]:
        count = len(list(setting.pruned_blocks()))
        sparsities = block_sparsities(count, setting.sparsity, spread)
        return layer_patterns(setting.pattern, setting.shapes, setting.of_blocks(sparsities))


def block_sparsities(count: int, sparsity: float, spread: float) -> np.ndarray:
    """Sparsities that rise linearly with depth by ``2 spread``, with the mean asked for before they are clipped."""
    ramp = np.linspace(0, 2 * spread, count)
    return np.clip(ramp - ramp.mean() + sparsity, LOWEST, HIGHEST)


def row_sparsities(alignment: np.ndarray, sparsity: float, spread: float) -> np.ndarray:
    """Sparsities that fall linearly with ``alignment (rows,)`` by ``2 spread``, with the mean asked for, clipped."""
    reach = np.ptp(alignment)
    scaled = 2 * spread * (alignment - alignment.min()) / reach if reach else np.zeros(len(alignment))
    return np.clip(sparsity - (scaled - scaled.mean()), LOWEST, HIGHEST)


def misalignment(dense: Activations, sparse: Activations) -> float:
    """Distance of the normalised activations, summed over layers."""
    shares = {name: (a / a.sum(), sparse[name] / sparse[name].sum()) for name, a in dense.items()}
    return sum(float(np.linalg.norm(own - other)) / len(own) for own, other in shares.values())


def by_row(
    setting: Setting, blocks: Mapping[str, Pattern], alignment: Activations, spread: float
) -> dict[str, Pattern]:
    """The blocks' patterns with a count for each row of the layers whose rows are aligned."""
    found = dict(blocks)
    for name, aligned in alignment.items():
        rows, n = setting.shapes[name]
        pruned = int(blocks[name].counts((rows, n)).sum())
        found[name] = row_pattern(row_sparsities(aligned, pruned / (rows * n), spread), n, pruned)
    return found


def alignments(setting: Setting, dense: Activations, sparse: Activations) -> dict[str, np.ndarray]:
    """For the rows of each layer, how much norm its output loses where the next layers read it.

    Layers that read one input are taken if all of them write what the next layers read: not under grouped queries,
    whose keys are fewer than the outputs of attention.
    """
    modules = {layer.name: layer.module for block in setting.layers for layer in block}
    groups = shared_inputs(setting.model.network, modules, setting.batches[0][:1, :FEW])
    found: dict[str, np.ndarray] = {}
    for names, (following, *_) in pairwise(groups):
        lost = dense[following] - sparse[following]
        if all(setting.shapes[name][0] == len(lost) for name in names):
            found |= dict.fromkeys(names, lost)
    return found


def _best(
    setting: Setting, candidates: Sequence[Mapping[str, Pattern]], dense: Activations, what: str
) -> tuple[dict[str, Pattern], Activations]:
    """The candidate whose pruned model is nearest to the dense one, and its activations; the first of equal ones."""
    found: list[tuple[float, Mapping[str, Pattern], Activations]] = []
    for number, patterns in enumerate(candidates):
        sparse = pruned_norms(setting, patterns, f"{what} {number + 1} of {len(candidates)}")
        found.append((misalignment(dense, sparse), patterns, sparse))
    _, chosen, norms = min(found, key=lambda item: item[0])
    return dict(chosen), norms


@torch.no_grad()
def pruned_norms(setting: Setting, patterns: Mapping[str, Pattern], what: str) -> dict[str, np.ndarray]:
    """Norms of what each layer reads in the model as Wanda prunes it, in sequence; the model stays as it is."""
    walk = setting.walk()
    found: dict[str, np.ndarray] = {}
    for number, layers in enumerate(setting.layers):
        setting.tell(number, what)
        with passes.on_device(setting, number):
            arriving, pruned = Norms(layers), Norms(layers)
            with arriving.recording():
                for _ in walk.run(number):
                    pass
            held = [layer.weight.clone() for layer in layers]
            for layer in layers:
                W = weight_of(layer.module)
                mask = patterns[layer.name].prune(np.abs(W) * arriving.norms()[layer.name])
                weight = torch.from_numpy(np.where(mask, np.float32(0), W))
                layer.load(weight.T if layer.transposed else weight)
            with pruned.recording():
                walk.advance(number)
            for layer, weight in zip(layers, held, strict=True):
                layer.load(weight)
        found |= pruned.norms()
    return found
