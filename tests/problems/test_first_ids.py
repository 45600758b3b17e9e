"""The first ids of a long text: those of the whole, whatever the tokenizer, and at the price of what is asked for."""

import json
import random

import pytest
import tiny

from fwbench import perplexity
from fwbench.problems import models, text
from fwbench.problems.text import Text, TextError

with tiny.warnings.catch_warnings():
    tiny.warnings.simplefilter("ignore")
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RIGHT_TO_LEFT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))"  # digits in threes from the right: it looks far ahead
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def words(count: int, letters: str, longest: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(count))


def mixed(seed: int) -> str:
    """Words, runs of blanks, of signs and of digits, newlines, Chinese, letters with combining marks, emoji."""
    rng = random.Random(seed)
    makers = (
        lambda: words(20, "etaoin shrdlu'", 8, rng.random()),
        lambda: " " * rng.randint(1, 90) + "\n" * rng.randint(0, 4),
        lambda: rng.choice("=-.ab") * rng.randint(1, 700),
        lambda: "".join(rng.choices("0123456789", k=rng.randint(1, 400))),
        lambda: "".join(rng.choices("的一是不了人我在有他这。\n", k=rng.randint(1, 300))),
        lambda: "e\u0301\u0308 \U0001f469\u200d\U0001f467\xa0",
    )
    return "".join(rng.choice(makers)() for _ in range(300))


TEXTS = {
    "words": words(5_000, "etaoinshrdlu", 9),
    "two letters": words(1_200, "ab", 40),
    "digits": words(1_200, "0123456789", 40),
    "mixed": mixed(1),
    "no blank": words(4_000, "ab", 9).replace(" ", ""),
    "blanks": " " * 20_000,
    "begins with a long word": "ab" * 4_000 + words(4_000, "ab", 9),
    "Chinese": "".join(random.Random(0).choices("的一是不了人我在有他这中大来上国和地到以说时。，\n", k=20_000)),
}


def trained(model, trainer, split, normalise=None):
    found = Tokenizer(model)
    if normalise:
        found.normalizer = normalise
    found.pre_tokenizer = split
    corpus = (content[start : start + 500] for content in TEXTS.values() for start in range(0, 5_000, 500))
    found.train_from_iterator(corpus, trainer)
    return found


def byte_level(*splits, regex=True):
    split = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)])
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=ALPHABET)
    return trained(kinds.BPE(), trainer, split)


def llama2():
    """Trained on words, used without splitting: the whole text is one word to it."""
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"])
    found = trained(kinds.BPE(unk_token="<unk>", fuse_unk=True), trainer, pre_tokenizers.Metaspace())
    state = json.loads(found.to_str())
    normalise = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    state |= {"pre_tokenizer": None, "normalizer": json.loads(normalise.__getstate__())}
    return Tokenizer.from_str(json.dumps(state))


def unigram(split=True):
    trainer = trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, unk_token="<unk>", special_tokens=["<unk>", "</s>"]
    )
    found = trained(kinds.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizers.NFKC())
    state = json.loads(found.to_str())
    state["pre_tokenizer"]["split"] = split
    found = Tokenizer.from_str(json.dumps(state))
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return found


def wordpiece():
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, show_progress=False, special_tokens=special)
    bert = pre_tokenizers.BertPreTokenizer()
    found = trained(kinds.WordPiece(unk_token="[UNK]"), trainer, bert, normalizers.BertNormalizer())
    around = [("[CLS]", 1), ("[SEP]", 2)]
    found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return found


TOKENIZERS = {
    "gpt2": byte_level,
    "gpt4": lambda: byte_level(pre_tokenizers.Split(Regex(GPT4), "isolated"), regex=False),
    "digits from the right": lambda: byte_level(pre_tokenizers.Split(Regex(RIGHT_TO_LEFT), "isolated")),
    "across blanks": lambda: byte_level(regex=False),
    "llama2": llama2,
    "unigram": unigram,
    "unigram across blanks": lambda: unigram(split=False),
    "bert": wordpiece,
}


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.is_fast, self._tokenizer, self.characters = tokenizer.is_fast, tokenizer, 0

    def __call__(self, content, **options):
        self.characters += len(content)
        return self._tokenizer(content, **options)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_they_are_those_of_the_whole(kind):
    tokenizer = Counting(PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind]()))
    shares = {}
    for name, content in TEXTS.items():
        whole = tokenizer(content, add_special_tokens=False)["input_ids"]
        for count in (1, 50, 700, len(whole) + 1):
            tokenizer.characters = 0
            assert text.first_ids(tokenizer, Text(name, content), count) == whole[:count], (name, count)
            shares[name, count] = tokenizer.characters / len(content)
    assert max(shares[name, 50] for name in ("words", "two letters", "mixed")) < 0.5
    assert max(shares.values()) <= 3


def test_a_tokenizer_without_promises_gets_the_whole():
    """One that is not fast may look anywhere: this one numbers the words from the end."""

    class Backwards:
        is_fast = False

        def __call__(self, content, verbose=True, **_):
            return {"input_ids": list(range(len(content.split())))[::-1]}

    content = words(9_000, "ab", 4)
    assert text.first_ids(Backwards(), Text("t", content), 2) == [8_999, 8_998]
    Backwards.is_fast = True  # and if it said it were, the beginnings would not agree
    assert text.first_ids(Backwards(), Text("t", content), 2) == [8_999, 8_998]


def test_what_is_read_follows_what_is_asked_for():
    """Sequences and windows of a long text tokenise the same few characters, however long it is."""
    tokenizer = Counting(PreTrainedTokenizerFast(tokenizer_object=byte_level()))
    network = tiny.network("llama")
    network.resize_token_embeddings(len(tokenizer._tokenizer), mean_resizing=False)
    model = tiny.wrap("m", network, tokenizer)
    seen = []
    for length in (40_000, 80_000):
        prose = Text("prose", words(20_000, "etaoinshrdlu", 9)[:length])
        for use in (lambda: text.sequences(tokenizer, prose, 512, 64), lambda: perplexity.windows(model, prose, 64)):  # noqa: B023
            tokenizer.characters = 0
            assert len(use()) >= 8
            seen.append(tokenizer.characters)
    assert seen[0] == seen[2] < 20_000
    assert seen[1] <= seen[3]


def test_more_than_is_read_of_a_text_is_refused():
    cut = Text("long", words(100, "ab", 4), cut=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    with pytest.raises(
        TextError, match=r"long: 100000 tokens asked for, but the first \d+ characters .* ask for fewer"
    ):
        text.sequences(tokenizer, cut, 100_000, 10)
    assert len(text.sequences(tokenizer, cut, 20, 10)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lee", "wikipedia"])
def test_the_real_tokenizer(name):
    tokenizer, prose = models.load_model("smollm2").tokenizer, text.load_text(name)
    prose = Text(name, prose.content[:400_000])
    whole = tokenizer(prose.content, verbose=False)["input_ids"]
    for count in (1, 2048, 16384, 65536, len(whole)):
        assert text.first_ids(tokenizer, prose, count) == whole[:count]
