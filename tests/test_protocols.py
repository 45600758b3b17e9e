"""The field's protocols on texts of the same form, against computations with transformers alone, and lm-eval's own."""

import gzip
import hashlib
import json
import math
import re

import huggingface_hub
import numpy as np
import pyarrow
import pytest
import tiny
import torch
from checkpoints import configure, with_opening
from pyarrow import ipc, parquet
from small_models import options, place, saved

from fwbench import notes, protocols
from fwbench.perplexity import perplexity
from fwbench.problems.models import load_model
from fwbench.problems.structure import ModelError
from fwbench.problems.text import Text, TextError
from fwbench.pruning import prune

__all__ = ["place"]  # a fixture

ARTICLE = [  # rows as datasets has those of wikitext-2-raw-v1
    "",
    " = NAME = \n",
    "",
    " NAME ( born 1 @,@ 903 ) is a \" b c \" of the 5 @.@ 5 @-@ inch a 's ' c ' ; [ b ] , { c } . What ? Yes ! : a \n",
    "",
    " = = Early a = = \n",
    "",
    " In 1999 the a N c 20 ° b b b a c a a b c s ' c a b c a b a c c a b c a b a a c b a c b a a a c b c a c b \n",
    " = = = A b = = = \n",
    "",
    " a b a a c . \n",
]
ROWS = [row.replace("NAME", name) for name in ("Robert b", "a of c", "= c") for row in ARTICLE]  # "= = c =" begins none
RAW = "".join(row or " \n" for row in ROWS)  # as wiki.test.raw has them
PAGES = [RAW[RAW.index(" = Robert") : RAW.index("\n = a of c")], RAW[RAW.index(" = a of c") :]]


def wikitext(folder, form):
    """The text in one of the forms in which people have it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": ROWS})
    if form == "parquet":
        parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    elif form == "raw":
        (folder / "wiki.test.raw").write_text(RAW, encoding="utf-8")
    elif form == "arrow":
        with ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
    elif form == "jsonl":
        (folder / "test.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")
    elif form == "pages":
        parquet.write_table(pyarrow.table({"page": PAGES}), folder / "test-00000-of-00001.parquet")
    return next(folder.iterdir())


def c4(folder, count=1105):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"a b {'c ' * (number % 5)}\nb", "url": "a", "timestamp": "b"} for number in range(count)]
    path = folder / "c4-validation.00000-of-00008.json.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path, " ".join(row["text"] for row in rows[:1100])


@pytest.fixture
def folder(place, tmp_path):
    """A model whose tokenizer puts <bos> before every text, as Llama's does; 48 positions."""
    from checkpoints import copied

    source = copied(saved(place, "llama"), tmp_path / "dense")
    with_opening(source)
    configure(source, "tokenizer_config.json", bos_token="<bos>", eos_token="<eos>")
    return source


def windows_apart(model, content, length, most=None):
    """exp of the mean over windows of transformers' own loss in each."""
    ids = model.tokenizer(content)["input_ids"]
    starts = list(range(0, len(ids) - length + 1, length))[:most]
    rows = [torch.tensor([ids[start : start + length]]) for start in starts]
    with torch.no_grad():
        losses = [float(model.network(input_ids=row, labels=row).loss) for row in rows]
    return math.exp(sum(losses) / len(losses)), len(rows), ids


@pytest.mark.parametrize("form", ["parquet", "raw", "arrow", "jsonl"])
def test_wikitext2(folder, tmp_path, form):
    model, path = load_model(folder), wikitext(tmp_path / "text" / "test", form)
    value, count, ids = windows_apart(model, "\n\n".join(ROWS), 32)
    for source in (path, path.parent, path.parents[1]):
        found = protocols.measure(model, protocols.load("wikitext2", source), length=32)
        assert found.value == pytest.approx(value, rel=1e-6)
        assert (found.windows, found.length, found.scored, found.tokens) == (count, 32, count * 31, len(ids))
    assert ids[0] != ids[1]
    assert found.begins == ("<bos>",)  # the text, and no window after the first
    assert found.text_sha256 == hashlib.sha256("\n\n".join(ROWS).encode()).hexdigest()
    assert found.tokens_sha256 == hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()
    assert found.word_perplexity is None
    assert found.rows == len(ROWS)


def test_c4(folder, tmp_path, monkeypatch):
    model, (path, content) = load_model(folder), c4(tmp_path / "en")
    (path.parent / "c4-validation.00001-of-00008.json.gz").write_bytes(b"another")
    (path.parent / "c4-train.00000-of-01024.json.gz").write_bytes(b"another")
    value, count, ids = windows_apart(model, content, 16, 256)
    assert (count, len(ids) > 257 * 16) == (256, True)  # there is more than is measured
    found = protocols.measure(model, protocols.load("c4", path.parent), length=16)
    assert found.value == pytest.approx(value, rel=1e-6)
    assert (found.windows, found.rows, found.tokens) == (256, 1100, len(ids))
    assert found == protocols.measure(model, protocols.load("c4", path), length=16)


LENGTH = 13


def rolling(model, length):
    """Negative log-likelihood of every token of every article, each by a forward pass of its own."""
    total, count = 0.0, 0
    bos = model.tokenizer.bos_token_id
    for page in PAGES:
        ids = model.tokenizer(protocols._detokenised(page), add_special_tokens=False)["input_ids"]
        for position, token in enumerate(ids):
            start = position // length * length  # the window in which it is; the last one ends with the article
            start = min(start, max(len(ids) - length, 0)) if start + length > len(ids) else start
            before = torch.tensor([[bos, *ids][start : position + 1]])
            with torch.no_grad():
                total -= float(model.network(input_ids=before).logits[0, -1].double().log_softmax(-1)[token])
        count += len(ids)
    return total, count


@pytest.mark.parametrize("form", ["parquet", "raw", "pages"])
@pytest.mark.parametrize("length", [LENGTH, 48])
def test_lm_eval_wikitext(folder, tmp_path, form, length):
    model, path = load_model(folder), wikitext(tmp_path / "text", form)
    total, count = rolling(model, length)
    words, size = sum(len(re.split(r"\s+", page)) for page in PAGES), len("".join(PAGES).encode())
    found = protocols.measure(model, protocols.load("lm-eval-wikitext", path), length=length)
    assert (found.scored, found.tokens, found.words, found.bytes) == (count, count, words, size)
    for value, units in ((found.value, count), (found.word_perplexity, words), (found.byte_perplexity, size)):
        assert value == pytest.approx(math.exp(total / units), rel=1e-6)
    assert (found.begins, found.length) == (("<bos>",), length)
    if length == 48:  # the model's own
        assert protocols.measure(model, protocols.load("lm-eval-wikitext", path), length=None).length == 64


@pytest.mark.parametrize("length", [LENGTH, 40])
def test_as_lm_eval_itself_has_it(folder, tmp_path, length):
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason="lm_eval is not installed", exc_type=ImportError
    )
    from lm_eval.api.instance import Instance
    from lm_eval.tasks.wikitext import preprocess_wikitext as own

    for page in [*PAGES, "".join(ROWS)]:
        assert protocols._detokenised(page) == own.wikitext_detokenizer({"page": page})
    other = huggingface.HFLM(pretrained=str(folder), device="cpu", max_length=length, add_bos_token=False, batch_size=1)
    asked = [
        Instance("loglikelihood_rolling", {"page": page}, (own.wikitext_detokenizer({"page": page}),), 0)
        for page in PAGES
    ]
    likelihoods = other.loglikelihood_rolling(asked, disable_tqdm=True)
    results = [own.process_results({"page": page}, (value,)) for page, value in zip(PAGES, likelihoods, strict=True)]
    found = protocols.measure(
        load_model(folder), protocols.load("lm-eval-wikitext", wikitext(tmp_path / "text", "parquet")), length
    )
    for name in ("word_perplexity", "byte_perplexity"):
        sums, weights = zip(*(result[name] for result in results), strict=True)
        assert getattr(found, name) == pytest.approx(math.exp(-sum(sums) / sum(weights)), rel=1e-6)


def test_how_text_is_detokenised():
    said = protocols._detokenised(
        " = a = \n \n 1 @,@ 903 @.@ 5 @-@ inch ( b , c ) ; \" a b \" [ c ] a 's ' b ' = = a = = N b "
    )
    assert said == " = a =\n\n1,903.5-inch (b, c); \"a b\" [c] a's' b ' == a == 1 b "


def test_a_text_that_is_not_the_fields(tmp_path):
    said = []
    with notes.heard(said.append):
        protocols.load("wikitext2", wikitext(tmp_path, "raw"))
        protocols.load("c4", c4(tmp_path / "en", 1099)[0])
        protocols.load("c4", c4(tmp_path / "en", 1100)[0])
    assert [sentence.split(": ")[1] for sentence in said] == [
        f"{len(ROWS)} rows, and wikitext2 has 4358; its figures are not those of publications",
        "1099 rows, and c4 has 1100; its figures are not those of publications",
    ]


def test_a_folder_with_several_texts(tmp_path):
    """A clone of Salesforce/wikitext: the raw version of WikiText-2 is meant, and its test split."""
    for version in ("wikitext-103-raw-v1", "wikitext-103-v1", "wikitext-2-v1", "wikitext-2-raw-v1"):
        wikitext(tmp_path / version, "parquet")
        (tmp_path / version / "train-00000-of-00001.parquet").write_bytes(b"")
    assert protocols.load("wikitext2", tmp_path).rows == len(ROWS)
    (tmp_path / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(TextError, match=r"3 files \(.*\) could be the text of wikitext2 .*; name the file"):
        protocols.load("wikitext2", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("wiki", lambda place: "", "no such protocol; there are wikitext2, c4, lm-eval-wikitext"),
        ("wikitext2", lambda place: place / "none.txt", "no such file, folder or data set"),
        ("wikitext2", lambda place: place, "none of its 0 files could be the text"),
        ("c4", lambda place: wikitext(place, "raw"), "c4 needs rows: JSON lines, parquet or arrow"),
        ("wikitext2", lambda place: (place / "test.txt").write_text(" \n\n") and place, "the text is empty"),
    ],
)
def test_refused(tmp_path, name, make, reason):
    with pytest.raises(TextError, match=reason):
        protocols.load(name, make(tmp_path))


def test_the_hub(tmp_path, monkeypatch):
    path, asked, kept = wikitext(tmp_path, "parquet"), [], []

    def ask(dataset, timeout):
        if dataset == "gone/gone":
            raise OSError("offline")

    def download(dataset, file, repo_type):
        asked.append((dataset, file, repo_type))
        if dataset == "empty/empty":
            raise OSError("no such file")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "dataset_info", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, repo_type: kept and kept[0])
    assert protocols.load("wikitext2") == protocols.load("wikitext2", path)
    protocols.load("wikitext2", "mirror/wikitext")
    file = "wikitext-2-raw-v1/test-00000-of-00001.parquet"
    assert asked == [("Salesforce/wikitext", file, "dataset"), ("mirror/wikitext", file, "dataset")]
    with pytest.raises(
        TextError, match=r"gone/gone: .* cannot be had from the hub \(offline\); download it .* by --text"
    ):
        protocols.load("wikitext2", "gone/gone")
    with pytest.raises(TextError, match=r"empty/empty: .* \(no such file\)"):
        protocols.load("wikitext2", "empty/empty")
    kept.append(str(path))  # downloaded before
    assert protocols.load("wikitext2", "gone/gone") == protocols.load("wikitext2", path)


def test_windows_that_the_model_does_not_take(folder, tmp_path):
    model, text, said = load_model(folder), protocols.load("wikitext2", wikitext(tmp_path / "a", "raw")), []
    with notes.heard(said.append):
        assert protocols.measure(model, text).length == 64
    assert said == ["dense: takes 64 tokens, so windows have no 2048; say so beside the figure"]
    with pytest.raises(TextError, match=r"its 3 tokens fill no window of 64; --length"):
        protocols.measure(model, protocols.Passages(text.protocol, "short", "short", 1, ["a b"]))
    rolling = protocols.PROTOCOLS["lm-eval-wikitext"]
    short = protocols.measure(model, protocols.Passages(rolling, "short", "short", 1, ["a b"], ["a b"]), 48)
    assert (short.length, short.scored) == (48, 2)  # the context, which no article fills
    plain = tiny.model("llama")
    with pytest.raises(ModelError, match="no BOS and no EOS"):
        protocols.measure(plain, protocols.load("lm-eval-wikitext", tmp_path / "a"))


# --- as a person runs it ---------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(folder, place, tmp_path):
    prune(str(folder), tmp_path / "pruned", options(place))
    return tmp_path / "pruned"


def test_the_dense_line_is_beside(folder, pruned, tmp_path, fwbench):
    path = wikitext(tmp_path / "text", "raw")
    words = ("perplexity", "pruned", "--protocol", "lm-eval-wikitext", "--text", "text", "--length", 48)
    code, said, error = fwbench(*words)
    assert (code, error.count("\n")) == (0, 1)  # the rows are not the field's
    passages = protocols.load("lm-eval-wikitext", path)
    head, columns, *lines = said.splitlines()
    assert head.startswith("lm-eval-wikitext of wiki.test.raw: ")
    assert "begun with <bos>" in head
    assert columns.split("  ")[-3:] == ["perplexity a token", "perplexity a word", "perplexity a byte"]
    for line, source in zip(lines, (pruned, folder), strict=True):
        found = protocols.measure(load_model(source), passages, 48)
        figures = [f"{value:.4f}" for value in (found.value, found.word_perplexity, found.byte_perplexity)]
        assert line.split() == [source.name, *figures]
    found = json.loads(fwbench(*words, "--json")[1])
    assert (found["model"], found["protocol"], found["dense"]["protocol"]) == ("pruned", *2 * ["lm-eval-wikitext"])
    assert found["dense"]["tokens_sha256"] == found["tokens_sha256"]
    assert f"{found['dense']['perplexity']:.4f}" == lines[1].split()[1]
    folder.rename(tmp_path / "elsewhere")
    code, said, error = fwbench(*words)
    assert error.endswith(
        "fwbench: note: pruned: dense, from which it was pruned, is not to be had here, so its line is missing; "
        "give --dense\n"
    )
    assert len(said.splitlines()) == 3
    assert fwbench(*words, "--dense", "elsewhere")[1].splitlines()[-1].split()[1:] == lines[1].split()[1:]
    code, said, error = fwbench(*words, "--dense", "pruned")
    assert "pruned: not the model that pruned was pruned from, which is dense" in error
    assert (code, len(said.splitlines())) == (0, 4)


def test_prune_evaluates_by_a_protocol(folder, place, tmp_path, fwbench):
    """And the dense model's figure is then known without the dense model."""
    wikitext(tmp_path / "text", "parquet")
    words = ("--pattern", 0.5, "-s", "wanda", "--text", place / "text.txt", "--tokens", 250, "--length", 48)
    code, said, _ = fwbench("prune", folder, "-o", "out", *words, "--evaluate", "wikitext2=text")
    assert code == 0
    summary = json.loads((tmp_path / "out" / "fwbench.json").read_text())
    assert summary["evaluation"] == "wikitext2=test-00000-of-00001.parquet"
    dense, after = summary["perplexity"]["dense"], summary["perplexity"]["pruned"]
    assert f"perplexity {dense['value']:.2f} dense, {after['value']:.2f} pruned (wikitext2 of" in said
    folder.rename(tmp_path / "elsewhere")
    code, said, _ = fwbench("perplexity", "out", "--protocol", "wikitext2", "--text", "text")
    assert [line.split() for line in said.splitlines()[-2:]] == [
        ["out", f"{after['value']:.4f}"],
        ["dense", f"{dense['value']:.4f}"],
    ]
    assert dense["protocol"] == "wikitext2"
    assert protocols.measure(load_model(tmp_path / "out"), protocols.load("wikitext2", "text")).value == after["value"]
    code, _, error = fwbench("prune", tmp_path / "elsewhere", "-o", "more", *words, "--evaluate", "wikitext2=none")
    assert (code, "none: no such file, folder or data set" in error) == (2, True)


def test_other_texts_have_the_dense_line_too(folder, pruned, place, fwbench, tmp_path):
    code, said, _ = fwbench("perplexity", "pruned", "--text", place / "text.txt", "--length", 48)
    assert code == 0
    content = (place / "text.txt").read_text()
    values = [perplexity(load_model(source), Text("text.txt", content), 48).value for source in (pruned, folder)]
    assert [line.split(" on ")[0] for line in said.splitlines()] == [
        f"pruned: perplexity {values[0]:.4f}",
        f"dense: perplexity {values[1]:.4f}",
    ]
    code, _, error = fwbench("perplexity", "dense", "--protocol", "c4", "--tokens", 100)
    assert (code, "a protocol says which tokens are evaluated" in error) == (2, True)
