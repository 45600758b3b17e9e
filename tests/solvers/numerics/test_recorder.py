"""The recorder of a layer's bounds: sums over parts, in any order."""

from __future__ import annotations

import numpy as np

from fwbench.solvers.numerics.recorder import BoundsRecorder
from fwbench.stage import Context


def test_points_are_sums_over_the_parts():
    heard = []
    recorder = BoundsRecorder(Context(listener=heard.append), np.zeros(3), np.array([4.0, 2.0, 1.0]))
    recorder.note(1, 1.5, 1.75)
    recorder.note(0, 3.0)
    assert [point[1:3] for point in recorder.trace] == [(7.0, 0.0), (6.75, 1.5), (6.75, 4.5)]
    assert heard == recorder.trace
    assert not recorder.due


def test_what_changes_nothing_is_told_only_if_asked():
    recorder = BoundsRecorder(Context(), np.zeros(2), np.ones(2))
    recorder.note(0, 0.0, 1.0, always=False)
    assert len(recorder.trace) == 1
    recorder.note(0, 0.0, 1.0)
    recorder.note(0, 0.5, 1.0, always=False)
    assert [point[1:3] for point in recorder.trace] == [(2.0, 0.0), (2.0, 0.0), (2.0, 0.5)]


def test_without_masks_there_is_no_upper_bound():
    recorder = BoundsRecorder(Context(), np.zeros(2))
    recorder.note(1, 2.0)
    assert [point[1:3] for point in recorder.trace] == [(None, 2.0)]
