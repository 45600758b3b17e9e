"""The committed pages are what their generators write from the committed files."""

import shutil
import sys
from importlib import import_module

import pytest

from benchmarks.shared.command import REPORTS

FROM_FILES = (
    "convergence",
    "exact",
    "field",
    "first_order",
    "gpu",
    "learned",
    "memory",
    "momentum",
    "prune",
    "sampling",
    "seeds",
    "theory",
    "updates",
)  # the others load models or a store


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_page_is_that_of_its_files(name, tmp_path, monkeypatch):
    folder = shutil.copytree(REPORTS / name, tmp_path / name)
    (folder / "index.md").unlink()
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(folder)])
    import_module(f"benchmarks.{name}.page").main()
    assert (folder / "index.md").read_text() == (REPORTS / name / "index.md").read_text()
