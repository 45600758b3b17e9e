"""Checkpoints: loaded by transformers, whole or not at all; what it warns of becomes notes, and it asks nothing."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from fwbench.notes import note
from fwbench.problems.listening import listening
from fwbench.problems.streaming import Stream, detached
from fwbench.problems.structure import ModelError, few_tokens

with warnings.catch_warnings():  # what transformers' own imports deprecate is not ours to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers
    from transformers.modeling_utils import load_state_dict

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or, in parts, listed in a file with .index.json at the end
RESIDENT = 0.6  # of the free memory: a larger model's parameters stay in their files
POINTER = b"version https://git-lfs"
TOKENIZER, MODEL = "its tokenizer", "it as a causal language model"
NO_TOKENIZER = (
    "no tokenizer in it; copy the tokenizer's files (tokenizer.json and tokenizer_config.json, or those of its family) "
    "from the model that it was made from"
)
OWN_CODE = (
    "the model comes with code of its own, which would be run; read its Python files, and if you trust them give "
    "--trust-remote-code (in Python trust_remote_code=True)"
)
TIED_AS_LIST = (
    "it lists its tied weights, as for transformers 4; in its Python file make _tied_weights_keys a dictionary from "
    'each such weight to the one that it shares, {"lm_head.weight": "model.embed_tokens.weight"}'
)
VOCABULARIES = ("tokenizer.json", "tokenizer.*.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")
LICENCES = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "COPYING*")
SMALL_FILES = ("*.json", "*.py", "*.txt", "*.model", "*.tiktoken", "*.jinja", *LICENCES)


def load(
    location: str,
    name: str,
    folder: Path | None = None,
    trust_remote_code: bool = False,
    stream: bool | None = False,
    **options: Any,
) -> tuple[Any, Any, Stream | None]:
    """Load a causal language model in float32, its tokenizer, and what reads its parameters where they stay in files.

    Args:
        location: what transformers takes: a folder or a name on the hub.
        name: of the model, for messages.
        folder: where the model's small files lie; None for a GGUF file.
        trust_remote_code: run the code that comes with the model.
        stream: leave the parameters in their files, where those can be read one by one; None for a model that is large
            beside the free memory.
        options: more of transformers' ``from_pretrained``.

    Raises:
        ModelError: transformers cannot load it, or it is not whole: it has no tokenizer, or lacks tensors.
    """
    options |= {"trust_remote_code": trust_remote_code}  # None would have transformers ask
    what, said, own_code = "its configuration", list[str](), False
    try:
        with listening(name, said):
            if folder is not None:
                _check_folder(name, folder)
                config = transformers.AutoConfig.from_pretrained(location, **options)
                own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or ())
            what = TOKENIZER
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
            if folder is not None and not _has_vocabulary(folder, getattr(tokenizer, "vocab_files_names", {})):
                raise ModelError(f"{name}: {NO_TOKENIZER}")  # transformers made an empty one
            what = MODEL
            if stream is None:
                stream = _is_large(location, name, **options)
            network, found, streamed = _streamed(location, name, **options) if stream else (None, {}, None)
            if network is None:
                network, found = _loaded(location, **options)
            _check_complete(name, network, found)
            if folder is not None:
                _check_stored(name, network, folder)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds
        reason = f"transformers cannot load {what} ({reason_of(error)})"
        if "trust_remote_code=True" in str(error):
            reason = OWN_CODE
        elif what == TOKENIZER and folder is not None and not _has_vocabulary(folder):
            reason = NO_TOKENIZER
        elif parts := re.search(r"^(.+?) +\| +CONVERSION", "\n".join(said), re.MULTILINE):
            reason = f"the checkpoint's tensors for {parts[1]} do not fit together; one is missing, or of another shape"
        elif what == MODEL and Path(location).is_dir() and (damage := _damage(Path(location))):
            reason = damage
        elif what == MODEL and own_code:
            reason = f"its own code does not work with transformers {transformers.__version__} ({reason_of(error)}); "
            listed = str(error) == "'list' object has no attribute 'keys'"
            reason += TIED_AS_LIST if listed else "get its newest code, or adapt its Python files"
        raise ModelError(f"{name}: {reason}") from None
    _tell_unused(name, network, sorted(found["unexpected_keys"]))
    for module in network.modules():
        if isinstance(getattr(module, "_tied_weights_keys", None), list):  # as transformers 4 had it: none is tied
            module._tied_weights_keys = {}
    return network.eval().requires_grad_(False), tokenizer, streamed


def _loaded(location: str, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        location, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )


def _is_large(location: str, name: str, **options: Any) -> bool:
    """Whether a model as float32 would take most of the free memory; a note says so."""
    config = transformers.AutoConfig.from_pretrained(location, **options)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
    needed = sum(parameter.numel() for parameter in model.parameters()) * torch.float32.itemsize
    free = psutil.virtual_memory().available
    if needed <= RESIDENT * free:
        return False
    sizes = f"{needed / 1e9:.1f} GB as float32, {free / 1e9:.1f} GB are free"
    note(f"{name}: read block by block ({sizes}); --whole loads it whole")
    return True


def _streamed(location: str, name: str, **options: Any) -> tuple[Any, Mapping[str, Any], Stream | None]:
    """A model whose parameters stay in their files, and what loading it found; None where it has to be loaded whole.

    transformers says which stored tensor is which parameter; one that it makes of others is in no file.
    """
    try:
        network, found = _loaded(location, device_map={"": "disk"}, **options)
        stream = detached(network)
        ids = few_tokens(network)
        with torch.no_grad():
            logits = network(input_ids=ids, use_cache=False).logits
        if not logits.isfinite().all():
            raise ModelError("it uses parameters outside of the modules that they are of")
        return network, found, stream
    except Exception as error:  # transformers raises many kinds; loaded whole, it has its say again
        reason = reason_of(error)
        if "offload_folder" in reason:
            reason = "its tensors are in no safetensors file as the model has them"
        note(f"{name}: loaded whole, it cannot be read block by block ({reason})")
        return None, {}, None


def reason_of(error: Exception) -> str:
    """What an exception says, its first line, or its kind where it says nothing."""
    lines = [line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return f"unknown {reason}" if isinstance(error, KeyError) else reason


def _check_folder(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{name}: an adapter, not a whole model; merge it into its model (peft's merge_and_unload), and name that"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: not a model, the folder has no config.json")


def _has_vocabulary(folder: Path, files: Mapping[str, str] | None = None) -> bool:
    """Whether a folder has a tokenizer's file, by its class's names or the common ones; a class may need none."""
    wanted = {*VOCABULARIES, *(files or {}).values()}
    return files == {} or any(found for pattern in wanted for found in folder.glob(pattern) if found.is_file())


def _check_complete(name: str, network: Any, found: Mapping[str, Any]) -> None:
    """Refuse what would be random; tied weights and buffers that are not stored are not missing."""
    kind, unexpected = type(network).__name__, sorted(found["unexpected_keys"])
    if missing := [key for key in network.state_dict() if key in found["missing_keys"]]:
        foreign = f"; it holds {_counted(unexpected)}, unknown to {kind}" if unexpected else ""
        raise ModelError(
            f"{name}: the checkpoint lacks {_counted(missing)}; what is missing would be random{foreign}; "
            "download it again, or save it under the names that its config.json asks for"
        )
    if mismatched := sorted(found["mismatched_keys"]):
        key, stored, wanted = mismatched[0]
        raise ModelError(
            f"{name}: in the checkpoint {key} has the shape {tuple(stored)}, by its config.json {tuple(wanted)}"
            + (f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else "")
            + "; one of the two belongs to another model"
        )


def _check_stored(name: str, network: Any, folder: Path) -> None:
    """Refuse whole numbers and bytes in place of weights: without their scales they are read as other numbers."""
    if getattr(network.config, "quantization_config", None) is not None:
        return  # which says how to read them
    state = network.state_dict()
    for path in _weight_files(folder):
        for key, tensor in load_state_dict(path, "meta").items():
            own = state.get(key, state.get(f"{network.base_model_prefix}.{key}"))
            if own is not None and own.is_floating_point() and (tensor.itemsize < 2 or not tensor.is_floating_point()):
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ModelError(
                    f"{name}: in the checkpoint {key} is stored as {dtype}, so it is quantised, and its config.json "
                    "does not say how; name a checkpoint that is not quantised"
                )


def _damage(folder: Path) -> str:
    """What is wrong with a folder's files of weights, empty if nothing is seen."""
    try:
        files = [Path(file) for file in _weight_files(folder)]
    except ModelError as error:
        return f"{str(error).removeprefix(f'{folder}: ')}; download its weights"
    except (ValueError, KeyError, AttributeError):
        return "its index of weights (.index.json) is damaged; download it again"
    for file in files:
        if not file.is_file():
            return f"{file.name}, which its index of weights names, is not there; download it"
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                return f"{file.name} is a pointer of Git LFS, not the weights; git lfs pull gets them"
        try:
            load_state_dict(str(file), "meta")
        except Exception:  # each format has its own
            return f"{file.name} is damaged or not whole; download it again"
    return ""


def _tell_unused(name: str, network: Any, unexpected: Sequence[str]) -> None:
    kind = type(network).__name__
    if unexpected:
        note(f"{name}: the checkpoint holds {_counted(unexpected)}, for which {kind} has no place; left out")
    if getattr(network.config, "auto_map", None) and type(network).__module__.startswith("transformers."):
        note(f"{name}: the code that comes with it was not run, transformers has its own {kind}")


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors, the first {names[0]}"


def stored_types(network: Any, folder: Path) -> dict[str, torch.dtype]:
    """Type in which a checkpoint stores each floating tensor of the model's state, by its name there.

    Which stored tensor becomes which of the model's is for transformers to say: it loads a stand-in of the model, whose
    tensors hold the number of their type and take no memory.

    Raises:
        ModelError: no file of weights in the folder.
    """
    stored = {key: tensor for path in _weight_files(folder) for key, tensor in load_state_dict(path, "meta").items()}
    types = list(dict.fromkeys(tensor.dtype for tensor in stored.values() if tensor.is_floating_point()))
    names = [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]
    if len(types) == 1 and all(tensor.is_floating_point() for tensor in stored.values()):
        return dict.fromkeys(names, types[0])
    types = list(dict.fromkeys(tensor.dtype for tensor in stored.values()))
    numbers = {
        key: torch.tensor(float(types.index(tensor.dtype))).expand(tensor.shape) for key, tensor in stored.items()
    }
    with listening(network.name_or_path):
        stand_in = type(network).from_pretrained(None, config=network.config, state_dict=numbers, dtype=torch.float32)
    state, found = stand_in.state_dict(), {}
    for name in names:
        corners = {int(state[name][(end,) * state[name].ndim]) for end in (0, -1)}  # two where tensors were joined
        found[name] = functools.reduce(torch.promote_types, [types[corner] for corner in corners])
    return found


def _weight_files(folder: Path) -> Sequence[str]:
    """Files of weights in the order in which transformers looks for them."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [str(folder / name)]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return sorted({str(folder / part) for part in parts})
    raise ModelError(f"{folder}: no {' or '.join(WEIGHTS)} in it")
