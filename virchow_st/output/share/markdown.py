"""Markdown of a model card, in which names given by users are text and never markup."""

from __future__ import annotations

from collections.abc import Sequence

from virchow_st.names import shown


def code(text: str) -> str:
    """A name as code in Markdown, so that nothing in it is read as markup.

    Example:
        >>> code("P|1 <b>`x`")
        '`P¦1 <b>´x´`'
    """
    plain = " ".join(shown(text).split()).replace("`", "´").replace("|", "¦")
    return f"`{plain}`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|:--|" + "--:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def plain_text(text: str) -> str:
    """Escape a text that contains users' names, so that Markdown and HTML show it unchanged."""
    plain = " ".join(shown(text).split())
    for mark in "\\`*_[]|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
