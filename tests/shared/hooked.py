"""What the layers of a model read, by hooks of the tests' own."""

from collections.abc import Collection

import numpy as np
import torch

from fwbench.problems import extract
from fwbench.problems.models import Model
from fwbench.problems.text import Text, sequences


def inputs(
    model: Model, text: Text, tokens: int, length: int, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Inputs of each layer, or of those named, on a calibration text, float64 ``(n, tokens)``."""
    layers = {name: layer for name, layer in extract.named_layers(model).items() if names is None or name in names}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found[name].append(args[0].flatten(0, -2)))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for row in sequences(model.tokenizer, text, tokens, length):
            model.network(input_ids=torch.tensor([list(row)]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double().numpy().T for name, parts in found.items()}
