"""Models: any causal language model of transformers, from a folder, a GGUF file or the hub."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError

from fwbench.notes import note
from fwbench.problems import resources
from fwbench.problems.checkpoint import SMALL_FILES, load, reason_of
from fwbench.problems.listening import listening
from fwbench.problems.streaming import Stream
from fwbench.problems.structure import ModelError, longest

with warnings.catch_warnings():  # what transformers' own imports deprecate is not ours to mend
    warnings.simplefilter("ignore", DeprecationWarning)

NAMED = ("smollm2", "gemma3")  # resources that are models
COPY_LIMIT = 1 << 30  # bytes; a larger GGUF file is read anew each time, its float32 copy would be 8 times as large


@dataclass(frozen=True)
class Model:
    """A loaded model: float32, in evaluation mode; ``label`` begins the names of its problems.

    Where ``stream`` is not None the parameters are in memory only while they are used, or held.
    """

    label: str
    network: Any = field(repr=False)  # transformers.PreTrainedModel
    tokenizer: Any = field(repr=False)
    source: str = ""
    license: str = ""
    folder: Path | None = None  # with its files; None where they are not a checkpoint of transformers
    stream: Stream | None = field(default=None, repr=False)

    def holding(self, *modules: Any) -> contextlib.AbstractContextManager[None]:
        """Have the parameters of modules of the network in memory in here."""
        return contextlib.nullcontext() if self.stream is None else self.stream.holding(*modules)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and numbers of each tensor of the network's state, where they are streamed one by one."""
        return iter(self.network.state_dict().items()) if self.stream is None else self.stream.tensors()

    @cached_property
    def max_length(self) -> int:
        """Longest sequence, in tokens, that the model takes."""
        return longest(self.network)

    def check_tokens(self, rows: Iterable[Sequence[int]]) -> None:
        """Raise ModelError for token ids that the model has no embedding for; before any work with them."""
        with contextlib.suppress(NotImplementedError, AttributeError):  # a model that does not tell its embedding
            known = self.network.get_input_embeddings().weight.shape[0]
            worst = max((max(row) for row in rows), default=0)
            if worst >= known:
                raise ModelError(
                    f"{self.label}: the tokenizer gives token {worst}, the model has embeddings for 0..{known - 1}; "
                    "take the tokenizer that it was trained with"
                )


def load_model(name: str | Path, trust_remote_code: bool = False, stream: bool | None = False) -> Model:
    """Load a causal language model with its tokenizer.

    Args:
        name: ``smollm2``, ``gemma3`` (its terms have to be accepted, see :mod:`fwbench.problems.resources`), a local
            folder, a GGUF file, or a name on the hub.
        trust_remote_code: run the Python code that comes with a model, if it has some.
        stream: leave the parameters in their files and read them block by block; None for a model that as float32
            would take most of the free memory. A checkpoint that cannot be read so is loaded whole, with a note.

    Raises:
        ModelError: no model there, one that transformers cannot load, or not all of one.
        ResourceError: one of the named models cannot be downloaded, or its terms are not accepted.
    """
    name = str(name)
    path = Path(name)
    if name in NAMED:
        resource = resources.KNOWN[name]
        network, tokenizer, streamed = _load_gguf(resources.fetch(resource), stream)
        return Model(name, network, tokenizer, resource.spec, resource.license, stream=streamed)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{name}: not a GGUF file; a model is a folder, a GGUF file or a hub name")
        network, tokenizer, streamed = _load_gguf(path, stream)
        return Model(_label(path.stem), network, tokenizer, path.name, stream=streamed)
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"{name}: no such model folder or GGUF file")
    if path.is_dir():
        options: dict[str, Any] = {}
        folder, source, license = path, Path(os.path.abspath(path)).name, ""
        label = _label(source)
    else:
        folder, options, source, license = _on_hub(name)
        label = _label(path.name)
    network, tokenizer, streamed = load(name, name, folder, trust_remote_code, stream, **options)
    return Model(label, network, tokenizer, source, license, folder, streamed)


def fingerprint(model: Model) -> str:
    """sha256 (hex) of all parameters, by which a model is known again."""
    digest, own = hashlib.sha256(), {name for name, _ in model.network.named_parameters()}
    for name, tensor in model.tensors():
        if name in own:
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "model"


def _load_gguf(path: Path, stream: bool | None) -> tuple[Any, Any, Stream | None]:
    """Load a GGUF file; the dequantised model is kept in the cache, it loads ten times as fast."""
    if path.stat().st_size > COPY_LIMIT:
        if stream:
            note(f"{path}: loaded whole, a GGUF file of this size cannot be read block by block")
        return load(str(path.parent), str(path), gguf_file=path.name)
    copy = resources.cache_folder() / "models" / f"{_label(path.stem)}-{resources.sha256_of(path)[:12]}"
    if not (copy / "config.json").is_file():
        network, tokenizer, _ = load(str(path.parent), str(path), gguf_file=path.name)
        _keep_copy(network, tokenizer, copy)
    return load(str(copy), str(path), stream=stream)  # also the first time: the same model, whoever asks first


def _keep_copy(network: Any, tokenizer: Any, copy: Path) -> None:
    with contextlib.suppress(AttributeError):
        del network.config.quantization_config  # save_pretrained refuses what it thinks is quantised
    network.is_quantized, network.hf_quantizer = False, None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as folder, listening(copy.name, while_="it was copied"):
            network.save_pretrained(Path(folder) / "model")
            tokenizer.save_pretrained(Path(folder) / "model")
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.rename(Path(folder) / "model", copy)
    except (OSError, SafetensorError) as error:
        if not (copy / "config.json").is_file():
            raise ModelError(f"{copy}: the model cannot be cached ({reason_of(error)})") from None


def _on_hub(name: str) -> tuple[Path, dict[str, Any], str, str]:
    """Folder of the small files, load options, source and license of a model on the hub; asked once, where transformers
    retries for a minute."""
    options: dict[str, Any]
    try:
        info = huggingface_hub.model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(f"{name}: no model folder, GGUF file or model on the hub has this name") from None
    except Exception:  # offline, in one of many ways: what was downloaded before still serves
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            raise ModelError(f"{name}: no such model folder or GGUF file here, and the hub cannot be reached") from None
        options, source, license = {"local_files_only": True}, name, ""
    else:
        options, source = {"revision": info.sha}, f"{name}@{info.sha}"
        license = str(getattr(info.card_data, "license", None) or "")
    try:
        with listening(name):
            folder = huggingface_hub.snapshot_download(name, allow_patterns=list(SMALL_FILES), **options)
    except Exception as error:  # a gate, a network that went away
        raise ModelError(f"{name}: its files cannot be had from the hub ({reason_of(error)})") from None
    return Path(folder), options, source, license
