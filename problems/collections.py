"""Collections: named sets of problems, and how a selector on the command line finds them.

A selector is ``NAME`` or ``NAME/GLOB`` with NAME one of ``mini``, ``smollm2`` (``smollm2@65536`` for another number of
calibration tokens), ``gemma3`` (likewise) and ``synthetic``; or the path of a problem file or of a folder of them. A
file ``mini/x`` that is there comes before the collection's problem ``x``; a folder that is called like a collection is
written ``./mini``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from fwbench.patterns import Pattern, parse
from fwbench.problem import Problem, ProblemError
from fwbench.problems import files, resources, synthetic
from fwbench.problems.text import EXTRACTION, SEQUENCE, TOKENS, load_text

CALIBRATION = "lee"
MINI = Path(__file__).with_name("mini")

Progress = Callable[[int, int, str], None]  # done, total, what


class CollectionError(ValueError):
    """A selector that selects nothing; the message is one line."""


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model that is a collection, before it is loaded: (rows, n) of each matrix of a block."""

    sentence: str
    blocks: int
    shapes: dict[str, tuple[int, int]]

    def names(self, model: str) -> list[str]:
        return [f"{model}.{block:02}.{layer}" for block in range(self.blocks) for layer in self.shapes]


MODELS = {
    "smollm2": Layers(
        "Every linear layer of SmolLM2-135M, extracted on demand.",
        30,
        {
            "q_proj": (576, 576),
            "k_proj": (192, 576),
            "v_proj": (192, 576),
            "o_proj": (576, 576),
            "gate_proj": (1536, 576),
            "up_proj": (1536, 576),
            "down_proj": (576, 1536),
        },
    ),
    "gemma3": Layers(
        "Every linear layer of Gemma 3 270M, extracted on demand, under the Gemma Terms of Use.",
        18,
        {
            "q_proj": (1024, 640),
            "k_proj": (256, 640),
            "v_proj": (256, 640),
            "o_proj": (640, 1024),
            "gate_proj": (2048, 640),
            "up_proj": (2048, 640),
            "down_proj": (640, 2048),
        },
    ),
}
NAMES = ("mini", *MODELS, "synthetic")
SHAPES = MODELS["smollm2"].shapes
LAYERS = tuple(SHAPES)


@dataclass(frozen=True)
class Collection:
    """What :func:`catalog` says of a collection."""

    name: str
    sentence: str
    problems: int


def catalog() -> tuple[Collection, ...]:
    """The collections, nothing loaded."""
    mini = len(list(MINI.glob(f"*{files.SUFFIX}")))
    return (
        Collection(
            "mini",
            "Sub-blocks of real SmolLM2 layers, n = 16 to 384, some with a target; a whole row, a whole v_proj layer.",
            mini,
        ),
        *(Collection(name, layers.sentence, len(layers.names(name))) for name, layers in MODELS.items()),
        Collection(
            "synthetic", "Seeded generators: correlated, ill-conditioned, planted, hostile.", len(synthetic.CASES)
        ),
    )


def load(
    selector: str | Path,
    patterns: Sequence[Pattern | str] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Problem]]:
    """Problems of a selector, in the order of their names, each with its collection's name.

    Args:
        selector: see the module; a GLOB is tried on the whole name (``smollm2.07.gate_proj``) and on what follows the
            collection's name (``07.gate_proj``).
        patterns: each problem under each of these in place of its own; those it does not fit are an error.
        progress: called with (done, total, what) while problems are extracted.

    Raises:
        CollectionError: an unknown name, or a glob that matches nothing.
        ProblemError: a file that is refused.
        PatternError: an unknown pattern, or one that does not fit.
        ResourceError: a model cannot be downloaded, or its terms are not accepted.
    """
    chosen = None if patterns is None else [parse(pattern) for pattern in patterns]
    for collection, problem in _load(str(selector), progress):
        if chosen is None:
            yield collection, problem
        else:
            for pattern in chosen:
                yield collection, repattern(problem, pattern)


def check(selector: str | Path, patterns: Sequence[Pattern | str] | None = None) -> None:
    """Raise what :func:`load` would raise for bad input, before any work is begun or anything written.

    What is at hand is read; of a model the names, the patterns and its terms are checked, nothing is extracted.
    """
    if (model := named(selector)) not in MODELS:
        for _ in load(selector, patterns):
            pass
        return
    _load(str(selector), None)
    resources.check_accepted(resources.KNOWN[model])
    head, _, glob = str(selector).partition("/")
    for name in _matching(head, MODELS[model].names(model), glob):
        for pattern in patterns or ():
            parse(pattern).counts(MODELS[model].shapes[name.rpartition(".")[2]])


def there(selector: str | Path) -> None:
    """Raise CollectionError unless there is such a collection, file or folder; nothing of it is read."""
    _load(str(selector), None)


def one(
    selector: str | Path, pattern: Pattern | str | None = None, progress: Progress | None = None
) -> tuple[str, Problem]:
    """The one problem of a selector, with its collection's name.

    Raises:
        CollectionError: it selects several, besides what :func:`load` raises.
    """
    head, _, glob = str(selector).partition("/")
    model = named(selector)
    found: list = _matching(head, MODELS[model].names(model), glob) if model in MODELS else []  # extracts nothing
    if len(found) < 2:
        found = list(islice(load(selector, None if pattern is None else [pattern], progress), 2))
        if len(found) == 1:
            return found[0]
    names = [item if isinstance(item, str) else item[1].origin or item[1].name for item in found[:2]]
    raise CollectionError(f"{selector}: selects {names[0]}, {names[1]} and perhaps more: name one problem")


def named(selector: str | Path) -> str:
    """Which of ``NAMES`` a selector means; empty for a path."""
    head, _, glob = str(selector).partition("/")
    name, at, _ = head.partition("@")
    known = name in NAMES and (not at or name in MODELS) and not (glob and os.path.exists(selector))
    return name if known else ""


def repattern(problem: Problem, pattern: Pattern) -> Problem:
    """The problem under another pattern; a name that ends with the old pattern ends with the new one."""
    old = f".{problem.pattern}"
    name = f"{problem.name.removesuffix(old)}.{pattern}" if problem.name.endswith(old) else problem.name
    return replace(problem, name=name, pattern=pattern)


def _load(selector: str, progress: Progress | None) -> Iterator[tuple[str, Problem]]:
    head, _, glob = selector.partition("/")
    collection, (name, at, tokens) = named(selector), head.partition("@")
    if collection in MODELS:
        if at and not (tokens.isdecimal() and int(tokens)):
            raise CollectionError(f"{selector}: {tokens!r} is not a number of tokens; write {collection}@65536")
        names = _matching(head, MODELS[collection].names(collection), glob)
        return ((head, problem) for problem in of_model(collection, names, int(tokens or TOKENS), progress))
    if collection:
        return _mini(glob) if collection == "mini" else _synthetic(glob)
    path = Path(selector)
    if path.is_dir():
        label = path.resolve().name
        return ((label, problem) for problem in files.read_folder(path))
    if path.suffix == files.SUFFIX or path.is_file():
        return iter([(path.stem, files.read_problem(path))])
    known = [item.name for item in catalog()]
    near = get_close_matches(name, known, n=2) or known
    raise CollectionError(f"{selector}: no such collection, file or folder; did you mean {' or '.join(near)}?")


def _matching(collection: str, names: Sequence[str], glob: str) -> list[str]:
    """Names that a glob selects, sorted; an empty one selects all."""
    kept = [name for name in names if not glob or fnmatchcase(name, glob) or fnmatchcase(name.partition(".")[2], glob)]
    if not kept:
        example = f"; names are like {names[0]}" if names else ""
        raise CollectionError(f"{collection}/{glob}: no problem of {collection} matches{example}")
    return sorted(kept)


def _mini(glob: str) -> Iterator[tuple[str, Problem]]:
    paths = {files.read_name(path): path for path in files.problem_paths(MINI)}
    for name in _matching("mini", list(paths), glob):
        yield "mini", replace(files.read_problem(paths[name]), origin="")


def _synthetic(glob: str) -> Iterator[tuple[str, Problem]]:
    for name in _matching("synthetic", list(synthetic.CASES), glob):
        yield "synthetic", synthetic.CASES[name]()


def of_model(
    model: str, names: Sequence[str], tokens: int = TOKENS, progress: Progress | None = None
) -> Iterator[Problem]:
    """Problems of one of ``MODELS`` by their names, from the cache, where one run extracts all that are missing.

    Raises:
        ResourceError: the model or the text cannot be downloaded, or its terms are not accepted.
        ProblemError: the cache cannot be written.
    """
    resources.check_accepted(resources.KNOWN[model])
    folder = _extraction_folder(model, tokens)
    missing = [name for name in names if not (folder / f"{name}{files.SUFFIX}").is_file()]
    if missing:
        _extract(model, missing, folder, tokens, progress)
    for name in names:
        path = folder / f"{name}{files.SUFFIX}"
        try:
            problem = files.read_problem(path)
        except ProblemError:  # damaged in the cache: build it once more
            _extract(model, [name], folder, tokens, progress)
            problem = files.read_problem(path)
        yield replace(problem, origin="")  # found again by its name, whatever becomes of the cache


def _extraction_folder(model: str, tokens: int) -> Path:
    hashes = (resources.KNOWN[model].sha256, resources.KNOWN[CALIBRATION].sha256)
    key = hashlib.sha256(" ".join(map(str, (EXTRACTION, *hashes, tokens, SEQUENCE))).encode()).hexdigest()
    return resources.cache_folder() / "problems" / f"{model}-{tokens}-{key[:12]}"


def _extract(model: str, names: Sequence[str], folder: Path, tokens: int, progress: Progress | None) -> None:
    # here and not above: mini and synthetic load without torch
    from fwbench.problems.extract import extract
    from fwbench.problems.models import load_model

    if progress:
        progress(0, tokens, f"{model}: loading the model")
    network, text = load_model(model), load_text(CALIBRATION)
    blocks = sorted({int(name.split(".")[1]) for name in names})
    for problem in extract(network, text, blocks, tokens, progress=progress, select=set(names).__contains__):
        files.write_problem(problem, folder / f"{problem.name}{files.SUFFIX}")
