"""Frank-Wolfe with momentum over streamed batches against the whole Gram matrix, at equal numbers of Gram products.

    python -m benchmarks.momentum.study --rows 96
    python -m benchmarks.momentum.page

SmolLM2 reads its calibration text in batches; each gives one Gram per layer. Methods that stream use one a product, in
turn, pass after pass. All start at Wanda's mask, in float32; errors are float64, on the mean of all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch

from benchmarks.shared import command
from benchmarks.shared.csv_lines import append
from benchmarks.shared.samples import sample
from benchmarks.shared.threads import one_thread
from fwbench.problem import Problem
from fwbench.problems import extract
from fwbench.problems.models import load_model
from fwbench.problems.structure import weight_of
from fwbench.problems.text import TOKENS, load_text, sequences
from fwbench.solvers.frank_wolfe import loop
from fwbench.solvers.frank_wolfe.momentum import Averaging, iterates
from fwbench.solvers.local_search.swap import Swap
from fwbench.solvers.start.scores import Wanda
from fwbench.stage import Context, State

BLOCK, LAYERS, PATTERN = 7, ("gate_proj", "o_proj"), "0.5"
MOMENTUM_CSV = "momentum.csv"


@dataclass(frozen=True)
class Measured:
    """A line of the CSV; errors are multiples of that of Wanda's mask."""

    layer: str
    rows: int
    n: int
    batches: int
    method: str
    products: int
    relaxed: float
    rounded: float
    swapped: float


Grams = Sequence[torch.Tensor]
Method = Callable[[loop.Objective, torch.Tensor, Grams, int], torch.Tensor]


def whole(step: str, layer: loop.Objective, u: torch.Tensor, grams: Grams, products: int) -> torch.Tensor:
    """Vanilla with the layer's Gram; the start takes one of the products."""
    options = loop.LoopOptions(steps=products - 1, step=step)
    return loop.minimise(layer, u, options, Context(threads=1)).u


def streamed(options: Averaging, layer: loop.Objective, u: torch.Tensor, grams: Grams, products: int) -> torch.Tensor:
    return _last(iterates(layer.W, cycle(grams), layer.pattern, u, options), products)


def accumulated(layer: loop.Objective, u: torch.Tensor, grams: Grams, products: int) -> torch.Tensor:
    """The mean of the Grams that have been seen, from the second pass on the layer's."""
    newest = Averaging(alpha=1.0)
    return _last(iterates(layer.W, _means(grams), layer.pattern, u, newest), products)


def _means(grams: Grams) -> Iterator[torch.Tensor]:
    total = torch.zeros_like(grams[0])
    for seen, gram in enumerate(grams, 1):
        total += gram
        yield total / seen
    yield from cycle([total / len(grams)])


def _last(found: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    return next(islice(found, count - 1, None))


METHODS: dict[str, Method] = {
    "whole Gram, line search": partial(whole, "linesearch"),
    "whole Gram, open step": partial(whole, "open"),
    "mean of the Grams so far": accumulated,
    "newest Gram only": partial(streamed, Averaging(alpha=1.0)),
    "momentum, 0.1": partial(streamed, Averaging(alpha=0.1)),
    "momentum, 4/(t+8)^(2/3)": partial(streamed, Averaging()),
    "momentum, transported": partial(streamed, Averaging(transport=True)),
}


def stream(rows: int, batch: int) -> Iterator[tuple[Problem, list[np.ndarray]]]:
    """The layers, some of their rows, with the Gram of each batch."""
    model = load_model("smollm2")
    layers = {
        name: layer for name, layer in extract.named_layers(model, [BLOCK]).items() if name.rpartition(".")[2] in LAYERS
    }
    batches = extract.batch(sequences(model.tokenizer, load_text("lee"), TOKENS), batch)
    assert len({ids.numel() for ids in batches}) == 1, "a mean of unequal batches is not the layer's Gram"
    sums = [extract.grams(model.network, layers, [ids]) for ids in batches]
    for name, layer in layers.items():
        grams = [each[name] for each in sums]
        yield sample(Problem(name, weight_of(layer), np.mean(grams, axis=0), PATTERN), rows), grams


def compare(problem: Problem, grams: list[np.ndarray], products: Sequence[int]) -> Iterator[Measured]:
    """Every method after so many products."""
    context = Context(threads=1)
    wanda = Wanda().run(problem, State(), context).keep
    assert wanda is not None
    start, unit = torch.tensor(~wanda, dtype=torch.float32), problem.error(wanda)
    layer, tensors = loop.Objective.of(problem, context), [torch.tensor(G, dtype=torch.float32) for G in grams]
    for name, method in METHODS.items():
        for count in products:
            u = method(layer, start, tensors, count).double().numpy()
            keep = ~problem.pattern.prune(-u)
            swapped = Swap().run(problem, State(keep=keep), context).keep
            assert swapped is not None
            errors = problem.row_errors(u).sum(), problem.error(keep), problem.error(swapped)
            ratios = (float(error / unit) for error in errors)
            yield Measured(problem.name, problem.rows, problem.n, len(grams), name, count, *ratios)


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch", type=int, default=extract.BATCH, help="tokens")
    parser.add_argument("--products", default="8,40,200,1000")
    options = parser.parse_args()
    one_thread()
    products = [int(word) for word in options.products.split(",")]
    for problem, grams in stream(options.rows, options.batch):
        for line in compare(problem, grams, products):
            print(line, flush=True)
            append(options.out / MOMENTUM_CSV, [line])


if __name__ == "__main__":
    main()
