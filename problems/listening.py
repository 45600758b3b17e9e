"""What libraries and a model's own code say while a model is loaded, runs or is saved: it becomes notes, once each."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from fwbench.notes import note

with warnings.catch_warnings():  # what transformers' own imports deprecate is not ours to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

LIBRARIES = ("transformers", "huggingface_hub")
LONGEST = 400  # letters of what a library says
HARMLESS = re.compile(  # of speed, of calls that change, of generation, of padding, or said better by this package
    r"LOAD REPORT|is deprecated|will be removed|slower|fast path|generation flags|use_cache|layer_idx"
    r"|gradient checkpointing|token_id must be|loss_type=|passing in an `attention_mask`",
    re.IGNORECASE,
)
MEANING = {  # what a user of this program can do about it, where the library's own words do not say
    "is_decoder=True": "its configuration says encoder, so tokens see those after them and a perplexity means nothing; "
    'write "is_decoder": true into its config.json if it was trained to predict the next token',
    "fix_mistral_regex": "transformers calls the pattern by which its tokenizer splits text incorrect; write "
    '"fix_mistral_regex": true into its tokenizer_config.json to have it right',
}


@contextlib.contextmanager
def listening(
    name: str, said: list[str] | None = None, while_: str = "it was loaded", told: set[str] | None = None
) -> Iterator[None]:
    """Keep libraries off the terminal and the keyboard; what they say that may move a result becomes a note.

    Nothing is told of what fails: its error says what is wrong.

    Args:
        name: of the model.
        said: gets all that is said, where it is wanted.
        while_: when.
        told: what was told before and is not told again; what is told now comes to it.
    """
    said, told = [] if said is None else said, set() if told is None else told
    listener, printed, failed = _Listener(said), io.StringIO(), False
    try:
        with contextlib.ExitStack() as stack:

            def replace(owner: Any, attribute: str, value: Any) -> None:
                stack.callback(setattr, owner, attribute, getattr(owner, attribute))
                setattr(owner, attribute, value)

            for library in LIBRARIES:
                logger = logging.getLogger(library)
                stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.WARNING)
                replace(logger, "handlers", [listener])
                replace(logger, "propagate", False)
            if transformers.utils.logging.is_progress_bar_enabled():
                stack.callback(transformers.utils.logging.enable_progress_bar)
                transformers.utils.logging.disable_progress_bar()
            warned = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            replace(sys, "stdin", io.StringIO())  # whoever asks gets no answer, at once
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # more progress bars
            yield
    except Exception:
        failed = True
        raise
    finally:
        if not failed:
            said += [str(one.message) for one in warned if issubclass(one.category, UserWarning | RuntimeWarning)]
            said += printed.getvalue().splitlines()
            _tell(name, said, while_, told)


@contextlib.contextmanager
def running(network: Any) -> Iterator[None]:
    """:func:`listening` while a network runs; what it says in many passes is told once."""
    name = getattr(network, "name_or_path", "") or type(network).__name__
    with listening(name, while_="it ran", told=_TOLD.setdefault(network, set())):
        yield


_TOLD: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()  # by network


def _tell(name: str, said: list[str], while_: str, told: set[str]) -> None:
    for words in dict.fromkeys(" ".join(text.split()) for text in said):
        if words and words not in told and not HARMLESS.search(words):
            told.add(words)
            meaning = next((meaning for sign, meaning in MEANING.items() if sign in words), None)
            note(f"{name}: {meaning or f'while {while_}: {words[:LONGEST]}'}")


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
