"""Where activations are kept from one block to the next: in memory, and what is too much for it in files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil
import torch

from fwbench.problems import resources
from fwbench.problems.checkpoint import reason_of
from fwbench.pruning.errors import PruneError

RESIDENT = 0.25  # of the free memory: what does not fit there lies in files, which the system pages in and out


class Room:
    """Room for tensors.

    A file loses its name as soon as it is in use, so its space is free again when its tensor is gone, however the
    process ends. On Windows files in use keep their names, and all tensors stay in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """
        Args:
            folder: for the files, made if there are any; None for fwbench's cache.
        """
        self.folder = folder
        self.left = RESIDENT * psutil.virtual_memory().available if os.name == "posix" else float("inf")

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself while there is memory for it, then the same in a file.

        Raises:
            PruneError: the file cannot be written.
        """
        if tensor.nbytes <= self.left:
            self.left -= tensor.nbytes
            return tensor
        folder = self.folder or resources.cache_folder()
        try:
            return _in_file(tensor, folder)
        except (OSError, RuntimeError) as error:
            way = "with the cause removed, the same command goes on"
            raise PruneError(
                f"{folder}: activations cannot be written ({reason_of(error)}); "
                f"{way if self.folder else 'FWBENCH_CACHE names another folder'}"
            ) from None


def _in_file(tensor: torch.Tensor, folder: Path) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix="activations-", dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS: a full disk is an error here, and a crash in mapped memory
            os.posix_fallocate(handle, 0, tensor.nbytes)
        mapped = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    finally:
        os.close(handle)
        os.unlink(path)
    return mapped.view(tensor.shape).copy_(tensor)
