"""One thread for everything, so that seconds compare between machines and their loads."""

from __future__ import annotations

import os
import sys

import torch
from threadpoolctl import threadpool_limits

# pools of one thread that do not spin beside each other: read when the libraries load
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def one_thread() -> None:
    """For torch and for the BLAS libraries that are loaded, from now on."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def restart_on_one_thread() -> None:
    """Begin this command again unless its environment, which child processes inherit, says so already."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ENVIRONMENT})
