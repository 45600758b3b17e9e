"""Synthetic results for the tests of the report, in the shape and size of a real run."""

from __future__ import annotations

import hashlib

import numpy as np

from fwbench.result import Proof, Result, StageRecord, Status, Verdict

MACHINE = {
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "threads": 4,
    "memory": 16 * 2**30,
    "system": "Linux 6.1 x86_64",
    "python": "3.11.2",
    "packages": {"fwbench": "0.1.0", "numpy": "2.4.6", "torch": "2.9.0"},
    "commit": "2004cb1" + 33 * "0",
}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#         solver                         final  relaxed rounded  bound   seconds
SOLVERS = {
    "random": (2.30, None, None, None, 0.002),
    "magnitude": (1.33, None, None, None, 0.003),
    "wanda": (1.00, None, None, None, 0.004),
    "ria": (1.04, None, None, None, 0.006),
    "greedy": (0.74, None, None, None, 0.9),
    "wanda+swap": (0.66, None, None, None, 0.4),
    "fw": (0.87, 0.40, 0.87, 0.385, 2.1),
    "fw+swap": (0.645, 0.40, 0.87, 0.385, 2.4),
    "wanda+fw(convexify=shared,steps=2000)+round(method=topk)+swap": (0.62, 0.44, 0.80, 0.50, 6.3),
    "gurobi(convexify=shared,seconds=60)": (0.605, None, None, 0.60, 30.0),
    "sparsegpt": (0.55, None, None, None, 3.0),
}


def result(problem: str = "blocks.7.mlp.gate_proj", solver: str = "wanda", **fields) -> Result:
    """A solved result, with what the test is about replaced."""
    problem_hash = hashlib.sha256(f"{problem} {fields.get('pattern', '0.5')}".encode()).hexdigest()
    base = {
        "collection": "smollm2-block7",
        "pattern": "0.5",
        "rows": 64,
        "n": 576,
        "status": Status.FEASIBLE,
        "verdict": Verdict.FEASIBLE,
        "error": 1.0,
        "relative_error": 0.1,
        "ratio_to_wanda": 1.0,
        "seconds": 0.5,
        "created": "2026-11-25T01:30:00+00:00",
        "machine": MACHINE,
        "meta": {"model": "SmolLM2-135M-Instruct", "calibration": "lee_background", "tokens": "65536"},
        "mask_sha256": "ab" * 32,
    }
    key = hashlib.sha256(f"{problem_hash} {solver} {fields.get('seed', 0)}".encode()).hexdigest()
    return Result(**{"problem": problem, "problem_hash": problem_hash, "solver": solver, "key": key} | base | fields)


def many(seed: int = 0) -> list[Result]:
    """About 190 results: a block of a model and a small collection, every kind of outcome among them."""
    rng = np.random.default_rng(seed)
    found = []
    names = [("smollm2-block7", f"smollm2.blocks.7.{layer}", "0.5", 576) for layer in LAYERS]
    for n in (16, 32, 64, 128, 192):
        names += [("mini", f"mini.gate_proj.{n}", pattern, n) for pattern in ("0.5", "2:4")]
    for collection, problem, pattern, n in names:
        wanda, hard = float(rng.uniform(0.5, 40)), float(rng.normal(0, 0.04))
        for solver in SOLVERS:
            found.append(_one(rng, collection, problem, pattern, n, solver, wanda, hard))
    return found


def _one(rng, collection, problem, pattern, n, solver, wanda, hard) -> Result:
    final, relaxed, rounded, lower, seconds = SOLVERS[solver]
    place = {"collection": collection, "pattern": pattern, "n": n, "updates_weights": solver == "sparsegpt"}
    no_answer = {"error": None, "relative_error": None, "ratio_to_wanda": None, "mask_sha256": ""}
    if solver.startswith("gurobi") and n > 192:
        reason = "gurobi: its free licence holds at most 2000 variables, this row has 576 and 577 constraints"
        declined = {"status": Status.SKIPPED, "verdict": Verdict.NONE, "seconds": None, "reason": reason}
        return result(problem, solver, **{**place, **no_answer, **declined})
    if solver == "greedy" and problem.endswith("down_proj"):
        reason = "memory: the worker was killed at its limit of 4 GiB"
        failure = {"status": Status.FAILED, "verdict": Verdict.NONE, "seconds": 41.0, "reason": reason}
        return result(problem, solver, **{**place, **no_answer, **failure})
    noise = 1 + (0 if solver == "wanda" else float(rng.normal(0, 0.01)))
    ratio = (final + (hard if final < 0.9 else 0)) * noise
    unit = wanda * (0.97 if lower is None else 1)
    relaxed_error = None if relaxed is None else wanda * (relaxed + hard)
    lower_bound = None if lower is None else min(wanda * (lower + hard), 0.995 * ratio * wanda)
    proven = solver.startswith("gurobi") and n <= 64
    lower_bound = ratio * wanda if proven else lower_bound
    stages = _stages(
        solver, wanda, relaxed_error, rounded and wanda * (rounded + hard), ratio * wanda, lower_bound, seconds
    )
    took = seconds * float(rng.lognormal(0, 0.4)) * (n / 576)
    return result(
        problem,
        solver,
        **place,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        verdict=Verdict.OPTIMAL if proven else Verdict.CERTIFIED if lower_bound else Verdict.FEASIBLE,
        error=ratio * wanda,
        relative_error=ratio * wanda / (unit * 12),
        ratio_to_wanda=ratio,
        relaxed_error=relaxed_error,
        rounding_error=None if rounded is None else 1 - relaxed_error / (wanda * (rounded + hard)),
        lower_bound=lower_bound,
        proof=Proof.NONE
        if lower_bound is None
        else Proof.CLAIMED
        if "gurobi" in solver and not proven
        else Proof.VERIFIED,
        seconds=took,
        stages=stages,
        trace=_trace(took, wanda, ratio, lower_bound),
        counters={"iterations": 1000, "lmo_calls": 1000, "gram_products": 1001} if relaxed else {},
        timing={"reference_before": 1.0, "reference_after": 1.6 if rng.uniform() < 0.02 else 1.05, "load": 0.4},
    )


def _stages(solver, wanda, relaxed_error, rounded, final, lower, seconds) -> tuple[StageRecord, ...]:
    stages = [StageRecord("wanda", "start", 0.004, error=wanda)]
    if relaxed_error is not None:
        stages.append(StageRecord("fw", "relax", seconds * 0.8, relaxed_error=relaxed_error, lower_bound=lower))
        stages.append(StageRecord("round", "round", 0.01, error=rounded))
    if solver.endswith("swap"):
        stages.append(StageRecord("swap", "refine", seconds * 0.2, error=final))
    if solver.startswith("gurobi"):
        stages.append(StageRecord("gurobi", "exact", seconds, error=final, lower_bound=lower))
    return tuple(stages)


def _trace(seconds, wanda, ratio, lower) -> tuple:
    if lower is None:
        return ()
    times = np.geomspace(0.01, 1, 12) * seconds
    fade = np.exp(-4 * np.linspace(0, 1, 12))
    return tuple(
        (float(t), float(wanda * (ratio + (1 - ratio) * f)), float(lower * (1 - f)))
        for t, f in zip(times, fade, strict=True)
    )


def hostile() -> list[Result]:
    """Names and reasons that must come out harmless, and numbers that are none."""
    nasty = (
        "<script>alert(1)</script>|`x`|*b*\n# heading\r\n| a | b | $\\frac{x}$ & \u202eévil\u202c 中文 🙂 "
        + "long" * 200
    )
    inf, nan = float("inf"), float("nan")
    nothing = {"error": inf, "relative_error": nan, "ratio_to_wanda": -inf, "relaxed_error": nan, "seconds": inf}
    return [
        result(nasty, nasty, collection=nasty, reason=nasty, meta={nasty: nasty}, machine={nasty: {nasty: nasty}}),
        result(nasty, "<img src=x onerror=alert(1)>", **nothing, trace=((0.1, inf, nan), (inf, 1.0, None))),
        result("p", "wanda", status=Status.FAILED, verdict=Verdict.NONE, reason=nasty, error=None, ratio_to_wanda=None),
    ]
