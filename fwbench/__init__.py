"""fwbench: real pruning-mask problems of language model layers, every solver, proven optimality gaps.

These names are the public interface; each is imported when it is first asked for, so that ``import fwbench`` is light.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

__version__ = _version("fwbench")

_HOMES = {
    "api": ("ProvedBound", "Results", "best_known", "bound", "load", "prune", "recover", "run", "solve"),
    "problem": ("Problem",),
    "result": ("Answer", "Certificate", "Result"),
    "stage": ("Context", "Needs", "Role", "Stage", "State", "register"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> _Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fwbench' has no attribute {name!r}; its names: {', '.join(__all__)}")
    return getattr(_import_module(f"fwbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
