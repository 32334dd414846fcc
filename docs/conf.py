"""Sphinx: ``make docs`` builds the site from these pages, without the network."""

from __future__ import annotations

import html
from importlib.metadata import version as version_of
from typing import Any

from docutils.utils.math.latex2mathml import tex2mathml

project = "virchow_st"
author = "The virchow_st developers"
project_copyright = author
release = version = version_of("virchow_st")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
language = "en"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"  # fences that name no language hold commands and file layouts

# The tutorial and the gallery are run by the build; an error in a cell, or a cell that takes long,
# fails it.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"

html_theme = "furo"
html_title = f"virchow_st {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"


def _math(node: Any, display: str) -> str:
    """MathML, which browsers draw themselves; MathJax would come from the network."""
    tex = node.astext().replace(r"\dots", r"\ldots")  # a command that the converter lacks
    mathml = tex2mathml(tex, as_block=display == "block")
    title = html.escape(node.astext(), quote=True)
    return f'<span class="math-{display}" title="{title}">{mathml}</span>'


def _visit_inline(translator: Any, node: Any) -> None:
    from docutils import nodes

    translator.body.append(_math(node, "inline"))
    raise nodes.SkipNode


def _visit_block(translator: Any, node: Any) -> None:
    from docutils import nodes

    translator.body.append(_math(node, "block"))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
