"""Solver specs as text: ``wanda+fw(steps=1000,step=linesearch)+swap``; and lists of numbers: ``3,7,100-120``.

The grammar is ``stage ("+" stage)*`` with ``stage = name | name(key=literal, ...)``, which is a Python expression, so
Python's own parser reads it. This module knows no registry: stores and reports read specs without loading a solver.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from dataclasses import dataclass

Literal = str | int | float | bool | None
SEEDS = range(2**32)  # what every generator of random numbers takes


class SpecError(ValueError):
    """A spec that cannot be read; the message is one line for the person who typed it."""


@dataclass(frozen=True)
class StageSpec:
    """One stage as written: its name and its parameters, sorted by name."""

    name: str
    params: tuple[tuple[str, Literal], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{key}={_literal_text(value)}" for key, value in self.params)
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class Spec:
    """A pipeline as written. ``parse(str(spec)) == spec``."""

    stages: tuple[StageSpec, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.stages))


def parse(text: str) -> Spec:
    """Read a spec.

    Bare words are strings (``step=linesearch``), except ``True``, ``False``, ``None`` and ``inf``.

    Raises:
        SpecError: for anything outside the grammar (positional or nested arguments, repeats, other operators).
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(f"cannot read the solver spec {text!r}: write it as name(key=value,...)+name+...") from None
    nodes: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        nodes.append(tree.right)
        tree = tree.left
    nodes.append(tree)
    return Spec(tuple(_stage(node, text) for node in reversed(nodes)))


def _stage(node: ast.expr, text: str) -> StageSpec:
    if isinstance(node, ast.Name):
        return StageSpec(node.id)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise SpecError(f"cannot read the solver spec {text!r}: {ast.unparse(node)!r} is not a stage")
    name = node.func.id
    if node.args:
        raise SpecError(f"{name} in {text!r}: parameters are given by name, as in {name}(key=value)")
    params: dict[str, Literal] = {}
    for argument in node.keywords:
        if argument.arg is None:
            raise SpecError(f"{name} in {text!r}: '**' is not allowed")
        if argument.arg in params:
            raise SpecError(f"{name} in {text!r}: parameter {argument.arg!r} is given twice")
        params[argument.arg] = _value(argument.value, f"{name}({argument.arg}=...) in {text!r}")
    return StageSpec(name, tuple(sorted(params.items())))


def _value(node: ast.expr, where: str) -> Literal:
    if isinstance(node, ast.Name):
        return math.inf if node.id == "inf" else node.id
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise SpecError(f"{where}: {ast.unparse(node)!r} is not a plain value") from None
    if not isinstance(value, str | int | float | bool | None):
        raise SpecError(f"{where}: a {type(value).__name__} is not allowed, only numbers, words, True, False and None")
    return value


def numbers(text: str) -> list[int]:
    """Read a list of numbers from 0 such as ``3,7,100-120``: ascending, each once; ``7,`` is that one.

    Raises:
        SpecError: anything else, or a number of more than seven digits: what is meant are rows and blocks.
    """
    found: set[int] = set()
    for part in text.removesuffix(",").split(","):
        match = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", part)
        if not match or int(match[1]) > (last := int(match[2] or match[1])):
            raise SpecError(f"{text!r} is no list of numbers from 0 such as 3,7,100-120")
        found |= set(range(int(match[1]), last + 1))
    return sorted(found)


def _literal_text(value: Literal) -> str:
    if isinstance(value, str):
        # Python normalises identifiers outside ASCII, so those are quoted
        bare = value.isascii() and value.isidentifier() and not keyword.iskeyword(value) and value != "inf"
        return value if bare else repr(value)
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-1e999"
    return repr(value)
