"""The registry of best-known values: for each problem the best mask and the best lower bounds, and who found them.

``best_known.csv`` holds one line a problem; beside it lie the masks in ``best_masks/`` as lines of hex digits, the
proofs of verified bounds in ``certificates/``, and the table again as ``best_known.solu``. Entries only ever improve. A
mask is judged again here; a bound that our checker replayed and one that a solver claims are kept apart, so neither
hides the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fwbench import metrics, sheet
from fwbench.judge import judge
from fwbench.problem import Problem, labels
from fwbench.problems.files import file_stem, write_atomic
from fwbench.result import Certificate, Proof, pack_mask, unpack_mask

FOLDER = Path(__file__).parent
TABLE, MASKS, CERTIFICATES, SOLU = "best_known.csv", "best_masks", "certificates", "best_known.solu"
REGISTERED = ("mini", "smollm2")  # collections of which the suite's own registry keeps problems
WIDTH = 100  # hex digits of a line
MARGIN = 1e-9  # relative: less is no improvement, and a lower bound may exceed the upper by as much


class RegistryError(ValueError):
    """An unreadable registry, or a value that contradicts it; the message is one line."""


@dataclass(frozen=True)
class BestKnown:
    """What is known of one problem. Values are errors of the layer, float64; None where nothing is known."""

    name: str
    hash: str
    rows: int
    n: int
    pattern: str
    upper: float | None = None
    upper_by: str = ""
    verified: float | None = None  # best lower bound with a certificate
    verified_by: str = ""
    claimed: float | None = None  # best lower bound that a solver claims
    claimed_by: str = ""
    date: str = ""  # of the last improvement, ISO 8601
    mask: bytes = field(default=b"", repr=False)  # packed, of the upper bound

    @property
    def keep(self) -> np.ndarray | None:
        """Mask of the upper bound, bool ``(rows, n)``, True = the weight stays."""
        return unpack_mask(self.mask, (self.rows, self.n)) if self.mask else None

    @property
    def proof(self) -> Proof:
        """Of the better lower bound; a claim within rounding of what is verified is verified."""
        if self.claimed is not None and (
            self.verified is None or self.claimed > self.verified + MARGIN * abs(self.verified)
        ):
            return Proof.CLAIMED
        return Proof.NONE if self.verified is None else Proof.VERIFIED

    @property
    def lower(self) -> float | None:
        """The better of the lower bounds; ``proof`` says which it is."""
        return self.claimed if self.proof is Proof.CLAIMED else self.verified

    @property
    def gap(self) -> float | None:
        """Optimality gap ``(upper - lower) / upper``; None unless both are known."""
        return metrics.certified_gap(self.upper, self.lower)


COLUMNS = [item.name for item in fields(BestKnown) if item.name != "mask"]


def best_known(folder: Path | str = FOLDER) -> dict[str, BestKnown]:
    """The registry by problem hash. Raises RegistryError, one line, if it cannot be read."""
    table = Path(folder) / TABLE
    entries = {}
    try:
        columns, lines = sheet.read(table.read_bytes().decode())
        if columns != COLUMNS:
            raise ValueError(f"its columns are not {','.join(COLUMNS)}")
        for line in lines:
            entry = _entry(line)
            if entry.upper is not None:
                entry = replace(entry, mask=_read_mask(_mask_path(Path(folder), entry), entry))
            entries[entry.hash] = entry
    except (OSError, ValueError, TypeError) as error:
        raise RegistryError(f"{table}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return entries


def to_improve(folder: Path | str = FOLDER) -> dict[str, BestKnown]:
    """The registry that shall be improved: :func:`best_known`, or nothing yet where a new one begins.

    Raises:
        RegistryError: it cannot be read, or the folder holds what saving a new one would remove.
    """
    folder = Path(folder)
    if (folder / TABLE).exists():
        return best_known(folder)
    if taken := next((name for name in (MASKS, CERTIFICATES) if (folder / name).exists()), None):
        raise RegistryError(f"{folder}: holds {taken} but no {TABLE}: a new registry begins in a folder without")
    return {}


def refusal(problem: Problem, collection: str, folder: Path | str = FOLDER) -> str:
    """Why a registry does not take a problem of a collection, in one line; empty if it does.

    The suite's own keeps what anybody can load again by name; any other folder keeps whatever its owner likes.
    """
    if Path(folder).resolve() != FOLDER.resolve() or (collection in REGISTERED and not problem.origin):
        return ""
    return f"the suite's registry keeps {' and '.join(REGISTERED)} only; --folder names one of your own"


def improve(
    entries: Mapping[str, BestKnown],
    problem: Problem,
    by: str,
    keep: np.ndarray | None = None,
    lower: float | None = None,
    proof: Proof = Proof.NONE,
    date: str = "",
) -> dict[str, BestKnown]:
    """The registry with a mask and a lower bound taken in where they improve it.

    Args:
        entries: not changed.
        problem: that they are for.
        by: who found them: a spec, a paper.
        keep: bool ``(rows, n)``; its error is computed here.
        lower: a lower bound; the highest of each proof stays.
        proof: of the lower bound; with ``Proof.NONE`` the bound is ignored.
        date: ISO 8601, today if empty.

    Raises:
        RegistryError: the mask is not feasible, or the bound exceeds the error of a known mask.
    """
    known = entries.get(problem.hash)
    old = known or BestKnown(problem.name, problem.hash, *problem.shape, str(problem.pattern))
    new = old
    if keep is not None:
        found = judge(problem, keep)
        if found.error is None:
            raise RegistryError(f"{problem.name}: the mask of {by} is refused: {found.reason}")
        if old.upper is None or found.error < old.upper - MARGIN * abs(old.upper):
            new = replace(new, upper=found.error, upper_by=by, mask=pack_mask(keep))
    if lower is not None and proof is not Proof.NONE and math.isfinite(lower):
        held = getattr(old, proof)
        if held is None or lower > held + MARGIN * abs(held):
            new = replace(new, **{str(proof): float(lower), f"{proof}_by": by})  # type: ignore[arg-type]
    for kind in (Proof.VERIFIED, Proof.CLAIMED):
        bound = getattr(new, kind)
        if new.upper is not None and bound is not None and bound > new.upper + MARGIN * problem.total:
            raise RegistryError(
                f"{problem.name}: the {kind} lower bound {bound:.9g} of {getattr(new, f'{kind}_by')} "
                f"exceeds the error {new.upper:.9g} of the mask of {new.upper_by}"
            )
    if new == old:
        return dict(entries)
    return {**entries, problem.hash: replace(new, date=date or datetime.now(UTC).date().isoformat())}


def save(
    entries: Mapping[str, BestKnown],
    folder: Path | str = FOLDER,
    certificates: Mapping[str, Certificate] | None = None,
) -> None:
    """Write the registry: masks and proofs first, then the table, each file whole or not at all; others are removed.

    Args:
        certificates: new proofs, by problem hash; those that are there stay.

    Raises:
        ProblemError: a file cannot be written.
    """
    for key, proof in (certificates or {}).items():
        write_atomic(_certificate_path(Path(folder), entries[key]), proof.to_bytes())
    folder = Path(folder)
    ordered = sorted(entries.values(), key=lambda entry: (entry.name, entry.hash))
    paths = {_mask_path(folder, entry): entry for entry in ordered if entry.mask}
    for path, entry in paths.items():
        digits = entry.mask.hex()
        lines = [digits[start : start + WIDTH] for start in range(0, len(digits), WIDTH)]
        write_atomic(path, ("\n".join(lines) + "\n").encode())
    text = sheet.write(COLUMNS, ([getattr(entry, column) for column in COLUMNS] for entry in ordered))
    write_atomic(folder / TABLE, text.encode())
    write_atomic(folder / SOLU, solu(entries).encode())
    proofs = {_certificate_path(folder, entry) for entry in ordered if entry.verified is not None}
    for path in {*(folder / MASKS).glob("*.txt"), *(folder / CERTIFICATES).glob("*.npz")} - set(paths) - proofs:
        path.unlink()


def solu(entries: Mapping[str, BestKnown]) -> str:
    """The registry as a ``.solu`` file: lines ``=opt= name value``, or ``=best=`` and ``=bestdual=`` for two bounds.

    ``=opt=`` is written where a verified bound meets the error; claims of solvers are left out. A problem of which
    nothing is known is ``=unkn= name``.
    """
    lines, names = [], names_of(entries)
    for entry in sorted(entries.values(), key=lambda entry: (entry.name, entry.hash)):
        name, upper, lower = re.sub(r"\s", "_", names[entry.hash]), entry.upper, entry.verified
        if upper is not None and lower is not None and upper - lower <= MARGIN * abs(upper):
            lines.append(f"=opt= {name} {upper!r}")
            continue
        lines += [] if upper is None else [f"=best= {name} {upper!r}"]
        lines += [] if lower is None else [f"=bestdual= {name} {lower!r}"]
        lines += [f"=unkn= {name}"] if upper is None and lower is None else []
    return "".join(f"{line}\n" for line in lines)


def names_of(entries: Mapping[str, BestKnown]) -> dict[str, str]:
    """What to call each entry, by hash, so that no two are called the same."""
    return labels((entry.hash, entry.name, entry.pattern) for entry in entries.values())


def certificate(entry: BestKnown, folder: Path | str = FOLDER) -> Certificate:
    """The proof of a verified bound. Raises ValueError, one line, if it is missing or unreadable."""
    return Certificate.read(_certificate_path(Path(folder), entry))


def proof_size(entry: BestKnown | None, folder: Path | str = FOLDER, new: Certificate | None = None) -> int:
    """Bytes of the proof of an entry's verified bound (``new``, if it is not on the disk yet); 0 if there is none."""
    if new is not None:
        return len(new.to_bytes())
    path = _certificate_path(Path(folder), entry) if entry is not None and entry.verified is not None else None
    return path.stat().st_size if path is not None and path.is_file() else 0


def _entry(row: Mapping[str, str]) -> BestKnown:
    values: dict = dict(row)
    for key in ("rows", "n"):
        values[key] = int(values[key])
    for key in ("upper", "verified", "claimed"):
        values[key] = float(values[key]) if values[key] else None
    return BestKnown(**values)


def _mask_path(folder: Path, entry: BestKnown) -> Path:
    # the hash: a rebuilt problem may carry an old name
    return folder / MASKS / f"{file_stem(entry.name)}.{entry.hash[:8]}.txt"


def _certificate_path(folder: Path, entry: BestKnown) -> Path:
    return folder / CERTIFICATES / f"{file_stem(entry.name)}.{entry.hash[:8]}.npz"


def _read_mask(path: Path, entry: BestKnown) -> bytes:
    mask = bytes.fromhex("".join(path.read_text(encoding="ascii").split()))
    if len(mask) != (entry.rows * entry.n + 7) // 8:
        raise ValueError(f"the mask {path.name} has {len(mask)} bytes, not those of {entry.rows} x {entry.n} weights")
    return mask
