"""Sphinx configuration. `make docs` builds into docs/_build; warnings are errors."""

import importlib.metadata
import re

from sphinx.util.nodes import make_refnode

project = "mmkit"
author = "The mmkit authors"
release = importlib.metadata.version("mmkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_show_copyright = False
html_title = f"mmkit {release}"

# In docstrings a name in single backticks is a link where it is one of ours, and plain otherwise.
default_role = "py:obj"
manpages_url = "https://man7.org/linux/man-pages/man{section}/{page}.{section}.html"

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"

# "mmap(2)" as docstrings write it, alone or in double backticks.
_MAN_PAGE = re.compile(r"(``)?\b([a-z][a-z0-9_]*\([2-8]\))(?(1)``)")


def link_man_pages(app, what, name, obj, options, lines):
    lines[:] = [_MAN_PAGE.sub(r":manpage:`\2`", line) for line in lines]


def drop_what_says_nothing(app, what, name, obj, options, lines):
    """A named tuple documents its fields as "Alias for field number 3"."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def resolve_by_last_name(app, env, node, contnode):
    """Docstrings write `Prot` and `Region.lock`; link them wherever one object alone has that name."""
    target = node.get("reftarget", "")
    names = env.domains["py"].objects
    homes = [name for name in names if name.endswith(f".{target}") and not names[name].aliased]
    if node.get("refdomain") != "py" or len(homes) != 1:
        return None
    return make_refnode(
        app.builder, node["refdoc"], names[homes[0]].docname, names[homes[0]].node_id, contnode, homes[0]
    )


def setup(app):
    app.connect("missing-reference", resolve_by_last_name)
    app.connect("autodoc-process-docstring", drop_what_says_nothing)
    app.connect("autodoc-process-docstring", link_man_pages)
