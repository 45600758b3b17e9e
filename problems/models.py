"""Models: any causal language model of transformers, from a folder, a GGUF file or the hub."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from fwbench.problems import resources
from fwbench.problems.structure import ModelError, longest

with warnings.catch_warnings():  # what transformers' own imports deprecate is not ours to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

SMOLLM2 = "smollm2"
COPY_LIMIT = 1 << 30  # bytes; a larger GGUF file is read anew each time, its float32 copy would be 8 times as large


@dataclass(frozen=True)
class Model:
    """A loaded model: float32, in evaluation mode; ``label`` begins the names of its problems."""

    label: str
    network: Any = field(repr=False)  # transformers.PreTrainedModel
    tokenizer: Any = field(repr=False)
    source: str = ""
    license: str = ""

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens, that the model takes."""
        return longest(self.network)


def load_model(name: str | Path) -> Model:
    """Load a causal language model with its tokenizer.

    Args:
        name: ``smollm2``, a local folder, a GGUF file, or a name on the hub.

    Raises:
        ModelError: no model there, or one that transformers cannot load.
        ResourceError: ``smollm2`` cannot be downloaded.
    """
    name = str(name)
    path = Path(name)
    if name == SMOLLM2:
        resource = resources.KNOWN[SMOLLM2]
        network, tokenizer = _load_gguf(resources.fetch(resource))
        return Model(SMOLLM2, network, tokenizer, resource.spec, resource.license)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{name}: not a GGUF file; a model is a folder, a GGUF file or a hub name")
        return Model(_label(path.stem), *_load_gguf(path), path.name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name}: not a model, the folder has no config.json")
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"{name}: no such model folder or GGUF file")
    if path.is_dir():
        return Model(_label(path.name), *_load(name, name), path.name)
    options, source, license = _on_hub(name)
    return Model(_label(path.name), *_load(name, name, **options), source, license)


def wrap(label: str, network: Any, tokenizer: Any = None, source: str = "", license: str = "") -> Model:
    """A model that is already in memory, as :func:`load_model` would give it; the network is cast in place."""
    network.to(torch.float32).eval().requires_grad_(False)
    return Model(label, network, tokenizer, source or label, license)


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "model"


def _load_gguf(path: Path) -> tuple[Any, Any]:
    """Load a GGUF file; the dequantised model is kept in the cache, it loads ten times as fast."""
    if path.stat().st_size > COPY_LIMIT:
        return _load(str(path.parent), path, gguf_file=path.name)
    copy = resources.cache_folder() / "models" / f"{_label(path.stem)}-{resources.sha256_of(path)[:12]}"
    if not (copy / "config.json").is_file():
        network, tokenizer = _load(str(path.parent), path, gguf_file=path.name)
        _keep_copy(network, tokenizer, copy)
    return _load(str(copy), path)  # also the first time: the same model, whoever asks first


def _keep_copy(network: Any, tokenizer: Any, copy: Path) -> None:
    with contextlib.suppress(AttributeError):
        del network.config.quantization_config  # save_pretrained refuses what it thinks is quantised
    network.is_quantized, network.hf_quantizer = False, None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as folder, quiet():
            network.save_pretrained(Path(folder) / "model")
            tokenizer.save_pretrained(Path(folder) / "model")
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.rename(Path(folder) / "model", copy)
    except OSError as error:
        if not (copy / "config.json").is_file():
            raise ModelError(f"{copy}: the model cannot be cached ({error.strerror or error})") from None


def _on_hub(name: str) -> tuple[dict[str, Any], str, str]:
    """Load options, source and license of a model on the hub; asked once, where transformers retries for a minute."""
    try:
        info = huggingface_hub.model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(f"{name}: no model folder, GGUF file or model on the hub has this name") from None
    except Exception:  # offline, in one of many ways: what was downloaded before still serves
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return {"local_files_only": True}, name, ""
        raise ModelError(f"{name}: no such model folder or GGUF file here, and the hub cannot be reached") from None
    return {"revision": info.sha}, f"{name}@{info.sha}", str(getattr(info.card_data, "license", None) or "")


def _load(location: str, name: Path | str, **options: Any) -> tuple[Any, Any]:
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
            network = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32, **options)
    except Exception as error:  # transformers raises many kinds; the reason is its first line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ModelError(f"{name}: transformers cannot load it as a causal language model ({reason})") from None
    return network.eval().requires_grad_(False), tokenizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and notices of transformers off the terminal; it is fwbench that reports progress."""
    logging, hub = transformers.utils.logging, huggingface_hub.logging
    verbosity, hub_verbosity, bars = logging.get_verbosity(), hub.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
