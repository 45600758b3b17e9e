"""The production path: a model and a text in, a pruned model out."""

from fwbench.prune.engine import prune
from fwbench.prune.output import load_masks
from fwbench.prune.plan import Options, PruneError

__all__ = ["Options", "PruneError", "load_masks", "prune"]
