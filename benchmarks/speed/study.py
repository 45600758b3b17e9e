"""How fast the methods that lead the boards are: an older commit's code beside this one's, cell by cell in one run.

    python -m benchmarks.speed.study         lines that are missing are added to speed.csv
    python -m benchmarks.speed.page

The older code is taken from git and runs in a process of its own beside that of the new one; of every cell first the
one, then the other. One thread; CPU seconds.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import PATTERNS
from benchmarks.shared.threads import restart_on_one_thread
from fwbench.problems.collections import SHAPES

SPEED_CSV = "speed.csv"
ROOT = Path(__file__).parents[2]
BEFORE = "458d6e4"  # reswap version 3
RESWAP, FAST, SPLITTING = "wanda+swap+reswap", "fast", "splitting+round+swap+safeguard"
UNIT, FASTER = "wanda+swap", "faster"
OLDER = (RESWAP,)  # whose code has changed
SPECS = ("admm", UNIT, RESWAP, FAST, SPLITTING, FASTER)
ENTIRE = (UNIT, FASTER)  # on whole layers, too: the latter shares much work between rows
SIZES = (576, 1152, 2304, 4096)
ROWS = 128  # of a layer, the first ones
SOME, MORE = 16, 48  # rows whose times are compared, so that what rows share does not count
OLD_SIZES = 1152  # the older code is not asked beyond


@dataclass(frozen=True)
class Cell:
    """What is measured; ``layer`` empty for a synthetic one."""

    layer: str
    pattern: str
    n: int
    rows: int  # the first ones; 0 for all
    spec: str
    code: str  # "before" or "now"


@dataclass(frozen=True)
class Line:
    """A cell with what was measured."""

    layer: str
    pattern: str
    n: int
    rows: int
    spec: str
    code: str
    cpu_seconds: float
    error: float

    @property
    def cell(self) -> Cell:
        return Cell(self.layer, self.pattern, self.n, self.rows, self.spec, self.code)


def cells() -> list[Cell]:
    """In the order in which they run: for each problem all specs, before and now."""
    problems = [(name, pattern, n, ROWS) for pattern in PATTERNS.split(",") for name, (_, n) in SHAPES.items()]
    problems += [("", "0.5", n, rows) for n in SIZES for rows in (SOME, MORE)]
    found = []
    for problem in problems:
        for spec in SPECS:
            if spec in OLDER and (problem[0] or problem[2] <= OLD_SIZES):
                found.append(Cell(*problem, spec, "before"))
            found.append(Cell(*problem, spec, "now"))
        found += [Cell(*problem[:3], 0, spec, "now") for spec in ENTIRE if problem[0]]
    return found


def unpacked(commit: str, folder: Path) -> Path:
    """A folder from which Python imports the package of that commit: its three folders as one."""
    names = ("fwbench", "problems", "solvers")
    packed = subprocess.run(["git", "archive", commit, *names], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    for name in names[1:]:
        (folder / name).rename(folder / "fwbench" / name)
    return folder


def started(*paths: Path) -> subprocess.Popen[str]:
    """A process that answers cells, with these folders first in its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    script = [sys.executable, str(ROOT / "benchmarks" / "speed" / "cells.py")]
    return subprocess.Popen(script, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(process: subprocess.Popen[str], cell: Cell) -> Line:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(asdict(cell)), file=process.stdin, flush=True)
    if not (text := process.stdout.readline()):
        raise SystemExit(f"{cell}: no answer")
    found = json.loads(text)
    return Line(**{**asdict(cell), "rows": cell.rows}, cpu_seconds=found["seconds"], error=found["error"])


def run(out: Path, commit: str) -> None:
    path = out / SPEED_CSV
    known = {line.cell for line in read(path, Line)}
    with tempfile.TemporaryDirectory() as folder:
        processes = {"before": started(unpacked(commit, Path(folder))), "now": started()}
        for cell in cells():
            if cell not in known:
                line = asked(processes[cell.code], cell)
                append(path, [line])
                print(*asdict(line).values(), flush=True)
        for process in processes.values():
            process.communicate()


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--before", default=BEFORE, help=f"the older commit, default {BEFORE}")
    options = parser.parse_args()
    restart_on_one_thread()
    run(options.out, options.before)


if __name__ == "__main__":
    main()
