"""The sections of the page: scores at a glance, tables, figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virchow_st.output.report.content import COLUMNS, run_label
from virchow_st.output.report.markup import Markup, joined, scrolling, tag
from virchow_st.output.report.pictures import Picture
from virchow_st.run.evaluated import RunResults
from virchow_st.run.score_table import (
    BASELINES,
    SCALES,
    below_baselines,
    interval_text,
    score_rows,
    table_caption,
    table_title,
)


def lead(results: RunResults) -> Markup:
    """One sentence that describes the run."""
    metrics, config = results.metrics, results.config
    scales = ", ".join(map(str, config.scales))
    tested = ", ".join(metrics["test_patients"])
    return tag(
        "p",
        f"{metrics['decoder']} decoder on {metrics['encoder']['name']} tokens, {metrics['loss']} "
        f"loss at {scales} µm; tested on patient {tested}, held out: {metrics['n_patches']} "
        f"patches, {metrics['n_genes']} genes.",
        class_="lead",
    )


def licence_note(results: RunResults) -> Markup:
    """The restrictions of the encoder's licence, if it has any."""
    encoder = results.metrics["encoder"]
    if not encoder["licence"]:
        return Markup("")
    return tag("p", tag("strong", f"{encoder['name']}: "), encoder["licence"], class_="note")


def overview(metrics: dict[str, Any]) -> Markup:
    """PCC at each scale with its ceiling and the strongest baseline, as numbers and bars."""
    cards = []
    for scale in SCALES:
        at = metrics["scales"][scale]
        name, best = _best_baseline(metrics, scale)
        pcc, ceiling = at["pcc"], at["pcc_ceiling"]
        marks = [
            _mark("ceiling", 0.0, ceiling),
            _mark("run", 0.0, pcc),
            _mark("baseline", best, best),
        ]
        small = [f"95 % {interval_text(at['pcc_ci95'])}", f"ceiling {_number(ceiling)}"]
        if (share := at["pcc_of_ceiling"]) is not None:
            small[1] += f", {share:.0%} of it"
        small.append(f"{name} {_number(best)}")
        cards.append(
            tag(
                "div",
                tag("h3", f"{scale} µm"),
                tag("p", _number(pcc), class_="big"),
                tag("div", *marks, class_="track", aria_hidden="true"),
                *(tag("p", line) for line in small),
                class_="card",
            )
        )
    return tag("div", *cards, class_="cards")


def _best_baseline(metrics: dict[str, Any], scale: str) -> tuple[str, float | None]:
    names = [name for name in metrics["baselines"] if name not in metrics["oracles"]]
    pcc = {name: metrics["baselines"][name][scale]["pcc"] for name in names}
    defined = {name: value for name, value in pcc.items() if value is not None}
    if not defined:
        return "baselines", None
    best = max(defined, key=lambda name: defined[name])
    return BASELINES[best], defined[best]


def _mark(kind: str, start: float | None, end: float | None) -> Markup:
    if start is None or end is None:
        return Markup("")
    left, right = (max(0.0, min(1.0, x)) for x in (start, end))
    place = f"left:{left:.2%};width:{max(0.0, right - left):.2%}"
    return tag("i", "", class_=f"mark {kind}", style=place)


def warnings(results: RunResults) -> Markup:
    """What a reader must not overlook: a baseline that is better than the run."""
    lines = below_baselines({run_label(results): results.metrics})
    if not lines:
        return Markup("")
    items = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("strong", "Below a baseline"), items, class_="warning", role="note")


def score_table(results: RunResults) -> Markup:
    """The table that ``vst evaluate`` prints."""
    bodies: list[list[Markup]] = []
    for row in score_rows({run_label(results): results.metrics}):
        if row.kind == "head":
            head = tag("th", row.label, colspan=1 + len(SCALES), scope="rowgroup")
            bodies.append([tag("tr", head, class_="head")])
            continue
        cells = [
            tag("td", _below(cell) if i in row.below else cell, class_="number")
            for i, cell in enumerate(row.cells)
        ]
        label = tag("th", row.label, scope="row")
        kind = f"{row.kind} inset" if row.inset else row.kind
        bodies[-1].append(tag("tr", label, *cells, class_=kind))
    heads = [tag("th", f"{scale} µm", class_="number", scope="col") for scale in SCALES]
    content = [
        tag("caption", table_title(results.metrics)),
        tag("thead", tag("tr", tag("td", ""), *heads)),
        *(tag("tbody", *body) for body in bodies),
    ]
    note = tag("p", " ".join(table_caption(results.metrics).split()), class_="caption")
    return joined([scrolling(tag("table", *content, class_="scores")), note])


def _below(cell: str) -> Markup:
    return tag("span", "!", cell, class_="below", title="the run is below this baseline")


def gene_table_head() -> Markup:
    """The header of the gene table: column groups, and below them buttons that sort."""
    groups = [tag("td", "")]
    groups += [
        tag("th", name, colspan=len(columns), scope="colgroup", class_="first")
        for name, columns in COLUMNS
    ]
    heads = [_sorting_head("label", "Gene", "")]
    for _, columns in COLUMNS:
        for i, (name, text) in enumerate(columns):
            heads.append(_sorting_head(name, text, "" if i else "first"))
    return tag("thead", tag("tr", *groups), tag("tr", *heads))


def _sorting_head(name: str, text: str, class_: str) -> Markup:
    button = tag("button", text, type="button", data_sort=name)
    return tag("th", button, scope="col", class_=class_)


def figures_section(pictures: Sequence[Picture], left_out: Sequence[str], is_stale: bool) -> Markup:
    """The figures of the run with their captions."""
    shown = []
    if is_stale:
        stale = "These figures are older than the results; draw them again with vst figures."
        shown.append(tag("p", stale, class_="warning"))
    for picture in pictures:
        source = f"data:image/webp;base64,{picture.content}"
        image = tag(
            "img",
            src=source,
            alt=f"{picture.title}. {picture.caption}",
            width=picture.width,
            height=picture.height,
        )
        caption = tag(
            "figcaption",
            tag("strong", picture.title + ". "),
            picture.caption + " ",
            tag("span", f"figures/{picture.name}", class_="file"),
        )
        shown.append(tag("figure", image, caption))
    if left_out:
        shown.append(
            tag("p", "Left out to keep this file small: ", ", ".join(left_out), class_="caption")
        )
    return joined(shown) if shown else tag("p", "The run has no figures.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"
