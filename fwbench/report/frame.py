"""Rows of a report as a pandas table: its columns, their types and what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fwbench.report.rows import Row

if TYPE_CHECKING:
    import pandas as pd

# column: (dtype of pandas, meaning); nested values (stages, traces) stay in the JSON lines
COLUMNS = {
    "problem": ("string", "the problem's name"),
    "collection": ("string", "where it is from"),
    "solver": ("string", "canonical spec, what differs from the defaults"),
    "status": ("category", "why the solver stopped: optimal, feasible, timeout, skipped, failed"),
    "verdict": (
        "category",
        "what the judge found: optimal, certified, feasible, infeasible, nonfinite, error_mismatch, none",
    ),
    "reason": ("string", "of a skip, a failure or an early end"),
    "pattern": ("string", "sparsity pattern"),
    "rows": ("Int64", "rows of W"),
    "n": ("Int64", "inputs of the layer"),
    "error": ("Float64", "‖(W − Ŵ)X‖² / tokens, judged in float64"),
    "relative_error": ("Float64", "error over that of pruning everything"),
    "ratio_to_wanda": ("Float64", "error over that of Wanda's mask"),
    "relaxed_error": ("Float64", "the objective at the last fractional point"),
    "rounding_error": ("Float64", "(rounded − relaxed) / rounded"),
    "lower_bound": ("Float64", "best bound on the problem from any source, verified before claimed"),
    "gap": ("Float64", "(error − lower bound) / error"),
    "proof": ("category", "of the lower bound: verified, claimed, none"),
    "bound_source": ("string", "who found the lower bound"),
    "best_known": ("Float64", "least error known for the problem"),
    "gap_to_best_known": ("Float64", "(error − best known) / best known"),
    "seconds": ("Float64", "wall time of the stages"),
    "drifted": ("boolean", "the machine's speed changed: no timing to rank"),
    "peak_memory": ("Int64", "bytes, resident maximum of the worker"),
    "iterations": ("Int64", "of the relaxation"),
    "lmo_calls": ("Int64", "calls of the linear minimisation oracle"),
    "gram_products": ("Int64", "products of all rows with G"),
    "solved": ("boolean", "the judge accepted the answer"),
    "updates_weights": ("boolean", "kept weights were changed: a table of its own"),
    "seed": ("Int64", "of the run"),
    "device": ("string", "where torch computed"),
    "dtype": ("string", "in which the solver computed"),
    "mask_sha256": ("string", "of the packed mask"),
    "problem_hash": ("string", "sha256 of the problem's content"),
    "key": ("string", "identity of the run"),
    "created": ("datetime64[ns, UTC]", "when the row was made"),
}


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A table of ``COLUMNS``, one line a run; what is not known is ``pandas.NA`` (``NaT`` for a time)."""
    import pandas as pd

    table = pd.DataFrame([{name: row[name] for name in COLUMNS} for row in rows], columns=list(COLUMNS))
    table["created"] = pd.to_datetime(table["created"].replace("", None), utc=True, format="ISO8601")
    return table.astype({name: kind for name, (kind, _) in COLUMNS.items()})
