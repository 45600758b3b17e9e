"""How the kernels of Frank-Wolfe (``fw_*``) are compiled.

Counts and sums run over views indexed from zero, in the arrays' own precision, and may be reassociated: that is what
lets LLVM vectorise them. They are added up block by block in float64, so that long rows lose nothing.
"""

from __future__ import annotations

from fwbench.solvers.jit import fast

BLOCK = 4096  # entries that are added up in the arrays' own precision
jit = fast
