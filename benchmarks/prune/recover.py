"""What a block's own reconstruction gives after pruning: SmolLM2-135M pruned, and recovered with the mask kept.

    python -m benchmarks.prune.recover 0.6 admm               one pattern and method, pruned in sequence
    python -m benchmarks.prune.recover 0.6 wanda --one-shot --tokens 4096 --unit parts
    python -m benchmarks.prune.recover 0.6 "admm, residual=0.3, allocation=exact" --times 2
    python -m benchmarks.prune.page                           writes their section

The pruned models, of 16,384 tokens as on the boards, stay in the cache and serve each recovery of theirs. Lines are
appended to ``recover.csv``; what is there is not measured again, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.prune.boards import MODEL, ONE_SHOT, RESIDUAL, SEQUENTIAL, TEXTS, THREADS, TOKENS, parts
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from fwbench.perplexity import perplexity
from fwbench.problems import resources
from fwbench.problems.models import load_model
from fwbench.problems.text import load_text
from fwbench.pruning import Options, Recovery, prune, recover
from fwbench.pruning.recovery.units import UNITS

RECOVER_CSV = "recover.csv"
PRUNED = 0  # epochs of a model that is pruned alone
ALLOCATED = ", allocation="  # what follows in a method's name: see fwbench.pruning.allocation


@dataclass(frozen=True)
class Line:
    """Of one model: as it was pruned, with 0 epochs, or recovered."""

    mode: str
    pattern: str
    method: str
    tokens: int  # of the recovery
    epochs: int
    rate: float
    unit: str  # what was trained at once; empty for a model that is pruned alone
    times: int  # recovered so often, each time from the last
    lee_heldout: float  # perplexities
    wikipedia: float
    fitted: float  # mean over blocks of the relative error on fitted and on held-out sequences
    held_out: float
    cpu_minutes: float  # of the recovery; nan where it was finished after a kill


def study(out: Path, key: tuple[str, str, str], recovery: Recovery, times: int = 1) -> None:
    """Add to the file in ``out`` what is missing of a mode, pattern and method, and a recovery."""
    mode, pattern, method = key
    known = {(*_key(line), line.tokens, line.epochs, line.rate, line.unit, line.times) for line in _read(out)}
    folder = resources.cache_folder() / "studies" / "recover" / "-".join((pattern, method, mode))
    if not folder.is_dir():
        spec, _, allocation = method.partition(ALLOCATED)
        spec, named, part = spec.partition(RESIDUAL)
        made_good = parts(f"{Options.correct}{named}{part}")
        options = Options(pattern, spec, sequential=mode == SEQUENTIAL, evaluate="", **made_good)
        prune(MODEL, folder, replace(options, allocation=allocation) if allocation else options)
    if (*key, 0, PRUNED, 0.0, "", 0) not in known:
        append(out / RECOVER_CSV, [Line(*key, 0, PRUNED, 0.0, "", 0, *_perplexities(folder), 0.0, 0.0, 0.0)])
    given = (recovery.tokens, recovery.epochs, recovery.rate, recovery.unit)
    if (*key, *given, times) in known:
        return
    source, targets = folder, list[Path]()
    for number in range(1, times + 1):
        target, minutes = folder.with_name("-".join((folder.name, *map(str, (*given, number))))), float("nan")
        if not target.is_dir():
            began = time.process_time()
            recover(str(source), target, recovery)
            minutes = round((time.process_time() - began) / 60, 2)
        targets.append(target)
        source = target
        if (*key, *given, number) not in known:
            totals = json.loads((target / "fwbench.json").read_text(encoding="utf-8"))["totals"]
            errors = [float(f"{totals[kind][1]:.5g}") for kind in ("fitted", "held_out")]
            append(out / RECOVER_CSV, [Line(*key, *given, number, *_perplexities(target), *errors, minutes)])
    for target in targets:
        shutil.rmtree(target)


def _key(line: Line) -> tuple[str, str, str]:
    return line.mode, line.pattern, line.method


def _read(out: Path) -> list[Line]:
    return read(out / RECOVER_CSV, Line)


def _perplexities(folder: Path) -> list[float]:
    model = load_model(folder)
    values = [round(perplexity(model, load_text(text), tokens=TOKENS).value, 4) for text in TEXTS]
    print(folder.name, *values, flush=True)
    return values


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("pattern")
    parser.add_argument("method")
    parser.add_argument("--one-shot", action="store_true")
    parser.add_argument("--tokens", type=int, default=Recovery.tokens)
    parser.add_argument("--epochs", type=int, default=Recovery.epochs)
    parser.add_argument("--rate", type=float, default=Recovery.rate)
    parser.add_argument("--unit", default=Recovery.unit, choices=UNITS)
    parser.add_argument("--times", type=int, default=1, help="recover what was recovered once more")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    mode = ONE_SHOT if given.one_shot else SEQUENTIAL
    recovery = Recovery(MODEL, tokens=given.tokens, epochs=given.epochs, rate=given.rate, unit=given.unit, evaluate="")
    study(given.out, (mode, given.pattern, given.method), recovery, given.times)


if __name__ == "__main__":
    main()
