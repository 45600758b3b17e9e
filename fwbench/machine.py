"""The machine and the software a result came from. Nothing is imported to ask its version."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("fwbench", "numpy", "scipy", "torch", "numba", "gurobipy", "pyscipopt", "cvxpy", "qpsolvers")


@cache
def describe() -> dict[str, object]:
    """Processor, cores, memory (bytes), operating system, Python, package versions and, from a checkout, the commit.

    What is not installed or cannot be found out is left out. Neither host nor user names are in it.
    """
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    found: dict[str, object] = {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": os.cpu_count() or 1,
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }
    if commit := _commit():
        found["commit"] = commit
    return found


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can be asked to (glibc); it keeps much."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def device_error(device: str) -> str:
    """Why torch cannot compute on a device, in one line; empty if it can, or for the CPU, without asking."""
    if device == "cpu":
        return ""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return f"device {device!r} cannot be used ({str(error).splitlines()[0]})"
    return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Commit of the checkout this package lies in, with ``-dirty`` if tracked files were changed; or an empty text."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
