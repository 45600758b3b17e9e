"""Models are loaded, and what is none is refused in one line."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from fwbench.problems import models
from fwbench.problems.models import ModelError


def test_a_folder(tmp_path):
    folder = tmp_path / "My Model"
    folder.mkdir()
    tiny.save(folder)
    model = models.load_model(folder)
    assert model.label == "my-model"
    assert model.max_length == 64
    assert not model.network.training
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert model.tokenizer("a b c d")["input_ids"] == [1, 2, 3, 0]


def test_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"no such thing")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\3\0\0\0")
    for name, reason in {
        "empty": "not a model, the folder has no config.json",
        "broken": "cannot load it",
        "x.gguf": "not a GGUF file",
        "short.gguf": "cannot load it",
        "not/there/at all": "no such model folder or GGUF file",
    }.items():
        with pytest.raises(ModelError, match=reason) as error:
            models.load_model(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_hub(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(models, "_load", lambda location, name, **options: asked.append(options) or (None, None))
    info = SimpleNamespace(sha="abc", card_data=SimpleNamespace(license="mit"))
    monkeypatch.setattr(models.huggingface_hub, "model_info", lambda name, timeout: info)
    found = models.load_model("Org/Some.Model")
    assert (found.label, found.source, found.license) == ("some-model", "Org/Some.Model@abc", "mit")
    assert asked == [{"revision": "abc"}]


def test_without_the_hub(monkeypatch):
    def offline(name, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.huggingface_hub, "model_info", offline)
    with pytest.raises(ModelError, match="no such model folder or GGUF file here, and the hub cannot be reached"):
        models.load_model("smolm2")
    monkeypatch.setattr(models, "_load", lambda location, name, **options: (options, None))
    monkeypatch.setattr(models.huggingface_hub, "try_to_load_from_cache", lambda name, file: "config.json")
    assert models.load_model("smolm2").network == {"local_files_only": True}


def test_nothing_on_the_terminal(tmp_path, capfd):
    tiny.save(tmp_path)
    capfd.readouterr()
    models.load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
