"""The output folder: a model that transformers loads as it is, the masks, a store of the layers' rows, a report."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open

from fwbench.problems.checkpoint import LICENCES, reason_of
from fwbench.problems.listening import listening
from fwbench.problems.models import Model
from fwbench.pruning import dtypes, page, shards
from fwbench.pruning.errors import PruneError
from fwbench.pruning.plan import Prepared
from fwbench.pruning.work import Work
from fwbench.result import Result, packed_size, unpack_mask
from fwbench.store import LAYERS, Store, StoreError

MASKS, SUMMARY = "masks.safetensors", "fwbench.json"
MASK_FORMAT = "fwbench-masks-1"
KEPT = ("generation_config.json", *LICENCES)
CODE = ("*.py", "custom_generate/*")
PROCESSORS = ("*processor_config.json", "chat_template*")


def finish(
    plan: Prepared,
    work: Work,
    summary: dict[str, Any],
    started: float,
    store: bool = True,
) -> None:
    """Write everything beside the work, rename it to the output folder, and remove the work.

    Masks and rows are read from the work block by block: of a large model all of them together are large.

    Args:
        plan: of the run.
        work: all of its blocks are finished.
        summary: what ``fwbench.json`` will hold, but for the time that this takes.
        started: when the run began, seconds of the monotonic clock.
        store: write a store of the rows that the records hold.

    Raises:
        PruneError: it cannot be written; the work stays, and the same command goes on.
    """
    folder, begun = work.folder / "out", time.monotonic()
    with _writing(folder, work):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with _writing(folder / MASKS, work):
        write_masks(folder / MASKS, plan, work)
    _save_model(plan, work, folder)
    if store:
        _write_rows(folder / LAYERS, plan, work, summary["machine"])
    now = time.monotonic()
    summary["seconds"] |= {"save": now - begun, "total": now - started}
    content = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    pages = {SUMMARY: content, **page.render(json.loads(content))}  # what the file says, as whoever renders it again
    for name, content in pages.items():
        with _writing(folder / name, work):
            (folder / name).write_text(content, encoding="utf-8", errors="replace", newline="\n")
    with _writing(work.out, work):
        for file in folder.rglob("*"):  # safetensors makes files that only their owner may read
            if file.is_file():
                file.chmod(0o644)
        if work.out.is_dir():
            work.out.rmdir()  # an empty one was allowed
        os.rename(folder, work.out)
    shutil.rmtree(work.folder, ignore_errors=True)


def _write_rows(path: Path, plan: Prepared, work: Work, machine: Mapping[str, Any]) -> None:
    with _writing(path, work), Store(path) as store:
        for number, layers in enumerate(plan.layers):
            for record in work.records(number) if layers else []:
                store.add(replace(Result.from_json(record["row"]), machine=machine))
        store.settle()


@contextlib.contextmanager
def _writing(path: Path, work: Work) -> Iterator[None]:
    """Name the file in an error: a full disk does not."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError, StoreError) as error:
        raise PruneError(
            f"{path}: cannot be written ({reason_of(error)}); finished blocks are kept in {work.folder}, "
            "with the cause removed the same command goes on"
        ) from None


def _save_model(plan: Prepared, work: Work, folder: Path) -> None:
    model, network, config = plan.model, plan.model.network, plan.model.network.config
    if model.stream is None:
        dtypes.convert(network, plan.types)
    with contextlib.suppress(AttributeError):
        del config.quantization_config  # save_pretrained refuses what was loaded from a GGUF file
    network.is_quantized, network.hf_quantizer = False, None
    with listening(model.label, while_="it was saved"):
        with _writing(folder / "model.safetensors", work):
            if model.stream is None:
                network.save_pretrained(folder)
            else:
                shards.save_pretrained(model.stream, plan.types, folder)
        with _writing(folder / "config.json", work):
            whole = whole_config(model)
            _set_dtype(whole, plan.record["config_dtype"])
            whole.save_pretrained(folder)
        with _writing(folder / "tokenizer.json", work):
            model.tokenizer.save_pretrained(folder)
    for file in _companions(model):
        assert model.folder is not None  # where they are
        target = folder / file.relative_to(model.folder)
        with _writing(target, work):
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def whole_config(model: Model) -> Any:
    """The configuration by which transformers finds the class of a causal model.

    It is that of a model of several parts, where it knows none for the language model's alone (Emu3's, Mllama's).
    """
    config = model.network.config
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or model.folder is None or hasattr(config, "auto_map"):
        return config
    whole = transformers.AutoConfig.from_pretrained(model.folder)
    for name, kind in whole.sub_configs.items():
        if isinstance(config, kind):
            setattr(whole, name, config)
    whole.architectures = [type(model.network).__name__]
    return whole


def _set_dtype(config: Any, dtype: str) -> None:
    """transformers has it from the first tensor, and in the parts of a model from how it was loaded."""
    config.dtype = dtype
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            _set_dtype(part, dtype)


def _companions(model: Model) -> list[Path]:
    """Files of the input that belong to the output as they are, beside weights, configuration and tokenizer.

    Not its README: what a model card says is of the dense model.
    """
    if model.folder is None:
        return []
    patterns = list(KEPT)
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    if config.get("auto_map"):
        patterns += CODE
    if config.get("model_type") == model.network.config.model_type:
        patterns += PROCESSORS  # not of a language model that was taken out of one with other senses
    return sorted({file for pattern in patterns for file in model.folder.glob(pattern) if file.is_file()})


def write_masks(path: Path, plan: Prepared, work: Work) -> None:
    """Write the masks of parameters, by name: packed bits, row-major in the parameter's shape, 1 = the weight stays."""
    pruned = [(layer.parameter, number) for number, layers in enumerate(plan.layers) for layer in layers]
    shapes = {name: tuple(plan.model.network.get_parameter(name).shape) for name, _ in sorted(pruned)}
    about = {
        "format": MASK_FORMAT,
        "shapes": shapes,
        "pattern": plan.record["pattern"],
        "solver": plan.record["solver"],
        "calibration_sha256": plan.record["calibration_sha256"],
    }
    reads = {}
    for name, number in pruned:
        packed = torch.empty(packed_size(shapes[name]), dtype=torch.uint8, device="meta")
        reads[name] = (packed, partial(work.packed_mask, number, name))
    shards.write(path, reads, {"fwbench": json.dumps(about, sort_keys=True)})


def load_masks(folder: Path | str) -> dict[str, np.ndarray]:
    """Masks of a pruned model by parameter name: bool in the parameter's own shape, True = the weight stays.

    For fine-tuning that keeps the zeros, multiply each parameter (or its gradient) by its mask after each step.

    Raises:
        PruneError: there are none, or they are unreadable.
    """
    path = Path(folder) / MASKS
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = json.loads(file.metadata()["fwbench"])["shapes"]
            return {name: unpack_mask(file.get_tensor(name).tobytes(), tuple(shape)) for name, shape in shapes.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(f"{path}: not the masks of a pruned model ({' '.join(str(error).split())})") from None
