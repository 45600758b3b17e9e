"""The work folder ``DIR.partial``: the plan, what was measured of the dense model, and each finished block.

Every file in it appears whole or not at all, so that a killed run goes on from the last finished block.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from fwbench.problem import ProblemError
from fwbench.problems.files import write_atomic
from fwbench.pruning.errors import PruneError
from fwbench.result import pack_mask, unpack_mask

MASK = ".mask"
LOCK = "lock"


@dataclass(frozen=True)
class Block:
    """What a finished block left: weights and masks by parameter, in the model's orientation, and layer records."""

    weights: Mapping[str, torch.Tensor]
    masks: Mapping[str, np.ndarray]  # bool, True = the weight stays
    records: Sequence[Mapping[str, Any]]


class Work:
    """The work folder of an output folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = partial_folder(out)

    @contextlib.contextmanager
    def begin(self, plan: Mapping[str, Any], needed: int) -> Iterator[None]:
        """Begin or go on, and hold the folder against other runs until the end of the ``with`` block.

        Args:
            plan: all that the output depends on.
            needed: bytes of disk.

        Raises:
            PruneError: the output exists, the folder is of another run or in use, or nothing can be written.
        """
        check_output(self.out)
        plan = json.loads(json.dumps(plan))
        if not (self.folder / "plan.json").is_file():
            if self.folder.exists() and {path.name for path in self.folder.iterdir()} - {LOCK}:
                raise PruneError(f"{self.folder}: there, but not the work of an earlier run; remove it")
            self._check_space(needed)
        with self._lock():
            check_output(self.out)  # the run before us may just have completed it
            if (self.folder / "plan.json").is_file():
                self._check_plan(plan)
            else:
                self.write_json("plan.json", plan)
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(self.folder / LOCK)  # the system's: a kill frees it, whatever file is left
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise PruneError(f"{self.folder}: another run is at work there; wait for it, or end it") from None
        except OSError as error:
            raise PruneError(f"{self.folder}: cannot be written ({error.strerror or error})") from None
        try:
            yield
        finally:
            lock.release()

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        begun = self.read_json("plan.json")
        different = [key for key in plan if begun.get(key) != plan[key]]
        if different:
            key = different[0]
            raise PruneError(
                f"{self.folder}: begun with {key} {begun.get(key)!r}, not {plan[key]!r}; "
                "give the same parameters to go on, or remove the folder to begin anew"
            )

    def _check_space(self, needed: int) -> None:
        place = self.out.absolute().parent
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise PruneError(f"{self.out}: needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")

    def write_json(self, name: str, content: Any) -> None:
        self._write(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """A file's content, or None where there is no such file."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise PruneError(f"{path}: cannot be read ({error}); remove {self.folder} to begin anew") from None

    def write_block(self, number: int, block: Block) -> None:
        tensors = {name: weight.contiguous() for name, weight in block.weights.items()}
        for name, keep in block.masks.items():
            tensors[name + MASK] = torch.from_numpy(np.frombuffer(pack_mask(keep), np.uint8).copy())
        metadata = {"records": json.dumps(list(block.records))}
        self._write(self.block(number).relative_to(self.folder), safetensors.torch.save(tensors, metadata))

    def read_block(self, number: int) -> Block | None:
        """A finished block, or None."""
        if not self.block(number).is_file():
            return None
        with self._opened(number) as file:
            records = json.loads(file.metadata()["records"])
            weights = {record["parameter"]: file.get_tensor(record["parameter"]) for record in records}
            packed = {name: file.get_tensor(name + MASK).numpy().tobytes() for name in weights}
        masks = {name: unpack_mask(packed[name], tuple(weights[name].shape)) for name in weights}
        return Block(weights, masks, records)

    def records(self, number: int) -> list[dict[str, Any]]:
        """Layer records of a finished block."""
        with self._opened(number) as file:
            records: list[dict[str, Any]] = json.loads(file.metadata()["records"])
        return records

    def packed_mask(self, number: int, name: str) -> list[torch.Tensor]:
        """Packed mask of a parameter of a finished block, uint8, as its only piece."""
        with self._opened(number) as file:
            return [file.get_tensor(name + MASK)]

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        """A finished block's file. Raises PruneError where it cannot be read."""
        path = self.block(number)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise PruneError(f"{path}: damaged ({' '.join(str(error).split())}); remove it to do it again") from None

    def block(self, number: int) -> Path:
        """File of a finished block."""
        return self.folder / f"blocks/{number:04}.safetensors"

    def _write(self, name: str | Path, data: bytes) -> None:
        try:
            write_atomic(self.folder / name, data)
        except ProblemError as error:
            raise PruneError(f"{error}; with the cause removed, the same command goes on") from None


def partial_folder(out: Path) -> Path:
    """Where the work of an output folder lies until it is complete."""
    return out.with_name(f"{out.name}.partial")


def check_output(out: Path) -> None:
    """Raise PruneError if the output is already there, or cannot be a new folder."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise PruneError(f"{out}: the folder in which you are, or one around it; name a new folder, such as pruned")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise PruneError(f"{out}: already there; name another folder, or remove it")
