"""Stages with trained weights, which ``benchmarks/learned/train`` makes; what they prove holds whatever those say."""

from fwbench.solvers.learned import bound, unrolled

__all__ = ["bound", "unrolled"]
