"""The least and the largest of many numbers, sought among their bits: compilers vectorise that, and not that of floats.

Bits of numbers that are not negative are ordered as the numbers are; of negative ones, which all have the highest bit,
the least number has the largest.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from fwbench.solvers.numerics.jit import njit


@njit
def smallest(values):
    """The least of ``values``, which are written to and restored: no other thread may read them meanwhile."""
    bits = _as_bits(values)
    found = _largest(bits)
    if found >> (8 * values.itemsize - 1) == 0:  # none is negative
        for i in range(bits.size):
            found = min(found, bits[i])
    return _as_number(values, bits, found)


@njit
def largest_of_positive(values):
    """The largest of ``values``, none of them negative; written to and restored."""
    bits = _as_bits(values)
    return _as_number(values, bits, _largest(bits))


@njit
def _largest(bits):
    found = bits[0]
    for i in range(bits.size):
        found = max(found, bits[i])
    return found


@njit
def _as_number(values, bits, found):
    first = bits[0]
    bits[0] = found
    number = values[0]
    bits[0] = first
    return number


def _as_bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32 if values.itemsize == 4 else np.uint64)


@overload(_as_bits)
def _compiled_as_bits(values):
    kind = np.uint32 if values.dtype.bitwidth == 32 else np.uint64
    return lambda values: values.view(kind)
