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


@pytest.mark.parametrize(
    ("folder", "name"), [("my-model", "."), ("my-model/deep", ".."), (".", "my-model/deep/.."), (".", "my-model/.")]
)
def test_a_folder_by_a_path_that_does_not_name_it(tmp_path, monkeypatch, folder, name):
    (tmp_path / "my-model" / "deep").mkdir(parents=True)
    tiny.save(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path / folder)
    model = models.load_model(name)
    assert (model.label, model.source) == ("my-model", "my-model")


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

    def load(location, name, folder, trust_remote_code, stream, **options):
        asked.append((location, folder, trust_remote_code, stream, options))
        return None, None, None

    monkeypatch.setattr(models, "load", load)
    info = SimpleNamespace(sha="abc", card_data=SimpleNamespace(license="mit"))
    monkeypatch.setattr(models.huggingface_hub, "model_info", lambda name, timeout: info)
    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    found = models.load_model("Org/Some.Model", trust_remote_code=True, stream=True)
    assert (found.label, found.source, found.license) == ("some-model", "Org/Some.Model@abc", "mit")
    assert found.folder == tmp_path
    assert asked == [("Org/Some.Model", tmp_path, True, True, {"revision": "abc"})]

    def gated(name, **options):
        raise OSError("Access to model Org/Some.Model is restricted.\nPlease log in.")

    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", gated)
    with pytest.raises(ModelError, match=r"cannot be had from the hub \(Access to model Org/Some.Model is restricted"):
        models.load_model("Org/Some.Model")


def test_without_the_hub(monkeypatch, tmp_path):
    def offline(name, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.huggingface_hub, "model_info", offline)
    with pytest.raises(ModelError, match="no such model folder or GGUF file here, and the hub cannot be reached"):
        models.load_model("smolm2")
    monkeypatch.setattr(models, "load", lambda location, name, folder, trust, stream, **options: (options, None, None))
    monkeypatch.setattr(models.huggingface_hub, "try_to_load_from_cache", lambda name, file: "config.json")
    monkeypatch.setattr(models.huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    assert models.load_model("smolm2").network == {"local_files_only": True}


def test_nothing_on_the_terminal(tmp_path, capfd):
    tiny.save(tmp_path)
    capfd.readouterr()
    models.load_model(tmp_path)
    assert capfd.readouterr() == ("", "")
