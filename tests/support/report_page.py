"""A report as a browser would read it, and a run to make one of."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from report_run import write_picture


def copy_run(evaluated_run: Path, to: Path) -> Path:
    """The run with two pictures in place of its figures."""
    ignored = shutil.ignore_patterns("figures", "checkpoints", "report.html")
    copied = Path(shutil.copytree(evaluated_run, to, ignore=ignored))
    write_picture(copied / "figures" / "training_curves.png")
    write_picture(copied / "figures" / "multiscale_T-1_GENE1.png")
    return copied


class Page(HTMLParser):
    """What a browser would make of the page: text of elements, images, data by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text("utf-8")
        self.open: list[str] = []
        self.data: dict[str, str] = {}
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._id: str | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._id = attributes.get("id") if tag == "script" else None
        self.links += [v for k, v in attrs if k in ("src", "href") and v is not None]
        if tag == "img":
            self.images.append(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in ("img", "br", "meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("img", "br", "meta", "link", "input"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._id is not None and self.open[-1] == "script":
            self.data[self._id] = self.data.get(self._id, "") + data
        elif "script" not in self.open and "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open) and self.rows:
                self.rows[-1][-1] += data

    def json(self, name: str) -> Any:
        return json.loads(self.data[name])

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.words).split())
