"""The site: the pages of this folder, and the API from the docstrings. No network is needed."""

import functools
import pkgutil
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.nodes import make_refnode

import sta_lightning

project = "sta_lightning"
release = version = sta_lightning.__version__
html_title = f"sta_lightning {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
nitpicky = True
toc_object_entries = False
myst_heading_anchors = 4
autodoc_member_order = "bysource"
# What overrides a method without a word of its own is described where that method is; Lightning's
# texts use directives of their own.
autodoc_inherit_docstrings = False
# A name is described once, in the file that defines it.
autodoc_default_options = {"ignore-module-all": True}
apidoc_modules = [
    {
        "path": "../sta_lightning",
        "destination": "api",
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]


# The bar of an absolute value, which would open a substitution; not one in a literal or a type.
_BAR = re.compile(r"(``.*?``|>>> .*|\.\.\. .*)|\|(?=\S)|(?<=\S)\|")


def _google(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Sections such as ``Args:`` as reStructuredText; what stands below an attribute has none."""
    if what not in {"attribute", "data", "property"}:
        config = Config(napoleon_use_ivar=True)
        lines[:] = GoogleDocstring(lines, config, app, what, name, of, options).lines()
    lines[:] = [_BAR.sub(lambda found: found[1] or r"\|", line) for line in lines]


@functools.cache
def _found(name: str, module: str | None, of: str | None) -> Any:
    """What a docstring or an annotation calls ``name``, or ``None``."""
    for candidate in (f"{module}.{of}.{name}", f"{module}.{name}", name, f"builtins.{name}"):
        try:
            return pkgutil.resolve_name(candidate)
        except (ImportError, AttributeError, ValueError):
            continue
    return None


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Element | None:
    """Link a name to the file that defines it; a name that is nowhere stays an error."""
    name = node["reftarget"].partition("[")[0]
    if node["refdomain"] != "py":
        return None
    if " " in name:
        return text  # a sentence in a type's place
    if (found := _found(name, node.get("py:module"), node.get("py:class"))) is None:
        return None
    objects = env.domains.python_domain.objects
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    if home not in objects:
        return text  # another library's, or private
    return make_refnode(app.builder, node["refdoc"], objects[home].docname, objects[home].node_id, text, home)


def setup(app: Sphinx) -> None:
    """Sphinx calls this once."""
    app.connect("autodoc-process-docstring", _google)
    app.connect("missing-reference", _resolve)
