"""What no allocation is below: lower curves of three blocks of SmolLM2-135M, and the gap of the exact allocation.

    python -m benchmarks.prune.allocation_bounds     measures what is missing
    python -m benchmarks.prune.page

What ``fwbench prune smollm2 --pattern 0.6 --allocation "exact(bounds=true)"`` computes with all other blocks skipped,
but on the collection's Gram matrices and with parts of the loss by fewer tokens. Each layer's numbers are kept in the
cache, so that a kill loses one layer; the files are written anew after each block.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.prune.boards import MODEL, THREADS
from benchmarks.shared import command, csv_lines
from fwbench import pipeline
from fwbench.patterns import Pattern, PerRow, Unstructured, parse
from fwbench.problem import Problem
from fwbench.problems import collections, resources
from fwbench.problems.collections import MODELS
from fwbench.pruning import Options, allocation
from fwbench.pruning import plan as plans
from fwbench.pruning.allocation import counts, exact, proved
from fwbench.pruning.allocation.proved import Measured
from fwbench.solvers.start.scores import wanda_score

CURVES_CSV, GAPS_CSV = "allocation_curves.csv", "allocation_gaps.csv"
BLOCKS = (7, 0, 22)
PATTERN = "0.6"
FREE = 7  # the block whose rows are also allocated to
PART_TOKENS = 512
SHOWN = (0.45, 0.6, 0.75)  # sparsities at which masks are sought beside the bounds


@dataclass(frozen=True)
class Point:
    """A layer's rows at one sparsity: errors of masks, and what is proved."""

    layer: str
    sparsity: float
    wanda: float
    upper: float
    lower: float


@dataclass(frozen=True)
class Gap:
    """The allocation of some blocks' zeros: see ``proved.summed``."""

    blocks: str
    rows: str  # equal: in each layer; free: a layer's rows share its zeros
    wanda: float
    upper: float
    lower_here: float
    lower: float
    seconds: float  # CPU, of bounds and masks


def run(out: Path) -> None:
    torch.set_num_threads(THREADS)
    pattern = parse(PATTERN)
    assert isinstance(pattern, PerRow)
    levels = exact.grid(pattern.fraction, exact.Exact.reach)
    lines = np.linspace(levels[0], levels[-1], proved.LINES)
    parts, chosen = kept("chosen", partial(allocated, levels))
    points: list[Point] = []
    found: dict[str, dict[str, tuple[Measured, float]]] = {"equal": {}, "free": {}}
    gaps: list[Gap] = []
    for number, block in enumerate(BLOCKS):
        layers = loaded(block)
        for name, problem in layers:
            found["equal"][name] = kept(f"{name}-equal", partial(timed, problem, chosen[name], lines))
            print(name, found["equal"][name][1], flush=True)
        gaps.append(gap((block,), "equal", found["equal"], parts))
        for name, problem in layers:
            points += kept(f"{name}-points", partial(points_of, name, problem, found["equal"][name][0]))
        for name, problem in layers if block == FREE else ():
            own = problem.with_pattern(Unstructured(pattern.fraction))
            share = Unstructured(int(chosen[name].counts(problem.shape).sum()) / (problem.rows * problem.n))
            found["free"][name] = kept(f"{name}-free", partial(timed, own, share, lines))
        gaps += [gap((block,), "free", found["free"], parts)] if block == FREE else []
        every = [gap(BLOCKS, "equal", found["equal"], parts)] if number + 1 == len(BLOCKS) else []
        csv_lines.write(out / CURVES_CSV, points)
        csv_lines.write(out / GAPS_CSV, [*gaps, *every])


def loaded(block: int) -> list[tuple[str, Problem]]:
    """The layers of a block and their names."""
    return [(problem.name, problem) for _, problem in collections.load(f"{MODEL}/{block:02}.*", [PATTERN])]


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, once; then from the cache."""
    path = resources.cache_folder() / "studies" / "prune" / f"allocation-bounds-{name}.pickle"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        path.write_bytes(pickle.dumps(found))
    return pickle.loads(path.read_bytes())


def allocated(levels: np.ndarray) -> tuple[dict[str, float], dict[str, Pattern]]:
    """Each layer's part of the loss, and its pattern, as ``exact`` finds them where all other layers stay dense."""
    skip = rf"\.({'|'.join(f'{block:02}' for block in range(MODELS[MODEL].blocks) if block not in BLOCKS)})\."
    plan = plans.make(MODEL, Options(PATTERN, "wanda", sequential=False, evaluate="", skip=skip))
    at = allocation.setting(plan.model, plan.layers, plan.batches, plan.pattern).first(PART_TOKENS)
    curves, masks = {}, {}
    for name, problem in (pair for block in BLOCKS for pair in loaded(block)):
        masks[name] = torch.from_numpy(problem.pattern.prune(wanda_score(problem.W, problem.G)))
        errors = exact.curve(problem.part(exact.sampled(problem.rows)), levels)
        curves[name] = errors / errors[len(levels) // 2]
    parts = {name: max(part, 0.0) for name, part in exact.harm_parts(at, masks).items()}
    return parts, counts.layer_patterns(at.pattern, at.shapes, exact.chosen(parts, curves, at.shapes, levels))


def timed(problem: Problem, pattern: Pattern, lines: np.ndarray) -> tuple[Measured, float]:
    began = time.process_time()
    return proved.measured(problem, pattern, lines), time.process_time() - began


def points_of(name: str, problem: Problem, found: Measured) -> list[Point]:
    points = []
    for sparsity in SHOWN:
        some = problem.part(exact.sampled(problem.rows), pattern=PerRow(sparsity))
        mask = pipeline.run(some, proved.SOLVER, threads=THREADS).keep
        assert mask is not None
        lower = float(found.lower.at(int(some.counts[0]) * problem.rows))
        wanda = float(exact.curve(some, np.array([sparsity]))[0])
        points.append(Point(name, sparsity, wanda, some.error(mask), lower))
    return points


def gap(
    blocks: Sequence[int], rows: str, found: Mapping[str, tuple[Measured, float]], parts: Mapping[str, float]
) -> Gap:
    """Of the blocks' zeros, as they were allocated to them."""
    own = {name: item for name, item in found.items() if int(name.split(".")[1]) in blocks}
    said = proved.summed({name: item[0] for name, item in own.items()}, parts)
    figures = (said[key] for key in ("wanda", "upper", "lower_here", "lower"))
    return Gap(" ".join(map(str, blocks)), rows, *figures, sum(seconds for _, seconds in own.values()))


def main() -> None:
    run(command.study(__spec__, __doc__).parse_args().out)


if __name__ == "__main__":
    main()
