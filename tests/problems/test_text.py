"""Calibration text: sources, exact token counts, refusals."""

import bz2
import os

import pytest
import tiny

from fwbench.problems import resources, text
from fwbench.problems.text import Text, TextError


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Puts bytes in place of any download."""

    def serve(data: bytes, name: str = "served.cor"):
        (tmp_path / name).write_bytes(data)
        monkeypatch.setattr(resources, "fetch", lambda resource: tmp_path / name)

    return serve


def test_a_file(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_bytes("\ufeffGrüße".encode())
    found = text.load_text(path)
    assert (found.name, found.content, found.source) == ("prose.txt", "Grüße", "prose.txt")
    # printf Grüße | sha256sum
    assert found.sha256 == "f83e039796c6453a10f5519e39fd113901572316a1a8ea07cb525d2801dfd074"


def test_a_folder_in_the_order_of_names(tmp_path):
    for name, content in {"b.txt": "two", "a.txt": "one", ".hidden": "\0"}.items():
        (tmp_path / name).write_text(content)
    assert text.load_text(tmp_path).content == "one\n\ntwo"


def test_a_pipe():
    """As a shell gives it: --text <(zcat big.gz | head -c 9000)."""
    reader, writer = os.pipe()
    os.write(writer, "Grüße\r\n".encode())
    os.close(writer)
    assert text.load_text(f"/dev/fd/{reader}").content == "Grüße\n"
    os.close(reader)


def test_latin1_only_where_it_is_known(served):
    served("Café".encode("latin-1"))
    assert text.load_text("lee-heldout").content == "Café"
    with pytest.raises(TextError, match=r"not UTF-8 text \(byte 3\)"):
        text.load_text("lee")
    with pytest.raises(TextError, match="not UTF-8"):
        text.load_text("pypi:some==1#file.txt")


def test_a_resource(served):
    served(b"abc")
    found = text.load_text("pypi:some==1#folder/file.txt")
    assert (found.name, found.source) == ("file.txt", "pypi:some==1#folder/file.txt")
    named = text.load_text("lee")
    assert named.source == resources.KNOWN["lee"].spec
    assert named.license


def test_wikipedia_is_plain_text(served):
    page = (
        "{{Infobox|x={{nested}}}}&lt;!-- no --&gt;'''Anarchism''' is a [[political philosophy|philosophy]] of "
        "[[self-governance]].&lt;ref name=a&gt;cite&lt;/ref&gt;\n== History ==\n* one\n[http://x.org a link]"
    )
    dump = f"<mediawiki><page><text xml:space='preserve'>{page}</text></page><page><text>#REDIRECT [[A]]</text></page>"
    served(bz2.compress(dump.encode()), "wiki.bz2")
    assert text.load_text("wikipedia").content == (
        "Anarchism is a philosophy of self-governance.\n History \none\na link"
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the text is empty"),
        (b" \n\t", "the text is empty"),
        (b"a\0b", "binary, not text"),
        (b"\xff\xff", "not UTF-8"),
        (b"\xff\xfe", "the text is empty"),  # UTF-16, and nothing in it
    ],
)
def test_refused_files(tmp_path, data, reason):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    for source in (path, tmp_path):
        with pytest.raises(TextError, match=reason) as error:
            text.load_text(source)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


def test_no_such_text(tmp_path):
    with pytest.raises(TextError, match="did you mean wikipedia"):
        text.load_text("wikpedia")
    with pytest.raises(TextError, match="no such text; name a file"):
        text.load_text(tmp_path / "x.txt")
    with pytest.raises(TextError, match="no file in this folder"):
        text.load_text(tmp_path)
    (tmp_path / "cut.bz2").write_bytes(bz2.compress(b"hello")[:-4])
    with pytest.raises(TextError, match="cannot be read"):
        text.load_text(tmp_path / "cut.bz2")


def lengths(count: int, tokens: int, length: int) -> list[int]:
    return [len(ids) for ids in text.sequences(tiny.tokenizer, Text("t", "x" * count), tokens, length)]


def test_tokens_are_counted_exactly():
    assert lengths(100, 64, 32) == [32, 32]
    assert lengths(100, 70, 32) == [32, 32, 6]
    assert lengths(100, 10, 32) == [10]
    assert lengths(100, 1000, 32) == [32, 32, 32, 4]  # all there is
    assert lengths(32, 1000, 32) == [32]


def opened(count: int, tokens: int, length: int, begin=(90, 91)) -> list[list[int]]:
    """Sequences of a text of ``count`` different tokens, with some before it and one after it."""

    def tokenizer(content, verbose, add_special_tokens=True):
        ids = list(range(len(content)))
        return {"input_ids": [*begin, *ids, 95] if add_special_tokens else ids}

    return text.sequences(tokenizer, Text("t", "x" * count), tokens, length)


def test_sequences_begin_as_the_tokenizer_has_it():
    assert opened(50, 16, 8) == [[90, 91, *range(6)], [90, 91, *range(6, 12)]]
    assert opened(50, 13, 8) == [[90, 91, *range(6)], [90, 91, 6, 7, 8]]
    assert opened(50, 10, 8) == [[90, 91, *range(6)]]  # a rest that holds nothing of the text
    assert opened(50, 5, 8) == [[90, 91, 0, 1, 2]]
    assert opened(7, 99, 8) == [[90, 91, *range(6)], [90, 91, 6]]  # all there is
    assert opened(50, 6, 8, ()) == [[*range(6)]]
    for tokens, length in ((2, 8), (99, 2)):
        with pytest.raises(TextError, match="t: 2 tokens asked for; ask for 3 or more"):
            opened(50, tokens, length)
    with pytest.raises(TextError, match="the text has 3 tokens, fewer than one sequence of 6"):
        opened(3, 99, 8)


@pytest.mark.parametrize(
    ("nothing", "something", "begin"),
    [
        ([], [7], []),
        ([1], [1, 7], [1]),  # BOS
        ([2], [2, 7], [2]),  # OPT: BOS and EOS are one
        ([1], [7, 1], []),  # EOS alone
        ([0, 2], [0, 7, 2], [0]),  # both
        ([1, 1], [1, 7, 1], [1]),  # XLM
        ([8, 9], [8, 9, 7], [8, 9]),  # GLM
    ],
)
def test_what_a_tokenizer_puts_before_a_text(nothing, something, begin):
    assert text.opening(lambda content, verbose: {"input_ids": something if content else nothing}) == begin


def test_too_short():
    with pytest.raises(TextError, match="t: the text has 31 tokens, fewer than one sequence of 32"):
        lengths(31, 1000, 32)
    with pytest.raises(TextError, match="ask for one or more"):
        lengths(31, 0, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), [("lee", "Hundreds of people"), ("lee-heldout", "The national executive")])
def test_the_real_texts(name, start):
    assert text.load_text(name).content.startswith(start)
