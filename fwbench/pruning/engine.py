"""The run: plan, walk through the blocks, solve each layer, save."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fwbench import machine, metrics, notes, protocols
from fwbench.perplexity import Perplexity, check_causal, perplexity, windows
from fwbench.problems.arriving import Arrived
from fwbench.problems.models import Model
from fwbench.problems.structure import on_text
from fwbench.protocols import Passages
from fwbench.pruning import allocation, dtypes
from fwbench.pruning import plan as plans
from fwbench.pruning import walk as walks
from fwbench.pruning.layers import Solved, solve, together
from fwbench.pruning.output import finish
from fwbench.pruning.plan import Options, Plan, Prepared, Progress
from fwbench.pruning.residual import Writer, writers
from fwbench.pruning.room import Room
from fwbench.pruning.work import Block, Work, check_output

PROMPT = "The most surprising thing about the sea is"
SAMPLE_TOKENS = 32

AnyPlan = TypeVar("AnyPlan", bound=Prepared)


@dataclass
class Clock:
    """Seconds by kind of work."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - begun


def prune(name: str, out: Path | str, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """Prune a model and write it to a folder.

    Args:
        name: of the model, as :func:`fwbench.problems.models.load_model` takes it; never modified.
        out: folder that appears, complete, at the end; until then the work is in ``OUT.partial``, and the same call
            goes on there after a kill.
        options: what to do.
        progress: called with (blocks done, blocks in all, what, seconds left).

    Returns:
        The content of ``fwbench.json``.

    Raises:
        PruneError, ModelError, TextError, PatternError, SpecError, ProblemError: one line, what is wrong.
    """
    return begun(out, lambda: plans.make(name, options, progress), partial(_run, progress=progress))


def begun(
    out: Path | str,
    make: Callable[[], AnyPlan],
    run: Callable[[AnyPlan, Work, Clock, list[str]], dict[str, Any]],
) -> dict[str, Any]:
    """Make a plan, check what can be checked before the work, and run it where its work is kept.

    Args:
        out: folder that appears at the end.
        make: the plan.
        run: called with the plan, its work, the clock and the notes so far, to which more are added.
    """
    out, clock, said = Path(out), Clock(), list[str]()
    check_output(out)
    with notes.heard(said.append):
        with clock.of("load"):
            plan = make()
            check_evaluation(plan)
            size = dtypes.size(plan.model.network, plan.types)
        work = Work(out)
        with work.begin(plan.record, needed=2 * size):
            return run(plan, work, clock, said)


def _run(plan: Plan, work: Work, clock: Clock, said: list[str], progress: Progress | None) -> dict[str, Any]:
    with clock.of("evaluate"):
        dense = work.read_json("dense.json")
        if dense is None:
            dense = measured(plan, work, progress)
            work.write_json("dense.json", dense)
    if plan.allocation is not None:
        with clock.of("allocate"):
            plan = _allocated(plan, plan.allocation, work, progress)
    records, resumed = _blocks(plan, work, clock, progress)
    with clock.of("evaluate"):
        pruned = measured(plan, work, progress)
    summary = {
        **plan.record,
        "left_out": list(plan.left_out),
        "perplexity": {"dense": dense["perplexity"], "pruned": pruned["perplexity"]},
        "sample": {"prompt": PROMPT, "dense": dense["sample"], "pruned": pruned["sample"]},
        "totals": totals(plan, records),
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
        finish(plan, work, summary, clock.started)
    return summary


def _allocated(plan: Plan, method: allocation.Method, work: Work, progress: Progress | None) -> Plan:
    """The plan with a pattern for each layer, found on the dense model once and kept with the work."""
    at = plan.model, plan.layers, plan.batches, plan.pattern, plan.device
    setting = allocation.setting(*at, _without_time(progress), work.folder)
    counts = work.read_json("allocation.json")
    if counts is None:
        counts = allocation.allocate(method, setting)
        work.write_json("allocation.json", counts)
    allocated = allocation.patterns(setting, counts)
    gap = work.read_json("allocation_gap.json")
    if gap is None and (gap := allocation.gap(method, setting, allocated, work)):
        work.write_json("allocation_gap.json", gap)
    record = {
        **plan.record,
        "allocation_sha256": hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest(),
        **({"allocation_gap": gap} if gap else {}),
    }
    return replace(plan, allocated=allocated, record=record)


def _blocks(plan: Plan, work: Work, clock: Clock, progress: Progress | None) -> tuple[list[dict[str, Any]], int]:
    """Walk through all blocks; finished ones are read, the others pruned. Records but for their rows, blocks read."""
    sequential, device = plan.options.sequential, plan.options.device
    with clock.of("forward"):
        walk = walks.begin(plan.model.network, plan.batches, device, Room(work.folder), with_dense=plan.correcting)
    records: list[dict[str, Any]] = []
    resumed, began = 0, time.monotonic()
    for number, layers in enumerate(plan.layers):
        report(plan, "pruning", number, number - resumed, began, progress)
        with plan.model.holding(walk.blocks[number]):
            walk.blocks[number].to(device)
            done = work.read_block(number) if layers else Block({}, {}, [])
            if done is not None:
                resumed += bool(layers)
                with clock.of("forward"):
                    if not sequential:
                        walk.advance(number)
                    if walk.dense:
                        walk.advance(number, walk.dense)
                _load(layers, done)
            else:
                done = _prune_block(plan, walk, number, clock)
                work.write_block(number, done)
            if sequential and number + 1 < len(plan.layers):
                with clock.of("forward"):
                    walk.advance(number)
        if plan.model.stream is not None:
            plan.model.stream.move(work.block(number), done.weights)
        walk.blocks[number].to("cpu")
        records += [{key: value for key, value in record.items() if key != "row"} for record in done.records]
        machine.release_memory()
    return records, resumed


def _prune_block(plan: Plan, walk: walks.Walk, number: int, clock: Clock) -> Block:
    """Solve a block's layers input by input, and load what is found."""
    layers = {layer.name: layer for layer in plan.layers[number]}
    inputs = _arriving(plan, walk, number, {name: layer.module for name, layer in layers.items()})
    found: dict[str, Solved] = {}
    while True:
        with clock.of("forward"):
            item = next(inputs, None)
            machine.release_memory()  # of the forward passes, before the solver asks for its own
        if item is None:
            break
        names, arrived = item
        with clock.of("solve"):
            for batch in together(plan, [layers[name] for name in names]):
                found |= solve(plan, batch, arrived)
        for name in names:
            layers[name].load(found[name].weight)
    solved = [(layer.parameter, found[name]) for name, layer in layers.items()]
    weights, masks = {name: item.weight for name, item in solved}, {name: item.keep for name, item in solved}
    return Block(weights, masks, [{**item.record, "row": item.result.to_json()} for _, item in solved])


def _arriving(
    plan: Plan, walk: walks.Walk, number: int, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[list[str], Arrived]]:
    """What arrives at each input of a block, with the names of the layers that read it."""
    if not plan.options.sequential:
        yield from walk.arrived(number, layers)
        return
    adding: Mapping[str, Writer] = {}
    if plan.correcting and plan.residual:
        adding = writers(walk.blocks[number], layers, lambda: walk.output(number, 0))
        if not adding and not any(plan.layers[:number]):
            notes.note(
                f"{plan.model.label}: no layer's output is added to the hidden states as it is; --residual is idle"
            )
    yield from walk.in_sequence(number, layers, bool(plan.options.true_sequential), adding)


def _load(layers: Any, block: Block) -> None:
    for layer in layers:
        layer.load(block.weights[layer.parameter])


def totals(plan: Plan, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the layers."""
    error = sum(record["error"] for record in records)
    power = sum(record["dense_power"] for record in records)
    known = [r for r in records if r["ratio_to_wanda"]]
    wanda = sum(record["error"] / record["ratio_to_wanda"] for record in known)
    return {
        **counted(plan, records),
        "error": error,
        "relative_error": metrics.relative_error(error, power),
        "ratio_to_wanda": metrics.ratio_to_wanda(sum(r["error"] for r in known), wanda) if wanda else None,
    }


def counted(plan: Prepared, records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many weights the layers of the records have, and how many of them are pruned."""
    pruned, weights = sum(r["pruned"] for r in records), sum(r["rows"] * r["n"] for r in records)
    parameters = sum(parameter.numel() for parameter in plan.model.network.parameters())
    return {
        "layers": len(records),
        "weights": weights,
        "pruned": pruned,
        "parameters": parameters,
        "sparsity": pruned / weights,
        "sparsity_of_model": pruned / parameters,
    }


def report(plan: Prepared, doing: str, number: int, done: int, began: float, progress: Progress | None) -> None:
    """Tell that a block's turn has come, and the time left by that of the blocks ``done`` since ``began``."""
    if progress:
        left = (time.monotonic() - began) / done * (len(plan.layers) - number) if done > 0 else None
        progress(number, len(plan.layers), f"{plan.model.label}: {doing} block {number}", left)


def check_evaluation(plan: Prepared) -> None:
    """Raise what :func:`measured` would, ModelError or TextError, before the work."""
    if plan.evaluation:
        check_causal(plan.model.network)
        if isinstance(plan.evaluation, Passages):
            protocols.windows(plan.model, plan.evaluation)
        else:
            windows(plan.model, plan.evaluation)
    plan.model.check_tokens([plan.model.tokenizer(PROMPT, verbose=False)["input_ids"]])


def measured(plan: Prepared, work: Work, progress: Progress | None) -> dict[str, Any]:
    """Perplexity and a sample of the model as it is now."""
    tell = _without_time(progress)
    through = None if plan.model.stream is None else walks.by_block(plan.model, plan.device, tell, work.folder)
    with _on_device(plan):
        if isinstance(plan.evaluation, Passages):
            found: Perplexity | None = protocols.measure(plan.model, plan.evaluation, progress=tell, through=through)
        else:
            found = perplexity(plan.model, plan.evaluation, progress=tell, through=through) if plan.evaluation else None
        return {"perplexity": asdict(found) if found else None, "sample": sample(plan.model)}


def _without_time(progress: Progress | None) -> Callable[[int, int, str], None] | None:
    """The same for work that does not tell the time left."""
    return (lambda done, total, what: progress(done, total, what, None)) if progress else None


@contextlib.contextmanager
def _on_device(plan: Prepared) -> Iterator[None]:
    """The whole model on the device where it fits, else where it is."""
    network, device = plan.model.network, torch.device(plan.device)
    size = sum(p.numel() * p.itemsize for p in network.parameters())
    fits = device.type == "cuda" and plan.model.stream is None
    fits = fits and 1.3 * size + (2 << 30) < torch.cuda.mem_get_info(device)[0]
    try:
        if fits:
            network.to(device)
        yield
    finally:
        if fits:
            network.to("cpu")
        machine.release_memory()


@torch.no_grad()
def sample(model: Model, prompt: str = PROMPT, tokens: int = SAMPLE_TOKENS) -> str:
    """What the model makes of a prompt, always its likeliest next token, whatever its generation settings say."""
    network = model.network
    ids = list(model.tokenizer(prompt, verbose=False)["input_ids"])
    model.check_tokens([ids])
    ends = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    said: list[int] = []
    while ids and len(said) < tokens and len(ids) + len(said) < model.max_length:
        row = torch.tensor([ids + said], device=next(network.parameters()).device)
        with on_text(network, row):
            said.append(int(network(input_ids=row, use_cache=False).logits[0, -1].argmax()))
        if said[-1] in ends:
            break
    return str(model.tokenizer.decode(said, skip_special_tokens=True))


def peak_memory() -> int | None:
    """Largest resident size of this process so far, bytes; None where the system does not tell."""
    try:  # Linux: ru_maxrss would begin at what the parent process held
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
