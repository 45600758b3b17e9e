"""What the studies share, against what one reads or computes elsewhere."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from layers import random_layer

from benchmarks.shared import samples, threads
from benchmarks.shared.memory import resident


def test_one_row_with_some_of_its_columns():
    layer = random_layer("0.5", rows=4, n=12, seed=5)
    whole = samples.one_row(layer, 2, 12)
    assert np.array_equal(whole.W, layer.W[2:3])
    assert np.array_equal(whole.G, layer.G)
    part = samples.one_row(layer, 2, 7)
    columns = [layer.W[2].tolist().index(value) for value in part.W[0].tolist()]
    assert columns == sorted(set(columns))
    assert np.array_equal(part.G, layer.G[columns][:, columns])
    assert np.array_equal(part.W, samples.one_row(layer, 2, 7).W)
    assert not np.array_equal(part.W, samples.one_row(layer, 3, 7).W)


def test_condition_is_that_of_a_known_spectrum():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert samples.condition(Q * np.array([1, 2, 3, 4, 500.0]) @ Q.T) == pytest.approx(500)
    assert samples.condition(Q * np.array([-1e-9, 2, 3, 4, 5]) @ Q.T) == np.inf


def test_the_memory_of_a_process():
    assert resident("VmRSS") == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert resident("VmHWM") >= resident("VmRSS")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert resident("VmRSS", ended.pid) == 0


def test_a_command_begins_again_with_one_thread(monkeypatch):
    class Begun(Exception):
        pass

    def begin(*given):
        raise Begun(*given)

    monkeypatch.setattr(os, "execve", begin)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmarks.masks.grid", "a.sqlite"])
    for name in threads.ENVIRONMENT:
        monkeypatch.setenv(name, "1" if name.endswith("THREADS") else "PASSIVE")
    threads.restart_on_one_thread()  # as it should be: nothing happens
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(Begun) as begun:
        threads.restart_on_one_thread()
    program, words, environment = begun.value.args
    assert (program, words) == (sys.executable, [sys.executable, "-m", "benchmarks.masks.grid", "a.sqlite"])
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
