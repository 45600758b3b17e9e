"""The layers of one input: solved as one batch of rows, judged and recorded one by one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fwbench import metrics, pipeline, verify
from fwbench.patterns import NM, PerRow
from fwbench.pipeline import Answer, Run
from fwbench.problem import Problem, shrunk
from fwbench.problems.arriving import Arrived, Target
from fwbench.problems.structure import weight_of
from fwbench.pruning.dtypes import too_large
from fwbench.pruning.errors import PruneError
from fwbench.pruning.linear import Layer
from fwbench.pruning.plan import Plan
from fwbench.result import Proof, Result, Verdict, pack_mask
from fwbench.stage import Role

BATCH_WEIGHTS = 1 << 22  # of layers solved together; larger ones fill a device, and would fill its memory


@dataclass(frozen=True)
class Solved:
    """What is saved of a layer: weight and mask in the model's own orientation, its row, and its record in JSON."""

    weight: torch.Tensor
    keep: np.ndarray  # bool, True = the weight stays
    result: Result
    record: Mapping[str, Any]


def together(plan: Plan, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Divide layers that read one input into batches for :func:`solve`.

    Their rows are problems of one kind, so a batch takes fewer and larger steps, which a GPU needs. Layers stay alone
    where the pattern ties rows together or is not that of the layer before, a stage proves bounds or optima of whole
    problems, or has seconds for each.
    """
    alone = any(stage.role in (Role.EXACT, Role.BOUND) for stage in plan.solver.stages)
    alone |= any(0 < getattr(stage, "seconds", 0) < math.inf for stage in plan.solver.stages)
    batches: list[list[Layer]] = []
    room, last = 0, None
    for layer in layers:
        size, pattern = layer.weight.numel(), plan.pattern_of(layer)
        joined = isinstance(pattern, PerRow | NM) and pattern == last
        last = pattern
        if alone or not joined or size > room:
            batches.append([])
            room = BATCH_WEIGHTS
        batches[-1].append(layer)
        room -= size
    return batches


def solve(plan: Plan, layers: Sequence[Layer], arrived: Arrived) -> dict[str, Solved]:
    """Solve layers that read one input as one problem.

    Args:
        plan: of the run; its time limit counts for each layer.
        layers: one, or several as :func:`together` joins them.
        arrived: at their input.

    Returns:
        What is saved of each layer, by its name.

    Raises:
        PruneError: the pipeline gave no mask, with its reason.
        ProblemError: weights that are not finite.
    """
    options = plan.options
    own: list[Problem] = []
    for layer in layers:
        W = weight_of(layer.module)
        K = arrived.K.get(layer.name)
        beside = None if K is None else (plan.residual, K)
        target = arrived.target(W, options.correct, options.ridge, beside) if plan.correcting else Target()
        G = own[0].G if own else arrived.G  # one for all
        own.append(Problem(layer.name, W, G, plan.pattern_of(layer), T=target.T, offset=target.offset))
    problem = own[0] if len(own) == 1 else _joined(own)
    solved = replace(problem, G=shrunk(problem.G, options.shrink)) if options.shrink else problem
    run = Run(solved, plan.solver, options.seed, options.device, options.dtype)
    pipeline.warm_up(run)
    outcome = pipeline.execute(run, time_limit=options.time_limit * len(layers))
    keep = outcome.keep
    if not outcome.result.solved or keep is None:
        raise PruneError(f"layer {problem.name}: {plan.solver.text} failed ({outcome.result.reason})")
    chosen = torch.from_numpy(np.where(keep, problem.W if outcome.weights is None else outcome.weights, 0))
    weights = [
        _saved(layer, chosen[rows], plan.types[layer.parameter])
        for layer, rows in zip(layers, _slices(own), strict=True)
    ]
    if outcome.weights is None and solved is problem:
        errors = problem.mask_errors(keep)
    else:  # the error of what is saved, on the inputs as they are
        errors = problem.weight_errors(torch.cat([weight.float() for weight in weights]).numpy())
    figures = np.stack([errors, pipeline.wanda_errors(problem), problem.row_totals])
    found = {}
    for layer, part, rows, weight in zip(layers, own, _slices(own), weights, strict=True):
        # with shrunk inputs a bound is one of another error
        lower = _lower_bound(outcome, rows, problem.floor) if solved is problem else None
        mask, figures_ = keep[rows], figures[:, rows].sum(1).tolist()
        own_run = replace(run, problem=part, collection=plan.model.label)
        result = _result(own_run, outcome, figures_, lower, mask, options.shrink)
        record = _record(layer, result, figures_[2], int((~mask).sum()))
        if layer.transposed:
            weight, mask = weight.T, mask.T
        found[layer.name] = Solved(weight.contiguous(), np.ascontiguousarray(mask), result, record)
    return found


def _saved(layer: Layer, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A layer's weights as they are saved. Raises PruneError where an updated one is too large for its type."""
    weight = weight.float()
    saved = weight.to(dtype)
    if lost := weight[saved.isinf()].tolist():
        raise PruneError(f"layer {layer.name}: an updated weight is {lost[0]:.6g}, {too_large(dtype)}")
    return saved


def _joined(problems: Sequence[Problem]) -> Problem:
    """The rows of several problems with one ``G``."""
    name = ", ".join(problem.name for problem in problems)
    W = np.concatenate([problem.W for problem in problems])
    if problems[0].T is None:
        return replace(problems[0], name=name, W=W)
    T, offset = (np.concatenate([getattr(problem, key) for problem in problems]) for key in ("T", "offset"))
    return replace(problems[0], name=name, W=W, T=T, offset=offset)


def _slices(problems: Sequence[Problem]) -> Iterator[slice]:
    """Where each problem's rows lie in the joined one."""
    first = 0
    for problem in problems:
        yield slice(first, first + problem.rows)
        first += problem.rows


def _lower_bound(outcome: Answer, rows: slice, floor: float) -> tuple[float, Proof] | None:
    """What is known of these rows; of a claim for several layers together nothing is known of one."""
    result = outcome.result
    if result.lower_bound is None:
        return None
    if outcome.row_bounds:
        return verify.total(outcome.row_bounds[rows], floor), Proof.VERIFIED
    return (result.lower_bound, result.proof) if rows.stop - rows.start == result.rows else None


def _result(
    run: Run,
    joint: Answer,
    figures: Sequence[float],
    bound: tuple[float, Proof] | None,
    keep: np.ndarray,
    shrink: float,
) -> Result:
    """The row of one layer, from the answer for all layers of its input; seconds are its rows' share.

    Its key has the layer's name and the shrinkage in it: layers may be equal, and a shrunk Gram is another problem.
    """
    (error, wanda, total), (lower, proof) = figures, bound or (None, Proof.NONE)
    alone, share = run.problem.rows == joint.result.rows, run.problem.rows / joint.result.rows
    seconds = joint.result.seconds
    blank = run.failed(joint.result.reason, joint.result.status, None if seconds is None else share * seconds)
    return replace(
        blank,
        key=hashlib.sha256("\n".join((run.key, run.problem.name, str(shrink))).encode()).hexdigest()[:32],
        verdict=Verdict.FEASIBLE if lower is None else joint.result.verdict,
        error=error,
        relative_error=metrics.relative_error(error, total),
        ratio_to_wanda=metrics.ratio_to_wanda(error, wanda),
        lower_bound=lower,
        proof=proof,
        stages=joint.result.stages if alone else (),
        counters=joint.result.counters if alone else {},
        trace=joint.result.trace if alone else (),
        mask_sha256=hashlib.sha256(pack_mask(keep)).hexdigest(),
    )


def _record(layer: Layer, result: Result, power: float, pruned: int) -> dict[str, Any]:
    ratio = result.ratio_to_wanda
    return {
        "layer": layer.name,
        "parameter": layer.parameter,
        "pattern": result.pattern,
        "rows": result.rows,
        "n": result.n,
        "error": result.error,
        "dense_power": power,
        "relative_error": result.relative_error,
        "ratio_to_wanda": None if ratio == math.inf else ratio,  # infinite is no JSON
        "lower_bound": result.lower_bound,
        "gap": metrics.optimality_gap(result.error, result.lower_bound),
        "proof": str(result.proof),
        "problem_sha256": result.problem_hash,
        "pruned": pruned,
        "mask_sha256": result.mask_sha256,
        "status": str(result.status),
        "reason": result.reason,
        "seconds": result.seconds,
    }
