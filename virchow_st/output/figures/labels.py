"""Names beside the points of a scatter plot, where there is space for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from virchow_st.output.figures.style import fit
from virchow_st.types import Float64Array

_OFFSET = 3.0  # points
_LONGEST = 0.9  # inches
_SIDES = (
    (1, 0, "left", "center"), (-1, 0, "right", "center"), (0, 1, "center", "bottom"),
    (0, -1, "center", "top"), (0.7, 0.7, "left", "bottom"), (-0.7, 0.7, "right", "bottom"),
    (0.7, -0.7, "left", "top"), (-0.7, -0.7, "right", "top"),
)  # fmt: skip


def label_points(
    axes: Axes,
    x: Float64Array,
    y: Float64Array,
    names: Sequence[str],
    order: Sequence[int],
    also: Float64Array | None = None,
) -> list[int]:
    """Write names beside points without covering a point, a text or the edge of the axes.

    Limits and scales of the axes must be set before.

    Args:
        axes: where the points are drawn.
        x, y: (n,) of all points, in data units.
        names: of all points.
        order: indices of the points to name, the most important first; a point without space
            is not named.
        also: (m, 2) further positions that names must not cover, in data units.

    Returns:
        The indices of the points that were named.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    points = axes.transData.transform(np.column_stack([x, y]))
    others = np.empty((0, 2)) if also is None else axes.transData.transform(also)
    radius = figure.dpi / 72 * 3.0
    edge = axes.get_window_extent(renderer)
    taken: list[Bbox] = [text.get_window_extent(renderer) for text in axes.texts]
    named = []
    for i in order:
        if not np.isfinite(points[i]).all():
            continue
        for right, up, ha, va in _SIDES:
            text = axes.annotate(
                names[i], (x[i], y[i]), (_OFFSET * right, _OFFSET * up),
                textcoords="offset points", ha=ha, va=va, fontsize=6, fontstyle="italic",
            )  # fmt: skip
            box = fit(text, _LONGEST).get_window_extent(renderer)
            kept_clear = np.vstack([np.delete(points, i, axis=0), others])
            if _is_free(box, edge, taken, kept_clear, radius):
                taken.append(box.padded(radius))
                named.append(i)
                break
            text.remove()
    return named


def _is_free(
    box: Bbox, edge: Bbox, taken: Sequence[Bbox], points: Float64Array, radius: float
) -> bool:
    inside = edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1
    if not inside or any(box.overlaps(other) for other in taken):
        return False
    x, y = points.T
    covered = (x > box.x0 - radius) & (x < box.x1 + radius)
    covered &= (y > box.y0 - radius) & (y < box.y1 + radius)
    return not covered.any()
