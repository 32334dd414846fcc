"""The data of the viewer as elements of the page: tiles of the H&E image and maps of the genes.

Elements are named ``he-SLIDE-LEVEL-COLUMN-ROW`` and ``map-SLIDE-GENE-SCALE-WHAT``: slide and gene
by their index in the page's lists, the scale in µm, "observed" or "predicted". The H&E image of one
slide and the maps of one gene are in memory at a time.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from virchow_st.output.report.layers import (
    TILE_PX,
    gene_maps,
    image_levels,
    image_tiles,
    padded_shape,
)
from virchow_st.output.report.markup import data_script
from virchow_st.run.maps import SlideResult, open_maps
from virchow_st.run.panel import Gene
from virchow_st.runtime.progress import Progress
from virchow_st.types import BIN_UM

COARSE_UM, FINE_UM = (16, 8), (4, 2)
FINE_GENES = 12
"""Number of genes that are also shown at the fine scales, unless genes are named."""
MAPS_BYTES = 100_000_000
IMAGE_BYTES = 24_000_000
"""Largest number of characters of all maps, and of all H&E tiles, in the page."""

Write = Callable[[str], object]
Index = dict[str, Any]


def write_slides(
    write: Write,
    maps: Sequence[Path],
    genes: Sequence[Gene],
    n_fine: int,
    progress: Progress,
    reserved: int = 0,
) -> list[Index]:
    """Write the layers of every test slide into the page.

    Args:
        write: writes a piece of the page.
        maps: map files of ``vst evaluate``, one per slide.
        genes: in the order of the page; if the space is used up, the last ones are left out.
        n_fine: number of genes, from the first, that are also written at 2 and 4 µm.
        progress: receives notes, warnings and step counts.
        reserved: characters of `MAPS_BYTES` that are kept for something else.

    Returns:
        For each slide the index that the page's scripts read.
    """
    indices = []
    for s, path in enumerate(maps):
        with open_maps(path) as slide:
            rows, cols = padded_shape(slide.scored_mask)
            index: Index = {"name": slide.name, "width": cols, "height": rows, "tile": TILE_PX}
            index |= {"binUm": BIN_UM, "row0": slide.row0, "col0": slide.col0}
            index |= _write_image(write, s, slide, IMAGE_BYTES // len(maps))
            room = (MAPS_BYTES - reserved) // len(maps)
            index["genes"] = _write_maps(write, s, slide, genes, n_fine, room, progress)
            indices.append(index)
    return indices


def _write_image(write: Write, s: int, slide: SlideResult, room: int) -> Index:
    """Write the H&E image at the finest resolution that fits into ``room`` characters."""
    left_out = 0
    while True:
        levels = image_levels(slide.image.shape, left_out)
        tiles = {
            f"he-{s}-{level}-{col}-{row}": base64.b64encode(jpeg).decode()
            for level, col, row, jpeg in image_tiles(slide.image, left_out)
        }
        if levels == 1 or sum(map(len, tiles.values())) <= room:
            break
        left_out += 1
    for name, tile in tiles.items():
        write(data_script(name, tile))
    return {"levels": levels, "umPerPx": 2**left_out}


def _write_maps(
    write: Write,
    s: int,
    slide: SlideResult,
    genes: Sequence[Gene],
    n_fine: int,
    room: int,
    progress: Progress,
) -> list[Index]:
    """Write every gene at the coarse scales, then the first ones at the fine scales, as they fit.

    Returns:
        For each written gene its index among the genes, its colour limit (UMIs per 64 µm²) and, by
        scale, the UMIs that the last palette index of its maps stands for.
    """
    shown: dict[int, Index] = {}
    n_fine = min(n_fine, len(genes))
    n_jobs, n_before = len(genes) + n_fine, 0
    for scales, n_wanted in ((COARSE_UM, len(genes)), (FINE_UM, n_fine)):
        for g, gene in enumerate(genes[:n_wanted]):
            if scales == FINE_UM and g not in shown:
                break
            progress.step(n_before + g, n_jobs, "maps", f"{slide.patient} {gene.symbol}")
            drawn = gene_maps(*slide.layers(gene), slide.scored_mask, scales)
            elements = "".join(
                data_script(f"map-{s}-{g}-{scale}-{what}", base64.b64encode(png).decode())
                for (scale, what), png in drawn.pictures.items()
            )
            if shown and len(elements) > room:
                break
            room -= len(elements)
            write(elements)
            entry = shown.setdefault(g, {"gene": g, "limit": drawn.limit, "tops": {}})
            entry["tops"] |= drawn.tops
        n_before += n_wanted
    progress.step(n_jobs, n_jobs, "maps", slide.patient)
    return list(shown.values())
