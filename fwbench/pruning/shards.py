"""Saving what stays in files: the files that transformers and safetensors would write, piece by piece."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import modeling_utils

from fwbench.problems.streaming import Stream

Read = Callable[[], Iterable[torch.Tensor]]  # the numbers of a tensor in order, in pieces of any shape


def save_pretrained(stream: Stream, types: Mapping[str, torch.dtype], folder: Path) -> None:
    """What ``network.save_pretrained(folder)`` does, each tensor converted to its type when it is written.

    transformers says which tensors are saved, under which names and in which files; it gets tensors without numbers,
    and what it would hand to safetensors is written here.

    Args:
        stream: of the network.
        types: of the floating tensors, by their names in the network's state; others keep theirs.
        folder: that is there.

    Raises:
        OSError: as the system gives it.
    """
    empty = {
        name: torch.empty(tensor.shape, dtype=types.get(name, tensor.dtype), device="meta")
        for name, tensor in stream.network.state_dict().items()
    }
    names = {_storage(tensor): name for name, tensor in empty.items()}

    def write_shard(tensors: dict[str, torch.Tensor], filename: Any, metadata: dict[str, str] | None = None) -> None:
        reads = {name: (tensor, partial(stream.pieces, names[_storage(tensor)])) for name, tensor in tensors.items()}
        write(Path(filename), reads, metadata)

    library = modeling_utils.safe_save_file
    try:
        modeling_utils.safe_save_file = write_shard
        stream.network.save_pretrained(folder, state_dict=empty)
    finally:
        modeling_utils.safe_save_file = library


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def write(path: Path, tensors: Mapping[str, tuple[torch.Tensor, Read]], metadata: dict[str, str] | None) -> None:
    """Write a safetensors file, the bytes that the library would write, with one piece of a tensor in memory at a time.

    Args:
        path: of the file.
        tensors: by name, one on the ``meta`` device that has shape and type, and what reads its numbers.
        metadata: of the file.
    """
    # the order of tensors and the names of types are the library's own, from a file in which all are empty
    sample = {name: torch.empty(0, dtype=tensor.dtype) for name, (tensor, _) in tensors.items()}
    header: dict[str, Any] = json.loads(safetensors.torch.save(sample, metadata)[8:])
    end = 0
    for name, about in header.items():
        if name in tensors:
            begin, end = end, end + tensors[name][0].nbytes
            about |= {"shape": list(tensors[name][0].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            if name in tensors:
                like, read = tensors[name]
                for piece in read():
                    file.write(piece.to(like.dtype).flatten().view(torch.uint8).numpy().data)
