"""What fwbench makes of every causal architecture of transformers, held against forward hooks of its own.

``python tests/architectures.py`` measures them all and writes ``docs/architectures.md``; with names it prints their
lines. tests/test_architectures.py measures again, and holds the committed table against what it finds.
"""

import functools
import math
import multiprocessing
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).with_name("shared")))
import tiny
import tiny_architectures
from tiny_architectures import NAMES, t

from fwbench import notes
from fwbench.perplexity import perplexity
from fwbench.problems import extract
from fwbench.problems.models import Model, load_model
from fwbench.problems.structure import Conv1D, ModelError
from fwbench.problems.text import Text, load_text
from fwbench.pruning import Options, PruneError, engine, load_masks, prune

HEAD = """# Architectures

What fwbench makes of every causal architecture of transformers {version}, each in a tiny form with random weights: one
line for each name in its mapping for causal models, {count} in all. `python tests/architectures.py` writes this page.

- *exact* under perplexity: equal to the loss of the whole logits in float64. Under extract: every weight is the
  model's, and every Gram matrix that of the inputs that forward hooks see. Under prune, one-shot and sequential: every
  mask is Wanda's by such inputs, its error that of the pruned weights on them, and everything else in the saved folder
  is the model's.
- *refused*: fwbench says the sentence and stops before the work. Where the sentence names a `--skip`, the cell says
  what comes with it.
- *left out*: weights that text runs through and that lie outside of the blocks' linear layers, besides embeddings and
  head; fwbench says so.

{summary}

"""
DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"
TOKENS, PIECE = 250, 8  # of the text; of a piece of the head
TIMEOUT = 300  # seconds for an architecture
COLUMNS = ("architecture", "perplexity", "extract", "prune", "sentence")
EXACT, REFUSED, NOTHING = "exact", "refused", "–"
SAMPLE = functools.partial(engine.sample, tokens=2)  # of what the model says, before and after
HINT = re.compile(r"; --skip '([^']+)' leaves such layers out")


@dataclass(frozen=True)
class Row:
    """A line of the table, as text."""

    architecture: str
    perplexity: str = NOTHING
    extract: str = NOTHING
    prune: str = NOTHING
    sentence: str = ""

    def __str__(self) -> str:
        return "| " + " | ".join(value.replace("|", r"\|") for value in astuple(self)) + " |"


def measure(name: str) -> Row:
    """Take one architecture through fwbench. What it gives must be right, what it refuses must be said.

    Raises:
        AssertionError: something is wrong.
        Exception: an internal error.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        try:
            _save(name, folder)
        except (AttributeError, ImportError) as error:  # of transformers' own class
            return Row(name, sentence=f"transformers cannot build it: {str(error).strip().splitlines()[0]}")
        try:
            model = load_model(folder)
        except ModelError as error:
            return Row(name, sentence=str(error).replace(f"{place}/", ""))
        said: list[str] = []
        text = load_text(folder / "text.txt")
        cells = [
            _refusals(said, lambda skip: _perplexity(model, text)),
            _refusals(said, lambda skip: _extract(model, text, skip)),
            _refusals(said, lambda skip: _prune(folder, skip, said)),
        ]
        return Row(name, *cells, " / ".join(dict.fromkeys(said)))


def _save(name: str, folder: Path) -> None:
    folder.mkdir()
    network = tiny_architectures.network(name)
    with mock.patch.object(tiny, "network", return_value=network):
        tiny.save(folder)
    own = tiny_architectures.config(name)
    if type(own) is not type(network.config):  # a checkpoint of several parts states them all
        own.save_pretrained(folder)
    rng = random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice("abc") for _ in range(TOKENS)))


def _refusals(said: list[str], work: Callable[[str], str]) -> str:
    """What the work says; where it is refused with a way out, what it says then."""
    skip = ""
    while True:
        try:
            found = work(skip)
            return f"{found}, --skip '{skip}'" if skip else found
        except (ModelError, PruneError) as error:
            said.append(str(error))
            hint = HINT.search(said[-1])
            if hint is None or hint[1] in skip.split("|"):
                return REFUSED
            skip = hint[1] if hint[1].startswith(f"{skip}|") else f"{skip}|{hint[1]}".lstrip("|")


def _windows(model: Model, text: Text) -> torch.Tensor:
    ids = model.tokenizer(text.content)["input_ids"][:TOKENS]
    length = min(model.max_length, len(ids))
    return torch.tensor([ids[start : start + length] for start in range(0, len(ids) - length + 1, length)])


def _perplexity(model: Model, text: Text) -> str:
    with mock.patch("fwbench.perplexity.PIECE", PIECE * tiny.VOCABULARY):
        found = perplexity(model, text, tokens=TOKENS)
    total, rows = 0.0, _windows(model, text)
    with torch.no_grad():
        for ids in rows:
            logits = model.network(input_ids=ids[None], use_cache=False).logits[0].double()
            total -= float(logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).sum())
    expected = math.exp(total / rows[:, 1:].numel())
    assert math.isclose(found.value, expected, rel_tol=1e-4), (found.value, expected)
    return EXACT


def _hooked(network: torch.nn.Module, batches: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Inputs of every linear layer by path, one tensor ``(rows, n)`` a call, in float64; the whole model runs."""
    inputs: dict[str, list[torch.Tensor]] = {}

    def keep(path: str) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            X = next(iter((*args, *kwargs.values())))
            inputs.setdefault(path, []).append(X.detach().reshape(-1, X.shape[-1]).double())

        return hook

    handles = [
        module.register_forward_pre_hook(keep(path), with_kwargs=True)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    with torch.no_grad():
        for ids in batches:
            network(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def _batches(model: Model, text: Text) -> list[torch.Tensor]:
    """The calibration's sequences, one a batch: whole ones and a shorter last one."""
    ids = torch.tensor(model.tokenizer(text.content)["input_ids"][:TOKENS])
    return [part[None] for part in ids.split(min(model.max_length, 512))]


def _extract(model: Model, text: Text, skip: str) -> str:
    notices: list[str] = []
    with notes.heard(lambda said: notices.append(said) if " weight" in said else None):
        problems = list(extract.extract(model, text, tokens=TOKENS, skip=skip))
    layers, inputs = extract.named_layers(model, skip=skip), _hooked(model.network, _batches(model, text))
    paths = {id(module): path for path, module in model.network.named_modules()}
    for problem in problems:
        layer = layers[problem.name]
        X = torch.cat(inputs[paths[id(layer)]])
        assert len(X) == TOKENS, problem.name
        G = (X.T @ X / TOKENS).numpy()
        np.testing.assert_allclose(problem.G, G, rtol=1e-3, atol=1e-5 * np.abs(G).max(), err_msg=problem.name)
        W = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        assert np.array_equal(problem.W, W.detach().numpy()), problem.name
        x = X[:5].float()  # and the layer is that product, and nothing more
        y = x @ torch.tensor(problem.W).T + (layer.bias if layer.bias is not None else 0)
        found = layer(x)
        given = torch.nn.Linear.forward(layer, x) if isinstance(found, tuple) else found  # a router goes on to choose
        torch.testing.assert_close(given, y, msg=problem.name)
    inside = {paths[id(layer)] for layer in layers.values()}
    missed = [path for path in inputs if path not in inside and not _is_head(model, path)]
    assert len(notices) <= 1
    left = int(re.search(r": (\d+) weight", notices[0])[1]) if notices else 0
    assert left >= len(missed)
    assert not missed or missed[0] in notices[0]
    return _cell(len(problems), left)


def _is_head(model: Model, path: str) -> bool:
    return model.network.get_submodule(path) is model.network.get_output_embeddings()


def _cell(count: int, left: int) -> str:
    weights = "1 weight" if left == 1 else f"{left} weights"
    return f"{EXACT}, {count} layers" + (f" ({weights} left out)" if left else "")


def _prune(folder: Path, skip: str, said: list[str]) -> str:
    cells = set()
    for sequential in (False, True):
        out = folder.with_name(f"{folder.name}-{sequential}-{len(skip)}")
        text = str(folder / "text.txt")
        options = Options(
            "0.5",
            "wanda",
            text,
            TOKENS,
            skip=skip,
            sequential=sequential,
            correct=0.0,
            residual=0.0,
            evaluate="",
            save_dtype="float32",
        )
        with mock.patch.object(engine, "sample", SAMPLE):
            summary = prune(str(folder), out, options)
        try:
            pruned = load_model(out).network.state_dict()
        except ModelError as error:
            said.append(str(error).replace(str(out), "the output"))
            return "saved, not loaded again"
        _check_pruned(folder, pruned, load_masks(out), summary["layers"], sequential)
        cells.add(_cell(len(summary["layers"]), len(summary["left_out"])))
    [cell] = cells  # one-shot and sequential
    return cell


def _check_pruned(folder: Path, pruned: dict, masks: dict, records: list[dict], sequential: bool) -> None:
    """Masks must be Wanda's by the inputs that hooks see, in the model as it is when a block's turn comes."""
    model = load_model(folder)
    dense = dict(model.network.state_dict())
    for name, weight in pruned.items():
        expected = dense[name].numpy() * masks[name] if name in masks else dense[name].numpy()
        assert np.array_equal(weight.numpy(), expected), name
    assert {record["parameter"] for record in records} == set(masks)
    batches = _batches(model, load_text(folder / "text.txt"))
    inputs = _hooked(model.network, batches)
    for block in _by_block(records):
        for record in block:
            path = record["parameter"].removesuffix(".weight")
            layer, keep = model.network.get_submodule(path), masks[record["parameter"]]
            score = dense[record["parameter"]].abs().numpy()
            X = torch.cat(inputs[path])
            norm = X.norm(dim=0).numpy()
            W = torch.tensor(dense[record["parameter"]].numpy() * ~keep, dtype=torch.float64)  # what goes
            if isinstance(layer, Conv1D):
                score, keep, W = score.T, keep.T, W.T
            error = float((X @ W.T).square().sum()) / len(X)
            assert math.isclose(record["error"], error, rel_tol=1e-3), (path, record["error"], error)
            score = score * norm
            assert (keep.sum(1) == keep.shape[1] - round(0.5 * keep.shape[1])).all(), path
            least, most = np.where(keep, score, np.inf).min(1), np.where(keep, -np.inf, score).max(1)
            assert (least >= most * (1 - 1e-3)).all(), path
        if sequential:
            with torch.no_grad():
                for record in block:
                    model.network.get_parameter(record["parameter"]).copy_(pruned[record["parameter"]])
            inputs = _hooked(model.network, batches)


def _by_block(records: list[dict]) -> Iterator[list[dict]]:
    blocks: dict[str, list[dict]] = {}
    for record in records:
        blocks.setdefault(record["layer"].split(".")[1], []).append(record)
    return iter(blocks.values())


def document(rows: list[Row]) -> str:
    """The page: how the table is to be read, and the table."""
    counts = ", ".join(
        f"{column} {sum(getattr(row, column).startswith(EXACT) for row in rows)}" for column in COLUMNS[1:4]
    )
    head = HEAD.format(version=t.__version__, count=len(rows), summary=f"Exact: {counts}.")
    lines = [Row(*COLUMNS), Row(*["---"] * len(COLUMNS)), *rows]
    return head + "\n".join(map(str, lines)) + "\n"


def main(names: list[str]) -> None:
    rows = []
    for name in names or NAMES:
        with multiprocessing.get_context("fork").Pool(1) as pool:  # of its own: a hang or a crash ends here
            try:
                rows.append(pool.apply_async(measure, (name,)).get(TIMEOUT))
            except Exception as error:
                rows.append(Row(name, *["WRONG"] * 3, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        print(rows[-1], flush=True)
    if not names:
        DOCUMENT.write_text(document(rows), encoding="utf-8")
    sys.exit(any("WRONG" in row.perplexity for row in rows))


if __name__ == "__main__":
    t.logging.set_verbosity_error()
    main(sys.argv[1:])
