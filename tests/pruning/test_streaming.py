"""Models whose parameters stay in files: the same bytes as loaded whole, and one block in memory at a time."""

import functools
import gc
import json
import weakref
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from small_models import FAMILIES, LENGTH, TOKENS, hashes, options, place, saved

from fwbench import notes
from fwbench.perplexity import perplexity
from fwbench.problems import checkpoint, extract, models, streaming
from fwbench.problems.structure import find_blocks
from fwbench.problems.text import load_text
from fwbench.pruning import PruneError, prune, shards, walk

__all__ = ["place"]  # a fixture
DENSE = [name for name in FAMILIES if name != "mixture"]
SECONDS = {"fwbench.json", "report.md", "report.html", "layers.sqlite"}  # are in these files


def both(folder):
    whole, streamed = models.load_model(folder), models.load_model(folder, stream=True)
    assert whole.stream is None
    assert streamed.stream is not None
    return whole, streamed


def units(network):
    """Bytes of the parameters that stay, and of the largest block, embedding or head."""
    blocks = find_blocks(network)
    large = [*blocks, network.get_input_embeddings(), network.get_output_embeddings()]
    inside = {parameter for unit in large for parameter in unit.parameters()}
    rest = sum(parameter.nbytes for parameter in set(network.parameters()) - inside)
    return rest, max(sum(parameter.nbytes for parameter in set(unit.parameters())) for unit in large)


def told(folder, **more):
    """Content of ``fwbench.json`` without what repeats on no clock."""
    summary = json.loads((folder / "fwbench.json").read_text())
    for record in [summary, *summary["layers"]]:
        for key in ("seconds", "peak_memory", "machine"):
            record.pop(key, None)
    return summary


@pytest.mark.parametrize("family", DENSE)
def test_the_network_is_the_one_that_is_loaded_whole(place, family):
    whole, streamed = both(saved(place, family))
    for listed in ("named_parameters", "named_buffers"):
        names = [[name for name, _ in getattr(m.network, listed)(remove_duplicate=False)] for m in (whole, streamed)]
        assert names[0] == names[1]
    for own, other in zip(whole.network.buffers(), streamed.network.buffers(), strict=True):
        assert torch.equal(own, other)  # rotary frequencies and masks are in no file
    state = whole.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in streamed.tensors())
    assert str(whole.network.config) == str(streamed.network.config)
    assert str(whole.network.generation_config) == str(streamed.network.generation_config)
    ids = torch.randint(3, tiny.VOCABULARY, (2, 20), generator=torch.Generator())
    with torch.no_grad():
        assert torch.equal(whole.network(ids).logits, streamed.network(ids).logits)
    rest, largest = units(whole.network)
    assert streamed.stream.peak <= rest + largest


@pytest.mark.parametrize("family", DENSE)
def test_the_same_bytes(place, tmp_path, family):
    source, text = str(saved(place, family)), str(place / "text.txt")
    for mode in ("sequential", "one-shot"):
        found = {}
        for stream in (False, True):
            out = tmp_path / f"{mode} {stream}"
            prune(source, out, options(place, sequential=mode == "sequential", evaluate=text, stream=stream))
            found[stream] = ({name: sum_ for name, sum_ in hashes(out).items() if name not in SECONDS}, told(out))
        assert found[True] == found[False]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_types_and_parts(place, tmp_path, dtype, monkeypatch):
    """A checkpoint of two types in several files, with updated weights; the output in several files too."""
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.setattr(streaming, "PIECE", 50)
    network = tiny.network("gemma").to(torch.bfloat16)  # tied
    network.model.layers[1].float()
    network.save_pretrained(source, max_shard_size="20KB")
    tiny.save_tokenizer(source)
    assert len(list(source.glob("model-*.safetensors"))) > 2
    kind = tiny.t.PreTrainedModel
    monkeypatch.setattr(kind, "save_pretrained", functools.partialmethod(kind.save_pretrained, max_shard_size="20KB"))
    for asked in ("auto", dtype):
        found = {}
        for stream in (False, True):
            out = tmp_path / f"{asked} {stream}"
            prune(str(source), out, options(place, spec="wanda+refit", save_dtype=asked, stream=stream))
            found[stream] = ({name: sum_ for name, sum_ in hashes(out).items() if name not in SECONDS}, told(out))
        assert len(list(out.glob("model-*.safetensors"))) > 2
        assert found[True] == found[False]


def test_one_block_at_a_time(place, tmp_path):
    """What is in memory at most, over a whole run with its evaluations, as the stream counts it."""
    made, real = [], streaming.Stream.__init__

    def kept(self, *arguments):
        real(self, *arguments)
        made.append(self)

    text = str(place / "text.txt")
    with mock.patch.object(streaming.Stream, "__init__", kept):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, evaluate=text, stream=True))
    [stream] = made
    network = models.load_model(saved(place, "llama")).network
    rest, largest = units(network)
    ends = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    assert stream.peak <= rest + max(largest, sum(end.nbytes for end in ends))  # windows are scored with both ends
    assert stream.bytes <= rest + largest
    assert sum(parameter.nbytes for parameter in network.parameters()) > 2.5 * stream.peak


def test_what_is_given_up_is_gone_before_the_next_is_read(place, monkeypatch):
    """As memory is alive, not as the stream counts it: a block's is used again for the next, and for nothing else."""
    alive, most, made, real = [0], [0], [], torch.empty

    def empty(*shape, **more):
        if more or not isinstance(shape[0], list):
            return real(*shape, **more)
        array = np.empty(shape[0], np.float32)
        made.append(array.nbytes)
        alive[0] += array.nbytes
        most[0] = max(most[0], alive[0])
        weakref.finalize(array, lambda size: alive.__setitem__(0, alive[0] - size), array.nbytes)
        return torch.from_numpy(array)

    monkeypatch.setattr(streaming.torch, "empty", empty)
    whole, streamed = both(saved(place, "llama"))
    rest, largest = units(whole.network)
    for _ in range(2):
        streamed.network(torch.ones(1, 5, dtype=torch.long))
    assert len(made) < 50
    assert most[0] <= rest + largest == streamed.stream.peak
    del streamed
    gc.collect()
    assert alive[0] == 0


def test_each_block_is_read_once_for_all_windows(place):
    whole, streamed = both(saved(place, "llama"))
    text, given = load_text(place / "text.txt"), {"length": 20, "stride": 7, "tokens": 200}
    wanted, reads = perplexity(whole, text, **given), []
    real = streaming.Place.read
    with mock.patch.object(streaming.Place, "read", lambda self, *more: reads.append(self.key) or real(self, *more)):
        found = perplexity(streamed, text, **given, through=walk.by_block(streamed))
    assert found == wanted
    assert found.windows > 20
    # each of 3 passes reads every block, and so do the two on a few tokens that show the chain, and the windows' own
    assert max(map(reads.count, reads)) <= 6
    assert perplexity(streamed, text, **given) == wanted  # window by window


def test_extraction(place):
    whole, streamed = both(saved(place, "gpt2"))
    text = load_text(place / "text.txt")
    found = [list(extract.extract(model, text, tokens=TOKENS, length=LENGTH)) for model in (whole, streamed)]
    assert [problem.hash for problem in found[0]] == [problem.hash for problem in found[1]]
    rest, largest = units(whole.network)
    assert streamed.stream.peak <= rest + largest


def test_a_number_too_large_for_the_type(place, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    network = tiny.network("llama")
    network.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    network.save_pretrained(source)
    tiny.save_tokenizer(source)
    with pytest.raises(ValueError, match=r"up_proj.weight holds 1e\+06, float16 at most"):
        prune(str(source), tmp_path / "out", options(place, save_dtype="float16", stream=True))


def test_what_is_written_into_a_held_module_is_lost(place):
    _, model = both(saved(place, "llama"))
    layer = model.network.model.layers[0].mlp.up_proj
    assert layer.weight.isnan().all()
    with model.holding(layer):
        view = layer.weight.numpy()
        kept = view.copy()
        with model.holding(model.network.model.layers[0]):
            layer.weight.fill_(7.0)
        assert (layer.weight == 7).all()
    assert layer.weight.isnan().all()
    model.network(torch.ones(1, 5, dtype=torch.long))
    assert (view == 7).all()  # its memory is not used again
    with model.holding(layer):
        assert np.array_equal(layer.weight.numpy(), kept)


def test_what_cannot_be_streamed_is_loaded_whole(place, tmp_path, monkeypatch):
    source = tmp_path / "source"
    network = tiny.network("llama")
    network.save_pretrained(source)
    tiny.save_tokenizer(source)
    torch.save(network.state_dict(), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    for folder, said in ((source, "no safetensors file"), (saved(place, "mixture"), "no safetensors file")):
        heard = []
        with notes.heard(heard.append):
            model = models.load_model(folder, stream=True)
        assert model.stream is None
        assert [said in line and "loaded whole" in line for line in heard] == [True]
    monkeypatch.setattr(streaming.Stream, "_watch", lambda self: None)  # as of a model that goes around its modules
    heard = []
    with notes.heard(heard.append):
        model = models.load_model(saved(place, "llama"), stream=True)
    assert model.stream is None
    assert "parameters outside of the modules" in heard[0]


def test_a_damaged_checkpoint_is_refused_in_the_same_words(place, tmp_path):
    source = tmp_path / "source"
    tiny.save(source)
    path = source / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(state, path, {"format": "pt"})
    said = []
    for stream in (False, True):
        with pytest.raises(models.ModelError) as error:
            models.load_model(source, stream=stream)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "lacks model.layers.1.mlp.up_proj.weight" in said[0]


def test_large_models_are_streamed_unasked(place, monkeypatch):
    folder = saved(place, "llama")
    assert models.load_model(folder, stream=None).stream is None
    monkeypatch.setattr(checkpoint, "RESIDENT", 0.0)
    heard = []
    with notes.heard(heard.append):
        assert models.load_model(folder, stream=None).stream is not None
    assert "read block by block (0.0 GB as float32, " in heard[0]
    assert "--whole loads it whole" in heard[0]
    assert models.load_model(folder, stream=False).stream is None


def test_files_are_the_librarys(tmp_path):
    """Every type and odd shape, converted in pieces; the order in the file is the library's."""
    torch.manual_seed(0)
    tensors = {
        f"{'é' if index % 2 else 'x'}.{index}": torch.randn(shape).mul(50).to(dtype)
        for index, (dtype, shape) in enumerate(
            (dtype, shape)
            for dtype in (
                torch.float32,
                torch.bfloat16,
                torch.float16,
                torch.int64,
                torch.bool,
                torch.uint8,
                torch.float64,
            )
            for shape in ((3, 5), (), (0,), (7,))
        )
    }
    safetensors.torch.save_file(tensors, tmp_path / "wanted", {"format": "pt"})
    reads = {
        name: (tensor.to("meta"), lambda tensor=tensor: tensor.flatten().split(4)) for name, tensor in tensors.items()
    }
    shards.write(tmp_path / "found", reads, {"format": "pt"})
    assert (tmp_path / "found").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_a_full_disk_while_the_model_is_saved(place, tmp_path):
    full = mock.patch.object(shards, "save_pretrained", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(PruneError, match=r"model\.safetensors: cannot be written \(No space left"):
        prune(str(saved(place, "llama")), tmp_path / "out", options(place, stream=True))
    assert prune(str(saved(place, "llama")), tmp_path / "out", options(place, stream=True))["blocks_resumed"] == 3
