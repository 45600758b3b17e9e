"""Records: the strings in a file, be it plain, structured (JSON, CSV, parquet) or compressed.

A plain file is one record, cut where no text goes on. Of a structured file each row is one: its column ``text``, else
its only column of strings. Files are read as far as records are taken; JSON that is one document is read whole.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import html
import importlib.util
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from fwbench.notes import note

LIMIT = 1 << 26  # characters of a text: some 16 million tokens
CHUNK = 1 << 20  # characters read at a time
FIELD = (1 << 31) - 1  # characters of a field of CSV
COLUMN = "text"
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}  # the likeliest first
JSON = (".json", ".jsonl", ".jsonlines", ".ndjson")
TABLES = (".parquet", ".arrow")
STRUCTURED = (*JSON, *DELIMITERS, *TABLES)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MARKS = {  # byte order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BROKEN = (OSError, EOFError, ValueError, NotImplementedError, RecursionError, csv.Error, zlib.error, lzma.LZMAError)
PAGE = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)  # of a MediaWiki dump


class TextError(ValueError):
    """A text that cannot be read or used; the message is one line."""


def kind_of(path: Path) -> str:
    """The suffix that says how a file is structured, whatever compresses it; empty for plain text."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in STRUCTURED if name.endswith(suffix)), "")


def records(path: Path, encoding: str = "") -> Iterator[str]:
    """The strings of a file, with ``\\n`` for line ends.

    Args:
        path: of a kind that :func:`kind_of` knows, or plain text; gzip, bzip2, xz and zstandard are seen by content.
        encoding: of the file; where none is given its byte order mark says it, else it is UTF-8.

    Raises:
        TextError: the file cannot be read or decoded, or does not say which of its columns is the text.
    """
    kind = kind_of(path)
    if kind in TABLES:
        with _opened(path) as stream:
            yield from map(unix, _texts(path, _table(path, stream, kind)))
        return
    with text_stream(path, encoding) as stream:
        if kind in JSON:
            found = _texts(path, _json(path, stream))
        elif kind:
            found = _texts(path, _csv(path, stream, DELIMITERS[kind]))
        else:
            found = _plain(path, stream)
        yield from map(unix, found)


def unix(text: str) -> str:
    """A text with ``\\n`` for its line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


@contextlib.contextmanager
def text_stream(path: Path, encoding: str = "") -> Iterator[TextIO]:
    """A file opened as text, decompressed and decoded as in :func:`records`. Raises TextError, within it too."""
    with _opened(path) as stream:
        if not encoding:
            head = stream.peek(4)
            encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
        with io.TextIOWrapper(stream, encoding) as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                byte = ""
                with contextlib.suppress(OSError):  # a stream that cannot tell where it is
                    byte = f" (byte {stream.tell() - len(error.object) + error.start})"
                name = encoding.removesuffix("-sig").upper()
                raise TextError(
                    f"{path}: not {name} text{byte}; convert it, such as by iconv -f LATIN1 -t UTF-8"
                ) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a file, decompressed; what goes wrong while they are used becomes a TextError."""
    try:
        with path.open("rb") as file, _decompressed(path, file) as stream:
            head = stream.peek(512)
            if head.startswith((b"PK\x03\x04", b"7z\xbc\xaf")) or head[257:262] == b"ustar":
                raise TextError(f"{path}: an archive; unpack it and name the file or the folder")
            if head.startswith(b"version https://git-lfs.github.com/spec/"):
                raise TextError(f"{path}: only the pointer of a file in Git LFS; get the file by git lfs pull")
            yield stream
    except TextError:
        raise
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TextError(f"{path}: cannot be read ({reason})") from None


def _decompressed(path: Path, file: io.BufferedReader) -> Any:
    head = file.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(file)
    if head.startswith(b"BZh"):
        return bz2.open(file)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_pyarrow(path, "zstandard").CompressedInputStream(file, "zstd"))
    return file


def _pyarrow(path: Path, what: str) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise TextError(f"{path}: {what} is read by pyarrow; pip install pyarrow")
    import pyarrow

    return pyarrow


# --- rows of structured files ----------------------------------------------------------------------------------------


def _texts(path: Path, rows: Iterable[Any]) -> Iterator[str]:
    """The text of each row, which is a string, or a dict of columns; None is no text."""
    name = ""
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            name = name or _choose(path, list(row), [key for key, value in row.items() if _is_prose(value)])
            if name not in row:
                raise TextError(f"{path}: record {number} has no {name}")
            row = row[name]
        if isinstance(row, str):
            yield row
        elif row is not None:
            raise TextError(f"{path}: record {number} has no string for a text")


def _is_prose(value: Any) -> bool:
    """A string that is no number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _choose(path: Path, columns: Sequence[str], strings: Sequence[str]) -> str:
    if COLUMN in columns:
        return COLUMN
    if len(strings) == 1:
        note(f"{path}: there is no column {COLUMN}, so {strings[0]} is read")
        return strings[0]
    names = ", ".join(" ".join(str(name).split())[:40] for name in columns[:8]) + ", ..." * (len(columns) > 8)
    raise TextError(
        f"{path}: none of its columns ({names}) is called {COLUMN}, and {len(strings) or 'none'} hold strings; "
        f"rename the one to read to {COLUMN}"
    )


def _json(path: Path, stream: TextIO) -> Iterator[Any]:
    """Rows of JSON lines, or of one document: a list of rows, or a single one."""
    lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    begin, first = next(lines, (1, ""))
    if not first:
        return
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict | str):
        document = _loads(path, first + stream.read(), begin)
        yield from document if isinstance(document, list) else [document]
        return
    yield row
    for number, line in lines:
        yield _loads(path, line, number)


def _loads(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TextError(f"{path}: line {line + error.lineno - 1} is not JSON ({error.msg})") from None


def _csv(path: Path, stream: TextIO, delimiters: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(FIELD)
    first = stream.readline()
    delimiter = next((mark for mark in delimiters if mark in first), delimiters[0])
    rows = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for row in rows:
            if header is None:
                header = [name.strip() for name in row]
            elif row:
                if len(row) != len(header):
                    raise TextError(
                        f"{path}: line {rows.line_num} has {len(row)} fields, the header {len(header)}; "
                        f'quote fields that hold {delimiter!r} by "'
                    )
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise TextError(f"{path}: line {rows.line_num} cannot be read ({error})") from None


def _table(path: Path, stream: Any, kind: str) -> Iterator[Any]:
    pyarrow = _pyarrow(path, kind.removeprefix("."))
    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    types = pyarrow.types

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def column(schema: Any) -> str:
        return _choose(path, schema.names, [field.name for field in schema if is_text(field.type)])

    if kind == ".parquet":
        from pyarrow import parquet

        file = parquet.ParquetFile(stream)
        name = column(file.schema_arrow)
        batches = file.iter_batches(columns=[name], batch_size=1024)
    else:
        from pyarrow import ipc

        head = stream.read(6)
        stream.seek(0)
        file = ipc.open_file(stream) if head == b"ARROW1" else ipc.open_stream(stream)
        name = column(file.schema)
        batches = map(file.get_batch, range(file.num_record_batches)) if head == b"ARROW1" else file
    for batch in batches:
        yield from batch.column(name).to_pylist()


# --- plain files -----------------------------------------------------------------------------------------------------


def _plain(path: Path, stream: TextIO) -> Iterator[str]:
    content = stream.read(CHUNK)
    if content.startswith("<mediawiki"):
        yield from _articles(content, stream)
        return
    content += stream.read(LIMIT)
    if "\0" in content:
        raise TextError(f"{path}: binary, not text (or UTF-16 without a byte order mark: convert it to UTF-8)")
    yield content


def _articles(dump: str, stream: TextIO) -> Iterator[str]:
    """Plain text of a MediaWiki dump, roughly: templates, tables, references and link targets are dropped."""
    while dump:
        end = 0
        for page in PAGE.finditer(dump):
            end = page.end()
            if not page[1].startswith("#REDIRECT"):
                yield _article(html.unescape(page[1]))
        more = stream.read(CHUNK)
        dump = dump[end:] + more if more else ""


def _article(page: str) -> str:
    page = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>", "", page, flags=re.DOTALL)
    for _ in range(4):  # templates nest
        page = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", page)
    page = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", page)
    page = re.sub(r"\[\[(?:[^|\[\]]*\|)?([^\[\]|]*)\]\]", r"\1", page)
    page = re.sub(r"\[https?:\S+ ?([^\]]*)\]", r"\1", page)
    page = re.sub(r"</?\w[^>]*>|'{2,}|^=+|=+\s*$|^[*#:;]+ *", "", page, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", page).strip()
