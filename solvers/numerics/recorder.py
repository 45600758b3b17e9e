"""Who knows the bounds of a layer while its parts are solved: they are noted here, and the trace is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fwbench.result import TracePoint
from fwbench.stage import Context

SELDOM = 0.1  # seconds between two points that a running solver may ask for


@dataclass
class BoundsRecorder:
    """Bounds of a layer's independent parts (its rows, or the layer) as they improve, in any order and by any thread.

    The trace has the sums over the parts; there is a first point at once where masks are known.
    """

    context: Context
    lower: np.ndarray  # (parts,) float64, proved so far
    upper: np.ndarray | None = None  # (parts,) float64, errors of the masks at hand; None where the stage finds none
    trace: list[TracePoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.upper is not None:
            self._tell()

    @property
    def due(self) -> bool:
        """False shortly after the last point."""
        return self.context.seconds() > self.trace[-1].seconds + SELDOM

    def note(self, part: int, lower: float, upper: float | None = None, always: bool = True) -> None:
        """Set what is known of a part, and tell the trace; with ``always=False`` only if the sums change."""
        self.lower[part] = lower
        if self.upper is not None and upper is not None:
            self.upper[part] = upper
        if always or self._sums() != (self.trace[-1].upper, self.trace[-1].lower):
            self._tell()

    def _sums(self) -> tuple[float | None, float]:
        return None if self.upper is None else float(self.upper.sum()), float(self.lower.sum())

    def _tell(self) -> None:
        self.trace.append(self.context.point(*self._sums()))
