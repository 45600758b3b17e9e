"""What another calibration sample changes, layer by layer: ten methods, judged on texts that they have not seen.

    python -m benchmarks.prune.calibration_layers    what is missing in calibration_layers.csv
    python -m benchmarks.prune.page                  writes its section

The samples are those of ``benchmarks.prune.calibration``. From each, every method prunes 24 sampled rows of the seven
layers of three blocks, one-shot; its mask and weights are then judged on the Gram matrices of the sample itself and of
8,192 tokens of the two held-out texts. One thread; rows are those of the other studies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.prune.boards import MODEL, TEXTS
from benchmarks.prune.calibration import SAMPLE_TOKENS, samples, weights_by
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.samples import BLOCKS, PATTERNS, place, sample
from benchmarks.shared.threads import one_thread
from fwbench.problem import Problem
from fwbench.problems.extract import batch, grams, named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import Text, load_text, sequences

LAYERS_CSV = "calibration_layers.csv"
ROWS = 24
MASKS = ("wanda", "ria", "wanda+dsnot", "sparsefw", "wanda+swap", "fast")
UPDATES = ("sparsegpt", "admm", "alps", "wanda+swap+reswap")


@dataclass(frozen=True)
class Line:
    """Errors of some rows' weights, of the dense output's energy on the same text."""

    block: str
    layer: str
    pattern: str
    method: str
    sample: int
    calibration: float
    lee_heldout: float
    wikipedia: float

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.block, self.layer, self.pattern, self.method, self.sample


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS.split(","))
    parser.add_argument("--methods", nargs="+", default=(*MASKS, *UPDATES))
    given = parser.parse_args()
    one_thread()
    path = given.out / LAYERS_CSV
    done = {line.key for line in read(path, Line)}
    model = load_model(MODEL)
    judges = [dict(_problems(model, load_text(name))) for name in TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(samples(model, Path(folder))):
            for name, rows in _problems(model, load_text(text)):
                for pattern in given.patterns:
                    problem = replace(rows.with_pattern(pattern), name=f"{rows.name}.{pattern}")
                    held = [judge[name] for judge in judges]
                    for method in given.methods:
                        key = (*place(problem.name), method, number)
                        if key not in done:
                            append(path, [Line(*key, *measured(problem, method, held))])
            print(f"sample {number}", flush=True)


def measured(problem: Problem, method: str, held: list[Problem]) -> list[float]:
    """Errors of a method's weights on its problem's text and on those of others, each of the dense energy there."""
    weights = weights_by(problem, method)
    return [float(f"{judge.error_of_weights(weights) / judge.total:.6g}") for judge in (problem, *held)]


def _problems(model: Model, text: Text) -> Iterator[tuple[str, Problem]]:
    """Sampled rows of the layers with the Gram matrix of a text."""
    wanted = tuple(f"{MODEL}.{int(block):02}." for block in BLOCKS.split(","))
    layers = {name: layer for name, layer in named_layers(model).items() if name.startswith(wanted)}
    found = grams(model.network, layers, batch(sequences(model.tokenizer, text, SAMPLE_TOKENS)))
    for name, layer in layers.items():
        yield name, sample(Problem(name, layer.weight.numpy(), found[name], "0.5"), ROWS)


if __name__ == "__main__":
    main()
