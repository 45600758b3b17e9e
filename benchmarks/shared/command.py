"""The command line of a study: ``python -m benchmarks.NAME.file``."""

from __future__ import annotations

import argparse
from importlib.machinery import ModuleSpec
from pathlib import Path

REPORTS = Path(__file__).parents[2] / "reports"


def parser(spec: ModuleSpec, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, from the module's ``__spec__`` and ``__doc__``."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m {spec.name}", description=doc, formatter_class=form)


def study(spec: ModuleSpec, doc: str | None) -> argparse.ArgumentParser:
    """The same with ``--out``, the folder of the report that ``benchmarks.NAME`` writes."""
    name = spec.name.split(".")[1]
    found = parser(spec, doc)
    found.add_argument("-o", "--out", type=Path, default=REPORTS / name, help=f"default: reports/{name}")
    return found
