"""Stages of role ``relax``, but for ``splitting`` by Frank-Wolfe: one loop of oracle, direction and step (``loop``).

It has three executions: ``loop_numba`` (CPU), ``loop_torch`` (any device, the reference), ``loop_triton`` (CUDA).
"""

from fwbench.solvers.frank_wolfe import momentum, push, splitting, stage

__all__ = ["momentum", "push", "splitting", "stage"]
