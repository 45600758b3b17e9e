"""The types in which a model's tensors are saved: all are rounded to them before any work, which is done in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from fwbench.problems.checkpoint import stored_types
from fwbench.problems.models import Model, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIECE = 1 << 20  # numbers rounded at a time, for memory


def choose(model: Model, asked: str) -> dict[str, torch.dtype]:
    """Type of each floating tensor of the model's state, by its name there.

    Args:
        model: as it was loaded.
        asked: one of ``DTYPES`` for all; ``auto`` for the type in which each tensor is stored.

    Raises:
        ModelError: no such type, or ``auto`` where tensors are stored otherwise.
    """
    if asked != "auto" and asked not in DTYPES:
        raise ModelError(f"models can be saved as {', '.join(DTYPES)} or auto, not {asked!r}")
    if asked == "auto" and model.folder is not None:
        types = stored_types(model.network, model.folder)
        for name, dtype in types.items():
            if dtype not in DTYPES.values():
                raise ModelError(
                    f"{model.label}: {name} is stored as {text(dtype)}, in which nothing is saved; "
                    f"choose one of {', '.join(DTYPES)} with --save-dtype"
                )
        return types
    dtype = DTYPES.get(asked, torch.float32)  # a GGUF file's own types are none of torch's
    return {name: dtype for name, tensor in model.network.state_dict().items() if tensor.is_floating_point()}


@torch.no_grad()
def cast(model: Model, types: Mapping[str, torch.dtype]) -> int:
    """Round each tensor to what its type holds, in place or whenever it is read; it stays float32.

    How many tensors that changed.

    Raises:
        ModelError: a number beyond the type's largest.
    """
    changed = 0
    for name, tensor in model.tensors():
        if not tensor.is_floating_point():
            continue
        differs = False
        rows = tensor if tensor.ndim else tensor[None]
        for part in rows.split(max(1, PIECE * len(rows) // max(tensor.numel(), 1))) if len(rows) else ():
            rounded = part.to(types[name]).to(part.dtype)
            lost = part[rounded.isinf() & ~part.isinf()]
            if len(lost):
                raise ModelError(f"{name} holds {float(lost[0]):.6g}, {too_large(types[name])}")
            differs = differs or not torch.equal(rounded, part)
            part.copy_(rounded)
        changed += differs
    if model.stream is not None:
        model.stream.round_to(types)
    return changed


def convert(network: Any, types: Mapping[str, torch.dtype]) -> None:
    """Give each tensor its type, one after the other, to be saved."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in types:
            tensor.data = tensor.data.to(types[name])


def size(network: Any, types: Mapping[str, torch.dtype]) -> int:
    """Bytes of the saved parameters."""
    return sum(parameter.numel() * types[name].itemsize for name, parameter in network.named_parameters())


def in_words(network: Any, types: Mapping[str, torch.dtype]) -> str:
    """``bfloat16``, or ``bfloat16 and float32`` with the type of most numbers first."""
    numbers: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        numbers[text(types[name])] = numbers.get(text(types[name]), 0) + parameter.numel()
    return " and ".join(sorted(numbers, key=lambda kind: -numbers[kind]))


def of_config(model: Model, asked: str, types: Mapping[str, torch.dtype]) -> str:
    """The one type of a saved model's configuration: that of the input where types are kept, else of most numbers."""
    stored = {}
    if asked == "auto" and model.folder is not None:
        stored = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return stored.get("dtype") or stored.get("torch_dtype") or in_words(model.network, types).partition(" ")[0]


def too_large(dtype: torch.dtype) -> str:
    """The end of a sentence on a number that a type does not hold."""
    return f"{text(dtype)} at most {torch.finfo(dtype).max:.6g}; --save-dtype auto or float32 holds it"


def text(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
