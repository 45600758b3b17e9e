"""Problems as files for other people's solvers: ``.lp``, ``.mps``, ``.qplib`` and ``.npz``.

The instance is ``min Σ_r u_rᵀ Q_r u_r + c_rᵀ u_r + offset_r`` with ``Q_r = diag(w_r) G diag(w_r)`` and, where the
problem has a target of its own, ``c_r = 2 w_r∘t_r`` and ``offset_r``; with one equation ``Σ u = count`` for each group
of the pattern and ``u`` binary, 1 = pruned. Its optimum is the error of the layer, or of the rows that were chosen; a
single row is the natural instance. Variables are ``u_r_i`` (row and column of the weight, from 0, those of the whole
layer also where rows were chosen), groups ``count_g``. Numbers read back as the same float64.

- ``.lp``: CPLEX's LP format, ``[ 2 Q_ii u ^2 + 4 Q_ij u * v ] / 2``. Readers disagree on constants, so a variable
  ``constant``, fixed at 1, carries that of the objective.
- ``.mps``: free MPS, ``QUADOBJ`` with ``2 Q_ii`` and ``2 Q_ij`` (one triangle, an implicit one half).
- ``.qplib``: QPLIB's format, type QBL, variables in row-major order, without names. Its objective is ``½ xᵀ Q⁰ x``; in
  QPLIB's own instances ``Q⁰`` *is* the lower triangle, so an entry off the diagonal counts once (only so do they have
  their published optima), while the example in QPLIB's paper takes the triangle for half of a symmetric matrix. Written
  is what the library does: ``2 Q_ii`` and ``4 Q_ij``.
- ``.npz``: the factors, for numpy: ``W (rows, n)``, ``G (n, n)``, ``groups (rows, n)`` the group of each weight,
  ``counts (groups,)`` how many of it are pruned, ``rows`` the numbers of the rows, and ``name``, ``pattern``, ``hash``;
  ``T (rows, n)`` and ``offset (rows,)`` where the problem has them; where the pattern is transposable, ``column_groups
  (rows, n)`` besides, which have the same counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from fwbench.problem import Problem, ProblemError
from fwbench.problems.files import write_atomic

LIMIT = 2**30  # bytes of a file
PER_TERM = {".lp": 46, ".mps": 42, ".qplib": 32}  # bytes of a quadratic term, a little more than are needed
PER_LINE = 4  # terms; readers of LP files limit the length of a line
INFINITY = "1e+30"


@dataclass(frozen=True)
class Instance:
    """What is written: the chosen rows of a problem."""

    problem: Problem
    rows: np.ndarray  # numbers of the rows

    @property
    def equations(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights of each group by number, ``(groups, size)``, and their pruned count ``(groups,)``, int64.

        Of a transposable pattern those of the columns' groups follow, with the same counts.
        """
        part = self.problem
        numbers, counts = np.arange(part.rows * part.n).reshape(part.shape), part.pattern.counts(part.shape)
        groups = part.pattern.groups(numbers)
        if part.pattern.grouped:
            return groups, counts
        return np.concatenate([groups, part.pattern.groups(numbers.T)]), np.tile(counts, 2)

    @property
    def groups(self) -> np.ndarray:
        """Group of each weight, from 0, int64 ``(1, rows, n)``; of a transposable pattern both ``(2, rows, n)``."""
        members, _ = self.equations
        order = np.argsort(members, axis=None, kind="stable").reshape(self.problem.W.size, -1)
        return (order // members.shape[1]).T.reshape(-1, *self.problem.shape)

    @property
    def names(self) -> list[list[str]]:
        """Name of each variable."""
        return [[f"u_{row}_{i}" for i in range(self.problem.n)] for row in self.rows]

    @property
    def title(self) -> str:
        """The problem's name without blanks."""
        return re.sub(r"[^\w.:-]", "-", self.problem.name) or "problem"

    @property
    def about(self) -> list[str]:
        """Lines for a file's head."""
        part = self.problem
        return [
            f"{self.title}, {part.rows} x {part.n} weights, pattern {part.pattern}",
            f"problem {part.hash}",
            "u_r_i = 1 prunes weight i of row r; the objective is the error, not scaled: mind absolute tolerances",
        ]

    def triangle(self, row: int) -> Iterator[tuple[int, int, float]]:
        """Nonzeros ``(i, j, Q_ij)`` of a chosen row's lower triangle, ``i >= j``."""
        w = self.problem.W[row].astype(np.float64)
        for i in range(w.size):
            values = (w[i] * w[: i + 1]) * self.problem.G[i, : i + 1]  # w_i w_j is exact: they are float32
            (nonzero,) = np.nonzero(values)
            yield from zip((i,) * nonzero.size, nonzero.tolist(), values[nonzero].tolist(), strict=True)

    @property
    def linear(self) -> list[tuple[int, str, float]]:
        """Nonzeros of the linear objective: number and name of the variable, value."""
        if self.problem.linear is None:
            return []
        flat = [name for row in self.names for name in row]
        values = self.problem.linear.ravel()
        return [(number, flat[number], float(values[number])) for number in np.flatnonzero(values).tolist()]

    @property
    def constant(self) -> float:
        """Of the objective."""
        return 0.0 if self.problem.offset is None else math.fsum(self.problem.offset)


def write(problem: Problem, path: Path | str, rows: Sequence[int] | slice | None = None, relaxed: bool = False) -> None:
    """Write a problem, or a block of its rows, in the format that the path's suffix names; whole or not at all.

    Args:
        problem: what to write.
        path: ends with ``.lp``, ``.mps``, ``.qplib`` or ``.npz``.
        rows: numbers of rows, or a slice; all if None.
        relaxed: variables in [0, 1] in place of binary ones; no matter in an ``.npz``.

    Raises:
        ProblemError: an unknown suffix, rows that are not there or depend on others, a file beyond 1 GB, or one that
            cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ProblemError(f"{path}: write to a file that ends with {', '.join(WRITERS)}")
    instance = choose(problem, rows)
    part = instance.problem
    terms = part.rows * part.n * (part.n + 1) // 2
    expected = terms * PER_TERM[path.suffix] if path.suffix in PER_TERM else part.G.nbytes + part.W.size * 12
    if expected > LIMIT:
        raise ProblemError(
            f"{path}: would take about {expected / 2**30:.1f} GB for {part.rows} rows of {part.n} weights: "
            f"choose fewer rows, or .npz"
        )
    write_atomic(path, WRITERS[path.suffix](instance, relaxed))


def choose(problem: Problem, rows: Sequence[int] | slice | None = None) -> Instance:
    """The instance of some rows, as a problem of its own. Raises ProblemError, one line, if they cannot be chosen."""
    if rows is None:
        return Instance(problem, np.arange(problem.rows))
    if not problem.pattern.separable:
        raise ProblemError(f"{problem.name}: pattern {problem.pattern} joins the rows: they cannot be written alone")
    everything = list(range(problem.rows))
    chosen = everything[rows] if isinstance(rows, slice) else sorted({int(row) for row in rows})
    wrong = [row for row in chosen if not 0 <= row < problem.rows]
    if wrong or not chosen:
        asked = rows if isinstance(rows, slice) else wrong[0] if wrong else "none"
        raise ProblemError(f"{problem.name}: has rows 0 to {problem.rows - 1}, not {asked}")
    if chosen == everything:
        return Instance(problem, np.array(chosen))
    listed = ",".join(map(str, chosen)) if len(chosen) <= 4 else f"{chosen[0]}-{chosen[-1]}({len(chosen)})"
    name = f"{problem.name}:rows-{listed}"
    return Instance(problem.part(chosen, name), np.array(chosen))


def _groups(instance: Instance) -> Iterator[tuple[list[str], int]]:
    """The variables and the pruned count of each group."""
    flat = [name for row in instance.names for name in row]
    for members, count in zip(*(part.tolist() for part in instance.equations), strict=True):
        yield [flat[number] for number in members], count


def _lp(instance: Instance, relaxed: bool) -> Iterator[bytes]:
    names = instance.names
    for line in instance.about:
        yield f"\\ {line}\n".encode()
    constant = f"{instance.constant!r} constant + " if instance.constant else ""
    yield f"Minimize\n obj: {constant}0 {names[0][0]}".encode()
    yield from _lines((f" + {value!r} {name}".replace("+ -", "- ") for _, name, value in instance.linear), PER_LINE)
    terms = (
        f"{factor * value!r} {name}"
        for row, own in enumerate(names)
        for i, j, value in instance.triangle(row)
        for factor, name in [(2, f"{own[i]} ^2") if i == j else (4, f"{own[j]} * {own[i]}")]
    )
    first = next(terms, None)
    if first is not None:
        yield f" + [ {first}".encode()
        yield from _lines((f" + {term}".replace("+ -", "- ") for term in terms), PER_LINE)
        yield b" ] / 2"
    yield b"\nSubject To\n"
    for group, (members, count) in enumerate(_groups(instance)):
        yield f" count_{group}: {members[0]}".encode()
        yield from _lines((f" + {name}" for name in members[1:]), 8)
        yield f" = {count}\n".encode()
    flat = [name for own in names for name in own]
    if relaxed or constant:
        yield b"Bounds\n"
    if constant:
        yield b" constant = 1\n"
    if relaxed:
        yield from (f" 0 <= {name} <= 1\n".encode() for name in flat)
    else:
        yield b"Binary\n"
        yield from _lines((f" {name}" for name in flat), 8)
        yield b"\n"
    yield b"End\n"


def _lines(words: Iterable[str], width: int) -> Iterator[bytes]:
    """Words as bytes, a new line after each ``width`` of them."""
    for number, word in enumerate(words):
        yield (word if number % width else f"\n{word}").encode()


def _mps(instance: Instance, relaxed: bool) -> Iterator[bytes]:
    names, groups = instance.names, instance.groups
    for line in instance.about:
        yield f"* {line}\n".encode()
    yield f"NAME {instance.title}\nROWS\n N obj\n".encode()
    _, counts = instance.equations
    yield from (f" E count_{group}\n".encode() for group in range(len(counts)))
    yield b"COLUMNS\n"
    if not relaxed:
        yield b" MARKER0 'MARKER' 'INTORG'\n"
    costs = {name: f" {name} obj {value!r}\n" for _, name, value in instance.linear}
    for row, own in enumerate(names):
        for name, *numbers in zip(own, *groups[:, row].tolist(), strict=True):
            yield (costs.get(name, "") + "".join(f" {name} count_{group} 1\n" for group in numbers)).encode()
    if not relaxed:
        yield b" MARKER1 'MARKER' 'INTEND'\n"
    yield b"RHS\n"
    if instance.constant:
        yield f" RHS obj {-instance.constant!r}\n".encode()
    yield from (f" RHS count_{group} {count}\n".encode() for group, count in enumerate(counts))
    yield b"BOUNDS\n"
    kind, upper = ("UP", " 1") if relaxed else ("BV", "")
    yield from (f" {kind} BND {name}{upper}\n".encode() for own in names for name in own)
    head = b"QUADOBJ\n"
    for row, own in enumerate(names):
        for i, j, value in instance.triangle(row):
            yield head + f" {own[j]} {own[i]} {2 * value!r}\n".encode()
            head = b""
    yield b"ENDATA\n"


def _qplib(instance: Instance, relaxed: bool) -> Iterator[bytes]:
    part = instance.problem
    entries = sum(1 for row in range(part.rows) for _ in instance.triangle(row))
    members, counts = instance.equations
    variables = part.rows * part.n
    about = "; ".join(instance.about[:2])
    yield f"{instance.title} # {about}\n{'QCL' if relaxed else 'QBL'} # u[r,i] is variable r n + i + 1\n".encode()
    yield f"minimize\n{variables} # variables\n{len(counts)} # constraints\n".encode()
    yield f"{entries} # nonzeros in the lower triangle Q, objective x' Q x / 2\n".encode()
    for row in range(part.rows):
        first = row * part.n + 1
        for i, j, value in instance.triangle(row):
            yield f"{first + i} {first + j} {(2 if i == j else 4) * value!r}\n".encode()
    linear = instance.linear
    yield f"0.0 # default of the linear objective\n{len(linear)} # others\n".encode()
    yield from (f"{number + 1} {value!r}\n".encode() for number, _, value in linear)
    yield f"{instance.constant!r} # constant of the objective\n".encode()
    yield f"{members.size} # nonzeros in the constraints\n".encode()
    yield from (f"{group + 1} {number + 1} 1.0\n".encode() for group, own in enumerate(members) for number in own)
    yield f"{INFINITY} # infinity\n".encode()
    for side in ("left", "right"):
        yield f"0.0 # default {side} side\n{np.count_nonzero(counts)} # others\n".encode()
        yield from (f"{group + 1} {float(count)!r}\n".encode() for group, count in enumerate(counts) if count)
    if relaxed:
        yield b"0.0 # default lower bound\n0 # others\n1.0 # default upper bound\n0 # others\n"
    for what in ("start x", "start y", "start z"):
        yield f"0.0 # default {what}\n0 # others\n".encode()
    yield b"0 # names of variables\n0 # names of constraints\n"


def _npz(instance: Instance, relaxed: bool) -> bytes:
    part = instance.problem
    buffer = BytesIO()
    np.savez_compressed(
        buffer,
        W=part.W,
        G=part.G,
        groups=instance.groups[0],
        **({} if part.pattern.grouped else {"column_groups": instance.groups[1] - part.counts.size}),
        counts=part.pattern.counts(part.shape),
        rows=instance.rows,
        name=np.array(part.name),
        pattern=np.array(str(part.pattern)),
        hash=np.array(part.hash),
        **({} if part.T is None else {"T": part.T, "offset": part.offset}),  # type: ignore[arg-type]
    )
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Instance, bool], bytes | Iterable[bytes]]] = {
    ".lp": _lp,
    ".mps": _mps,
    ".qplib": _qplib,
    ".npz": _npz,
}
