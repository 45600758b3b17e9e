"""Problem files: one problem in a safetensors file, read with numpy alone.

Tensors ``W (rows, n)``, ``G (n, n)`` (float32 or float64), ``counts (rows,)`` for a pattern ``rows:``, ``T (rows, n)``
and ``offset (rows,)`` (float64) where the target is not ``WX``, and optional masks ``keep_NAME (rows, n)``; the
metadata are strings: ``name``, ``pattern``, ``model``, ``layer``, ``calibration``, ``tokens``, ``license``, ``source``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fwbench.patterns import Pattern, PatternError, Rows, parse
from fwbench.problem import Problem, ProblemError

SUFFIX = ".safetensors"
LONGEST = 180  # bytes of a stem: file systems take names of 255, some fewer, and suffixes follow
FLOATS = {"F32": np.float32, "F64": np.float64}
DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "bool": "BOOL"}


def write_problem(
    problem: Problem, path: Path | str, keeps: Mapping[str, np.ndarray] | None = None, dtype: str = "float64"
) -> None:
    """Write a problem file; the file appears whole or not at all, and the same problem gives the same bytes.

    Args:
        problem: what to write.
        path: file to write; an existing one is replaced, missing folders are made.
        keeps: masks, bool ``(rows, n)``, stored as ``keep_NAME``.
        dtype: of the stored ``G``, ``float64`` or ``float32``. float32 rounds: the file then holds another problem.

    Raises:
        ProblemError: it cannot be written (disk full, no permission), or a mask has the wrong shape.
    """
    if dtype not in ("float32", "float64"):
        raise ProblemError(f"{path}: G can be stored as float32 or float64, not {dtype}")
    tensors = {"W": problem.W, "G": problem.G.astype(dtype)}
    if problem.T is not None and problem.offset is not None:
        tensors |= {"T": problem.T, "offset": problem.offset}
    if isinstance(problem.pattern, Rows):
        tensors["counts"] = problem.pattern.pruned
    for key, keep in (keeps or {}).items():
        keep = np.asarray(keep)
        if keep.dtype != bool or keep.shape != problem.shape:
            raise ProblemError(f"{path}: keep_{key} is {keep.dtype} {keep.shape}, not bool {problem.shape}")
        tensors[f"keep_{key}"] = keep
    meta = {**problem.meta, "name": problem.name, "pattern": str(problem.pattern)}
    write_atomic(Path(path), serialise(tensors, meta))


def serialise(tensors: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> bytes:
    """Bytes of a safetensors file. Written here because the library shuffles the metadata from run to run."""
    header: dict[str, Any] = {"__metadata__": {key: str(meta[key]) for key in sorted(meta)}}
    chunks, start = [], 0
    for key in sorted(tensors, key=lambda key: (-tensors[key].itemsize, key)):  # keeps every tensor aligned
        array = np.ascontiguousarray(tensors[key])
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        offsets = [start, start + len(data)]
        header[key] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        chunks.append(data)
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, given whole or in parts, whole or not at all. Raises ProblemError and leaves nothing behind."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False) as file:
            temporary = Path(file.name)
            file.writelines([data] if isinstance(data, bytes) else data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ProblemError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_problem(path: Path | str, pattern: Pattern | str | None = None) -> Problem:
    """Read and check a problem file; the problem's ``origin`` is its path.

    Args:
        path: a safetensors file.
        pattern: replaces the file's own.

    Raises:
        ProblemError: one line, the file and the reason: unreadable or truncated, a tensor missing or of the wrong type
            or shape, not finite, ``G`` asymmetric or indefinite, ``T`` of no target, a pattern that does not fit.
    """
    path = Path(path)
    tensors, dtypes, meta = _read(path, lambda key: not key.startswith("keep_"))
    for key in ("W", "G"):
        if key not in tensors:
            raise ProblemError(f"{path}: no tensor {key}; a problem file has W and G")
    for key in ("W", "G", "T", "offset"):
        if dtypes.get(key, "F32") not in FLOATS:
            raise ProblemError(f"{path}: tensor {key} is {dtypes[key]}, not float32 or float64")
    name = re.sub(r"[\x00-\x1f\x7f]+", " ", meta.pop("name", "")).strip() or path.stem
    stored = meta.pop("pattern", None)
    if pattern is None:
        pattern = Rows(tensors["counts"]) if "counts" in tensors else stored
    if pattern is None:
        raise ProblemError(f"{path}: the file names no pattern; give one")
    try:
        with np.errstate(over="ignore"):  # a W beyond float32 becomes infinite, and is refused as such
            origin, target = str(path.resolve()), (tensors.get("T"), tensors.get("offset"))
            problem = Problem(name, tensors["W"], tensors["G"], parse(pattern), meta, origin, *target)
        problem.check_psd(FLOATS[dtypes["G"]])
    except (ProblemError, PatternError) as error:
        raise ProblemError(f"{path}: {error}") from None
    return problem


def read_name(path: Path | str) -> str:
    """Name of the problem in a file, its tensors unread. Raises ProblemError if the file is unreadable."""
    return _read(Path(path), lambda key: False)[2].get("name", Path(path).stem)


def file_stem(name: str) -> str:
    """A problem's name as every file system takes it, different for different long names.

    What is no letter, digit, dot, dash or underscore is a dash; beyond ``LONGEST`` bytes a digest stands for the rest.
    """
    stem = re.sub(r"[^\w.-]", "-", name)
    if len(stem.encode()) <= LONGEST:
        return stem
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{stem.encode()[: LONGEST - 13].decode(errors='ignore')}-{digest}"


def read_folder(path: Path | str, pattern: Pattern | str | None = None) -> Iterator[Problem]:
    """Read every problem file of a folder, in the order of their names.

    Raises:
        ProblemError: no such folder, no problem file in it, or one that is refused.
    """
    for file in problem_paths(path):
        yield read_problem(file, pattern)


def problem_paths(path: Path | str) -> list[Path]:
    """Problem files of a folder, sorted. Raises ProblemError if there is none."""
    path = Path(path)
    paths = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not paths:
        raise ProblemError(f"{path}: {'no problem file (*.safetensors) in it' if path.is_dir() else 'no such folder'}")
    return paths


def _read(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    try:
        if not path.is_file():
            raise ProblemError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
        with safe_open(path, framework="numpy") as file:
            keys = [key for key in file.keys() if wanted(key)]  # noqa: SIM118 - not a dict
            dtypes = {key: file.get_slice(key).get_dtype() for key in keys}
            tensors = {key: file.get_tensor(key) for key in keys if dtypes[key] in {*FLOATS, "I64", "U8", "BOOL"}}
            return tensors | {key: np.zeros(0) for key in keys if key not in tensors}, dtypes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ProblemError(f"{path}: not a readable safetensors file ({reason})") from None
