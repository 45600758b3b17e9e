"""Stages of role ``update``: they also change the kept weights."""

from fwbench.solvers.weight_update import admm, refit, reswap, sparsegpt

__all__ = ["admm", "refit", "reswap", "sparsegpt"]
