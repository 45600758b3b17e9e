"""Stages of role ``refine``: a mask to a better one, by exchanges within a row.

A stage's file holds what it is; ``_numba``, ``_torch`` and ``_triton`` beside it, how a machine runs it.
"""

from fwbench.solvers.local_search import anneal, dsnot, ils, safeguard, splice, swap, tabu

__all__ = ["anneal", "dsnot", "ils", "safeguard", "splice", "swap", "tabu"]
