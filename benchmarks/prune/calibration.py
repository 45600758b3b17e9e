"""What another calibration sample changes: SmolLM2-135M pruned with five disjoint parts of one text.

    python -m benchmarks.prune.calibration      what is missing in calibration.csv, one sample after the other
    python -m benchmarks.prune.page             writes its section

Each sample is 8,192 tokens of ``lee``, cut where a document ends. One-shot methods share a sample's Gram matrices; in
sequence ``fwbench.pruning`` runs, with the part made good. Perplexities are on the boards' two held-out texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.prune.boards import CORRECTED, MODEL, TEXTS, TOKENS, parts
from benchmarks.shared import command
from benchmarks.shared.csv_lines import append, read
from benchmarks.shared.threads import one_thread
from fwbench import pipeline
from fwbench.perplexity import perplexity
from fwbench.problem import Problem
from fwbench.problems.extract import batch, grams, named_layers
from fwbench.problems.models import Model, load_model
from fwbench.problems.text import load_text, sequences
from fwbench.pruning import Options, prune

CALIBRATION_CSV = "calibration.csv"
CALIBRATION, SAMPLES, SAMPLE_TOKENS = "lee", 5, 8192
METHODS = ("wanda", "ria", "wanda+swap", "sparsegpt", "admm")


@dataclass(frozen=True)
class Line:
    """Perplexities of a model that was pruned with one sample."""

    pattern: str
    method: str
    sample: int
    lee_heldout: float
    wikipedia: float


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--patterns", nargs="+", default=["0.6"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    given = parser.parse_args()
    one_thread()
    path = given.out / CALIBRATION_CSV
    done = {(line.pattern, line.method, line.sample) for line in read(path, Line)}
    model = load_model(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        for sample, text in enumerate(samples(model, Path(folder))):
            wanted = [(pattern, method) for pattern in given.patterns for method in given.methods]
            wanted = [key for key in wanted if (*key, sample) not in done]
            for key, pruned in _pruned(text, wanted):
                values = [perplexity(pruned, load_text(name), tokens=TOKENS).value for name in TEXTS]
                append(path, [Line(*key, sample, *(round(value, 4) for value in values))])
                print(*key, sample, *values, flush=True)


def samples(model: Model, folder: Path) -> Iterator[Path]:
    """Files of consecutive documents, no document in two, each as long as a sample needs and no longer."""
    lines = iter(load_text(CALIBRATION).content.splitlines(keepends=True))
    for number in range(SAMPLES):
        path, tokens, chosen = folder / f"{CALIBRATION}-{number}.txt", 0, list[str]()
        while tokens <= SAMPLE_TOKENS:
            chosen.append(next(lines))
            tokens += len(model.tokenizer(chosen[-1], verbose=False)["input_ids"])
        path.write_text("".join(chosen), encoding="utf-8")
        yield path


def _pruned(text: Path, keys: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Model]]:
    """A model pruned by each pattern and method."""
    found: dict[str, np.ndarray] = {}
    for pattern, method in keys:
        spec, _, part = method.partition(CORRECTED)
        if part:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                asked = Options(pattern, spec, str(text), SAMPLE_TOKENS, evaluate="", **parts(part))
                prune(MODEL, out, asked)
                yield (pattern, method), load_model(out)
            continue
        model = load_model(MODEL)
        layers = named_layers(model)
        if not found:
            ids = batch(sequences(model.tokenizer, load_text(text), SAMPLE_TOKENS))
            found = grams(model.network, layers, ids)
        for name, layer in layers.items():
            problem = Problem(name, layer.weight.numpy(), found[name], pattern)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weights_by(problem, spec)))
        yield (pattern, method), model


def weights_by(problem: Problem, spec: str) -> np.ndarray:
    """What a method leaves of a layer, ``(rows, n)``.

    Raises:
        SystemExit: it has no answer.
    """
    answer = pipeline.run(problem, pipeline.resolve(spec), threads=1)
    if answer.keep is None:
        raise SystemExit(f"{problem.name}: {spec} failed ({answer.result.reason})")
    return np.where(answer.keep, problem.W if answer.weights is None else answer.weights, 0)


if __name__ == "__main__":
    main()
