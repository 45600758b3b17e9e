"""What the layers of a model read, by hooks of the tests' own."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from fwbench.problems import extract
from fwbench.problems.models import Model
from fwbench.problems.text import Text, sequences


def inputs(
    model: Model, text: Text, tokens: int, length: int, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Inputs of each layer, or of those named, on a calibration text, float64 ``(n, tokens)``."""
    layers = {name: layer for name, layer in extract.named_layers(model).items() if names is None or name in names}
    return read(model, layers, text, tokens, length)


def read(model: Model, modules: Mapping[str, nn.Module], text: Text, tokens: int, length: int) -> dict[str, np.ndarray]:
    """The same of any modules."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found[name].append(args[0].flatten(0, -2)))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        for row in sequences(model.tokenizer, text, tokens, length):
            model.network(input_ids=torch.tensor([list(row)]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double().numpy().T for name, parts in found.items()}
