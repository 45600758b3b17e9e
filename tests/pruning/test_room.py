"""Activations in memory or in files: how much of them, by whom, and that nothing is left of the files."""

import errno
from unittest import mock

import pytest
import torch
from click.testing import CliRunner
from small_models import hashes, options, place, saved

from fwbench.cli import cli
from fwbench.perplexity import perplexity
from fwbench.problems import models
from fwbench.problems.text import load_text
from fwbench.pruning import PruneError, Recovery, allocation, prune, recover, room, walk
from fwbench.pruning import plan as plans
from fwbench.pruning.allocation import exact, neuroal
from fwbench.pruning.recovery import engine as recover_engine
from fwbench.pruning.room import Room

__all__ = ["place"]  # a fixture
FULL = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
NAMES = ("model.safetensors", "masks.safetensors")


@pytest.fixture
def kept(monkeypatch):
    """A list of each tensor's bytes in memory and in a file, in the order in which rooms are asked for them."""
    found, real = [], Room.keep

    def keep(self, tensor):
        given = real(self, tensor)
        in_file = given.untyped_storage().filename is not None
        assert in_file == (given is not tensor)
        found.append((0, given.nbytes) if in_file else (given.nbytes, 0))
        return given

    monkeypatch.setattr(Room, "keep", keep)
    return found


def mapped():
    """How many files of activations this process holds."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        return sum("/activations-" in line for line in file)


def test_memory_first(tmp_path, monkeypatch):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: mock.Mock(available=int(2.5 * 4 * 60 / room.RESIDENT)))
    tensors = [torch.randn(3, 20), torch.randn(3, 20), torch.randn(3, 20), torch.randn(3, 10), torch.randn(2, 5)]
    given = [Room.keep(own, tensor) for own in [Room(tmp_path / "a" / "b")] for tensor in tensors]
    assert [found is tensor for found, tensor in zip(given, tensors, strict=True)] == [True, True, False, True, False]
    assert all(torch.equal(found, tensor) for found, tensor in zip(given, tensors, strict=True))
    assert given[2].add_(1).sub(tensors[2]).sum() == pytest.approx(60, rel=1e-5)
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.skipif(not hasattr(room.os, "posix_fallocate"), reason="a disk's space is not asked for")
def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "RESIDENT", 0.0)
    monkeypatch.setenv("FWBENCH_CACHE", str(tmp_path / "cache"))
    with mock.patch.object(room.os, "posix_fallocate", FULL):
        for folder, way in (
            (None, "; FWBENCH_CACHE names another folder"),
            (tmp_path / "x", "the same command goes on"),
        ):
            with pytest.raises(PruneError, match=r"activations cannot be written \(No space left") as error:
                Room(folder).keep(torch.ones(5))
            assert str(error.value).startswith(str(folder or tmp_path / "cache"))
            assert str(error.value).endswith(way)
            assert "\n" not in str(error.value)
            assert not list((folder or tmp_path / "cache").iterdir())


@pytest.fixture
def made(monkeypatch):
    """The folders of files, of activations that are all too large for memory."""
    found, real = [], room._in_file
    monkeypatch.setattr(room, "_in_file", lambda tensor, folder: found.append(folder) or real(tensor, folder))
    monkeypatch.setattr(room, "RESIDENT", 0.0)
    return found


def in_both(kept, monkeypatch, run):
    """Run with enough memory and with none: how many tensors are kept, the same ones, in memory or in files."""
    run("files")
    in_files = kept.copy()
    kept.clear()
    monkeypatch.setattr(room, "RESIDENT", 0.25)
    run("memory")
    assert in_files == [(0, size) for size, _ in kept]
    assert all(size for size, _ in kept)
    return len(kept)


def test_prune(place, tmp_path, monkeypatch, kept, made):
    """What an allocation, the walk with what arrives, and both evaluations of a streamed model keep."""
    source, text = str(saved(place, "llama")), str(place / "short.txt")
    (place / "short.txt").write_text("a b c " * 20)
    given = options(place, correct=0.3, allocation="owl", stream=True, evaluate=text)
    count = in_both(kept, monkeypatch, lambda name: prune(source, tmp_path / name, given))
    files, memory = hashes(tmp_path / "files"), hashes(tmp_path / "memory")
    assert [files[name] for name in NAMES] == [memory[name] for name in NAMES]
    batches, windows = 2, 1
    assert count == len(made) == batches * (1 + 2) + windows * 2
    assert set(made) == {tmp_path / "files.partial"}
    assert not mapped()
    monkeypatch.setattr(room, "RESIDENT", 0.0)
    full = mock.patch.object(room.os, "posix_fallocate", FULL)
    with full, pytest.raises(PruneError, match="the same command goes on"):
        prune(source, tmp_path / "full", given)
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("unit", ["block", "parts"])
def test_recover(place, tmp_path, monkeypatch, kept, made, unit):
    """Both models' activations, and of parts their outputs too, of one block at a time."""
    source, most = str(saved(place, "llama")), []
    prune(source, tmp_path / "pruned", options(place, sequential=False))
    kept.clear()
    made.clear()
    real = recover_engine._train_block
    monkeypatch.setattr(recover_engine, "_train_block", lambda *given: most.append(mapped()) or real(*given))
    given = Recovery(
        against=source, text=str(place / "text.txt"), tokens=90, length=48, epochs=1, evaluate="", unit=unit
    )
    count = in_both(kept, monkeypatch, lambda name: recover(str(tmp_path / "pruned"), tmp_path / name, given))
    files, memory = hashes(tmp_path / "files"), hashes(tmp_path / "memory")
    assert [files[name] for name in NAMES] == [memory[name] for name in NAMES]
    sequences, blocks = 2, 3
    outputs = 2 if unit == "parts" else 0
    assert count == len(made) == sequences * (2 + outputs * blocks)
    assert most == [sequences * (2 + outputs)] * blocks + [0] * blocks
    assert set(made) == {tmp_path / "files.partial"}
    assert not mapped()


def test_perplexity(place, tmp_path, monkeypatch, kept, made):
    monkeypatch.setenv("FWBENCH_CACHE", str(tmp_path / "cache"))
    said = []
    command = ["perplexity", str(saved(place, "llama")), "--text", str(place / "text.txt"), "--length", "40"]

    def run(_):
        done = CliRunner().invoke(cli, [*command, "--tokens", "200", "--stream"])
        assert done.exit_code == 0, done.output
        said.append(done.stdout)

    assert in_both(kept, monkeypatch, run) == len(made) == 5
    assert said[0] == said[1]
    assert made[0] == tmp_path / "cache"
    assert not list((tmp_path / "cache").iterdir())
    assert not mapped()
    monkeypatch.setattr(room, "RESIDENT", 0.0)
    full = mock.patch.object(room.os, "posix_fallocate", FULL)
    with full, pytest.raises(PruneError, match="FWBENCH_CACHE names another folder"):
        cli.main([*command, "--stream"], standalone_mode=False)


def test_windows_that_are_given_up(place, tmp_path, made):
    """After an error, or by whoever asked for them, no file is left."""
    model, text = models.load_model(saved(place, "llama"), stream=True), load_text(place / "text.txt")
    contexts = walk.by_block(model, offload=tmp_path)(torch.ones(7, 20, dtype=torch.long))
    next(contexts)
    assert mapped() == len(made) == 7
    assert not list(tmp_path.iterdir())
    contexts.close()
    assert not mapped()
    with mock.patch.object(walk.Walk, "advance", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        perplexity(model, text, 20, tokens=100, through=walk.by_block(model, offload=tmp_path))
    assert len(made) == 7 + 5
    assert not mapped()
    assert not list(tmp_path.iterdir())


def test_an_allocation_s_walks(place, tmp_path, made):
    plan = plans.make(str(saved(place, "llama")), options(place))
    at = allocation.setting(plan.model, plan.layers, plan.batches, plan.pattern, offload=tmp_path)
    neuroal.pruned_norms(at, dict.fromkeys(at.shapes, at.pattern), "")
    exact.measured(at, exact.grid(0.5, 0.1))
    assert made == [tmp_path] * 2 * len(plan.batches)
