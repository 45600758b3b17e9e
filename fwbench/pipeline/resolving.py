"""From the text of a spec to stages: the registry of solvers, presets, and what is left out."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fwbench import presets as named
from fwbench import spec as specs
from fwbench import stage as stages
from fwbench.problem import Problem
from fwbench.spec import Spec, SpecError, StageSpec
from fwbench.stage import Needs, Role, Stage, needs, ungrouped


@dataclass(frozen=True)
class Solver:
    """A resolved spec. ``text`` shows what differs from the defaults, ``full`` everything a result depends on."""

    stages: tuple[Stage, ...]

    @property
    def text(self) -> str:
        return str(Spec(tuple(_shown(stage, only_changed=True) for stage in self.stages)))

    @property
    def full(self) -> str:
        versions = ",".join(str(stage.version) for stage in self.stages)
        return f"{Spec(tuple(_shown(stage, only_changed=False) for stage in self.stages))} versions {versions}"

    @property
    def own(self) -> bool:
        """Whether all stages are fwbench's, none a plug-in's."""
        return all(type(stage).__module__.startswith("fwbench.solvers.") for stage in self.stages)

    @property
    def updates_weights(self) -> bool:
        """Whether it ends with changed weights: a later stage that makes another mask takes them as they were."""
        return [stage.role for stage in self.stages if stage.role is not Role.BOUND][-1:] == [Role.UPDATE]


@cache
def load_solvers() -> dict[str, type[Stage]]:
    """Import every room of ``fwbench.solvers``, and what the entry-point group of that name holds; the registry."""
    import fwbench.solvers

    for room in pkgutil.iter_modules(fwbench.solvers.__path__):
        importlib.import_module(f"fwbench.solvers.{room.name}")
    for entry in importlib.metadata.entry_points(group="fwbench.solvers"):
        entry.load()
    return stages.registry


def load_file(path: str | Path) -> list[str]:
    """Load a solver file of the user's own; the names of the stages it registers.

    Raises:
        SpecError: the file cannot be read, raises, or registers nothing.
    """
    path = Path(path)
    name = f"fwbench_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        module_spec = importlib.util.spec_from_file_location(name, path)
        if module_spec is None or module_spec.loader is None or not path.is_file():
            raise SpecError(f"{path}: not a Python file with a solver")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise SpecError(f"{path}: loading it raised {type(error).__name__}: {error}") from error
    names = [key for key, stage in stages.registry.items() if stage.__module__ == name]
    if not names:
        raise SpecError(f"{path}: it registers no stage (decorate the class with fwbench.stage.register)")
    return names


def resolve(text: str) -> Solver:
    """Read a spec, expand presets, fill in what is left out.

    One rule: what a stage needs and does not find is put before it, its own ``begin`` (``wanda``) for a mask, ``round``
    for the mask of a point. A fractional end is rounded.

    Raises:
        SpecError: one line; for an unknown name, with the nearest known one.
    """
    known = load_solvers()
    filled: list[Stage] = []
    held: Needs | None = None  # what the stages so far hand on
    for item in _expand(specs.parse(text)).stages:
        stage = _build(item, known)
        more, held = _before(stage, filled, held, text)
        filled += [*more, stage]
        if stage.role is not Role.BOUND:
            held = Needs.POINT if stage.role is Role.RELAX else Needs.MASK
    if held is Needs.POINT:
        filled.append(known["round"]())
    return Solver(tuple(filled))


def _before(stage: Stage, given: list[Stage], held: Needs | None, text: str) -> tuple[list[Stage], Needs | None]:
    """What has to come before a stage, and what it then finds.

    Raises:
        SpecError: the stage before it would have no effect, or a point is needed and there is none.
    """
    known, need = load_solvers(), needs(stage)
    if stage.role is Role.START and given:
        raise SpecError(f"{stage.name} in {text!r} makes a mask from nothing: it can only come first")
    if need is Needs.POINT and held is not Needs.POINT:
        raise SpecError(f"{stage.name} in {text!r} has no fractional point to round: put a relaxation before it")
    if held is None:
        if need is Needs.NOTHING:
            return [], None
        return [_build(item, known) for item in specs.parse(stage.begin).stages], Needs.MASK
    takes = {Needs.EITHER: (Needs.MASK, Needs.POINT), Needs.NOTHING: stage.uses}.get(need, (need,))
    if held in takes:
        return [], held
    if held is Needs.POINT and Needs.MASK in takes:
        return [known["round"]()], Needs.MASK
    raise SpecError(
        f"{given[-1].name} in {text!r} has no effect: {stage.name} does not begin with a {held}; leave it out"
    )


def presets() -> dict[str, str]:
    """Names that stand for whole specs."""
    return named.PRESETS


def default_set() -> tuple[str, ...]:
    """Specs that run where none is named."""
    return named.DEFAULT


def _expand(spec: Spec) -> Spec:
    expanded: list[StageSpec] = []
    for item in spec.stages:
        if preset := named.find(item.name):
            if item.params:
                raise SpecError(f"{preset} is a preset and takes no parameters; it stands for {named.PRESETS[preset]}")
            expanded.extend(specs.parse(named.PRESETS[preset]).stages)
        else:
            expanded.append(item)
    return Spec(tuple(expanded))


def _build(item: StageSpec, known: dict[str, type[Stage]]) -> Stage:
    if item.name not in known:
        raise SpecError(f"unknown solver {item.name!r}{_nearest(item.name, [*known, *presets()])}")
    kind = known[item.name]
    defaults = stages.parameters(kind)
    values = {}
    for key, value in item.params:
        if key not in defaults:
            raise SpecError(f"{item.name} has no parameter {key!r}{_nearest(key, defaults)}")
        values[key] = _coerce(f"{item.name}({key}=...)", value, defaults[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise SpecError(f"{item.name}: {error}") from None


def _coerce(where: str, value: object, default: object) -> object:
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    raise SpecError(f"{where}: expected a {type(default).__name__} such as {default!r}, got {value!r}")


def _nearest(word: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in sorted(known)}
    if close := difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5):
        return f"; did you mean {names[close[0]]!r}?"
    return f"; known: {', '.join(names.values()) or 'none'}"


def _shown(stage: Stage, only_changed: bool) -> StageSpec:
    defaults = stages.parameters(type(stage))
    params = stages.parameters(stage).items()
    return StageSpec(stage.name, tuple(sorted((k, v) for k, v in params if not only_changed or v != defaults[k])))


def skip_reason(problem: Problem, solver: Solver) -> str | None:
    """Why a stage of the solver declines the problem (or lacks a package), or None."""
    for stage in solver.stages:
        if names := missing(stage):
            return f"{stage.name} needs {', '.join(names)}, which is not installed (pip install {' '.join(names)})"
        if reason := stage.supports(problem) or (ungrouped(problem) if stage.needs_groups else None):
            return f"{stage.name}: {reason}"
    return None


def missing(stage: Stage | type[Stage]) -> list[str]:
    """Packages that a stage requires and that are not installed, as pip calls them."""
    return [package(name) for name in stage.requires if not _installed(name)]


def package(module: str) -> str:
    """What pip calls the package of a module that a stage requires."""
    return module.replace(".", "-")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a dotted name, the package that holds it
        return False


def describe(stage: type[Stage]) -> dict[str, Any]:
    """What ``fwbench solvers`` prints of a stage."""
    lacking = missing(stage)
    return {
        "name": stage.name,
        "role": str(stage.role),
        "parameters": stages.parameters(stage),
        "summary": (stage.__doc__ or "").strip().split("\n")[0],
        "source": stage.source,
        "advice": stage.advice,
        "installed": not lacking,
        "missing": lacking,
        "version": stage.version,
        "file": Path(sys.modules[stage.__module__].__file__ or "").name,
    }
