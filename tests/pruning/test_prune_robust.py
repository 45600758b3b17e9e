"""What may happen to a run: kills, a second run beside it, a full disk, little memory."""

import errno
import json
import subprocess
import sys
from unittest import mock

import pytest
from safetensors import SafetensorError
from small_models import hashes, options, place, saved

from fwbench.pruning import Options, PruneError, prune, work

__all__ = ["place"]  # a fixture

DYING = """
import os, signal, sys
from fwbench.problems.arriving import ArrivingSum
from fwbench.pruning import Options, engine, output, prune
where, call, source, out, spec, text, tokens, length, stream = sys.argv[1:]
owner, name = {
    "calibrating": (ArrivingSum, "add"),
    "solving": (engine, "solve"),
    "writing a block": (os, "replace"),
    "saving": (output.page, "render"),  # the model is written, its folder not yet renamed
}[where]
real, calls = getattr(owner, name), []
def dying(*args, **more):
    calls.append(name)
    if len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **more)
setattr(owner, name, dying)
asked = {"text": text, "tokens": int(tokens), "length": int(length), "evaluate": "", "stream": stream == "True"}
prune(source, out, Options(pattern="0.5", spec=spec, correct=0.0, residual=0.0, **asked))
"""


def killed(where, call, source, out, given):
    """Run and kill a process at the n-th call of a function; then go on in this one. The number of blocks kept."""
    command = [sys.executable, "-c", DYING, where, str(call), source, str(out)]
    command += [given.spec, given.text, str(given.tokens), str(given.length), str(given.stream)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    return prune(source, out, given)["blocks_resumed"]


@pytest.mark.parametrize(
    ("where", "call", "kept"), [("calibrating", 11, 1), ("solving", 6, 1), ("writing a block", 4, 1), ("saving", 1, 3)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_kill_9(place, tmp_path, where, call, kept, stream):
    source, given = str(saved(place, "llama")), options(place, spec="wanda+swap", stream=stream)
    prune(source, tmp_path / "whole", options(place, spec="wanda+swap"))
    assert killed(where, call, source, tmp_path / "out", given) == kept
    for name in ("model.safetensors", "masks.safetensors", "config.json"):
        assert hashes(tmp_path / "out")[name] == hashes(tmp_path / "whole")[name]
    assert not (tmp_path / "out.partial").exists()


def test_two_runs_on_one_folder(place, tmp_path):
    source, out = str(saved(place, "llama")), tmp_path / "out"
    real, said = work.Work.write_block, []

    def beside(self, number, block):
        real(self, number, block)
        if not said:
            with pytest.raises(PruneError, match="another run is at work") as caught:
                prune(source, out, options(place))
            said.append(str(caught.value))

    with mock.patch.object(work.Work, "write_block", beside):
        prune(source, out, options(place))
    assert "\n" not in said[0]
    assert not (tmp_path / "out.partial").exists()
    (tmp_path / "next.partial").mkdir()
    (tmp_path / "next.partial" / work.LOCK).touch()  # what a kill leaves
    prune(source, tmp_path / "next", options(place))


LIMITED = """
import resource, signal, sys
from fwbench.pruning import Options, prune
limit, source, out, text = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    prune(source, out, Options("0.5", "wanda", text, 250, 48, correct=0.0, residual=0.0, evaluate=""))
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "file"), [(8 << 10, "0000.safetensors"), (64 << 10, "out")])
def test_files_that_cannot_grow(place, tmp_path, limit, file):
    """The system refuses the write itself: of the first block, and of the model."""
    source, out = str(saved(place, "llama")), tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(limit), source, str(out), str(place / "text.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1, done
    assert file in lines[0]
    assert "File too large" in lines[0]
    assert "the same command goes on" in lines[0]
    assert not out.exists()
    prune(source, out, options(place))
    prune(source, tmp_path / "whole", options(place))
    assert hashes(out)["model.safetensors"] == hashes(tmp_path / "whole")["model.safetensors"]


SAVING = {  # what is called to write a file
    "masks.safetensors": "fwbench.pruning.output.write_masks",
    "layers.sqlite": "fwbench.store.Store.add",
    "model.safetensors": "transformers.PreTrainedModel.save_pretrained",
    "config.json": "fwbench.pruning.output._set_dtype",
    "tokenizer.json": "transformers.PreTrainedTokenizerFast.save_pretrained",
    "generation_config.json": "fwbench.pruning.output.shutil.copyfile",
    "fwbench.json": "pathlib.Path.write_text",
}


@pytest.mark.parametrize("file", SAVING)
@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_while_saving_names_the_file(place, tmp_path, file, kind):
    """As the system and safetensors report it: without a name."""
    with mock.patch(SAVING[file], side_effect=kind), pytest.raises(PruneError) as error:
        prune(str(saved(place, "llama")), tmp_path / "out", options(place))
    folder = tmp_path / "out.partial"
    assert str(error.value).startswith(f"{folder / 'out' / file}: cannot be written (No space left")
    assert str(error.value).endswith(f"kept in {folder}, with the cause removed the same command goes on")
    assert prune(str(saved(place, "llama")), tmp_path / "out", options(place))["blocks_resumed"] == 3


def test_folders_that_cannot_be_the_output(place, tmp_path, monkeypatch):
    source, inner = str(saved(place, "llama")), tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for out in (".", "..", "../../a", str(inner), "/"):
        with pytest.raises(PruneError, match="the folder in which you are, or one around it; name a new folder"):
            prune(source, out, options(place))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out in ("/dev/null", tmp_path / "link", tmp_path / "file", tmp_path / "full"):
        with pytest.raises(PruneError, match="already there"):
            prune(source, out, options(place))
    prune(source, "new", options(place))
    assert [path.name for path in inner.iterdir()] == ["new"]
    (tmp_path / "empty").mkdir()
    prune(source, "../../empty", options(place))
    assert (tmp_path / "empty" / "config.json").is_file()


def test_the_disk_is_full(place, tmp_path, monkeypatch):
    source = str(saved(place, "llama"))
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: mock.Mock(free=1000))
    with pytest.raises(PruneError, match="GB of disk"):
        prune(source, tmp_path / "out", options(place))
    assert not (tmp_path / "out.partial").exists()


def test_a_damaged_block_and_a_foreign_folder(place, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(PruneError, match="not the work of an earlier run"):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place))
    other = work.Work(tmp_path / "other")
    other._write("blocks/0000.safetensors", b"nonsense")
    for read in (other.read_block, other.records, lambda number: other.packed_mask(number, "weight")):
        with pytest.raises(PruneError, match=r"0000\.safetensors: damaged"):
            read(0)


SMALL = {"pattern": "0.5", "spec": "wanda", "text": "lee", "tokens": 1024, "length": 512, "evaluate": ""}


@pytest.mark.slow
def test_smollm2_killed_at_three_places(tmp_path):
    """In the sums of block 15 (4 inputs, two batches), at the third of its 4 calls of the solver (layers of one input
    are one), and when the model is written."""
    prune("smollm2", tmp_path / "whole", Options(**SMALL))
    wanted = hashes(tmp_path / "whole")["model.safetensors"]
    for where, call, kept in (("calibrating", 15 * 8 + 3, 15), ("solving", 15 * 4 + 3, 15), ("saving", 1, 30)):
        out = tmp_path / where
        assert killed(where, call, "smollm2", out, Options(**SMALL)) == kept
        assert hashes(out)["model.safetensors"] == wanted


MEASURED = """
import gc, json, os, re, sys
from dataclasses import replace
import torch
from fwbench.pruning import Options, prune
torch.set_num_threads(2)
def memory():
    status = open("/proc/self/status").read()
    return [1024 * int(re.search(name + r":\\s+(\\d+)", status)[1]) for name in ("VmRSS", "VmHWM")]
tiny, text, out, tokens, stream, correct = sys.argv[1:]
prune(tiny, out + "-tiny", Options(pattern="0.5", spec="wanda+swap", text=text, tokens=250, length=48, evaluate=text))
gc.collect()
base = memory()[0]  # libraries loaded, kernels compiled
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
asked = Options(pattern="0.5", spec="wanda+swap", tokens=int(tokens), evaluate=text)
asked = replace(asked, stream=stream == "True", correct=float(correct))
prune("smollm2", out, asked)
print(json.dumps(memory()[1] - base))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of resident memory")
@pytest.mark.parametrize(
    ("tokens", "stream", "correct"), [(4096, False, 0.0), (16384, False, 0.0), (4096, True, 0.0), (4096, False, 0.3)]
)
def test_peak_memory(place, tmp_path, tokens, stream, correct):
    """At most 1.3 times the model, one block's Gram matrices and the activations, all of them as they are computed.

    Of a model that is streamed the embeddings stand in for the model: they are larger than a block and its Grams. What
    arrives wrong takes as many matrices and activations once more. The text of the perplexities is short: all that is
    held of it goes through the blocks at once, and a long one takes most of an hour.
    """
    arguments = [str(saved(place, "llama")), str(place / "text.txt"), str(tmp_path / "out"), str(tokens)]
    arguments += [str(stream), str(correct)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "fwbench.json").read_text())
    hidden, inner = 576, 1536
    parameters = 49152 * hidden if stream else summary["totals"]["parameters"]
    needed = 4 * parameters + (1 + (correct > 0)) * (8 * (3 * hidden**2 + inner**2) + 4 * tokens * hidden)
    ratio = json.loads(done.stdout.splitlines()[-1]) / needed
    print(f"peak {ratio:.3f} of the model, one block's Grams and the activations of {tokens} tokens")
    assert ratio <= 1.3
