"""Settings of every test, and the command line as a fixture. What tests share is in ``shared``, on the path."""

import os
import sys

# before numpy comes: tests run beside each other, and pools of two threads each slow one another many times over
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
if not os.path.exists("/dev/nvidia0"):  # read when Triton is imported, which any model's code may do first
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from hypothesis import settings

settings.register_profile("fwbench", deadline=None, derandomize=True, database=None)  # a busy machine fails no test
settings.load_profile("fwbench")


@pytest.fixture
def fwbench(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    from fwbench import cli

    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fwbench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call
