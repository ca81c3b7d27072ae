"""The site of the documentation: `make docs` builds it, and every warning is an error.

Pages are Markdown that is read as well without the site. Files beside the documentation, to which they link, are
copied into it, so that the site is whole wherever it lies.
"""

from __future__ import annotations

from qdeploy import __version__

project = "qdeploy"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]

myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]
nitpicky = False

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}

html_theme = "furo"
html_title = "qdeploy"
html_show_sphinx = html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
