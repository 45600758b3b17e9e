"""``fwbench recover``: the kept weights of a pruned model, trained block by block towards the dense model.

Two walks: the dense model's activations give each block its target, and those of the blocks that are recovered already
arrive at the next. The mask stays, and so do embeddings, head, norms, biases and layers without pruned weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fwbench import machine
from fwbench.pruning import walk as walks
from fwbench.pruning.engine import PROMPT, Clock, begun, counted, measured, peak_memory, report
from fwbench.pruning.errors import PruneError
from fwbench.pruning.output import finish
from fwbench.pruning.plan import Progress
from fwbench.pruning.recovery.plan import Plan, Recovery, make
from fwbench.pruning.recovery.training import Training, errors, train
from fwbench.pruning.recovery.units import BLOCK, Unit, output, units
from fwbench.pruning.room import Room
from fwbench.pruning.work import Block, Work


def recover(name: str, out: Path | str, options: Recovery, progress: Progress | None = None) -> dict[str, Any]:
    """Train what pruning left of a model, mask kept, and write it to a folder.

    Args:
        name: of the pruned model: a folder of ``fwbench prune``, or any checkpoint whose pruned weights are zeros.
            It is never modified.
        out: folder that appears, complete, at the end; until then the work is in ``OUT.partial``, and the same call
            goes on there after a kill.
        options: what to do.
        progress: called with (blocks done, blocks in all, what, seconds left).

    Returns:
        The content of ``fwbench.json``.

    Raises:
        PruneError, ModelError, TextError, ProblemError: one line, what is wrong.
    """
    return begun(out, lambda: make(name, options, progress), partial(_run, progress=progress))


def _run(plan: Plan, work: Work, clock: Clock, said: list[str], progress: Progress | None) -> dict[str, Any]:
    with clock.of("evaluate"):
        before = work.read_json("begun.json")
        if before is None:
            models = {"dense": plan.dense, "pruned": plan.model}
            before = {kind: measured(replace(plan, model=model), work, progress) for kind, model in models.items()}
            work.write_json("begun.json", before)
    records, resumed = _blocks(plan, work, clock, progress)
    blocks = [block for record in records if (block := record.pop("trained"))]
    with clock.of("evaluate"):
        found = {**before, "recovered": measured(plan, work, progress)}
    summary = {
        **plan.record,
        "perplexity": {kind: each["perplexity"] for kind, each in found.items()},
        "sample": {"prompt": PROMPT, **{kind: each["sample"] for kind, each in found.items()}},
        "totals": totals(plan, records, blocks),
        "blocks": blocks,
        "layers": records,
        "notes": said,
        "machine": machine.describe(),
        "blocks_resumed": resumed,
        "seconds": clock.seconds,
        "peak_memory": peak_memory(),
    }
    if progress:
        progress(len(plan.layers), len(plan.layers), f"{plan.model.label}: saving", None)
    with clock.of("save"):
        finish(plan, work, summary, clock.started, store=False)
    return summary


def _blocks(plan: Plan, work: Work, clock: Clock, progress: Progress | None) -> tuple[list[dict[str, Any]], int]:
    """Walk through all blocks; finished ones are read, the others trained. Records, blocks read."""
    with clock.of("forward"):
        room = Room(work.folder)
        walk = walks.begin(plan.model.network, plan.batches, plan.device, room)
        dense = walks.begin(plan.dense.network, plan.batches, plan.device, room)
    records: list[dict[str, Any]] = []
    resumed, began = 0, time.monotonic()
    for number, layers in enumerate(plan.layers):
        report(plan, "recovering", number, number - resumed, began, progress)
        done = work.read_block(number) if layers else Block({}, {}, [])
        parts = units(walk.blocks[number], layers, plan.options.unit) if done is None else []
        with clock.of("forward"), plan.dense.holding(dense.blocks[number]):
            dense.blocks[number].to(plan.device)
            room = Room(work.folder)
            targets = {part.path: _outputs(dense, number, part.path, room) for part in parts if part.path}
            dense.advance(number)
        dense.blocks[number].to("cpu")
        with plan.model.holding(walk.blocks[number]):
            walk.blocks[number].to(plan.device)
            if done is not None:
                resumed += bool(layers)
                for layer in layers:
                    layer.load(done.weights[layer.parameter])
            else:
                with clock.of("train"):
                    done = _train_block(plan, walk, parts, {"": dense.hidden, **targets}, number)
                work.write_block(number, done)
            del targets  # before there are those of the next block
            with clock.of("forward"):
                walk.advance(number)
        if plan.model.stream is not None:
            plan.model.stream.move(work.block(number), done.weights)
        walk.blocks[number].to("cpu")
        records += [dict(record) for record in done.records]
        machine.release_memory()
    return records, resumed


@torch.no_grad()
def _outputs(dense: walks.Walk, number: int, path: str, room: Room) -> list[torch.Tensor]:
    return [room.keep(output(dense, number, index, path).to("cpu", copy=True)) for index in range(len(dense.hidden))]


def _train_block(
    plan: Plan, walk: walks.Walk, parts: list[Unit], targets: dict[str, list[torch.Tensor]], number: int
) -> Block:
    began, options = time.monotonic(), plan.options
    layers = {layer.parameter: layer for layer in plan.layers[number]}
    before = {name: layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items()}
    keeps = {name: weight != 0 for name, weight in before.items()}
    training = Training(options.epochs, options.rate, seed=(options.seed << 20) + number)
    block = partial(walk.output, number)
    first = None if options.unit == BLOCK else errors(block, targets[""])
    found = []
    weights: dict[str, torch.Tensor] = {}
    for part in parts:
        own = {layer.parameter: layer.weight for layer in part.layers}
        run = partial(output, walk, number, path=part.path)
        found.append(train(run, targets[part.path], own, plan.types, training))
        weights |= found[-1].weights
    last = found[-1].after if first is None else errors(block, targets[""])
    first = first or found[0].before
    if not math.isfinite(first.fitted + first.held_out):
        raise PruneError(f"block {number}: what it gives is not finite, in the dense model or in the pruned one")
    for name, keep in keeps.items():
        assert not weights[name][~keep].any(), f"{name}: a pruned weight came back"
    record = {
        "block": number,
        "layers": len(layers),
        "fitted": [first.fitted, last.fitted],
        "held_out": [first.held_out, last.held_out],
        "epochs": [each.epoch for each in found],
        "seconds": time.monotonic() - began,
    }
    records = [
        {
            "layer": layer.name,
            "parameter": name,
            "rows": before[name].shape[layer.transposed],
            "n": before[name].shape[1 - layer.transposed],
            "pruned": int((~keeps[name]).sum()),
            "change": float((weights[name].float() - before[name]).norm() / before[name].norm()),
            "trained": record if layer is next(iter(layers.values())) else None,
        }
        for name, layer in layers.items()
    ]
    return Block(weights, {name: keep.numpy() for name, keep in keeps.items()}, records)


def totals(plan: Plan, records: list[dict[str, Any]], blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the layers, and means over the blocks of their errors before and after."""
    means = {
        kind: [sum(block[kind][when] for block in blocks) / len(blocks) for when in (0, 1)]
        for kind in ("fitted", "held_out")
    }
    return {**counted(plan, records), **means}
