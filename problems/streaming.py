"""Networks larger than memory: their parameters stay in the files of the checkpoint, and are read when they are used.

A parameter that is not in memory is a stand-in of the same shape, which takes no memory and holds NaN, so that no
result can come of a forgotten one. In any forward pass the parameters of a block, an embedding or a head are read when
it runs, and given up when the next one does; :meth:`Stream.holding` keeps those of a module for longer.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors import safe_open
from torch import nn

from fwbench import machine
from fwbench.problems.structure import Conv1D, outermost_lists

PIECE = 1 << 20  # numbers read at a time


@dataclass(frozen=True)
class Place:
    """Where a parameter's numbers are, and the type to which they are rounded when they are read, if to any."""

    file: Path | str  # safetensors
    key: str
    dtype: torch.dtype | None = None

    def read(self, into: torch.Tensor | None = None) -> torch.Tensor:
        """The numbers, float32, in memory of their own, or in a tensor that is given."""
        with safe_open(self.file, framework="pt") as opened:
            tensor = torch.empty(opened.get_slice(self.key).get_shape()) if into is None else into
        flat, end = tensor.view(-1), 0
        for piece in self.pieces():
            begin, end = end, end + len(piece)
            flat[begin:end] = piece
        return tensor

    def pieces(self) -> Iterator[torch.Tensor]:
        """The numbers, float32, in order, some at a time."""
        with safe_open(self.file, framework="pt") as opened:
            shape = opened.get_slice(self.key).get_shape()
            if not shape:
                yield self._rounded(opened.get_tensor(self.key).reshape(1))
                return
        rows = max(1, PIECE * shape[0] // max(math.prod(shape), 1))
        for begin in range(0, shape[0], rows):
            with safe_open(self.file, framework="pt") as opened:  # anew: what is mapped counts as resident
                stored = opened.get_slice(self.key)[begin : min(begin + rows, shape[0])]
                yield self._rounded(stored.flatten())

    def _rounded(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.float() if self.dtype in (None, stored.dtype) else stored.float().to(self.dtype).float()


class Stream:
    """Reads the parameters of a network, and gives them up.

    What is small, all but the blocks, embeddings and heads, is read at once and stays.

    Args:
        network: of transformers, its parameters on torch's ``meta`` device; they become stand-ins.
        places: of each parameter, by its name in the network's state.
    """

    def __init__(self, network: Any, places: Mapping[str, Place]) -> None:
        self.network = network
        self.bytes, self.peak = 0, 0  # in memory now, and at most so far
        self._places: dict[nn.Parameter, Place] = {}
        self._stand_ins: dict[nn.Parameter, torch.Tensor] = {}
        self._read: set[nn.Parameter] = set()
        self._held: Counter[nn.Parameter] = Counter()
        made: dict[int, nn.Parameter] = {}  # tied ones are one parameter
        for path, module in network.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    stand_in = torch.full((), torch.nan).expand(parameter.shape)
                    made[id(parameter)] = new = nn.Parameter(stand_in, requires_grad=False)
                    self._stand_ins[new] = new.data
                    self._places[new] = places[f"{path}.{name}".lstrip(".")]
                module._parameters[name] = made[id(parameter)]
        self._watch()

    def _watch(self) -> None:
        """Have each block, embedding and head read itself when it runs; read the rest."""
        blocks = [item for _, items in outermost_lists(self.network) for item in items]
        inside = {id(module) for block in blocks for module in block.modules()}
        outside = [module for module in self.network.modules() if id(module) not in inside]
        large = [module for module in outside if isinstance(module, nn.Embedding | nn.Linear | Conv1D)]
        units = [*blocks, *large]
        streamed = {parameter for unit in units for parameter in unit.parameters()}
        rest = set(self.network.parameters()) - streamed
        self._use(list(rest))
        self._held.update(rest)
        for unit in units:
            own = list(dict.fromkeys(unit.parameters()))

            def before(module: nn.Module, _: Any, own: list[nn.Parameter] = own) -> None:
                if "forward" not in vars(module):  # a block for which something else runs reads nothing
                    self._use(own)

            for module in unit.modules():  # some models run the parts of a block one by one
                module.register_forward_pre_hook(before)

    def _use(self, parameters: list[nn.Parameter]) -> None:
        """Read some parameters, and give up all others that nobody holds."""
        missing = [parameter for parameter in parameters if parameter not in self._read]
        wanted = Counter(parameter.shape for parameter in missing)
        spare: dict[torch.Size, list[torch.Tensor]] = {}  # fresh memory takes several times as long as the reading
        for parameter in self._read - set(parameters):
            if not self._held[parameter]:
                memory = self._give_up(parameter)
                if wanted[memory.shape] > 0:
                    wanted[memory.shape] -= 1
                    spare.setdefault(memory.shape, []).append(memory)
                del memory  # what is not used again is gone before anything is read
        if wanted.total() > 0:
            machine.release_memory()  # else what the C library keeps counts beside the fresh memory
        for parameter in missing:
            kept = spare.get(parameter.shape)
            parameter.data = self._places[parameter].read(kept.pop() if kept else None)
            self._read.add(parameter)
            self.bytes += parameter.nbytes
            self.peak = max(self.peak, self.bytes)

    def _give_up(self, parameter: nn.Parameter) -> torch.Tensor:
        memory = parameter.data
        self.bytes -= memory.nbytes
        parameter.data = self._stand_ins[parameter]
        self._read.remove(parameter)
        return memory

    @contextlib.contextmanager
    def holding(self, *modules: nn.Module) -> Iterator[None]:
        """Have the parameters of modules in memory in here; what is written into them is lost at the end."""
        held = list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))
        self._use(held)
        self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            for parameter in held:
                if not self._held[parameter]:
                    self._give_up(parameter)  # its memory is not used again: there may be views of it

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and numbers of each tensor of the network's state, tied ones once; parameters are read one by one."""
        again = set(dict(self.network.named_parameters(remove_duplicate=False)))
        again -= set(dict(self.network.named_parameters()))
        for name in self.network.state_dict():
            if name not in again:
                yield name, self.tensor(name)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the network's state by its name, read where it is not in memory, and not kept there."""
        tensor = self._own(name)
        return self._places[tensor].read() if self._in_a_file(tensor) else tensor.detach()

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The numbers of the same tensor in order, some at a time."""
        tensor = self._own(name)
        if self._in_a_file(tensor):
            return self._places[tensor].pieces()
        return iter(tensor.detach().flatten().split(PIECE))

    def _own(self, name: str) -> Any:
        path, _, own = name.rpartition(".")
        return getattr(self.network.get_submodule(path), own)

    def _in_a_file(self, tensor: Any) -> bool:
        return tensor in self._places and tensor not in self._read

    def round_to(self, types: Mapping[str, torch.dtype]) -> None:
        """Round each parameter to a type, by its name, whenever it is read from now on."""
        for name, parameter in self.network.named_parameters():
            self._places[parameter] = replace(self._places[parameter], dtype=types[name])

    def move(self, file: Path | str, names: Mapping[str, Any]) -> None:
        """Read some parameters from another file from now on, where they are stored under their names."""
        for name in names:
            self._places[self.network.get_parameter(name)] = Place(file, name)


def detached(network: Any) -> Stream:
    """The stream of a network that transformers loaded with everything on disk, of which accelerate's hooks are taken.

    Raises:
        KeyError, AttributeError: not all of its parameters lie in files.
    """
    hooks = [module._hf_hook for module in network.modules() if hasattr(module, "_hf_hook")]
    index = next(hook.weights_map.dataset.index for hook in hooks if getattr(hook, "weights_map", None) is not None)
    remove_hook_from_submodules(network)
    del network.hf_device_map
    for name in ("to", "cuda"):
        vars(network).pop(name, None)
    for module in network.modules():  # accelerate puts the class's own back on the module
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward
    places = {name: Place(found["safetensors_file"], found["weight_name"]) for name, found in index.items()}
    return Stream(network, places)
