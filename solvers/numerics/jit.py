"""``numba.njit`` with a cache on disk that two processes can fill at once, and that sees changes in other files.

numba names what it saves by counting: of two processes that compile the same function for different types at once,
both take the next number, and the index of the one may then lead to the code of the other, which crashes whoever
loads it. Here a name is a digest of what it stands for. And numba compiles a function anew where its own file has
changed, but not where a file has from which it calls; here the name of a function holds a digest of all of them.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_PACKAGE = "fwbench.solvers"
_FOLDER = Path(__file__).parents[1]  # of the package, which the project's pyproject.toml maps to ``solvers/``
BLOCK = 4096  # entries that kernels add up in the arrays' own precision; the blocks' sums in float64


def njit(function: Callable | None = None, **options: Any) -> Callable:
    """As ``numba.njit(cache=True, ...)``, with or without options; ``function`` is a plain one of this package."""
    if function is None:
        return partial(njit, **options)
    sources = sorted(_sources(Path(function.__code__.co_filename)))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    function.__qualname__ += f"_{digest.hexdigest()[:8]}"
    dispatcher = numba.njit(**options)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


# Sums may be reassociated and divisors go unchecked: so LLVM vectorises. They run over views indexed from zero, block
# by block (``BLOCK``), so that long rows lose nothing
fast = njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@cache
def _sources(path: Path) -> frozenset[Path]:
    """A file of this package and those that it imports from, themselves and by others."""
    found = {path}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(f"{_PACKAGE}."):
            parts = node.module.split(".")[2:]
            for names in (parts, *([*parts, alias.name] for alias in node.names)):
                if (other := _FOLDER.joinpath(*names).with_suffix(".py")).is_file():
                    found |= _sources(other)
    return frozenset(found)


class _Files(IndexDataCacheFile):
    """The data lies there before the index names it; an entry that another process overwrites is compiled again."""

    def save(self, key: object, data: object) -> None:
        digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()
        name = self._index_name.removesuffix(".nbi") + f".{digest[:16]}.nbc"
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


class _Cache(FunctionCache):
    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        name, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = _Files(cache_path=self._cache_path, filename_base=name, source_stamp=stamp)
