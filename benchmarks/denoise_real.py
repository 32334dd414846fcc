"""``vst denoise`` on real 2 µm counts of few genes a tile, beside simpler ways.

Every tile is a slide of its own, of one patch, with the genes that were measured on it (most have
one, so that there is nothing to share). As ``vst denoise --score`` does, every UMI goes to one of
two halves at random, whatever is chosen is chosen on one, and the rates are scored on the other.
Printed are means over maps, with 95 % intervals from groups of touching tiles drawn with
replacement.

    python benchmarks/denoise_real.py crc_p5_tiles.npz --part even --json denoise_real.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from real_tiles import Tiles, read_tiles
from scipy.sparse.csgraph import connected_components

from virchow_st.denoise.score import DENOISED, GAUSSIAN, RAW, TOTAL, score_slide
from virchow_st.denoise.slide import LEAST_UMIS, SlideCounts
from virchow_st.errors import ConfigError
from virchow_st.metrics.stripes import Stripes
from virchow_st.run.panel import Panel
from virchow_st.training.rows import SparseRows
from virchow_st.types import PATCH_BINS, SCALES_UM, Float64Array, Int64Array

WAYS = RAW, TOTAL, GAUSSIAN, DENOISED
SCORES = "d2_poisson", "pcc"
_DRAWS = 2000


def slide_of(tiles: Tiles, tile: int, maps: Int64Array) -> SlideCounts:
    """The tile as a slide, in the bins in which all of its maps have tissue."""
    mask = tiles.mask[maps].all(axis=0)
    place = np.flatnonzero(mask)
    exposure = tiles.exposure[tile].ravel()[place].astype(np.float64)
    flat = Stripes(np.ones(PATCH_BINS), np.zeros(PATCH_BINS), 0.0)
    names = tuple(tiles.genes[g] for g in tiles.gene[maps])
    counts = tiles.counts[maps].reshape(len(maps), -1)[:, place].T
    return SlideCounts(
        panel=Panel(names, names),
        rows=SparseRows.from_dense(counts, exposure),
        place=place,
        unseen=np.empty(0, np.int64),
        tissue=mask,
        corner=(0, 0),
        dead=([], []),
        stripes=(flat, flat),
    )


def measure(tiles: Tiles, chosen: Int64Array, seed: int) -> list[dict[str, Any]]:
    """Scores of each tile."""
    found = []
    every = np.arange(len(tiles.gene))
    group = connected_components(np.abs(tiles.place[:, None] - tiles.place[None]).max(-1) <= 1)[1]
    for tile in chosen.tolist():
        maps = tiles.maps_of(tile, every)
        maps = maps[tiles.counts[maps].sum(axis=(1, 2)) >= 2 * LEAST_UMIS]
        if not len(maps):
            continue
        try:
            scores = score_slide(slide_of(tiles, tile, maps), 0, seed)
        except ConfigError as e:
            print(f"tile {tile}: {e}")
            continue
        found.append(
            {
                "tile": tile,
                "group": int(group[tile]),
                "genes": scores["panel"],
                "umis": tiles.counts[maps].sum(axis=(1, 2)).tolist(),
                "width_um": scores["width_um"],
                "gaussian_um": scores["gaussian_um"]["panel_median"],
                "n_own": scores["n_own"],
                "scales": {
                    scale: {way: {s: of[way][s] for s in SCORES} for way in WAYS}
                    for scale, of in scores["scales"].items()
                },
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    """Means over maps, and denoised less Gaussian, with intervals over groups of tiles."""
    n = np.array([len(tile["genes"]) for tile in found], np.float64)
    _, group = np.unique([tile["group"] for tile in found], return_inverse=True)
    n_groups, rng = int(group.max()) + 1, np.random.default_rng(0)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), _DRAWS)[:, group]

    def told(values: Float64Array) -> str:
        mean = (values * n).sum() / n.sum()
        low, high = np.percentile((draws * n) @ values / (draws @ n), [2.5, 97.5])
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"

    lines = []
    for score in SCORES:
        by_way = {
            way: [
                np.array([tile["scales"][str(s)][way][score] for tile in found]) for s in SCALES_UM
            ]
            for way in WAYS
        }
        for way, values in by_way.items():
            lines.append(f"| {score} | {way} | " + " | ".join(map(told, values)) + " |")
        less = [a - b for a, b in zip(by_way[DENOISED], by_way[GAUSSIAN], strict=True)]
        lines.append(f"| {score} | denoised less Gaussian | " + " | ".join(map(told, less)) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--part", choices=("all", "even", "odd"), default="all", help="of tiles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tiles = read_tiles([arguments.tiles])
    every = np.arange(len(tiles.images))
    parts = {"all": every, "even": every[::2], "odd": every[1::2]}
    found = measure(tiles, parts[arguments.part], arguments.seed)
    print(f"{len(found)} tiles, {sum(len(tile['genes']) for tile in found)} maps")
    print("\n".join(table(found)))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
