"""Sums over layers' inputs, added up while a network runs: one for layers that read the same tensor."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fwbench.problems.arriving import Arrived, ArrivingSum
from fwbench.problems.structure import ModelError, run_body


class _Enough(BaseException):
    """Ends a forward pass: no later layer is wanted. No error, so no ``Exception``."""


class Recorder:
    """Adds up what arrives at layers, one sum for those that read the very same tensor.

    Which do is seen in the first forward pass, and each later one must agree.

    Args:
        layers: modules by name.
        network: they are part of; where it uses one of their weights in another module too, that is a call more.
        exact: the sums beside a dense model's inputs, see :class:`ArrivingSum`.
        last: name of the layer that is called last, where passes may end there.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], network: nn.Module | None = None, exact: bool = False, last: str = ""
    ):
        self.layers = layers
        self.leaders: dict[str, str] = {}  # layer -> the one whose sum it shares, in the order of their calls
        self.sums: dict[str, ArrivingSum] = {}
        self.dense: dict[str, torch.Tensor] = {}  # what the dense model reads in the pass to come, by leader
        self._network, self._exact = network, exact
        self._followers: Counter[str] = Counter()  # of each leader, once the first pass is over
        self._adding, self._last = True, last
        self._whole = False  # this pass does not end early
        self._shown: dict[str, torch.Tensor] | None = None
        self._rows: dict[int, list[int]] = {}  # in this pass: weight -> inputs of each call
        self._held: dict[str, tuple[tuple, torch.Tensor]] = {}  # in this pass; no address is used twice meanwhile
        self._awaited: Counter[str] = Counter()  # in this pass: followers of a leader that are yet to come

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch what the layers read in here."""
        names = {id(layer): name for name, layer in self.layers.items()}
        weights = {id(layer.weight) for layer in self.layers.values()}
        modules = self.layers.values() if self._network is None else self._network.modules()
        handles = [
            module.register_forward_pre_hook(self._hook(names.get(id(module))), with_kwargs=True)
            for module in modules
            if id(getattr(module, "weight", None)) in weights
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def showing(self) -> Iterator[dict[str, torch.Tensor]]:
        """Passes in here add nothing: what the leaders read is shown, the last pass's in the end."""
        self._adding, self._shown = False, {}
        try:
            yield self._shown
        finally:
            self._adding, self._shown = True, None

    def look(self, network: Any, ids: torch.Tensor) -> None:
        """See who shares an input in a pass on a few tokens that are not added; later passes end at the last layer."""
        self._adding = False
        run_body(network, ids)
        self._end_of_pass(ids.numel())
        self._adding, self._last = True, list(self.leaders)[-1]

    def add(self, network: Any, ids: torch.Tensor) -> None:
        """Add the inputs of a pass on token ids, int64 ``(sequences, length)``."""
        with self.passing(ids.numel()):
            run_body(network, ids)

    @contextlib.contextmanager
    def passing(self, tokens: int, whole: bool = False) -> Iterator[None]:
        """One forward pass on so many tokens in here, which ends at the last layer where that is known.

        Args:
            whole: let it run to its end.

        Raises:
            ModelError: a layer has not read one input for each token.
        """
        self._whole = whole
        with contextlib.suppress(_Enough):
            yield
        self._end_of_pass(tokens)

    def _end_of_pass(self, tokens: int) -> None:
        calls = {name: self._rows.get(id(layer.weight), []) for name, layer in self.layers.items()}
        if wrong := {name: rows for name, rows in calls.items() if rows != [tokens]}:
            raise ModelError(_say_calls(wrong, tokens, self._places()))
        self._rows.clear()
        self._held.clear()
        self._followers = Counter(leader for name, leader in self.leaders.items() if name != leader)

    def groups(self) -> list[list[str]]:
        """Layers that share an input, in the order of the first calls."""
        found: dict[str, list[str]] = {}
        for name, leader in self.leaders.items():
            found.setdefault(leader, []).append(name)
        return list(found.values())

    def arrived(self) -> Iterator[tuple[list[str], Arrived]]:
        """The matrices of each input, with the names of those that read it; sums are given up."""
        for names in self.groups():
            yield names, self.sums.pop(names[0]).arrived()

    def _places(self) -> dict[str, str]:
        """Name and path in the network of each layer."""
        modules = () if self._network is None else self._network.named_modules()
        paths = {id(module): path for path, module in modules}
        return {name: f"{name} {paths.get(id(layer), name)}.weight" for name, layer in self.layers.items()}

    def _hook(self, name: str | None) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            X = next(iter((*args, *kwargs.values())))
            rows = self._rows.setdefault(id(module.weight), [])
            rows.append(X.numel() // X.shape[-1])
            if name is None or len(rows) > 1:  # a weight that runs again is refused when the pass is over
                return
            self._follow(name, X)
            if self.leaders[name] == name and self._adding:
                self.sums.setdefault(name, ArrivingSum(self._exact)).add(X, self.dense.pop(name, None))
            elif self.leaders[name] == name and self._shown is not None:
                self._shown[name] = X.clone()  # the model may write into it
            if name == self._last and not self._whole:
                raise _Enough

        return hook

    def _follow(self, name: str, X: torch.Tensor) -> None:
        """Find the leader of a layer by its input, or check that it is the same again."""
        # a reshaped view is the same input; one that was written to in between is not
        key = (X.data_ptr(), X.numel(), X.shape[-1], X.is_contiguous() or X.stride(), X._version)
        leader = self.leaders.get(name)
        if leader is None:
            self.leaders[name] = next((other for other, (known, _) in self._held.items() if known == key), name)
            self._held[name] = (key, X)
        elif leader == name and self._followers[name]:
            self._held[name], self._awaited[name] = (key, X), self._followers[name]
        elif leader != name:
            if leader not in self._held or self._held[leader][0] != key:
                raise ModelError(f"layer {name} reads the input of {leader} in one forward pass and not in another")
            self._awaited[leader] -= 1
            if not self._awaited[leader]:
                del self._held[leader]


def _say_calls(wrong: Mapping[str, Sequence[int]], tokens: int, places: Mapping[str, str]) -> str:
    """One line on layers that do not read one input for each token, and how to leave them out.

    Args:
        wrong: how many inputs a layer reads in each call.
        tokens: in the pass.
        places: of every layer, what ``--skip`` looks at.
    """
    name, rows = next(iter(wrong.items()))
    if not rows:
        what = "does not run in a forward pass on text"
    elif len(rows) > 1:
        what = f"runs {len(rows)} times in a forward pass, not once"
    else:
        what = f"reads {rows[0]} inputs for {tokens} tokens, not one for each"
    if len(wrong) == len(places):
        return f"layer {name} {what}{'; no layer does, such models are not supported' if len(places) > 1 else ''}"
    return f"layer {name} {what}{way_out([places[name] for name in wrong], list(places.values()))}"


def way_out(wrong: Sequence[str], every: Sequence[str], skip: str = "") -> str:
    """The end of a sentence on layers that cannot be taken: the ``--skip`` that leaves them out, if it leaves others.

    Args:
        wrong: what ``--skip`` looks at, a name and a path for each such layer: ``llama.00.q_proj model...weight``.
        every: the same of all layers.
        skip: that is given already.
    """
    expression, found = _expression(wrong, every)
    expression = f"{skip}|{expression}" if skip else expression
    return f"; --skip '{expression}' leaves such layers out" if found < len(every) else ""


def _expression(wrong: Sequence[str], every: Sequence[str]) -> tuple[str, int]:
    """A short regular expression that finds some places and few of the others; how many it finds in all."""
    parts = [re.split(r"[. ]", place) for place in wrong]
    common = [part for part in parts[0] if all(part in own for own in parts)]
    forms = [rf"\.{part}\." if part.isdigit() else part for part in common]
    forms.append("|".join(dict.fromkeys(own[-2] for own in parts)))  # the last is "weight"
    forms.append("|".join(dict.fromkeys(rf"\.{own[1]}\." for own in parts)))
    found = {form: sum(bool(re.search(form, place)) for place in every) for form in forms}
    best = min(found, key=lambda form: (found[form], len(form)))
    return best, found[best]
