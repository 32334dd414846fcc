"""Draws one tile that was not trained on: H&E, counts and predicted rates at 2 and 8 µm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from real_tiles import Tiles, pcc, pooled

from virchow_st.types import Array, Float32Array


def draw(tiles: Tiles, m: int, rate: Float32Array, way: str, path: Path) -> None:
    """Write a picture of map ``m`` and its predicted rates (128, 128), UMIs per 2 µm bin."""
    inside = tiles.mask[m]
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    gene, place = tiles.genes[tiles.gene[m]], tiles.place[tiles.tile[m]]
    axes[0, 0].imshow(tiles.images[tiles.tile[m]])
    axes[0, 0].set_title("H&E, 256 µm", fontsize=9)
    axes[1, 0].axis("off")
    text = f"{gene}\ntile in row {place[0]}, column {place[1]}\npredicted by {way}\nfrom H&E alone"
    axes[1, 0].text(0.02, 0.95, text, va="top", fontsize=10)
    for row, side in enumerate((1, 4)):
        whole = pooled(inside, side) == side**2
        score = pcc(rate, tiles.counts[m], inside, side)
        shown: tuple[tuple[str, Array], ...] = (
            (f"counts per {2 * side} µm bin", tiles.counts[m]),
            (f"predicted, PCC {score:.2f}", rate),
        )
        for column, (title, values) in enumerate(shown, 1):
            map_ = np.where(whole, pooled(values, side), np.nan)
            top = max(float(np.nanquantile(map_, 0.995)), 1e-9)
            drawn = axes[row, column].imshow(map_, vmin=0, vmax=top, cmap="magma")
            axes[row, column].set_title(title, fontsize=9)
            figure.colorbar(drawn, ax=axes[row, column], shrink=0.8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
