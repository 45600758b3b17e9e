"""Stages of role ``relax`` that see the error alone: chances of masks, moved by the errors of masks drawn with them."""

from fwbench.solvers.sampling import bernoulli

__all__ = ["bernoulli"]
