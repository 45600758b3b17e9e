"""Stages of role ``update``: they also change the kept weights."""

from fwbench.solvers.weight_update import admm, alps, alternate, fistapruner, iht, refit, reswap, sparsegpt, thanos

__all__ = ["admm", "alps", "alternate", "fistapruner", "iht", "refit", "reswap", "sparsegpt", "thanos"]
