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
autodoc_typehints = "none"  # the signature shows them
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fwbench {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = False
