"""The production path: a model and a text in, a pruned model out, and one that is recovered."""

from fwbench.pruning.engine import prune
from fwbench.pruning.errors import PruneError
from fwbench.pruning.output import load_masks
from fwbench.pruning.plan import Options
from fwbench.pruning.recovery.engine import recover
from fwbench.pruning.recovery.plan import Recovery

__all__ = ["Options", "PruneError", "Recovery", "load_masks", "prune", "recover"]
