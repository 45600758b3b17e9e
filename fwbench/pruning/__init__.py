"""The production path: a model and a text in, a pruned model out."""

from fwbench.pruning.engine import prune
from fwbench.pruning.output import load_masks
from fwbench.pruning.plan import Options, PruneError

__all__ = ["Options", "PruneError", "load_masks", "prune"]
