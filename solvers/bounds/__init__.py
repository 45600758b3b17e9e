"""The stage of role ``bound``: certified lower bounds of a layer and of its rows."""

from fwbench.solvers.bounds import stage

__all__ = ["stage"]
