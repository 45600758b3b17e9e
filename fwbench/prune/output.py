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

from fwbench.problems.models import quiet
from fwbench.prune import page
from fwbench.prune.plan import Plan, PruneError
from fwbench.prune.work import Work
from fwbench.result import unpack_mask

MASKS, SUMMARY = "masks.safetensors", "fwbench.json"
MASK_FORMAT = "fwbench-masks-1"


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
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise PruneError(
            f"{work.out}: cannot be written ({reason}); the pruned blocks are kept in {work.folder}, "
            "with the cause removed the same command goes on"
        ) from None
    shutil.rmtree(work.folder, ignore_errors=True)


def _save_model(plan: Plan, folder: Path) -> None:
    network = plan.model.network.to(plan.save_dtype)
    with contextlib.suppress(AttributeError):
        del network.config.quantization_config  # save_pretrained refuses what was loaded from a GGUF file
    network.is_quantized, network.hf_quantizer = False, None
    with quiet():
        network.save_pretrained(folder)
        plan.model.tokenizer.save_pretrained(folder)


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
