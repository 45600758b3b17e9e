"""The memory of a process (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def resident(name: str, pid: int | str = "self") -> int:
    """``VmRSS`` or ``VmHWM``, the resident size now and its high-water mark, in bytes; 0 of a process that ended."""
    try:
        found = re.search(name + r":\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
