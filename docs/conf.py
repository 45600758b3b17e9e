"""How Sphinx makes a site of this folder: ``make docs`` writes ``docs/_build/html``, which needs no network."""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import generate  # noqa: E402

generate.write(HERE / "_build" / "generated")
generate.copy_reports(HERE.parent / "reports", HERE / "reports")

project = "fwbench"
author = copyright = "The fwbench authors"
version = release = metadata.version("fwbench")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_click",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types with their shapes
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fwbench {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = False


def setup(app):
    app.connect("autodoc-process-docstring", plain_properties, priority=400)


def plain_properties(app, what, name, thing, options, lines):
    """Napoleon takes "a row: the rest" in a property's first line for "type: description": put an empty one before."""
    if what == "property":
        lines.insert(0, "\\")
