"""What solvers achieve on real sub-blocks: deterministic numbers, so that any change is a change of the code's."""

from __future__ import annotations

import math

from fwbench import metrics
from fwbench.pipeline import resolve, run

from .mini import BLOCKS, mini, one_thread

FW = "wanda+fw(steps=500)"
SHARED = "wanda+fw(steps=500,convexify=shared)"
SPECS = ("greedy", "wanda+swap", FW, f"{FW}+swap", SHARED, f"{SHARED}+swap")

Rows = dict[tuple[str, str], dict[str, float]]


class Quality:
    """Three numbers of every solver on every problem, from one run of each; NaN where there is none."""

    params = (BLOCKS, SPECS)
    param_names = ("problem", "solver")

    def setup_cache(self) -> Rows:
        one_thread()
        return {(name, spec): numbers(name, spec) for name in BLOCKS for spec in SPECS}

    def track_ratio_to_wanda(self, rows: Rows, problem: str, solver: str) -> float:
        return rows[problem, solver]["ratio_to_wanda"]

    def track_rounding_error(self, rows: Rows, problem: str, solver: str) -> float:
        return rows[problem, solver]["rounding_error"]

    def track_optimality_gap(self, rows: Rows, problem: str, solver: str) -> float:
        """(UB - LB) / UB with the bound that this run proved."""
        return rows[problem, solver]["optimality_gap"]


def numbers(name: str, spec: str) -> dict[str, float]:
    result = run(mini(name), resolve(spec), threads=1).result
    gap = metrics.optimality_gap(result.error, result.lower_bound)
    ratio, rounding, gap = (
        math.nan if value is None else value for value in (result.ratio_to_wanda, result.rounding_error, gap)
    )
    return {"ratio_to_wanda": ratio, "rounding_error": rounding, "optimality_gap": gap}
