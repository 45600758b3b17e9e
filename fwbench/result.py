"""What one solver did on one problem: the words every floor above shares. Standard library and numpy only."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import numpy as np

from fwbench import metrics


class Status(StrEnum):
    """Why the solver stopped."""

    OPTIMAL = "optimal"  # it says its answer is proven optimal
    FEASIBLE = "feasible"  # it ended by itself with an answer
    TIMEOUT = "timeout"  # the clock ended it; an answer may exist
    SKIPPED = "skipped"  # it declined the problem, with a reason
    FAILED = "failed"  # it raised, crashed, ran out of memory, or the judge rejected its answer


class Verdict(StrEnum):
    """What the judge found; no solver has a say in it."""

    OPTIMAL = "optimal"  # a verified lower bound meets the error
    CERTIFIED = "certified"  # feasible, and this run brought a verified lower bound
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"  # a wrong count, or weights where the mask has none
    NONFINITE = "nonfinite"
    ERROR_MISMATCH = "error_mismatch"  # the claimed error is not reproduced
    NONE = "none"  # there is no mask


class Proof(StrEnum):
    """How a lower bound is known."""

    VERIFIED = "verified"  # our checker replayed its certificate
    CLAIMED = "claimed"  # a solver says so
    REFUTED = "refuted"  # a solver said so, and it is false: there is none, and the row's reason says why
    NONE = "none"


# The relaxations behind lower bounds, from the weakest to the strongest: what `bound` climbs and reports draw
RELAXATIONS = {
    "plain": "plain",
    "shared": "shared diagonal",
    "shor": "Shor",
    "dnn": "doubly nonnegative",
    "mccormick": "McCormick",
    "triangles": "triangles",
    "pentagons": "pentagons",
    "tree": "branch and bound",
}


@dataclass(frozen=True)
class Certificate:
    """A proof of a lower bound on one problem; ``fwbench.verify`` replays it.

    ``kind`` ``diagonal``: arrays ``e (n,)`` float64 with ``G - diag(e) ⪰ 0``, and any ``u (rows, n)`` float32 at which
    the convex function ``h`` is linearised (docs/mathematics.md, "The certified bound").
    ``kind`` ``rows``: besides, for the rows in ``rows (k,)`` int64 a ``d (k, n)`` and ``rho (k,)`` float64, and
    products of two weights: ``start (k + 1,)`` int64 divides ``pair`` int64 (``i n + j``, ``i < j``), ``kind`` uint8
    and ``multiplier`` float32 among those rows; and products of three and of five weights alike, where it has any
    (``fwbench.verify.products``).
    ``kind`` ``tree``: branch and bound (``fwbench.verify.tree``).
    ``kind`` ``rows`` and ``tree`` may have ``scale`` float64: the numbers of a row (block) are of its weights times a
    power of two.
    """

    problem: str  # hash of the problem
    bound: float  # what the prover claims; the checker computes its own
    kind: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    source: str = ""  # spec of the solver that found it

    @property
    def relaxation(self) -> str:
        """The strongest of ``RELAXATIONS`` that the proof rests on, told from what it holds; "" if that is no proof."""
        try:
            if self.kind == "diagonal":
                return "plain" if np.max(self.arrays["e"], initial=0.0) <= 0 else "shared"
            if self.kind == "rows":
                held = {
                    "pentagons": len(self.arrays.get("five", ())),
                    "triangles": len(self.arrays.get("triple", ())),
                    "mccormick": np.count_nonzero(self.arrays["kind"]),
                    "dnn": len(self.arrays["pair"]),
                }
                return next((name for name, count in held.items() if count), "shor")
        except (KeyError, TypeError, ValueError):  # a solver's own arrays: the checker will say what is wrong
            return ""
        return "tree" if self.kind == "tree" else ""

    def to_bytes(self) -> bytes:
        """Compressed ``.npz`` with the header as JSON."""
        header = {"format": "fwbench-certificate-1", "problem": self.problem, "bound": self.bound}
        header |= {"kind": self.kind, "source": self.source}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, header=np.array(json.dumps(header)), **self.arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Certificate:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: not a certificate, truncated, or of a format this version does not know.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            header = json.loads(str(arrays.pop("header")))
            if header.pop("format") != "fwbench-certificate-1":
                raise ValueError("unknown format")
            return cls(arrays=arrays, **header)
        except Exception as error:  # damaged bytes make zipfile, zlib and numpy raise nearly anything
            raise ValueError(f"not a readable certificate ({error})") from None

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read a certificate file. Raises ValueError with the path and the reason."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class TracePoint(NamedTuple):
    """A point of a run's trace: what was known of the layer at that time, as sums over its rows."""

    seconds: float  # since the start of the pipeline
    upper: float | None = None  # error of a mask at hand; of a relaxation, that of its rounded iterate
    lower: float | None = None  # the best lower bound so far
    iterations: int | None = None  # of the relaxation under way
    relaxed: float | None = None  # the objective that it minimises, at its iterate: the error, or convexified


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run, timed and judged by the pipeline."""

    stage: str
    role: str
    seconds: float
    error: float | None = None  # of the mask after it
    relaxed_error: float | None = None  # f at the fractional point after it
    lower_bound: float | None = None  # as the stage says
    relaxation: str = ""  # of RELAXATIONS, where the stage brought a certificate; else empty
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One row of the benchmark. Errors are sums over the layer, float64; seconds are wall time."""

    problem: str
    problem_hash: str
    collection: str
    solver: str  # canonical spec, what differs from the defaults
    key: str  # identity of the run, see pipeline.Run
    pattern: str
    rows: int
    n: int
    status: Status
    verdict: Verdict = Verdict.NONE
    reason: str = ""
    error: float | None = None
    relative_error: float | None = None
    ratio_to_wanda: float | None = None
    relaxed_error: float | None = None
    rounding_error: float | None = None
    lower_bound: float | None = None
    proof: Proof = Proof.NONE
    seconds: float | None = None
    peak_memory: int | None = None  # bytes, the worker's resident maximum during the run
    updates_weights: bool = False
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    stages: tuple[StageRecord, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    trace: tuple[TracePoint, ...] = ()
    machine: Mapping[str, object] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)  # the problem's provenance
    timing: Mapping[str, float] = field(default_factory=dict)  # reference load before and after, load average
    mask_sha256: str = ""
    created: str = ""  # UTC, ISO 8601

    @property
    def solved(self) -> bool:
        """True if the judge accepted an answer."""
        return self.verdict in (Verdict.OPTIMAL, Verdict.CERTIFIED, Verdict.FEASIBLE)

    def to_json(self) -> str:
        return json.dumps(
            asdict(self), default=lambda value: value.item() if isinstance(value, np.generic) else str(value)
        )

    @classmethod
    def from_json(cls, text: str) -> Result:
        data = json.loads(text)
        data["stages"] = tuple(StageRecord(**record) for record in data["stages"])
        data["trace"] = tuple(TracePoint(*point) for point in data["trace"])
        for key, kind in (("status", Status), ("verdict", Verdict), ("proof", Proof)):
            data[key] = kind(data[key])
        return cls(**data)


@dataclass(frozen=True)
class Answer:
    """What a solver answered, judged: the row, and the arrays that it was judged on."""

    result: Result
    keep: np.ndarray | None = field(default=None, repr=False)  # bool (rows, n), True = the weight stays
    weights: np.ndarray | None = field(default=None, repr=False)  # float32 (rows, n), where the solver changed them
    relaxed: np.ndarray | None = field(default=None, repr=False)  # (rows, n), the last fractional point
    certificate: Certificate | None = field(default=None, repr=False)
    row_bounds: tuple[float, ...] = field(default=(), repr=False)  # verified, where the certificate proves row by row

    @property
    def error(self) -> float | None:
        """``‖(W − Ŵ)X‖² / tokens`` of the layer, judged in float64; None for a failure."""
        return self.result.error

    @property
    def relative_error(self) -> float | None:
        """The error over that of pruning everything."""
        return self.result.relative_error

    @property
    def ratio_to_wanda(self) -> float | None:
        """The error over that of Wanda's mask."""
        return self.result.ratio_to_wanda

    @property
    def status(self) -> Status:
        return self.result.status

    @property
    def reason(self) -> str:
        """Of a skip, a failure or an early end; else empty."""
        return self.result.reason

    @property
    def seconds(self) -> float | None:
        """Wall time of the stages."""
        return self.result.seconds

    @property
    def trace(self) -> tuple[TracePoint, ...]:
        return self.result.trace

    @property
    def lower_bound(self) -> float | None:
        """The bound that this run brought; ``result.proof`` says how it is known."""
        return self.result.lower_bound

    def gap(self, lower: SupportsFloat | None = None) -> float | None:
        """Optimality gap ``(error − bound) / error``: what a better mask could still save at most.

        Args:
            lower: a bound, such as ``fwbench.bound`` proves; None for the run's own.

        Returns:
            None where either is unknown, or kept weights were changed: bounds are of masks with the given weights.
        """
        bound = self.lower_bound if lower is None else float(lower)
        return None if self.result.updates_weights else metrics.optimality_gap(self.error, bound)

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        return "<pre>" + html.escape(repr(self)) + "</pre>"

    def _lines(self) -> list[str]:
        row = self.result
        head = f"Answer of {row.solver} on {row.problem} ({row.rows} × {row.n}, {row.pattern})"
        if row.error is None:
            return [head, f"  {row.status}: {row.reason or row.verdict}"]
        parts = ", ".join(f"{record.stage} {record.seconds:.3g}" for record in row.stages)
        gap = self.gap()
        proof = "no lower bound from this run"
        if gap is not None and self.lower_bound is not None:
            known = f"no mask is better by more than {gap:.2%}" if gap < 1 else f"lower bound {self.lower_bound:.6g}"
            proof = f"{known} ({row.proof})"
        return [
            head,
            f"  error {row.error:.6g}, {row.ratio_to_wanda:.4g} times Wanda's, {row.relative_error:.4g} of all pruned",
            f"  {row.status}{f' ({row.reason})' if row.reason else ''}; {proof}",
            f"  {row.seconds or 0:.3g} s ({parts})",
        ]


def pack_mask(keep: np.ndarray) -> bytes:
    """Bits of a mask, row-major, eight a byte."""
    return np.packbits(np.ascontiguousarray(keep, dtype=bool)).tobytes()


def packed_size(shape: tuple[int, int]) -> int:
    """Bytes of a packed mask."""
    return -(-shape[0] * shape[1] // 8)


def unpack_mask(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of :func:`pack_mask`: bool ``(rows, n)``."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(bool)
