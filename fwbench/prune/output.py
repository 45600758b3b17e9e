"""The output folder: a model that transformers loads as it is, the masks, what was done, and a report."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from fwbench.problems.checkpoint import LICENCES, listening, reason_of
from fwbench.problems.models import Model
from fwbench.prune import dtypes, page
from fwbench.prune.plan import Plan, PruneError
from fwbench.prune.work import Work
from fwbench.result import unpack_mask

MASKS, SUMMARY = "masks.safetensors", "fwbench.json"
MASK_FORMAT = "fwbench-masks-1"
KEPT = ("generation_config.json", *LICENCES)
CODE = ("*.py", "custom_generate/*")
PROCESSORS = ("*processor_config.json", "chat_template*")


def finish(plan: Plan, work: Work, masks: Mapping[str, bytes], summary: dict[str, Any], started: float) -> None:
    """Write everything beside the work, rename it to the output folder, and remove the work.

    Raises:
        PruneError: it cannot be written; the work stays, and the same command goes on.
    """
    folder, begun = work.folder / "out", time.monotonic()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_masks(folder / MASKS, masks, plan)
        _save_model(plan, folder)
        now = time.monotonic()
        summary["seconds"] |= {"save": now - begun, "total": now - started}
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        page.write(summary, folder)
        for file in folder.rglob("*"):  # safetensors makes files that only their owner may read
            if file.is_file():
                file.chmod(0o644)
        if work.out.is_dir():
            work.out.rmdir()  # an empty one was allowed
        os.rename(folder, work.out)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise PruneError(
            f"{_being_written(folder, error)}: cannot be written ({reason_of(error)}); the pruned blocks are kept in "
            f"{work.folder}, with the cause removed the same command goes on"
        ) from None
    shutil.rmtree(work.folder, ignore_errors=True)


def _being_written(folder: Path, error: Exception) -> str:
    """The file that an error is about: the one it names, or the last that was opened; a full disk names none."""
    if isinstance(error, SafetensorError):
        return f"{folder}, the weights"  # written aside, in one file or many
    files = [file for file in folder.rglob("*") if file.is_file()]
    named = getattr(error, "filename", None)
    return str(named or max(files, key=lambda file: file.stat().st_mtime_ns, default=folder))


def _save_model(plan: Plan, folder: Path) -> None:
    model, network = plan.model, plan.model.network
    dtypes.convert(network, plan.types)
    with contextlib.suppress(AttributeError):
        del network.config.quantization_config  # save_pretrained refuses what was loaded from a GGUF file
    network.is_quantized, network.hf_quantizer = False, None
    with listening(model.label, while_="it was saved"):
        network.save_pretrained(folder)
        _set_dtype(network.config, plan.record["config_dtype"])
        network.config.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    if model.folder is not None:
        _copy_files(model, folder)


def _set_dtype(config: Any, dtype: str) -> None:
    """transformers has it from the first tensor, and in the parts of a model from how it was loaded."""
    config.dtype = dtype
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            _set_dtype(part, dtype)


def _copy_files(model: Model, folder: Path) -> None:
    """What belongs to the model beside weights, configuration and tokenizer, as it is.

    Not its README: what a model card says is of the dense model.
    """
    patterns = list(KEPT)
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    if config.get("auto_map"):
        patterns += CODE
    if config.get("model_type") == model.network.config.model_type:
        patterns += PROCESSORS  # not of a language model that was taken out of one with other senses
    for file in sorted({file for pattern in patterns for file in model.folder.glob(pattern) if file.is_file()}):
        target = folder / file.relative_to(model.folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def write_masks(path: Path, masks: Mapping[str, bytes], plan: Plan) -> None:
    """Write the masks of parameters, by name: packed bits, row-major in the parameter's shape, 1 = the weight stays."""
    about = {
        "format": MASK_FORMAT,
        "shapes": {name: list(plan.model.network.get_parameter(name).shape) for name in sorted(masks)},
        "pattern": plan.record["pattern"],
        "solver": plan.record["solver"],
        "calibration_sha256": plan.record["calibration_sha256"],
    }
    tensors = {name: np.frombuffer(bits, np.uint8) for name, bits in masks.items()}
    # one key only: the library shuffles several from run to run
    data = safetensors.numpy.save(tensors, {"fwbench": json.dumps(about, sort_keys=True)})
    path.write_bytes(data)


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
