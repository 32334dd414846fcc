"""Real 2 µm counts in tiles: reading, exposure, folds by place, and the ceiling of clipped counts.

A file of tiles is an npz with ``he`` (N, 128, 128, 3) uint8, H&E at 2 µm/px on the grid of the
counts; ``tile_row`` and ``tile_col`` (N,), the tile's place in tiles; and per measured map ``gene``
(M,) symbol, ``tile`` (M,) index into ``he``, ``counts`` (M, 128, 128) UMIs with −1 outside tissue,
and ``clip`` (M,), the count that larger ones were cut to. A tile has maps of some genes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.stats import gamma, poisson

from virchow_st.errors import ConfigError
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Float64Array, Int64Array

N_FOLDS = 4
_KEYS = ("he", "tile_row", "tile_col", "gene", "tile", "counts", "clip")
_STRIP = 32  # bins; the parity of bright rows changes within some tiles
_RATES = (np.arange(200) + 0.5) / 200  # quantiles at which expectations over rates are taken


@dataclass(frozen=True)
class Tiles:
    """Tiles and the maps measured on them.

    Attributes:
        images: (N, 256, 256, 3) uint8 RGB, 1 µm/px, enlarged from 2 µm/px.
        place: (N, 2) row and column of each tile, in tiles.
        source: (N,) index of the file that a tile is from.
        exposure: (N, 128, 128) float32, mean about 1: efficiency of each bin's row and column.
        genes: Symbols, G.
        gene, tile: (M,) gene and tile of each map.
        counts: (M, 128, 128) float32 UMIs, clipped alike in all maps of a gene; 0 outside tissue.
        mask: (M, 128, 128) bool, True = tissue.
        clip: (G,) the count that a gene's counts are cut to.
    """

    images: Array
    place: Int64Array
    source: Int64Array
    exposure: Float32Array
    genes: tuple[str, ...]
    gene: Int64Array
    tile: Int64Array
    counts: Float32Array
    mask: BoolArray
    clip: Int64Array

    def maps_of(self, tile: int, among: Array) -> Int64Array:
        """Maps of a tile among the given ones."""
        return np.asarray(among)[self.tile[among] == tile]


def read_tiles(paths: Sequence[Path]) -> Tiles:
    """Read one or two files; tiles of all of them are numbered in order.

    A gene's counts are cut to the smallest clip among its maps, so that training and test maps are
    clipped alike. Genes that are then 0 or 1 only, and genes with a single map, are left out, and
    so are tiles without maps.

    Raises:
        ConfigError: A file is missing, lacks an array, or its arrays do not fit together.
    """
    files = [_checked(path) for path in paths]
    symbol = np.concatenate([f["gene"].astype(str) for f in files])
    clip = np.concatenate([f["clip"].astype(np.int64) for f in files])
    offset = np.cumsum([0] + [len(f["he"]) for f in files])
    tile = np.concatenate(
        [f["tile"].astype(np.int64) + o for f, o in zip(files, offset[:-1], strict=True)]
    )
    counts = np.concatenate([f["counts"] for f in files]).astype(np.float32)
    genes = [
        g for g in np.unique(symbol) if clip[symbol == g].min() > 1 and (symbol == g).sum() > 1
    ]
    if not genes:
        raise ConfigError(
            f"{paths[0]}: expected a gene with two maps and counts above 1; found none"
        )
    kept = np.isin(symbol, genes)
    with_maps, tile = np.unique(tile[kept], return_inverse=True)
    gene = np.searchsorted(genes, symbol[kept])
    lowest = np.array([clip[symbol == g].min() for g in genes])
    counts = counts[kept]
    mask = counts >= 0
    counts = np.clip(counts, 0, lowest[gene][:, None, None])
    he = np.concatenate([f["he"] for f in files])[with_maps]
    side = 2 * PATCH_BINS
    images = np.stack([cv2.resize(x, (side, side), interpolation=cv2.INTER_CUBIC) for x in he])
    place = [np.concatenate([f[k] for f in files])[with_maps] for k in ("tile_row", "tile_col")]
    return Tiles(
        images=images,
        place=np.stack(place, axis=1).astype(np.int64),
        source=np.searchsorted(offset, with_maps, side="right") - 1,
        exposure=np.stack(
            [_parity(counts[tile == t].sum(0), mask[tile == t].any(0)) for t in range(len(he))]
        ),
        genes=tuple(str(g) for g in genes),
        gene=gene,
        tile=tile.astype(np.int64),
        counts=counts,
        mask=mask,
        clip=lowest,
    )


def _checked(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; expected an npz of tiles")
    try:
        with np.load(path, allow_pickle=False) as z:
            if missing := [key for key in _KEYS if key not in z]:
                raise ConfigError(f"{path}: expected arrays {', '.join(_KEYS)}; lacks {missing[0]}")
            file = {key: z[key] for key in _KEYS}
    except (ValueError, OSError, EOFError) as e:
        raise ConfigError(f"{path}: cannot be read as npz ({e})") from None
    n, m = len(file["he"]), len(file["counts"])
    shapes = {"he": (n, PATCH_BINS, PATCH_BINS, 3), "tile_row": (n,), "tile_col": (n,),
              "counts": (m, PATCH_BINS, PATCH_BINS), "gene": (m,), "tile": (m,),
              "clip": (m,)}  # fmt: skip
    for key, shape in shapes.items():
        if file[key].shape != shape:
            raise ConfigError(f"{path}: {key}: expected shape {shape}; got {file[key].shape}")
    if not m or file["tile"].min() < 0 or file["tile"].max() >= n:
        raise ConfigError(f"{path}: tile: expected indices below {n} for at least one map")
    return file


def _parity(umis: Array, mask: BoolArray) -> Float32Array:
    """Exposure (128, 128) of the bins of a tile, from the total of its maps.

    Odd and even rows differ in efficiency, and odd and even columns; the two factors of rows are
    estimated in strips of 32 rows, those of columns in strips of 32 columns.
    """
    exposure = np.ones((PATCH_BINS, PATCH_BINS))
    for axis in (0, 1):
        by_line = umis.sum(1 - axis), mask.sum(1 - axis)
        factor = np.ones(PATCH_BINS)
        for start in range(0, PATCH_BINS, _STRIP):
            rates = []
            for parity in (0, 1):
                lines = slice(start + parity, start + _STRIP, 2)
                rates.append(by_line[0][lines].sum() / max(by_line[1][lines].sum(), 1))
            if min(rates) > 0:
                for parity in (0, 1):
                    lines = slice(start + parity, start + _STRIP, 2)
                    factor[lines] = rates[parity] / np.mean(rates)
        exposure *= factor[:, None] if axis == 0 else factor[None]
    return exposure.astype(np.float32)


def folds(tiles: Tiles) -> list[tuple[Int64Array, Int64Array]]:
    """(training maps, test maps) of each fold.

    With two files the first is trained on and the second tested. With one there are four folds by
    place: tiles that touch, also at a corner, are in the same fold, so that no test tile has a
    neighbour that was trained on. Groups of tiles are dealt out, the largest first, so that the
    maps of a gene are spread over folds.
    """
    maps = np.arange(len(tiles.gene))
    if tiles.source.max() > 0:
        of_test = tiles.source[tiles.tile] == 1
        return [(maps[~of_test], maps[of_test])]
    touch = np.abs(tiles.place[:, None] - tiles.place[None]).max(-1) <= 1
    n_groups, group = connected_components(touch)
    size = np.bincount(group, minlength=n_groups)
    per_gene = np.zeros((N_FOLDS, len(tiles.genes)))
    n_tiles, fold_of = np.zeros(N_FOLDS), np.zeros(n_groups, np.int64)
    for g in np.argsort(-size, kind="stable"):
        own = np.bincount(tiles.gene[group[tiles.tile] == g], minlength=len(tiles.genes))
        fold = int(np.argmin(per_gene @ own + 0.5 * n_tiles))
        fold_of[g] = fold
        per_gene[fold] += own
        n_tiles[fold] += size[g]
    fold_of_map = fold_of[group[tiles.tile]]
    return [(maps[fold_of_map != f], maps[fold_of_map == f]) for f in range(N_FOLDS)]


def ceilings(
    counts: Array, mask: BoolArray, exposure: Array, clip: int, sides: Sequence[int]
) -> Float64Array:
    """Largest PCC that a prediction without stripes can reach with clipped, striped counts.

    Rates are taken as gamma distributed over the bins of the map, and counts as Poisson with mean
    exposure × rate, cut at ``clip``. Shape and mean of the gamma distribution are fitted by maximum
    likelihood; they give the noise of a bin (the mean variance of a count given its rate) and the
    part of the variance that stripes cause. What the variance of the counts exceeds both by is the
    signal: at a side of n bins, √(1 − n²·noise / variance), at n = 1 less the stripes. Without
    clipping and stripes this is √(1 − mean / variance).

    Args:
        counts: (128, 128) clipped UMIs.
        mask: (128, 128) bool, True = tissue.
        exposure: (128, 128), mean about 1.
        clip: The count that larger ones were cut to.
        sides: Sides of the scored bins, in 2 µm bins.
    """
    e = exposure[mask]
    levels = np.quantile(e, (np.arange(8) + 0.5) / 8)
    group = np.abs(e[:, None] - levels).argmin(1)
    k = np.minimum(counts[mask], clip).astype(int)
    seen = np.zeros((8, clip + 1))
    np.add.at(seen, (group, k), 1)

    def chances(log_mean: float, log_shape: float) -> Float64Array:
        """Probability of each count (8 levels, 200 rates, clip + 1)."""
        shape = np.exp(log_shape)
        rate = gamma.ppf(_RATES, shape, scale=np.exp(log_mean) / shape)
        mean = levels[:, None] * rate
        below = poisson.pmf(np.arange(clip), mean[..., None])
        return np.concatenate([below, 1 - below.sum(-1, keepdims=True)], -1)

    def surprise(parameters: Float64Array) -> float:
        p = chances(*np.clip(parameters, (-12, -5), (6, 5))).mean(1)
        return -float((seen * np.log(np.maximum(p, 1e-12))).sum())

    start = np.array([np.log(max(k.mean(), 1e-3)), 0.0])
    best = minimize(surprise, start, method="Nelder-Mead", options={"xatol": 0.01, "fatol": 0.05})
    p = chances(*np.clip(best.x, (-12, -5), (6, 5)))
    value = np.arange(clip + 1)
    mean = p @ value
    weight = np.bincount(group, minlength=8)[:, None] / len(group) / len(_RATES)
    noise = float((weight * (p @ value**2 - mean**2)).sum())
    without_stripes = (weight * mean).sum(0) * len(_RATES)
    stripes = float((weight * (mean - without_stripes) ** 2).sum())
    found = []
    for side in sides:
        whole = pooled(mask.astype(np.float64), side) == side**2
        variance = float(pooled(counts, side)[whole].var())
        signal = variance - side**2 * noise - (stripes if side == 1 else 0.0)
        found.append(np.sqrt(max(signal, 0.0) / variance) if variance > 0 else np.nan)
    return np.array(found)


def pooled(x: Array, side: int) -> Float64Array:
    """Sums over squares of ``side`` bins, of the last two axes."""
    *rest, rows, cols = x.shape
    blocks = x.reshape(*rest, rows // side, side, cols // side, side)
    return blocks.astype(np.float64).sum((-3, -1))


def pcc(rate: Array, counts: Array, mask: BoolArray, side: int) -> float:
    """Pearson's r over the squares of ``side`` bins that are all tissue; 0 for a constant rate."""
    whole = pooled(mask, side) == side**2
    x, y = pooled(rate, side)[whole], pooled(counts, side)[whole]
    if x.std() <= 1e-6 * max(abs(x.mean()), 1e-12) or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
