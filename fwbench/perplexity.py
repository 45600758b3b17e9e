"""Perplexity of a causal language model on a text, in windows; deterministic, and the windows are stated.

A window begins every ``stride`` tokens of the text and is ``length`` tokens long; only whole windows count. Where the
tokenizer puts tokens before every text, such as BOS, each window begins with them. A token is scored once: those of the
overlap with the window before, and the first of a window that nothing comes before, are context only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fwbench.problems.models import Model
from fwbench.problems.structure import ModelError, PreTrainedModel, body_of, few_tokens, on_text
from fwbench.problems.text import SEQUENCE, Text, TextError, first_ids, opening, opening_words

TOKENS = 16384  # evaluated at most, where nobody asks for more
PIECE = 1 << 22  # logits in float32 at a time: positions x vocabulary
CHUNK = 1 << 18  # logits in float64 at a time: positions x vocabulary
CAUSAL = 1e-3  # relative to the largest logit: what later tokens may change, by rounding

Progress = Callable[[int, int, str], None]  # done, total, what
Through = Callable[
    [Sequence[torch.Tensor]], Iterable[contextlib.AbstractContextManager[None]]
]  # windows to one context for each


@dataclass(frozen=True)
class Perplexity:
    """``value`` is ``exp`` of the mean negative log-likelihood over ``scored`` tokens."""

    value: float
    scored: int
    windows: int
    length: int
    stride: int
    text: str
    text_sha256: str
    opening: tuple[str, ...] = ()  # the tokens that each window begins with, such as <bos>

    def __str__(self) -> str:
        step = "" if self.stride >= self.length - len(self.opening) else f" every {self.stride}"
        count = "1 window" if self.windows == 1 else f"{self.windows} windows"
        begin = f", each begun with {' '.join(self.opening)}" if self.opening else ""
        value = f"{self.value:.4f}" if self.value < 1e6 else f"{self.value:.2e}"
        return f"{value} on {self.text} ({count} of {self.length} tokens{step}{begin}, {self.scored} scored)"


def windows(model: Model, text: Text, length: int = SEQUENCE, stride: int | None = None, tokens: int = TOKENS) -> Any:
    """Windows of a text, int64 ``(windows, length)``; a shorter text, or a model that takes less, gives shorter ones.

    Raises:
        TextError: a length, stride or number of tokens that gives no window; a text of fewer than two tokens.
    """
    begin = opening(model.tokenizer)
    ids = first_ids(model.tokenizer, text, max(tokens, 0))
    length = min(length, model.max_length, len(begin) + len(ids))
    step = length - len(begin)  # of the text in each
    stride = step if stride is None else stride
    if length < 2 or step < 1:
        raise TextError(f"{text.name}: perplexity needs windows of two tokens or more, here are {length}")
    if not 1 <= stride <= step:
        raise TextError(f"{text.name}: a stride of {stride} does not fit windows of {step} tokens of the text")
    model.check_tokens([begin + ids])
    return torch.tensor([begin + ids[start : start + step] for start in range(0, len(ids) - step + 1, stride)])


@torch.no_grad()
def perplexity(
    model: Model,
    text: Text,
    length: int = SEQUENCE,
    stride: int | None = None,
    tokens: int = TOKENS,
    progress: Progress | None = None,
    through: Through | None = None,
) -> Perplexity:
    """Measure a model.

    Args:
        model: with its tokenizer; evaluated on the device it is on.
        text: whose first tokens are evaluated.
        length: tokens of a window, cut to what the model takes.
        stride: tokens from one window's begin to the next; None for windows that do not overlap.
        tokens: of the text, at most.
        progress: called with (windows done, windows in all, what).
        through: called with all windows; in each of the contexts that it gives, one for each window, the model's body
            has to give what it gives for that window. None runs the model window by window.

    Raises:
        TextError: see :func:`windows`.
        ModelError: a forward pass fails, the model looks at later tokens, or its logits are not finite.
    """
    check_causal(model.network)
    rows = windows(model, text, length, stride, tokens)
    length, device = rows.shape[1], next(model.network.parameters()).device
    given = len(opening(model.tokenizer))
    stride = length - given if stride is None else stride
    total, scored = 0.0, 0
    contexts = (contextlib.nullcontext() for _ in rows) if through is None else through(rows)
    for number, (context, ids) in enumerate(zip(contexts, rows, strict=False)):
        first = max((0 if number == 0 else length - stride - 1), given - 1, 0)  # position whose successor is new
        ids = ids.to(device)
        with context:
            total += negative_log_likelihood(model.network, ids, ids[1:], first)
        scored += length - 1 - first
        if progress:
            progress(number + 1, len(rows), f"{model.label}: perplexity on {text.name}")
    if not math.isfinite(total):
        raise ModelError(f"{model.label}: its logits are not finite on {text.name}")
    value, begin = math.exp(min(total / scored, 700.0)), opening_words(model.tokenizer)
    return Perplexity(value, scored, len(rows), length, stride, text.name, text.sha256, tuple(begin))


@torch.no_grad()
def check_causal(network: Any) -> None:
    """Refuse a model whose logits of a position change with later tokens. Raises ModelError."""
    ids = few_tokens(network)
    half = ids.shape[1] // 2
    with on_text(network, ids):
        first, second = (
            network(input_ids=given, use_cache=False).logits[0, :half].float()
            for given in (ids, torch.cat([ids[:, :half], ids[:, half:].flip(1)], 1))
        )
    if float((first - second).abs().max()) > CAUSAL * float(first.abs().max()):
        raise ModelError(
            f"{type(network).__name__}: what it says of a token depends on later ones (a masked model, or its "
            "config.json lacks is_decoder), so a perplexity would mean nothing; --evaluate none prunes without one"
        )


def negative_log_likelihood(network: Any, ids: torch.Tensor, wanted: torch.Tensor, first: int = 0) -> float:
    """Of the successors of a window's positions from ``first`` on.

    Args:
        network: a causal model of transformers.
        ids: int64 ``(length,)``, what the model reads, on its device.
        wanted: int64 ``(length,)`` or one fewer: the successor of each position that has one.
        first: the first position whose successor is scored.

    Returns:
        the sum, in nats, in float64 from float32 logits.

    Raises:
        ModelError: the forward pass fails.
    """
    with on_text(network, ids):
        total = _in_pieces(network, ids, wanted, first)
        if total is None:
            logits = network(input_ids=ids[None], use_cache=False).logits[0]
            total = _negative_log_likelihood(logits[first : len(wanted)], wanted[first:])
    return total


def _in_pieces(network: Any, ids: torch.Tensor, wanted: torch.Tensor, first: int) -> float | None:
    """The same without the logits of a whole window, which are larger than many a layer.

    The body runs once, and then the model's own forward is called on a few positions at a time, with a body that hands
    out their hidden states. None if the model has no such body, or calls another one.
    """
    parts = (network.get_decoder(), body_of(network))  # the first may be the head, or the model itself
    body = next((part for part in parts if isinstance(part, PreTrainedModel) and part is not network), None)
    if body is None:
        return None
    try:
        output = body(input_ids=ids[None], use_cache=False)
        total, states, called = 0.0, output.last_hidden_state, False
    except Exception:  # it does not run, or not so, without what the model does around it
        return None
    step, called = max(1, PIECE // network.config.get_text_config(decoder=True).vocab_size), False

    def stub(*_: Any, **__: Any) -> Any:
        nonlocal called
        called = True
        return type(output)(last_hidden_state=states[:, piece])

    try:
        body.forward = stub
        for start in range(first, len(wanted), step):
            piece, called = slice(start, min(start + step, len(wanted))), False
            logits = network(input_ids=ids[None, piece], use_cache=False).logits[0]
            if not called:
                return None
            total += _negative_log_likelihood(logits, wanted[piece])
            del logits  # before there are those of the next piece
    except Exception:  # it reads more of its body's output than hidden states (ProphetNet)
        return None
    finally:
        body.__dict__.pop("forward", None)
    return total


def _negative_log_likelihood(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Sum over positions, in float64 from float32 logits ``(positions, vocabulary)``."""
    step, total = max(1, CHUNK // logits.shape[-1]), 0.0
    for part, wanted in zip(logits.split(step), ids.split(step), strict=True):
        part = part.double()
        total += float((part.logsumexp(-1) - part.gather(1, wanted[:, None])[:, 0]).sum())
    return total
