"""The embedded collection ``mini``: sub-blocks of real SmolLM2 layers, small enough to prove an optimum.

``python -m fwbench.problems.mini`` rebuilds the files: bit for bit on one machine, to rounding on another. Columns are
drawn at random, or are the most correlated set (random sub-blocks are easier than they look). ``n = 256`` and ``384``
are the frontier, still open when this was written; one whole layer ends the list, and before it a whole row whose
optimum is known, one of those of least Shor gap in its layer (``benchmarks.exact.frontier --easiest``). Those called
``target`` are of a model in which Wanda pruned half of every block before: the dense model's output is their target.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fwbench.patterns import parse
from fwbench.problem import Problem
from fwbench.problems import files
from fwbench.problems.arriving import Arrived, Target
from fwbench.problems.collections import CALIBRATION, MINI, of_model
from fwbench.problems.text import SEQUENCE, load_text, sequences

TOKENS = 65536  # of calibration


@dataclass(frozen=True)
class Part:
    """A sub-block: ``n`` columns, chosen ``random`` or ``top`` (most correlated), and ``rows`` rows drawn at random.

    ``whole``: all columns and rows. ``easy``: all columns, and the row of that number. With ``target``, inputs are what
    arrives in the pruned model, and the target is the dense one's output from the same columns.
    """

    n: int
    layer: str
    choice: str
    pattern: str
    rows: int
    row: int = -1
    target: bool = False

    @property
    def name(self) -> str:
        kind = self.choice + "-target" * self.target
        return f"mini.n{self.n:03}.{self.layer.partition('.')[2]}.{kind}.{self.pattern}"


PARTS = (
    Part(16, "03.gate_proj", "random", "0.5", 4),
    Part(16, "13.o_proj", "top", "0.6", 4),
    Part(16, "07.v_proj", "top", "2:4", 4),
    Part(16, "23.down_proj", "random", "unstructured:0.5", 4),
    Part(32, "07.q_proj", "random", "0.6", 4),
    Part(32, "13.up_proj", "top", "0.5", 4),
    Part(32, "23.o_proj", "random", "2:4", 4),
    Part(32, "03.v_proj", "top", "unstructured:0.5", 4),
    Part(64, "03.o_proj", "top", "0.5", 4),
    Part(64, "07.gate_proj", "random", "0.6", 4),
    Part(64, "23.v_proj", "random", "0.5", 4),
    Part(64, "13.down_proj", "top", "2:4", 4),
    Part(64, "07.up_proj", "random", "unstructured:0.5", 3),
    Part(96, "07.gate_proj", "top", "0.5", 3),
    Part(96, "13.o_proj", "random", "0.5", 3),
    Part(96, "23.q_proj", "top", "0.6", 3),
    Part(96, "03.up_proj", "random", "2:4", 3),
    Part(96, "13.v_proj", "random", "unstructured:0.5", 2),
    Part(128, "07.o_proj", "random", "0.5", 2),
    Part(128, "23.gate_proj", "top", "0.6", 2),
    Part(128, "13.down_proj", "random", "0.6", 2),
    Part(128, "03.v_proj", "top", "2:4", 2),
    Part(192, "07.up_proj", "random", "0.5", 2),
    Part(192, "23.down_proj", "random", "0.6", 2),
    Part(192, "13.q_proj", "top", "0.5", 2),
    Part(192, "03.gate_proj", "random", "2:4", 2),
    Part(256, "07.gate_proj", "top", "0.5", 2),
    Part(256, "23.o_proj", "random", "0.6", 1),
    Part(384, "13.up_proj", "random", "0.5", 2),
    Part(384, "07.down_proj", "top", "0.5", 1),
    Part(576, "00.k_proj", "easy", "2:4", 1, 50),
    Part(576, "07.v_proj", "whole", "0.5", 192),
    Part(16, "07.o_proj", "random", "0.5", 4, target=True),
    Part(16, "07.down_proj", "top", "unstructured:0.5", 4, target=True),
    Part(32, "07.q_proj", "top", "2:4", 4, target=True),
    Part(64, "07.down_proj", "random", "0.6", 4, target=True),
    Part(96, "07.up_proj", "top", "0.5", 3, target=True),
    Part(128, "07.o_proj", "top", "0.6", 2, target=True),
)


def build(part: Part, layer: Problem, arrived: Arrived | None = None) -> Problem:
    """Cut a part out of its layer. The draw is seeded by the part's name and written in ``meta["source"]``.

    Args:
        layer: ``G`` is of what the layer reads.
        arrived: the same beside the dense model, for a part with a target.
    """
    rng = np.random.default_rng(zlib.crc32(part.name.encode()))
    if part.choice in ("whole", "easy"):
        columns, rows = np.arange(layer.n), np.arange(layer.rows) if part.row < 0 else np.array([part.row])
    else:
        draw = rng.choice(np.flatnonzero(layer.G.diagonal() > 0), part.n, replace=False)
        columns = np.sort(draw if part.choice == "random" else most_correlated(layer.G, part.n, int(draw[0])))
        rows = np.sort(rng.choice(layer.rows, part.rows, replace=False))
    W, G = layer.W[np.ix_(rows, columns)], layer.G[np.ix_(columns, columns)]
    if stores_as_float32(G):
        G = G.astype(np.float32).astype(np.float64)
    recipe = f"fwbench.problems.mini: {layer.meta['layer']}, rows {_ranges(rows)}, columns {_ranges(columns)}"
    meta, target = {**layer.meta, "source": f"{layer.meta['source']}; {recipe}"}, Target()
    if arrived is not None and arrived.H is not None and arrived.E is not None:
        own = np.ix_(columns, columns)
        target = Arrived(G, arrived.H[own], arrived.E[own]).target(W, 1.0)
        meta["target"] = "output of the dense model; the blocks before pruned by Wanda to 0.5, one-shot"
    return Problem(part.name, W, G, parse(part.pattern), meta, T=target.T, offset=target.offset)


def most_correlated(G: np.ndarray, n: int, first: int) -> np.ndarray:
    """Grow a set of ``n`` inputs from ``first`` by the one whose mean absolute correlation with the set is largest."""
    scale = np.sqrt(G.diagonal())
    scale = np.where(scale > 0, scale, np.inf)
    correlation = np.abs(G) / scale[:, None] / scale
    chosen, total = [first], correlation[first].copy()
    while len(chosen) < n:
        total[chosen[-1]] = -np.inf
        chosen.append(int(total.argmax()))
        total += correlation[chosen[-1]]
    return np.array(chosen)


def stores_as_float32(G: np.ndarray) -> bool:
    """True if ``G`` rounded to float32 is still positive definite; the problem is then *defined* by the rounded one."""
    values = np.linalg.eigvalsh(G.astype(np.float32).astype(np.float64))
    return bool(values[0] > 1e-12 * values[-1])


def write() -> None:
    """Rebuild the committed files."""
    names = sorted({f"smollm2.{part.layer}" for part in PARTS})
    layers = {problem.name: problem for problem in of_model("smollm2", names, TOKENS, _report)}
    pruned = in_pruned_model(sorted({f"smollm2.{part.layer}" for part in PARTS if part.target}))
    wanted = set()
    for part in PARTS:
        layer, arrived = layers[f"smollm2.{part.layer}"], None
        if part.target:
            arrived = pruned[layer.name]
            layer = replace(layer, G=arrived.G)
        problem = build(part, layer, arrived)
        path = MINI / f"{files.file_stem(part.name)}{files.SUFFIX}"
        files.write_problem(problem, path, dtype="float32" if stores_as_float32(problem.G) else "float64")
        wanted.add(path)
    for path in set(MINI.glob(f"*{files.SUFFIX}")) - wanted:
        path.unlink()
    total = sum(path.stat().st_size for path in wanted)
    print(f"{len(wanted)} problems, {total / 1e6:.2f} MB")


def in_pruned_model(names: Sequence[str]) -> dict[str, Arrived]:
    """What arrives at layers of one block of SmolLM2 when Wanda has pruned half of every layer of the blocks before."""
    from fwbench.problems.extract import arriving, batch, named_layers
    from fwbench.problems.models import load_model

    dense, pruned = load_model("smollm2"), load_model("smollm2")
    layers, own = named_layers(pruned), named_layers(dense)
    block = int(names[0].split(".")[1])
    before = [name for name in layers if int(name.split(".")[1]) < block]
    for problem in of_model("smollm2", before, progress=_report):
        score = np.abs(problem.W) * np.sqrt(problem.G.diagonal())
        lost = torch.from_numpy(parse("0.5").prune(score))
        layers[problem.name].weight.data[lost] = 0  # type: ignore[operator]
    batches = batch(sequences(dense.tokenizer, load_text(CALIBRATION), TOKENS, SEQUENCE))
    beside = dense.network, {name: own[name] for name in names}
    return arriving(pruned.network, {name: layers[name] for name in names}, batches, beside=beside)


def _ranges(index: np.ndarray) -> str:
    """``0-3 7 9-10``."""
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    return " ".join(str(run[0]) if run.size == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _report(done: int, total: int, what: str) -> None:
    print(f"{what}: {done} of {total} tokens", file=sys.stderr)


if __name__ == "__main__":
    write()
