"""How Sphinx builds the site from the Markdown of this repository: see docs/decisions/048-site.md.

The source folder is the root of the repository, so that relative links work here as they do on the forge:
`sphinx-build -c docs . build/site`, which is what scripts/make_site calls.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "_extensions"))

project = "precompute"
author = "the authors of precompute"
copyright = author  # noqa: A001
release = version = installed("precompute")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "plain_docstrings", "repository_links"]
root_doc = "docs/index"
include_patterns = ["docs/**", "cache/FORMAT.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [
    *("**/.*", ".*", "build", "dist", "precompute", "heads", "tests", "scripts", "examples", "notebooks", "*.egg-info"),
    *("docs/_*", "docs/slurm"),
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_remove_prompts = True

html_theme = "furo"
html_title = "precompute"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
