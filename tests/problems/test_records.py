"""Records of files: each structure, compression, encoding and line end gives the same text; the rest is refused."""

import bz2
import contextlib
import csv
import gzip
import importlib.util
import io
import json
import lzma
import re

import pytest

from fwbench import notes
from fwbench.problems import records, text
from fwbench.problems.records import TextError

ROWS = [
    {"id": "1", "text": "The quick\r\nbrown fox", "url": "a"},
    {"id": "2", "text": 'jumps \u2028 over, "the";\rlazy\ttäglich 𐤀 dog', "url": "b"},
    {"id": "3", "text": "", "url": "c"},
]
CONTENT = 'The quick\nbrown fox\n\njumps \u2028 over, "the";\nlazy\ttäglich 𐤀 dog\n\n'
PYARROW = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


@contextlib.contextmanager
def noted(sentence):
    """One note is made that has this in it; none where it is empty."""
    said = []
    with notes.heard(said.append):
        yield
    assert len(said) == bool(sentence)
    assert not sentence or re.search(sentence, said[0])


def lines(rows=ROWS, **options):
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def table(delimiter, rows=ROWS):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


STRUCTURES = {
    "c4-train.00000-of-01024.json": lines(),
    "a.jsonl": lines(ensure_ascii=False),
    "A.NDJSON": "\n\n" + lines(),
    "strings.jsonl": lines([row["text"] for row in ROWS]),
    "list.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "nulls.jsonl": lines([ROWS[0], {"text": None}, *ROWS[1:]]),
    "a.csv": table(","),
    "semicolons.csv": table(";"),
    "a.tsv": table("\t"),
    "only.csv": table(",", [{"text": row["text"]} for row in ROWS[:2]] + [{"text": ""}]),
}


def read(path):
    return text.load_text(path).content


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(tmp_path, name, compress):
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}.get(compress, "")
    (tmp_path / f"{name}{suffix}").write_bytes(compress(STRUCTURES[name].encode()))
    assert read(tmp_path / f"{name}{suffix}") == CONTENT
    assert read(tmp_path) == read(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_seen_whatever_the_name(tmp_path, compress):
    for name in ("a.txt", "a.txt.gz"):
        (tmp_path / name).write_bytes(compress("Grüße".encode()))
        assert read(tmp_path / name) == "Grüße"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
@pytest.mark.parametrize("name", [*STRUCTURES, "plain.txt"])
def test_encodings_with_a_byte_order_mark(tmp_path, name, encoding):
    content = STRUCTURES.get(name, CONTENT)
    mark = "\ufeff" if encoding.endswith("-be") else ""
    (tmp_path / name).write_bytes((mark + content).encode(encoding))
    found = read(tmp_path / name)
    (tmp_path / name).write_bytes(content.encode())
    assert found == read(tmp_path / name)
    assert "quick\nbrown" in found
    assert "täglich 𐤀" in found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["plain.txt", "a.jsonl", "pretty.json", "a.csv"])
def test_line_ends_change_nothing(tmp_path, name, end):
    content = records.unix(STRUCTURES.get(name, CONTENT))
    for folder, ends in (("one", "\n"), ("other", end)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content.replace("\n", ends).encode())
    one, other = (text.load_text(tmp_path / folder / name) for folder in ("one", "other"))
    assert one == other
    assert one.sha256 == other.sha256


def test_line_ends_over_the_border_of_a_chunk(tmp_path):
    content = ("x" * 8190 + "\r\n") * 300
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt") == content.replace("\r\n", "\n")


@PYARROW
@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "a.parquet.gz", "stream.arrow", "file.arrow"])
def test_tables(tmp_path, name):
    import pyarrow
    from pyarrow import ipc, parquet

    data, file = pyarrow.Table.from_pylist(ROWS), io.BytesIO()
    if ".parquet" in name:
        parquet.write_table(data, file, row_group_size=2)
    else:
        with (ipc.new_file if name == "file.arrow" else ipc.new_stream)(file, data.schema) as writer:
            for batch in data.to_batches(2):
                writer.write(batch)
    (tmp_path / name).write_bytes(gzip.compress(file.getvalue()) if name.endswith(".gz") else file.getvalue())
    assert read(tmp_path / name) == CONTENT
    if not name.endswith(".gz"):
        (tmp_path / name).write_bytes(file.getvalue()[:-40])
        with pytest.raises(TextError, match="cannot be read"):
            read(tmp_path / name)


@PYARROW
def test_columns_of_tables(tmp_path):
    import pyarrow
    from pyarrow import parquet

    words = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "words": words}), tmp_path / "a.parquet")
    with noted("there is no column text, so words is read"):
        assert read(tmp_path / "a.parquet") == "a\n\nb\n\na"
    parquet.write_table(pyarrow.table({"n": [1], "m": [[2]]}), tmp_path / "b.parquet")
    with pytest.raises(TextError, match=r"none of its columns \(n, m\) is called text, and none hold strings"):
        read(tmp_path / "b.parquet")


@PYARROW
def test_zstandard(tmp_path):
    import pyarrow

    data = bytes(pyarrow.compress(lines().encode(), "zstd"))
    (tmp_path / "00.jsonl.zst").write_bytes(data)
    assert read(tmp_path / "00.jsonl.zst") == CONTENT
    (tmp_path / "00.jsonl.zst").write_bytes(data[:-5])
    with pytest.raises(TextError, match="cannot be read"):
        read(tmp_path / "00.jsonl.zst")
    (tmp_path / "a.zst").write_bytes(pyarrow.compress(b"abc\xff", "zstd"))
    with pytest.raises(TextError, match="not UTF-8 text"):
        read(tmp_path / "a.zst")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.parquet", b"PAR1" + bytes(9), "parquet is read by pyarrow; pip install pyarrow"),
        ("a.arrow", bytes(9), "arrow is read by pyarrow; pip install pyarrow"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(9), "zstandard is read by pyarrow; pip install pyarrow"),
    ],
)
def test_without_pyarrow(tmp_path, monkeypatch, name, data, says):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TextError, match=says):
        read(tmp_path / name)


def test_the_only_column_of_strings(tmp_path):
    cases = {
        "a.jsonl": '{"id": "17", "content": "one", "n": 2}\n{"content": "two"}\n',
        "a.csv": "id,content\n17,one\n18,two\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_text(content)
        with noted(f"{name}: there is no column text, so content is read"):
            assert read(tmp_path / name) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.jsonl",
            lines([{"title": "x", "body": "y"}]),
            r"columns \(title, body\) is called text, and 2 hold strings",
        ),
        ("a.json", '{"data": [1]}', r"columns \(data\) is called text, and none hold strings"),
        ("a.csv", "a,b\nx,y\n", r"columns \(a, b\) is called text, and 2 hold strings; rename the one to read to text"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": }\n', r"line 3 is not JSON \(Expecting value\)"),
        ("a.json", '[{"text": "x"},\n {"text" "y"}]', "line 2 is not JSON"),
        ("a.json", "hello", "line 1 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', "record 2 has no text"),
        ("a.jsonl", '{"text": "x"}\n{"text": ["y"]}\n', "record 2 has no string for a text"),
        ("a.json", "[1, 2]", "record 1 has no string for a text"),
        ("a.csv", "text\nHello, world\n", "line 2 has 2 fields, the header 1; quote fields that hold ',' by \""),
        ("a.tsv", 'text\tn\n"x" y\t1\n', "line 2 cannot be read"),
        ("a.csv", 'text\n"open\nend\n', "line 3 cannot be read"),
        ("a.jsonl", "", "the text is empty"),
        ("a.csv", "text\n", "the text is empty"),
        ("a.json", "[]", "the text is empty"),
        ("a.jsonl", '{"text": "\\ud800 half"}\n', r"half a surrogate pair \(\\ud800\) is no character"),
        ("a.txt", "PK\x03\x04 whatever", "an archive; unpack it"),
        ("a.tar", "name" + "\0" * 253 + "ustar\0", "an archive; unpack it"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "the pointer of a file in Git LFS"),
        ("a.txt", "a\0b", "binary, not text"),
        ("deep.json", "[" * 100000, "cannot be read"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=says) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


PACKED = gzip.compress(b"hello" * 99, mtime=0)
NO_TEXT = {
    "latin-1": ("naïve".encode("latin-1"), r"not UTF-8 text \(byte 2\); convert it, such as by iconv"),
    "far in": (b"x" * 3_000_000 + b"\xe9t", r"not UTF-8 text \(byte 3000000\)"),
    "packed": (gzip.compress(b"x" * 30_000 + b"\xe9t", mtime=0), r"not UTF-8 text \(byte 30000\)"),
    "half a letter": ("\ufeffab".encode("utf-16-le") + b"\0", r"not UTF-16 text \(byte 6\)"),
    "no mark": ("ab".encode("utf-16-le"), "UTF-16 without a byte order mark: convert it to UTF-8"),
    "cut gz": (PACKED[:-9], "cannot be read"),
    "cut bz2": (bz2.compress(b"hello" * 99)[:-9], "cannot be read"),
    "cut xz": (lzma.compress(b"hello" * 99)[:-9], "cannot be read"),
    "damaged gz": (PACKED[:10] + b"\xff" * 20, "cannot be read"),
}


@pytest.mark.parametrize("what", NO_TEXT)
def test_bytes_that_are_no_text_are_refused(tmp_path, what):
    data, says = NO_TEXT[what]
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(TextError, match=says) as error:
        read(tmp_path / "a.txt")
    assert "\n" not in str(error.value)


def test_a_text_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    """Records beyond the limit are not even looked at: here they are no JSON."""
    monkeypatch.setattr(text, "LIMIT", 1000)
    rows = [{"text": f"{number:099d}"} for number in range(20)]
    (tmp_path / "a.jsonl").write_text(lines(rows) + "no JSON\n")
    (tmp_path / "b.jsonl").write_text("no JSON\n")
    for path in (tmp_path / "a.jsonl", tmp_path):
        found = text.load_text(path)
        assert found.content == "\n\n".join(row["text"] for row in rows)[:1000]
        assert found.cut
    monkeypatch.setattr(text, "LIMIT", 99 * 20 + 2 * 19)
    (tmp_path / "a.jsonl").write_text(lines(rows))
    assert not text.load_text(tmp_path / "a.jsonl").cut  # just so


def test_a_plain_text_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 10)
    monkeypatch.setattr(records, "LIMIT", 1000)
    monkeypatch.setattr(text, "LIMIT", 1000)
    for data, cut in ((b"x" * 1000, False), (b"x" * 1001, True), (b"x\r\n" * 500, False), (b"x\r\n" * 501, True)):
        (tmp_path / "a.txt").write_bytes(data)
        found = text.load_text(tmp_path / "a.txt")
        assert (found.content, found.cut) == (data.decode().replace("\r\n", "\n")[:1000], cut)


def test_a_dump_in_pieces(tmp_path, monkeypatch):
    pages = "".join(f"<page><text bytes='3'>page {number} '''bold'''</text></page>\n" for number in range(50))
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{pages}<page><text>#REDIRECT [[A]]</text></page></mediawiki>")
    whole = read(tmp_path / "dump.xml")
    assert whole == "\n\n".join(f"page {number} bold" for number in range(50))
    monkeypatch.setattr(records, "CHUNK", 13)
    assert read(tmp_path / "dump.xml") == whole


FOLDERS = {
    "C4, as it is downloaded": (
        {
            "README.md": "card",
            ".gitattributes": "*",
            "en/c4-train.00000-of-01024.json.gz": '{"text": "one"}',
            "en/c4-train.00001-of-01024.json.gz": '{"text": "two"}',
            "en/c4-validation.00000-of-00008.json.gz": '{"text": "held out"}',
            ".cache/huggingface/x.json": "{}",
        },
        "one\n\ntwo",
        "2 files from en/c4-train.00000-of-01024.json.gz on",
        "leaves out README.md, en/c4-validation",
    ),
    "WikiText": (
        {"wiki.train.raw": "one", "wiki.test.raw": "test", "wiki.valid.raw": "valid", "LICENSE": "terms"},
        "one",
        "/wiki.train.raw",
        "reads wiki.train.raw; leaves out LICENSE, wiki.test.raw, wiki.valid.raw$",
    ),
    "held out alone": ({"test.txt": "one", "validation.txt": "two"}, "one\n\ntwo", "2 files from test.txt on", None),
    "names that only hold the word": (
        {"constrained.txt": "one", "latest.txt": "two", "train.txt": "three"},
        "one\n\ntwo\n\nthree",
        "3 files from constrained.txt on",
        None,
    ),
    "structured beside plain": (
        {"a.txt": "urls", "b.csv": "text\none\n", "dataset_infos.json": "{}"},
        "one",
        "/b.csv",
        "reads b.csv; leaves out a.txt$",
    ),
    "nested": ({"b/a.txt": "two", "a/z.txt": "one", "c.txt": "three"}, "one\n\ntwo\n\nthree", "3 files", None),
    "many left out": (
        {"a.txt": "one", **{f"{number}.md": "" for number in range(9)}},
        "one",
        "/a.txt",
        r"leaves out 0.md, 1.md, 2.md and 6 more$",
    ),
    "papers alone": ({"README.md": "one", "b.md": "two"}, "one\n\ntwo", "2 files from README.md on", "reads 2 files"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folders(tmp_path, what):
    files, content, source, says = FOLDERS[what]
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith(".gz") else data.encode())
    with noted(says):
        found = text.load_text(tmp_path)
    assert found.content == content
    assert source in found.source


def test_links_are_followed_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "en").symlink_to(tmp_path / "data")
    (tmp_path / "view" / "b.txt").symlink_to(tmp_path / "data" / "a.txt")
    assert read(tmp_path / "view") == "one\n\none"


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.chdir(tmp_path)
    assert text.load_text(".").name == tmp_path.name
