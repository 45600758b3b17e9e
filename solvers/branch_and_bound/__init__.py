"""The stage ``bnb`` of role ``exact``: subtrees with diagonals of their own, and the proof that is left of them."""

from fwbench.solvers.branch_and_bound import stage

__all__ = ["stage"]
