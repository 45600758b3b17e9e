"""The field's conventions for a perplexity: which text, joined how, cut into which windows, counted a token or a word.

``PROTOCOLS`` is the table. A figure by one of them can be held against published ones; docs/evaluation.md has those.
Sources: ``get_wikitext2`` and ``get_c4`` of SparseGPT's datautils.py and Wanda's lib/data.py, the evaluations beside
them, and the task ``wikitext`` of lm-eval with its ``loglikelihood_rolling``.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import huggingface_hub
import numpy as np
import torch

from fwbench.notes import note
from fwbench.perplexity import Perplexity, Progress, Through, check_causal, negative_log_likelihood
from fwbench.problems.checkpoint import reason_of
from fwbench.problems.models import Model
from fwbench.problems.records import kind_of, records
from fwbench.problems.structure import ModelError
from fwbench.problems.text import TextError, opening_words, walk


@dataclass(frozen=True)
class Protocol:
    """One convention.

    Attributes:
        dataset, file: where the hub has its text.
        found: regular expression for paths in a folder: the file that holds the text.
        joined: between the rows; None where each document is read and scored on its own.
        length: tokens of a window; None for the longest that the model takes.
        rows: that the text has.
        first: rows read; None for all.
        windows: at most.
        lines: whether a plain file is such a text, a row a line.
    """

    name: str
    about: str
    dataset: str
    file: str
    found: str
    joined: str | None
    length: int | None
    rows: int | None = None
    first: int | None = None
    windows: int | None = None
    lines: bool = True


WIKITEXT = {
    "dataset": "Salesforce/wikitext",
    "file": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    "found": r"(?<![a-z])test(?![a-z])",
    "rows": 4358,  # the data set's card
}
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "wikitext2",
            "the test split of wikitext-2-raw-v1, rows joined by empty lines, in windows of 2048 tokens",
            joined="\n\n",
            length=2048,
            **WIKITEXT,  # type: ignore[arg-type]
        ),
        Protocol(
            "c4",
            "the first 1100 rows of C4's first validation file, joined by blanks, the first 256 windows of 2048 tokens",
            "allenai/c4",
            "en/c4-validation.00000-of-00008.json.gz",
            r"validation(?!.*[.-]0*[1-9]\d*-of-)",
            joined=" ",
            length=2048,
            first=1100,
            windows=256,
            lines=False,
        ),
        Protocol(
            "lm-eval-wikitext",
            "lm-eval's task wikitext: each article of that test split, detokenised, in rolling windows of the model's "
            "own length; a word, a byte and a token",
            joined=None,
            length=None,
            **WIKITEXT,  # type: ignore[arg-type]
        ),
    )
}
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
RAW = "wikitext-2-raw"  # of a folder with several versions of WikiText
HEADING = re.compile(r"= (?!=).*(?<!=) =")  # of an article; those of its parts are "= = Career = ="

# How lm-eval undoes WikiText's tokenisation, in this order: what is replaced, and in whose place
PLAIN = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
ENCLOSED = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))  # no blanks inside
LAST = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


@dataclass(frozen=True)
class Passages:
    """A protocol's text: what is tokenised, each piece on its own; ``sha256`` (hex) is of their UTF-8 bytes.

    ``pages`` are the pieces before they were detokenised, where words and bytes are counted; else there are none.
    """

    protocol: Protocol
    name: str
    source: str
    rows: int
    pieces: Sequence[str] = field(repr=False)
    pages: Sequence[str] = field(repr=False, default=())

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256("\0".join(self.pieces).encode()).hexdigest()


@dataclass(frozen=True)
class Measured(Perplexity):
    """A perplexity by a protocol; ``value`` is that of a token, the others are None where no whole words are scored."""

    protocol: str = ""
    rows: int = 0  # of the text
    begins: tuple[str, ...] = ()  # tokens that the text, or each of its documents, begins with
    tokens: int = 0  # of the text, with those that do not fill a window
    tokens_sha256: str = ""  # (hex) of their ids, int32, little-endian
    words: int | None = None
    bytes: int | None = None
    word_perplexity: float | None = None
    byte_perplexity: float | None = None

    def __str__(self) -> str:
        value = f"{self.value:.4f}" if self.value < 1e6 else f"{self.value:.2e}"
        most = "" if self.words is None else "at most "
        return (
            f"{value} a token on {self.text} ({self.windows} windows of {most}{self.length} tokens, "
            f"{self.scored} of {self.tokens} scored)"
        )


@dataclass(frozen=True)
class Window:
    """What the model reads, int64 ``(length,)``, and the successors of its positions, scored from ``first`` on."""

    ids: torch.Tensor
    wanted: torch.Tensor
    first: int = 0


def named(text: str) -> tuple[str, str] | None:
    """Protocol and source of ``NAME=SOURCE``, or of ``NAME`` where no file is called so; None for other texts."""
    name, given, source = text.partition("=")
    return (name, source) if name in PROTOCOLS and (given or not Path(name).exists()) else None


def load(name: str, source: str | Path = "") -> Passages:
    """Read a protocol's text.

    Args:
        name: of the protocol.
        source: a file, a folder (a data set as it was downloaded, or saved by ``datasets``), or a data set on the hub
            that has the protocol's file; empty for the one where the field has it from.

    Raises:
        TextError: no such protocol or text, or it cannot be read.
    """
    if name not in PROTOCOLS:
        raise TextError(f"{name}: no such protocol; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    path = Path(source) if source and Path(source).exists() else _download(protocol, str(source))
    if path.is_dir():
        path = _file(protocol, path)
    rows = list(itertools.islice(_rows(protocol, path), protocol.first))
    if not any(row.strip() for row in rows):
        raise TextError(f"{path}: the text is empty")
    pages = list(_pages(rows)) if protocol.joined is None else []
    pieces = [_detokenised(page) for page in pages] if protocol.joined is None else [protocol.joined.join(rows)]
    expected = protocol.first or (None if pages == rows else protocol.rows)
    if expected not in (None, len(rows)):
        note(f"{path}: {len(rows)} rows, and {name} has {expected}; its figures are not those of publications")
    return Passages(protocol, f"{name} of {path.name}", f"{name}={path.name}", len(rows), pieces, pages)


def windows(model: Model, passages: Passages, length: int | None = None) -> tuple[list[Window], list[list[int]]]:
    """The windows of a text, and the token ids of each of its pieces.

    Args:
        model: with its tokenizer.
        length: tokens that the model reads at a time, in place of the protocol's.

    Raises:
        TextError: the text does not fill a window.
        ModelError: the model lacks an embedding for one of its tokenizer's tokens.
    """
    protocol, tokenizer = passages.protocol, model.tokenizer
    asked, length = length or protocol.length or 0, _context(model, protocol, length)
    if asked > length:
        note(f"{model.label}: takes {length} tokens, so windows have no {asked}; say so beside the figure")
    whole = protocol.joined is not None
    given = {} if whole else {"add_special_tokens": False}
    ids = [list(tokenizer(piece, verbose=False, **given)["input_ids"]) for piece in passages.pieces]
    if whole:
        found = list(_apart(ids[0], length))[: protocol.windows]
    else:
        prefix = _prefix(model)
        found = [window for piece in ids for window in _rolling(piece, prefix, length)]
        model.check_tokens([[prefix]])
    if not found or length < 2:
        raise TextError(f"{passages.name}: its {sum(map(len, ids))} tokens fill no window of {length}; --length")
    model.check_tokens([piece for piece in ids if piece])
    return found, ids


@torch.no_grad()
def measure(
    model: Model,
    passages: Passages,
    length: int | None = None,
    progress: Progress | None = None,
    through: Through | None = None,
) -> Measured:
    """A model's perplexity by a protocol.

    Args:
        model: with its tokenizer; evaluated on the device it is on, in its own precision.
        length: see :func:`windows`.
        progress: called with (windows done, windows in all, what).
        through: see :func:`fwbench.perplexity.perplexity`.

    Raises:
        TextError: the text does not fill a window.
        ModelError: a forward pass fails, the model looks at later tokens, or its logits are not finite.
    """
    check_causal(model.network)
    found, ids = windows(model, passages, length)
    device, total = next(model.network.parameters()).device, 0.0
    contexts = through([window.ids for window in found]) if through else (contextlib.nullcontext() for _ in found)
    for number, (context, window) in enumerate(zip(contexts, found, strict=False), 1):
        with context:
            given, wanted = window.ids.to(device), window.wanted.to(device)
            total += negative_log_likelihood(model.network, given, wanted, window.first)
        if progress:
            progress(number, len(found), f"{model.label}: {passages.name}")
    if not math.isfinite(total):
        raise ModelError(f"{model.label}: its logits are not finite on {passages.name}")

    def mean(count: int) -> float:
        return math.exp(min(total / count, 700.0))

    scored = sum(len(window.wanted) - window.first for window in found)  # as many in each: also the mean of means
    length = _context(model, passages.protocol, length)
    every = np.array([token for piece in ids for token in piece], "<i4")
    own = Measured(
        mean(scored),
        scored,
        len(found),
        length,
        length,
        passages.name,
        passages.sha256,
        protocol=passages.protocol.name,
        rows=passages.rows,
        begins=tuple(opening_words(model.tokenizer)),
        tokens=len(every),
        tokens_sha256=hashlib.sha256(every.tobytes()).hexdigest(),
    )
    if not passages.pages:
        return own
    words = sum(len(re.split(r"\s+", page)) for page in passages.pages)
    size = sum(len(page.encode()) for page in passages.pages)
    begins = tuple(map(str, model.tokenizer.convert_ids_to_tokens([_prefix(model)])))
    return replace(
        own,
        begins=begins,
        words=words,
        bytes=size,
        word_perplexity=mean(words),
        byte_perplexity=mean(size),
    )


# --- windows ---------------------------------------------------------------------------------------------------------


def _apart(ids: Sequence[int], length: int) -> Iterator[Window]:
    """Whole windows side by side; each scores all its tokens but the first."""
    for start in range(0, len(ids) - length + 1, length):
        window = torch.tensor(ids[start : start + length])
        yield Window(window, window[1:])


def _rolling(ids: Sequence[int], prefix: int, length: int) -> Iterator[Window]:
    """Windows that score every token of a document once.

    The first begins with the prefix, each later one with the last token before those that it scores, and the last one
    reaches back as far as it is long.
    """
    every, end = [prefix, *ids], 0  # tokens of the document that are scored so far
    while end < len(ids):
        begin, end = end, min(end + length, len(ids))
        start = max(end - length, 0)
        read = torch.tensor(every[start : end + 1])
        yield Window(read[:-1], read[1:], begin - start)


def _context(model: Model, protocol: Protocol, length: int | None) -> int:
    """Tokens that the model reads at a time."""
    return min(length or protocol.length or model.max_length, model.max_length)


def _prefix(model: Model) -> int:
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(model.tokenizer, name, None)) is not None:
            return int(token)
    raise ModelError(f"{model.label}: its tokenizer has no BOS and no EOS, with which this protocol begins a document")


# --- texts -----------------------------------------------------------------------------------------------------------


def _rows(protocol: Protocol, path: Path) -> Iterator[str]:
    """The rows of a file; of a plain one its lines with their ends, blank ones empty, as ``datasets`` has them."""
    if kind_of(path):
        yield from records(path)
        return
    if not protocol.lines:
        raise TextError(f"{path}: {protocol.name} needs rows: JSON lines, parquet or arrow")
    for content in records(path):
        lines = re.findall(r"[^\n]*\n|[^\n]+", content)
        yield from (line if line.strip() else "" for line in lines)


def _pages(rows: Sequence[str]) -> Iterator[str]:
    """The articles of WikiText: rows that are articles already, or its lines, whose empty rows were blanks."""
    if any("\n" in row.removesuffix("\n") for row in rows):
        yield from rows
        return
    lines = [row.removesuffix("\n") if row.strip() else " " for row in rows]
    starts = [number for number, line in enumerate(lines) if HEADING.fullmatch(line.strip())]
    for start, end in itertools.pairwise([0, *starts, len(lines)]):
        page = "\n".join(lines[start:end]) + ("\n" if end == len(lines) else "")
        if page.strip():
            yield page


def _detokenised(page: str) -> str:
    page = _replaced(page, PLAIN)
    for left, right in ENCLOSED:
        inside = rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"
        page = re.sub(inside, rf"{left}\1{right}", page)
    return _replaced(page, LAST)


def _replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def _file(protocol: Protocol, folder: Path) -> Path:
    """The file of a folder that holds the text."""
    every = {path.relative_to(folder).as_posix(): path for path in sorted(walk(folder))}
    whole = re.fullmatch(protocol.found, folder.absolute().name)  # as in test/data-00000-of-00001.arrow
    fitting = [name for name in every if whole or re.search(protocol.found, name)]
    for likelier in (
        lambda name: name.endswith(protocol.file),
        lambda name: RAW in name,
        lambda name: kind_of(every[name]),
    ):
        fitting = list(filter(likelier, fitting)) or fitting
    if len(fitting) != 1:
        what = f"{len(fitting)} files ({', '.join(fitting[:3])})" if fitting else f"none of its {len(every)} files"
        raise TextError(f"{folder}: {what} could be the text of {protocol.name} ({protocol.file}); name the file")
    return every[fitting[0]]


def _download(protocol: Protocol, source: str) -> Path:
    """The protocol's file of a data set on the hub, from its cache where it is there."""
    dataset = source or protocol.dataset
    if not ON_HUB.fullmatch(dataset):
        raise TextError(f"{source}: no such file, folder or data set; {protocol.name} is {protocol.about}")
    try:
        huggingface_hub.dataset_info(dataset, timeout=10)  # asked once, where a download asks for half a minute
    except Exception as error:  # offline, a gate, no such data set: each in a way of its own
        known = huggingface_hub.try_to_load_from_cache(dataset, protocol.file, repo_type="dataset")
        if isinstance(known, str):
            return Path(known)
        raise _nothing(protocol, dataset, error) from None
    try:
        return Path(huggingface_hub.hf_hub_download(dataset, protocol.file, repo_type="dataset"))
    except Exception as error:
        raise _nothing(protocol, dataset, error) from None


def _nothing(protocol: Protocol, dataset: str, error: Exception) -> TextError:
    return TextError(
        f"{dataset}: {protocol.file} cannot be had from the hub ({reason_of(error)}); download it where there is a "
        "network, and give the file or its folder by --text"
    )
