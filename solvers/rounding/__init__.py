"""Stages of role ``round``: a fractional point to a mask."""

from fwbench.solvers.rounding import stage

__all__ = ["stage"]
