"""Perplexity against transformers' own loss, and against a loop over tokens."""

import math
import weakref
from dataclasses import replace

import pytest
import tiny
import tiny_architectures
import torch

from fwbench import perplexity as module
from fwbench.perplexity import perplexity
from fwbench.problems.structure import ModelError
from fwbench.problems.text import Text, TextError
from fwbench.report import text

TEXT = Text("prose", "".join(chr(40 + (7 * i * i + i // 3) % 80) for i in range(150)))


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama")


def ids_of(text: Text) -> list[int]:
    return tiny.tokenizer(text.content)["input_ids"]


def test_equals_the_loss_of_transformers(model):
    rows = torch.tensor(ids_of(TEXT)[:128]).reshape(4, 32)
    loss = model.network(input_ids=rows, labels=rows).loss
    found = perplexity(model, TEXT, length=32)
    assert found.value == pytest.approx(math.exp(loss), rel=1e-5)
    assert (found.windows, found.scored, found.length, found.stride) == (4, 4 * 31, 32, 32)
    assert found == perplexity(model, TEXT, length=32)  # and again, to the last bit


def test_one_piece_of_logits_at_a_time(monkeypatch, model):
    """Those of the last piece are gone when the head runs again."""
    scored, alive, real = [], [], module._negative_log_likelihood

    def score(logits, ids):
        scored.append(weakref.ref(logits))
        return real(logits, ids)

    monkeypatch.setattr(module, "PIECE", 8 * tiny.VOCABULARY)
    monkeypatch.setattr(module, "_negative_log_likelihood", score)
    head = model.network.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda *_: alive.append(sum(given() is not None for given in scored)))
    perplexity(model, TEXT, length=32, tokens=32)
    handle.remove()
    assert len(scored) == 4
    assert not any(alive[-4:])


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_head_in_pieces(monkeypatch, family):
    """Eight positions at a time, on every family; and a model whose body cannot be replaced."""
    monkeypatch.setattr("fwbench.perplexity.PIECE", 8 * tiny.VOCABULARY)
    model = tiny.model(family)
    rows = torch.tensor(ids_of(TEXT)[:96]).reshape(2, 48)
    loss = model.network(input_ids=rows, labels=rows).loss
    sizes, head = [], model.network.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    assert perplexity(model, TEXT, length=48, tokens=96).value == pytest.approx(math.exp(loss), rel=1e-5)
    assert sizes == [8, 8] + 2 * [8, 8, 8, 8, 8, 7]  # the first two look whether it is causal
    handle.remove()
    other = tiny.model(family).network.get_decoder()
    monkeypatch.setattr(model.network, "get_decoder", lambda: other)
    assert perplexity(model, TEXT, length=48, tokens=96).value == pytest.approx(math.exp(loss), rel=1e-5)


def test_overlapping_windows_score_each_token_once(model):
    ids, length, stride = ids_of(TEXT), 32, 10
    total, scored, end = 0.0, 0, 1
    for start in range(0, len(ids) - length + 1, stride):
        window = torch.tensor([ids[start : start + length]])
        logs = torch.log_softmax(model.network(input_ids=window).logits[0].double(), -1)
        for place in range(end, start + length):
            total -= float(logs[place - start - 1, ids[place]])
            scored += 1
        end = start + length
    found = perplexity(model, TEXT, length, stride)
    assert found.scored == scored
    assert found.value == pytest.approx(math.exp(total / scored), rel=1e-6)


class Opening:
    """The tiny tokenizer, with two tokens before every text and one after it."""

    begin, end = [5, 9], [2]

    def __call__(self, text, verbose=True, add_special_tokens=True):
        ids = tiny.tokenizer(text)["input_ids"]
        return {"input_ids": self.begin + ids + self.end if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids):
        return [f"<{token}>" for token in ids]


@pytest.mark.parametrize(("length", "stride"), [(32, None), (32, 30), (32, 11), (20, 1)])
def test_each_window_begins_as_the_tokenizer_has_it(model, length, stride):
    """Each token of the text is scored once, the first of all too, and none of those before it."""
    opened = replace(model, tokenizer=Opening())
    ids, begin = ids_of(TEXT), Opening.begin
    room = length - len(begin)
    total, scored, end = 0.0, 0, 0
    for start in range(0, len(ids) - room + 1, stride or room):  # the token after the text is none of it
        window = begin + ids[start : start + room]
        logs = torch.log_softmax(model.network(input_ids=torch.tensor([window])).logits[0].double(), -1)
        for place in range(end, start + room):
            total -= float(logs[len(begin) + place - start - 1, window[len(begin) + place - start]])
            scored += 1
        end = start + room
    found = perplexity(opened, TEXT, length, stride)
    assert (found.scored, found.length, found.stride) == (scored, length, stride or room)
    assert found.value == pytest.approx(math.exp(total / scored), rel=1e-6)
    assert found.opening == ("<5>", "<9>")
    assert "tokens, each begun with <5> <9>," in str(found) or f"every {stride}, each begun with <5> <9>," in str(found)
    assert "begun" not in str(perplexity(model, TEXT, length))


def test_windows_have_room_for_text(model):
    opened = replace(model, tokenizer=Opening())
    assert perplexity(opened, TEXT, length=3).scored == 150
    assert perplexity(opened, TEXT, tokens=7, length=64).length == 9
    with pytest.raises(TextError, match="two tokens or more, here are 2"):
        perplexity(opened, TEXT, length=2)
    with pytest.raises(TextError, match="stride of 31 does not fit windows of 30 tokens of the text"):
        perplexity(opened, TEXT, length=32, stride=31)


def test_token_ids_beyond_the_embedding(model):
    far = replace(model, tokenizer=lambda text, **_: {"input_ids": [3, 4, 97][: len(text)]})
    with pytest.raises(ModelError, match=r"gives token 97, the model has embeddings for 0\.\.96"):
        perplexity(far, TEXT)


def test_a_model_that_knows_nothing():
    model = tiny.model("llama")
    with torch.no_grad():
        model.network.lm_head.weight.zero_()
    assert perplexity(model, TEXT).value == pytest.approx(tiny.VOCABULARY, rel=1e-9)


def test_windows_are_cut_to_the_model_and_the_text(model):
    assert perplexity(model, TEXT, length=512).length == 64  # the model takes no more
    short = perplexity(model, Text("short", "abcdefgh"))
    assert (short.windows, short.length, short.scored) == (1, 8, 7)
    assert perplexity(model, TEXT, length=32, tokens=70).windows == 2
    assert "2 windows of 32 tokens, 62 scored" in str(perplexity(model, TEXT, length=32, tokens=70))


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("a", {}, "two tokens or more"),
        ("abc", {"length": 1}, "two tokens or more"),
        ("abcdef", {"length": 4, "stride": 5}, "stride of 5"),
        ("abcdef", {"length": 4, "stride": 0}, "stride of 0"),
        ("abcdef", {"tokens": 0}, "two tokens or more"),
    ],
)
def test_refusals(model, text, options, reason):
    with pytest.raises(TextError, match=reason):
        perplexity(model, Text("bad", text), **options)


def test_a_broken_model_is_refused():
    model = tiny.model("llama")
    with torch.no_grad():
        model.network.model.norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        perplexity(model, TEXT)


@pytest.mark.parametrize("family", ["modernbert-decoder", "llama4_text", "mllama", "git", "bart"])
def test_the_head_in_pieces_whatever_is_called_the_decoder(monkeypatch, family):
    """``get_decoder`` gives the head (ModernBERT), the model itself (Llama 4), or what the body wraps (BART)."""
    monkeypatch.setattr("fwbench.perplexity.PIECE", 8 * tiny.VOCABULARY)
    model = tiny.wrap(family, tiny_architectures.network(family), tiny.tokenizer)
    rows = torch.tensor(ids_of(TEXT)[:96]).reshape(2, 48)
    logits = model.network(input_ids=rows, use_cache=False).logits[:, :-1].double()
    loss = -logits.log_softmax(-1).gather(2, rows[:, 1:, None]).mean()
    sizes, head = [], model.network.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    assert perplexity(model, TEXT, length=48, tokens=96).value == pytest.approx(math.exp(loss), rel=1e-5)
    assert sizes == [8, 8] + 2 * [8, 8, 8, 8, 8, 7]  # the first two look whether it is causal


def test_a_head_that_reads_more_than_hidden_states():
    """ProphetNet's reads its predictions of later tokens: the logits of whole windows give the same figure."""
    model = tiny.wrap("prophetnet", tiny_architectures.network("prophetnet"), tiny.tokenizer)
    rows = torch.tensor(ids_of(TEXT)[:124]).reshape(2, 62)
    logits = model.network(input_ids=rows, use_cache=False).logits[:, :-1].double()
    loss = -logits.log_softmax(-1).gather(2, rows[:, 1:, None]).mean()
    found = perplexity(model, TEXT, tokens=124)
    assert (found.length, found.value) == (62, pytest.approx(math.exp(loss), rel=1e-5))


def test_the_longest_window_is_what_positions_leave(model):
    network = tiny_architectures.network("roberta")
    assert perplexity(tiny.wrap("roberta", network, tiny.tokenizer), TEXT).length == 63
    unlimited = tiny.wrap("mamba", tiny_architectures.network("mamba"), tiny.tokenizer)
    assert perplexity(unlimited, TEXT).length == len(ids_of(TEXT))


@pytest.mark.parametrize(("family", "given"), [("xlnet", {}), ("bert", {"is_decoder": False}), ("xlm", {})])
def test_a_model_that_looks_at_later_tokens(family, given):
    config = tiny_architectures.config(family)
    for name, value in given.items():
        setattr(config, name, value)
    network = tiny.t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with pytest.raises(ModelError, match=r"depends on later ones .*; --evaluate none prunes without one"):
        perplexity(tiny.wrap(family, network, tiny.tokenizer), TEXT)


def test_a_model_that_needs_more_than_text():
    network = tiny_architectures.network("gemma4_assistant")
    with pytest.raises(ModelError, match="and nothing else fails"):
        perplexity(tiny.wrap("assistant", network, tiny.tokenizer), TEXT)


def test_a_perplexity_that_means_nothing_is_short(model):
    found = replace(perplexity(model, TEXT), value=math.exp(700))
    assert str(found).startswith("1.01e+304 on ")
    assert text.perplexity(found.value) == "1.01e304"
    assert text.perplexity(32.374) == "32.37"


@pytest.mark.slow
def test_smollm2():
    """9 windows of 512 tokens of lee.cor (docs/mathematics.md, "Figures of the prototype")."""
    from fwbench.problems.models import load_model
    from fwbench.problems.text import load_text

    found = perplexity(load_model("smollm2"), load_text("lee-heldout"))
    assert found.windows == 9
    assert found.value == pytest.approx(32.37, abs=0.005)
