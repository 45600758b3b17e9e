"""Active sets of Frank-Wolfe within memory: the resident maximum of a fresh process, interpreter, torch and layer."""

import subprocess
import sys
from pathlib import Path

import layers
import pytest

PEAK = """
import re, sys
from layers import random_layer
from fwbench.pipeline import Run, resolve, run, warm_up
from fwbench.solvers.frank_wolfe.active_set import Atoms

empty = Atoms.empty

def filled(*shape):
    '''Sets whose pages are all in use, as they are once a long run has filled them.'''
    atoms = empty(*shape)
    for array in atoms:
        array += 0
    return atoms

def peak():
    '''Of this program: the system's other figure, ru_maxrss, begins with that of whoever started it.'''
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

Atoms.empty = filled
problem = random_layer(sys.argv[1], rows=1536, n=576, condition=1e2)
solver = resolve(sys.argv[2])
warm_up(Run(problem, solver, dtype="float64"))
before = peak()
result = run(problem, solver, dtype="float64", threads=1).result
after = peak()
print(before, after, result.counters["active_set_max"], result.solved)
"""
FROM_A_MASK = "wanda+fw(variant={},steps=40,gap=0.2)+round"
FROM_A_FRACTION = "wanda+fw(steps=40)+fw(variant={},steps=10)+round"  # its first sets take one atom a fraction


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak of resident memory")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("spec", [FROM_A_MASK, FROM_A_FRACTION])
@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.5"])
@pytest.mark.parametrize("variant", ["away", "pairwise", "bpcg"])
def test_a_layer_with_active_sets_stays_under_1500_megabytes(variant, pattern, spec):
    command = [sys.executable, "-c", PEAK, pattern, spec.format(variant)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(layers.__file__).parent).stdout
    before, after, atoms, solved = out.split()
    assert solved == "True"
    assert int(atoms) > 2
    assert int(before) < int(after) < 1.5e9
