"""fwbench: real pruning-mask problems of language model layers, every solver, proven optimality gaps."""

from importlib.metadata import version as _version

__version__ = _version("fwbench")
