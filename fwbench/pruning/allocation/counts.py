"""From a sparsity for each layer to whole counts that sum to the budget, and to the pattern of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fwbench.patterns import Pattern, PatternError, PerRow, Rows, Shape, Unstructured

ROUNDING = 1e-9  # what floating point may take off a whole number


def centred(values: np.ndarray, sizes: np.ndarray, mean: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Shift values so that their mean, weighted by ``sizes``, is the one asked for; the shifted ones are clipped.

    Args:
        values, sizes: ``(groups,)``.
        mean: within ``low`` and ``high``.
    """
    below, above = low - float(values.max()), high - float(values.min())
    for _ in range(100):
        shift = (below + above) / 2
        too_much = float(np.average(np.clip(values + shift, low, high), weights=sizes)) > mean
        below, above = (below, shift) if too_much else (shift, above)
    return np.clip(values + below, low, high)


def whole(ideal: np.ndarray, steps: np.ndarray, most: np.ndarray, budget: int) -> np.ndarray:
    """Whole numbers next to ``ideal`` with ``numbers @ steps`` as near below the budget as it gets, int64.

    The largest fractional parts are rounded up first.

    Args:
        ideal: ``(groups,)``, with ``ideal @ steps`` the budget, to rounding.
        steps: int64, what one more costs.
        most: int64, upper limits.
        budget: of all groups.
    """
    numbers = np.minimum(np.floor(ideal + ROUNDING).astype(np.int64), most)
    left = budget - int(numbers @ steps)
    for group in np.argsort(numbers - ideal, kind="stable"):
        if steps[group] <= left and numbers[group] < most[group]:
            numbers[group] += 1
            left -= int(steps[group])
    return numbers


def budget(pattern: Pattern, shapes: Sequence[Shape]) -> int:
    """Weights that a pattern prunes in layers of these shapes."""
    return sum(int(pattern.counts(shape).sum()) for shape in shapes)


def layer_patterns(
    pattern: Pattern, shapes: Mapping[str, Shape], sparsities: Mapping[str, float]
) -> dict[str, Pattern]:
    """A pattern for each layer, pruning together exactly as many weights as ``pattern`` does in all of them.

    Of each row where ``pattern`` is a part of each row: then what is less than one weight more in each row of any layer
    is one more in the first rows of one of them, whose pattern is ``rows:``.

    Args:
        pattern: ``0.6`` or ``unstructured:0.6``.
        shapes: of the layers.
        sparsities: of the layers, whose mean is that of ``pattern``, to rounding.
    """
    names = list(shapes)
    rows, n = (np.array([shapes[name][axis] for name in names], dtype=np.int64) for axis in (0, 1))
    sizes, target = rows * n, budget(pattern, list(shapes.values()))
    by_row = isinstance(pattern, PerRow)
    steps, most = (rows, n) if by_row else (np.ones_like(rows), sizes)
    # the mean is that of whole counts: what uniform prunes
    wanted = centred(np.array([sparsities[name] for name in names]), sizes, target / int(sizes.sum()))
    numbers = whole(wanted * most, steps, most, target)
    left = target - int(numbers @ steps)
    found: dict[str, Pattern] = {}
    for name, number, limit, step in zip(names, numbers.tolist(), most.tolist(), steps.tolist(), strict=True):
        if 0 < left < step and number < limit:
            found[name] = Rows(np.where(np.arange(step) < left, number + 1, number))
            left = 0
        else:
            found[name] = PerRow(number / limit) if by_row else Unstructured(number / limit)
    assert not left
    return found


def row_pattern(sparsities: np.ndarray, n: int, pruned: int) -> Rows:
    """A count for each row, ``pruned`` in all, by the rows' sparsities ``(rows,)`` with that mean, to rounding."""
    rows = len(sparsities)
    wanted = centred(sparsities, np.ones(rows), pruned / (rows * n))
    most = np.full(rows, n)
    return Rows(whole(wanted * n, np.ones(rows, dtype=np.int64), most, pruned))


def dumped(pattern: Pattern, shape: Shape) -> int | list[int]:
    """What :func:`read` makes the pattern from: the count of each row, one for all, or that of the layer."""
    counts = pattern.counts(shape)
    return counts.tolist() if isinstance(pattern, Rows) else int(counts[0])


def read(pattern: Pattern, shape: Shape, counts: int | list[int]) -> Pattern:
    """A layer's pattern from its counts; ``pattern`` is the plan's. Raises PatternError."""
    if isinstance(counts, list):
        found: Pattern = Rows(np.array(counts))
    elif isinstance(pattern, PerRow):
        found = PerRow(counts / shape[1])
    elif isinstance(pattern, Unstructured):
        found = Unstructured(counts / (shape[0] * shape[1]))
    else:
        raise PatternError(f"pattern {pattern} has no counts to allocate")
    found.counts(shape)
    return found
