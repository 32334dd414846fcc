"""Draw the rooms of the package and their imports: ``python docs/draw_rooms.py``.

Writes ``docs/images/rooms.svg`` from the source files. Rooms lie in layers and every arrow leads
down, from the room that imports to the room that is imported. An import that longer ways imply is
left out, and so are those of the foundation, on which every room may stand. The id of each arrow in
the SVG is ``imports:ROOM:ROOM``; `tests/test_architecture.py` compares these ids with the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests" / "support"))

from imports import rooms_imported, without_implied  # noqa: E402

PICTURE = DOCS / "images" / "rooms.svg"

STEP, WORKS_ON, BESIDE, GROUND = "#dcebf7", "#e6f2e3", "#f1eee6", "#ececec"
# Room → x of its centre, layer from below, colour, what it does.
PLACES: dict[str, tuple[float, int, str, str]] = {
    "cohort": (6.8, 3, WORKS_ON, "a list, shared by workers"),
    "cloud": (6.8, 1, WORKS_ON, "object storage"),
    "metrics": (0.95, 1, WORKS_ON, "definitions of the scores"),
    "store": (2.75, 1, WORKS_ON, "tokens, counts, images"),
    "run": (1.85, 2, WORKS_ON, "every file of a run directory"),
    "slide": (4.9, 2, WORKS_ON, "scanner and sequencer files"),
    "models": (2.3, 3, WORKS_ON, "encoders, decoders, losses"),
    "field": (3.95, 3, WORKS_ON, "rates of a slide on disk"),
    "output": (4.9, 4, STEP, "figures, report, export"),
    "simulate": (-0.4, 5, BESIDE, "slides with known rates"),
    "training": (1.4, 5, STEP, "stores → decoder"),
    "extract": (3.2, 5, STEP, "slide + encoder → store"),
    "predict": (5.0, 5, STEP, "H&E slide → rates"),
    "bench": (0.5, 6, BESIDE, "speed against limits"),
    "evaluation": (2.75, 6, STEP, "scores, ceilings, baselines"),
    "denoise": (6.8, 6, STEP, "measured counts → rates"),
    "plot": (5.0, 6, BESIDE, "one gene, in a notebook"),
}
LEGEND = ((STEP, "a step of the pipeline"), (WORKS_ON, "what the steps work on"),
          (BESIDE, "beside the pipeline"))  # fmt: skip
WIDTH, HEIGHT, LAYER, BAR = 1.56, 0.5, 0.98, 0.4
LEFT, RIGHT = -1.25, 7.65


def ground() -> list[str]:
    """Single modules, beside those in `PLACES`, on which every room may stand."""
    return [name for name in rooms_imported() if name not in PLACES and not _is_folder(name)]


def edges() -> set[tuple[str, str]]:
    """The arrows: (importing room, imported room)."""
    foundation = {"runtime", "kernels", *ground()}
    rooms = rooms_imported()
    return without_implied(
        {name: rooms[name] - foundation for name in rooms if name not in foundation}
    )


def _is_folder(name: str) -> bool:
    return (DOCS.parent / "virchow_st" / name).is_dir()


def draw(path: Path) -> None:
    """Write the picture.

    Raises:
        SystemExit: a room has no place in `PLACES`, or an arrow would not lead down.
    """
    arrows = edges()
    rooms = set(rooms_imported()) - {"runtime", "kernels", *ground()}
    if rooms != set(PLACES):
        raise SystemExit(f"PLACES: expected {sorted(rooms)}; found {sorted(PLACES)}")
    if wrong := [pair for pair in arrows if PLACES[pair[0]][1] <= PLACES[pair[1]][1]]:
        raise SystemExit(f"PLACES: expected the imported room in a lower layer; found {wrong}")
    bars = (
        (6.85, "cli", "the commands; imports the rooms they use, and nothing imports it"),
        (0.2, "runtime   kernels", "devices, processes, files, progress; numba and Triton code"),
        (-0.33, "   ".join(sorted(ground())), "single modules that every room may import"),
    )
    style = {"svg.fonttype": "none", "svg.hashsalt": "rooms", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.6, 7.0))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(LEFT - 0.1, RIGHT + 0.1), ylim=(-0.65, 6.85 * LAYER + 0.3))
        axes.axis("off")
        for name, (x, layer, colour, about) in PLACES.items():
            _box(axes, x - WIDTH / 2, layer * LAYER, WIDTH, HEIGHT, colour)
            axes.text(x, layer * LAYER + 0.09, name, ha="center", va="center", fontsize=10.5)
            axes.text(
                x, layer * LAYER - 0.12, about, ha="center", va="center", fontsize=6.6,
                color="0.3",
            )  # fmt: skip
        for layer, names, about in bars:
            y = layer * LAYER
            _box(axes, LEFT, y, RIGHT - LEFT, BAR, GROUND)
            axes.text(LEFT + 0.15, y, names, va="center", fontsize=10.5)
            axes.text(RIGHT - 0.15, y, about, va="center", ha="right", fontsize=7, color="0.3")
        for i, (colour, meaning) in enumerate(LEGEND):
            y = LAYER + 0.2 - 0.2 * i
            _box(axes, 4.2, y, 0.22, 0.12, colour)
            axes.text(4.52, y, meaning, va="center", fontsize=7, color="0.3")
        for pair in sorted(arrows):
            _arrow(axes, pair, arrows)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _box(axes: Axes, left: float, y: float, width: float, height: float, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=colour,
            edgecolor="0.45",
            linewidth=0.7,
            zorder=2,
        )
    )


def _arrow(axes: Axes, pair: tuple[str, str], arrows: set[tuple[str, str]]) -> None:
    """From the lower edge of the importing room to the upper edge of the imported one."""
    start = _port(pair[0], [target for source, target in arrows if source == pair[0]], pair[1])
    end = _port(pair[1], [source for source, target in arrows if target == pair[1]], pair[0])
    upper = PLACES[pair[0]][1] * LAYER - HEIGHT / 2
    lower = PLACES[pair[1]][1] * LAYER + HEIGHT / 2
    arrow = FancyArrowPatch(
        (start, upper), (end, lower), arrowstyle="-|>,head_length=4,head_width=2", shrinkA=0,
        shrinkB=0, linewidth=0.9, color="0.25", zorder=1,
    )  # fmt: skip
    arrow.set_gid(f"imports:{pair[0]}:{pair[1]}")
    axes.add_patch(arrow)


def _port(room: str, others: list[str], other: str) -> float:
    """Where on a room's edge an arrow is: spread out in the order in which the others lie."""
    order = sorted(others, key=lambda name: PLACES[name][0])
    step = WIDTH / (len(order) + 1)
    return PLACES[room][0] - WIDTH / 2 + step * (1 + order.index(other))


if __name__ == "__main__":
    draw(PICTURE)
