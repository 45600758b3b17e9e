"""Stages that make a mask from nothing: scores, and the greedy heuristic."""

from fwbench.solvers.start import greedy, scores

__all__ = ["greedy", "scores"]
