"""What is said while a model runs: told once as a note, wherever it is said, and never on the terminal."""

import logging
import random
import warnings
from unittest import mock

import pytest
import tiny
import torch
from small_models import options

from fwbench.notes import heard
from fwbench.perplexity import perplexity
from fwbench.problems import models
from fwbench.problems.extract import extract
from fwbench.problems.listening import running
from fwbench.problems.text import load_text
from fwbench.pruning import prune

WORDS = {"log": "a mask was left out", "warning": "a number was rounded", "print": "hello"}


@pytest.fixture
def talking(tmp_path):
    """A folder's model that speaks in each forward pass, and the text beside it."""
    (tmp_path / "in").mkdir()
    tiny.save(tmp_path / "in")
    (tmp_path / "text.txt").write_text(" ".join(random.Random(0).choices("abc", k=600)))
    model = models.load_model(tmp_path / "in")

    def speak(*_):
        logging.getLogger("transformers.models.some").warning(WORDS["log"])
        logging.getLogger("transformers.models.some").warning("falls back to an implementation that is slower")
        warnings.warn(WORDS["warning"], UserWarning, stacklevel=1)
        print(WORDS["print"])

    model.network.model.layers[0].register_forward_pre_hook(speak)
    return model


def _extract(model, place):
    assert len(list(extract(model, load_text(place / "text.txt"), tokens=250))) == 21


def _perplexity(model, place):
    assert perplexity(model, load_text(place / "text.txt")).windows == 9


def _prune(model, place):
    with mock.patch("fwbench.pruning.plan.load_model", return_value=model):
        summary = prune("talking", place / "out", options(place, evaluate=str(place / "text.txt")))
    assert len(summary["notes"]) == 3


@pytest.mark.parametrize("work", [_extract, _perplexity, _prune])
def test_what_a_model_says_while_it_runs(talking, tmp_path, capfd, work):
    said = []
    with heard(said.append):
        work(talking, tmp_path)
    assert sorted(said) == sorted(f"{tmp_path / 'in'}: while it ran: {words}" for words in WORDS.values())
    assert capfd.readouterr() == ("", "")


def test_it_is_told_once_without_a_listener(talking, caplog):
    """Also where a pass is ended early, as extraction does; not where it fails."""
    ids = torch.arange(3, 11)[None]

    class Enough(BaseException):
        pass

    def end(kind):
        with running(talking.network):
            talking.network(input_ids=ids)
            raise kind

    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError)
    assert caplog.messages == []
    for _ in range(3):
        with pytest.raises(Enough):
            end(Enough)
    assert len(caplog.messages) == 3
