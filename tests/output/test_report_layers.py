"""Maps and H&E as images of the report: every bin, colour and pixel in its place."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from virchow_st.output.figures.rasters import shared_limit
from virchow_st.output.figures.style import rate_colours
from virchow_st.output.report.layers import (
    STEPS,
    TILE_PX,
    colour_stops,
    gene_maps,
    image_levels,
    image_tiles,
    padded_shape,
)

ROWS, COLS = 45, 83  # no whole 16 µm squares
RNG = np.random.default_rng(5)
RATE = RNG.gamma(0.5, 2.0, (ROWS, COLS)).astype(np.float32)
COUNTS = RNG.poisson(RATE).astype(np.uint16)
MASK = RNG.random((ROWS, COLS)) > 0.02


def opened(png: bytes) -> tuple[np.ndarray, np.ndarray, Image.Image]:
    """Indices and RGBA of a picture, as another program decodes it."""
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P"
    return np.array(image), np.array(image.convert("RGBA")), image


def squares(values: np.ndarray, factor: int) -> np.ndarray:
    """Sums over squares, a loop over each."""
    rows, cols = padded_shape(MASK)
    out = np.zeros((rows // factor, cols // factor))
    for r in range(values.shape[0]):
        for c in range(values.shape[1]):
            out[r // factor, c // factor] += values[r, c]
    return out


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_indices_say_the_umis_of_scored_bins(scale: int) -> None:
    maps = gene_maps(RATE, COUNTS, MASK, [scale])
    factor = scale // 2
    known = squares(MASK, factor) == factor**2
    top = maps.tops[scale]
    for what, values in (("observed", COUNTS), ("predicted", RATE)):
        indices, _, _ = opened(maps.pictures[scale, what])
        assert indices.shape == tuple(n // factor for n in padded_shape(MASK))
        assert ((indices > 0) == known).all()
        umis = top * ((indices.astype(float) - 1) / STEPS) ** 2
        wanted = squares(np.where(MASK, values, 0), factor)[known]
        # Half a step of the root, at the value's own place.
        step = top * (np.sqrt(wanted / top) + 0.5 / STEPS) / STEPS
        assert (abs(umis[known] - wanted) <= step + 1e-9).all()
        if what == "observed":
            assert (np.rint(umis[known]) == wanted).all()
    assert top == max(squares(np.where(MASK, v, 0), factor)[known].max() for v in (RATE, COUNTS))


@pytest.mark.parametrize("scale", [2, 16])
def test_colours_are_those_of_the_figures_and_nothing_is_seen_through(scale: int) -> None:
    maps = gene_maps(RATE, COUNTS, MASK, [scale])
    assert maps.limit == shared_limit([(RATE, MASK)], [(COUNTS, MASK)])
    indices, rgba, _ = opened(maps.pictures[scale, "predicted"])
    assert (rgba[..., 3] == np.where(indices > 0, 255, 0)).all()
    umis = maps.tops[scale] * ((indices.astype(float) - 1) / STEPS) ** 2
    density = umis * (64 / scale**2)  # UMIs per 64 µm²
    wanted = rate_colours()(np.minimum(density / maps.limit, 1), bytes=True)
    assert (rgba[indices > 0, :3] == wanted[indices > 0, :3]).all()
    of_observed = Image.open(io.BytesIO(maps.pictures[scale, "observed"])).getpalette()
    assert of_observed == Image.open(io.BytesIO(maps.pictures[scale, "predicted"])).getpalette()


def test_a_marker_is_where_it_was() -> None:
    counts = np.zeros((ROWS, COLS), np.uint16)
    counts[3, 70] = 9
    maps = gene_maps(np.zeros((ROWS, COLS), np.float32), counts, np.ones_like(MASK), [2, 8])
    for scale, place in ((2, (3, 70)), (8, (0, 17))):
        indices, _, _ = opened(maps.pictures[scale, "observed"])
        assert np.argwhere(indices > 1).tolist() == [list(place)]


def test_a_gene_without_umis_and_rates_below_zero_are_drawn() -> None:
    nothing = np.zeros((ROWS, COLS), np.uint16)
    maps = gene_maps(np.full((ROWS, COLS), -0.25, np.float32), nothing, MASK, [2])
    for what in ("observed", "predicted"):
        indices, _, _ = opened(maps.pictures[2, what])
        assert set(np.unique(indices)) == {0, 1}


def test_the_bar_ends_in_the_colours_of_nothing_and_of_the_limit() -> None:
    stops = colour_stops(24)
    ends = rate_colours()([0.0, 1.0], bytes=True)[:, :3].tolist()
    assert [stops[0], stops[-1]] == ["#" + bytes(end).hex() for end in ends]
    assert len(stops) == 24


@pytest.mark.parametrize(("rows", "cols"), [(300, 700), (128, 128), (45, 83)])
def test_tiles_put_together_are_the_image(rows: int, cols: int) -> None:
    y, x = np.mgrid[: 2 * rows, : 2 * cols]
    image = np.stack([x * 255 / x.max(), y * 255 / y.max(), 0 * x + 40], axis=2).astype(np.uint8)
    levels = image_levels(image.shape)
    mosaics: dict[int, np.ndarray] = {}
    height, width = (-(-2 * n // 16) * 16 for n in (rows, cols))
    for level, col, row, jpeg in image_tiles(image):
        tile = np.array(Image.open(io.BytesIO(jpeg)))
        shape = (height >> (levels - 1 - level), width >> (levels - 1 - level), 3)
        mosaic = mosaics.setdefault(level, np.zeros(shape, np.uint8))
        assert max(tile.shape) <= TILE_PX
        at = np.s_[row * TILE_PX : row * TILE_PX + tile.shape[0]]
        mosaic[at, col * TILE_PX : col * TILE_PX + tile.shape[1]] = tile
    assert sorted(mosaics) == list(range(levels))
    assert max(mosaics[0].shape) <= TILE_PX
    finest = mosaics[levels - 1].astype(int)
    inside = np.s_[: 2 * rows - 16, : 2 * cols - 16]  # JPEG blurs the edge to what is beyond
    assert abs(finest[inside] - image[inside]).max() < 12
    assert (finest[2 * rows + 8 :] > 240).all()  # white
    for level in range(levels - 1):
        finer = mosaics[level + 1].astype(int)
        means = sum(finer[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        assert abs(mosaics[level] - means).mean() < 2
        assert abs(mosaics[level] - means)[:-24, :-24].max() < 12


def test_leaving_out_levels_halves_the_finest() -> None:
    image = RNG.integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    whole = {(level, c, r) for level, c, r, _ in image_tiles(image)}
    halved = {(level, c, r) for level, c, r, _ in image_tiles(image, 1)}
    assert halved == {place for place in whole if place[0] < image_levels(image.shape) - 1}
