"""HTML elements of the page; this is the only place where text is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("br", "img")

Cell = Any
"""A text or number to escape, or `Markup`, which is used unchanged."""


class Markup(str):
    """HTML, made of escaped parts."""

    __slots__ = ()


def escaped(value: Cell) -> Markup:
    """A value as HTML text, also inside quoted attributes."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, *content: Cell, **attributes: Cell) -> Markup:
    """An element. ``class_`` is the attribute class; underscores become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{name}{written}>{joined(content)}{end}")


def joined(parts: Iterable[Cell]) -> Markup:
    """Concatenate parts, escaping those that are not `Markup`."""
    return Markup("".join(escaped(part) for part in parts))


def facts(pairs: Iterable[tuple[str, Cell]]) -> Markup:
    """A definition list of (name, value) pairs."""
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs)
    return tag("dl", *rows, class_="facts")


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: int = 0) -> Markup:
    """A table in a scrolling frame; its last ``numbers`` columns are aligned to the right."""
    first_number = len(head) - numbers
    cells = [
        tag("tr", *(_cell("td", cell, i >= first_number) for i, cell in enumerate(row)))
        for row in rows
    ]
    heads = (_cell("th", name, i >= first_number, scope="col") for i, name in enumerate(head))
    content = tag("thead", tag("tr", *heads)), tag("tbody", *cells)
    return scrolling(tag("table", *content))


def scrolling(content: Markup) -> Markup:
    """Content that may be wider than the page, in a frame that also scrolls by keyboard."""
    return tag("div", content, class_="scroll", tabindex="0")


def _cell(name: str, content: Cell, is_number: bool, **attributes: str) -> Markup:
    if is_number:
        attributes["class_"] = "number"
    return tag(name, content, **attributes)


def data_script(identifier: str, content: str) -> str:
    """A text that the page's scripts read by its id; base64 cannot end the element."""
    return f'<script type="text/plain" id="{escaped(identifier)}">{content}</script>\n'


def json_script(identifier: str, content: Any) -> str:
    """JSON that the page's scripts read by its id."""
    # Without "<" the content can neither end the element nor open a comment.
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{escaped(identifier)}">{safe}</script>\n'
