"""Sphinx configuration; the reference pages are written from the code at each build."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

import recup

project = "recup"
author = "The recup developers"
copyright = "The recup developers"
version = release = recup.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "recup"
html_static_path = ["_static"]
html_copy_source = False

generate.write_pages(Path(__file__).parent / "_build" / "generated")
