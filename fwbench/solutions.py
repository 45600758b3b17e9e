"""Masks from outside: read, judged like everybody's, stored under the name of who found them."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fwbench import machine, metrics, pipeline
from fwbench.judge import judge
from fwbench.pipeline import Answer
from fwbench.problem import Problem
from fwbench.problems import registry
from fwbench.problems.records import TextError, text_stream
from fwbench.result import Result, Status, pack_mask, unpack_mask

INTEGRAL = 1e-4  # how far a solver's value may be from 0 or 1
# a line of Gurobi, SCIP or HiGHS, of CBC (with an index before the name), of CPLEX (XML)
_VALUE = re.compile(
    r"""^\s*(?:\d+\s+|<variable\s+name=")?u_(\d+)_(\d+)(?:"[^>]*?\svalue="([^"]*)"|\s+(\S+))""", re.MULTILINE
)
_NAME = re.compile(r"\bu_\d+_\d+\b")
_OBJECTIVE = re.compile(r"objective ?value|^objective\s|=obj=", re.IGNORECASE | re.MULTILINE)
_NO_SOLUTION = re.compile(r"infeasible|no solution", re.IGNORECASE)


class SolutionError(ValueError):
    """A solution that cannot be read, or that the judge refuses; the message is one line."""


def import_solution(
    problem: Problem, path: Path | str, by: str, collection: str = "", base: np.ndarray | None = None
) -> Answer:
    """A mask from a file, judged, as the row of a solver called ``by``.

    Args:
        problem: what the file solves.
        path: see :func:`read_mask`.
        by: who found it: a solver, a person.
        collection: the problem's.
        base: mask for the rows that a solution of a block leaves open.

    Raises:
        SolutionError: an unreadable file, or a mask that the judge refuses, with the reason.
    """
    keep = read_mask(problem, path, base)
    found = judge(problem, keep)
    if found.error is None:
        raise SolutionError(f"{path}: the judge refuses the mask for {problem.name}: {found.reason}")
    digest = hashlib.sha256(pack_mask(keep)).hexdigest()
    wanda = pipeline.wanda_error(problem)
    row = Result(
        problem=problem.name,
        problem_hash=problem.hash,
        collection=collection,
        solver=by,
        key=hashlib.sha256("\n".join((problem.hash, "import", by, digest)).encode()).hexdigest()[:32],
        pattern=str(problem.pattern),
        rows=problem.rows,
        n=problem.n,
        status=Status.FEASIBLE,
        verdict=found.verdict,
        reason=f"imported from {Path(path).name}",
        error=found.error,
        relative_error=metrics.relative_error(found.error, problem.total),
        ratio_to_wanda=metrics.ratio_to_wanda(found.error, wanda),
        device="",
        dtype="",
        machine=machine.describe(),
        meta=dict(problem.meta),
        mask_sha256=digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Answer(row, keep)


def register(outcome: Answer, problem: Problem, folder: Path | str = registry.FOLDER) -> bool:
    """Take an imported mask into a registry; True if it improves it.

    Raises:
        SolutionError: the registry is the suite's own, and does not keep this problem.
        RegistryError: the mask contradicts a known bound, or the registry cannot be read.
    """
    if reason := registry.refusal(problem, outcome.result.collection, folder):
        raise SolutionError(f"{problem.name}: {reason}")
    before = registry.to_improve(folder)
    after = registry.improve(before, problem, outcome.result.solver, keep=outcome.keep)
    if after == before:
        return False
    registry.save(after, folder)
    return True


def read_mask(problem: Problem, path: Path | str, base: np.ndarray | None = None) -> np.ndarray:
    """The mask in a file, bool ``(rows, n)``, True = the weight stays; whether it is feasible is for the judge to say.

    ``.npy`` and ``.npz`` hold it as an array of bool (in an ``.npz`` named ``keep``, or alone). A solution file of
    Gurobi, SCIP, HiGHS, CBC or CPLEX (``.sol``) names variables ``u_r_i``, 1 = pruned, as ``fwbench export`` writes
    them; what it does not name is 0, and a solution that names none is all zeros. Any other file holds hex digits, the
    bits of the mask in row-major order, as the registry does. Files of text may be compressed, and are read by their
    byte order mark.

    Args:
        base: mask of the rows that a solution file does not name.

    Raises:
        SolutionError: one line, the file and the reason.
    """
    path = Path(path)
    try:
        if path.suffix in (".npy", ".npz"):
            return _array(problem, path)
        with text_stream(path) as stream:
            text = stream.read()
    except TextError as error:
        raise SolutionError(str(error)) from None
    except (OSError, ValueError, EOFError) as error:
        raise SolutionError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    digits = "".join(text.split())
    if path.suffix == ".sol" or not re.fullmatch(r"[0-9a-fA-F]+", digits):
        return _solution(problem, path, text, base)
    size = problem.rows * problem.n
    if len(digits) != 2 * ((size + 7) // 8):
        raise SolutionError(f"{path}: has {len(digits)} hex digits, {size} weights take {2 * ((size + 7) // 8)}")
    return unpack_mask(bytes.fromhex(digits), problem.shape)


def _array(problem: Problem, path: Path) -> np.ndarray:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        with loaded:
            key = "keep" if "keep" in loaded.files or len(loaded.files) != 1 else loaded.files[0]
            if key not in loaded.files:
                raise SolutionError(f"{path}: has no array keep among {', '.join(loaded.files) or 'none'}")
            loaded = loaded[key]
    if loaded.dtype != bool or loaded.shape != problem.shape:
        raise SolutionError(
            f"{path}: is {loaded.dtype} {loaded.shape}, not bool {problem.shape} with True where a weight stays"
        )
    return loaded


def _solution(problem: Problem, path: Path, text: str, base: np.ndarray | None) -> np.ndarray:
    values = np.full(problem.shape, np.nan)
    text = text.partition("# Dual")[0]  # HiGHS writes dual values under the same names
    for match in _VALUE.finditer(text):
        row, i, given = int(match[1]), int(match[2]), match[3] or match[4]
        if row >= problem.rows or i >= problem.n:
            raise SolutionError(f"{path}: u_{row}_{i} is no weight of {problem.name} {problem.shape}")
        if not np.isnan(values[row, i]):
            raise SolutionError(f"{path}: u_{row}_{i} is named twice; leave one solution in the file")
        try:
            value = float(given)
        except ValueError:
            value = np.nan
        if not min(abs(value), abs(value - 1)) <= INTEGRAL:
            raise SolutionError(f"{path}: u_{row}_{i} is {given}, not 0 or 1")
        values[row, i] = round(value)
    named = ~np.isnan(values)
    if not named.any() and _NAME.search(text):
        raise SolutionError(f"{path}: no line begins with a variable and its value, such as u_0_0 1")
    if not named.any() and (_NO_SOLUTION.search(text) or not _OBJECTIVE.search(text)):
        raise SolutionError(f"{path}: names no variable u_r_i, and is no array and no hex digits")
    keep = ~(np.nan_to_num(values) == 1)
    if problem.pattern.separable:
        missing = ~named.any(axis=1) & (problem.pattern.row_counts(problem.shape) > 0)
        if missing.any() and base is None:
            raise SolutionError(
                f"{path}: says nothing of row {int(missing.argmax())}: give a mask for the others as base"
            )
        if base is not None:
            keep[missing] = base[missing]
    return keep
