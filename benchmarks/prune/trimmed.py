"""Does leaving out tokens answer the over-fit to the calibration text? Trimmed alternation on a block.

    python -m benchmarks.prune.trimmed      what is missing in trimmed.csv
    python -m benchmarks.prune.page         writes its section

``fwbench.solvers.weight_update.trimmed`` leaves out the tokens of ``lee`` with the largest errors; another line the
first token of each sequence. Weights are then judged on all calibration tokens and on 8,192 of each held-out text, with
the first tokens and without them. A seeded sample of rows of every layer of a block.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import nn

from benchmarks.prune.boards import MODEL, TEXTS
from benchmarks.prune.calibration import weights_by
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import restart_on_one_thread
from fwbench.problem import Problem, row_errors
from fwbench.problems.extract import batch, named_layers
from fwbench.problems.gram import Recorder
from fwbench.problems.models import Model, load_model
from fwbench.problems.structure import FEW
from fwbench.problems.text import SEQUENCE, load_text, sequences
from fwbench.solvers.bounds.stage import chosen_rows
from fwbench.solvers.weight_update.trimmed import trimmed

TRIMMED_CSV = "trimmed.csv"
CALIBRATION, HELD_OUT_TOKENS = "lee", 8192
BLOCKS, TOKENS, METHODS = (7,), (4096, 16384), ("wanda+swap", "admm")
ROWS = 64
PARTS = (0, 0.01, 0.05, 0.1)
FIRST = "first"  # in place of a part

Key = tuple[int, str, str, str, int, int, str]


@dataclass(frozen=True)
class Line:
    """Errors of a layer's weights, of the dense output's energy on the same tokens.

    Those with ``rest`` are without the first token of each sequence.
    """

    block: int
    layer: str
    pattern: str
    method: str
    rows: int
    tokens: int  # of calibration
    out: str  # the part that is left out, or FIRST
    solved: int  # times
    first_out: float  # how many of the first tokens of sequences are left out, of all
    first_energy: float  # what they have of the dense output's energy on the calibration tokens
    calibration: float
    calibration_rest: float
    lee_heldout: float
    lee_heldout_rest: float
    wikipedia: float
    wikipedia_rest: float

    @property
    def key(self) -> Key:
        return self.block, self.layer, self.pattern, self.method, self.rows, self.tokens, self.out


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--patterns", nargs="+", default=("0.6", "0.5", "2:4"))
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    restart_on_one_thread()
    path = given.out / TRIMMED_CSV
    done = {line.key for line in read(path, Line)}
    model = load_model(MODEL)
    for block in given.blocks:
        layers = {name.rpartition(".")[2]: layer for name, layer in named_layers(model, [block]).items()}
        texts = [inputs(model, layers, CALIBRATION, max(given.tokens))]
        texts += [inputs(model, layers, text, HELD_OUT_TOKENS) for text in TEXTS]
        held_out = {name: [judge for text in texts[1:] for judge in judges(text[name])] for name in layers}
        benches: dict[tuple[str, int], Bench] = {}
        for pattern, tokens, name in product(given.patterns, given.tokens, layers):
            for method, out in product(METHODS, (*map(str, PARTS), FIRST)):
                if (key := (block, name, pattern, method, given.rows, tokens, out)) in done:
                    continue
                if (name, tokens) not in benches:
                    W, X = layers[name].weight.detach().numpy(), texts[0][name][:tokens]
                    grams = [*judges(X), *held_out[name]]
                    benches[name, tokens] = Bench.of(W[chosen_rows(given.rows, len(W))], X, grams)
                append(path, [benches[name, tokens].line(key)])
            print(block, pattern, tokens, name, f"{time.process_time():.0f} CPU s", flush=True)


def inputs(model: Model, layers: Mapping[str, nn.Module], text: str, tokens: int) -> dict[str, np.ndarray]:
    """What each layer reads of a text, float32 ``(tokens, n)``; layers of one input share the array."""
    batches = batch(sequences(model.tokenizer, load_text(text), tokens))
    recorder, found = Recorder(layers, model.network), dict[str, list[np.ndarray]]()
    with recorder.recording():
        recorder.look(model.network, batches[0][:1, :FEW])
        for ids in batches:
            with recorder.showing() as shown:
                recorder.add(model.network, ids)
            for name, X in shown.items():
                found.setdefault(name, []).append(X.flatten(0, 1).numpy())
    whole = {leader: np.concatenate(parts) for leader, parts in found.items()}
    return {name: whole[leader] for name, leader in recorder.leaders.items()}


@dataclass(frozen=True, eq=False)
class Bench:
    """Rows of a layer, its inputs on the calibration text, and what its weights are judged on."""

    W: np.ndarray
    X: np.ndarray
    grams: list[np.ndarray]  # sums over calibration, then each held-out text: of all tokens, without the first
    dense: list[float]  # energies of the dense outputs on the same
    first_energy: float

    @classmethod
    def of(cls, W: np.ndarray, X: np.ndarray, grams: list[np.ndarray]) -> Bench:
        dense = [float(row_errors(G, W).sum()) for G in grams]
        return cls(W, X, grams, dense, 1 - dense[1] / dense[0])

    def line(self, key: Key) -> Line:
        _, _, pattern, method, _, _, out = key
        begins, solved = first(self.X), 0

        def solve(problem: Problem) -> np.ndarray:
            nonlocal solved
            solved += 1
            return weights_by(problem, method)

        if out == FIRST:
            weights, gone = trimmed(self.W, [self.X[~begins]], pattern, solve, 0.0).weights, 1.0
        else:
            found = trimmed(self.W, [self.X], pattern, solve, float(out))
            weights, gone = found.weights, float(1 - found.stays[begins].mean())
        lost = self.W - weights.astype(np.float64)
        errors = [float(row_errors(G, lost).sum()) / energy for G, energy in zip(self.grams, self.dense, strict=True)]
        return Line(*key, solved, *(float(f"{value:.6g}") for value in (gone, self.first_energy, *errors)))


def judges(X: np.ndarray) -> list[np.ndarray]:
    """``XᵀX``, float64 ``(n, n)``, of all tokens and without the first of each sequence."""
    whole, begins = X.astype(np.float64), X[first(X)].astype(np.float64)
    G = whole.T @ whole
    return [G, G - begins.T @ begins]


def first(X: np.ndarray) -> np.ndarray:
    """Which tokens are the first of their sequences."""
    return np.arange(len(X)) % SEQUENCE == 0


if __name__ == "__main__":
    main()
