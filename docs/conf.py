"""How Sphinx builds the site: `make docs`. The pages are plain Markdown; extension.py adds what the package knows."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import nlrn

project = "nlrn"
version = release = nlrn.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "extension"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `denoise` in a docstring is a link where there is such a name, else plain code
myst_heading_anchors = 3  # page.md#a-heading, as code hosts have it
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch.nn.Module are torch's
autodoc_type_aliases = {"ImageT": "ImageT"}

html_theme = "furo"
html_title = "nlrn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
