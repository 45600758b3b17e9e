"""How the kernels of Frank-Wolfe (``fw_*``) are compiled.

Counts and sums run over views indexed from zero, in the arrays' own precision, and may be reassociated: that is what
lets LLVM vectorise them. They are added up block by block in float64, so that long rows lose nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numba

BLOCK = 4096  # entries that are added up in the arrays' own precision

_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("fw_*.py")))
_DIGEST = hashlib.sha256(_SOURCES).hexdigest()[:8]


def jit(function: Callable) -> Callable:
    """Compile for threads; what is cached on disk depends on all ``fw_*`` files, not on the function's own alone."""
    function.__qualname__ += f"_{_DIGEST}"
    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})(function)
