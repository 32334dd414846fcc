"""What a field's Zarr folder holds, checked when it is opened (docs/field-format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import zarr

from virchow_st.errors import ConfigError, FieldError
from virchow_st.field.bins import LEVELS
from virchow_st.field.interval import RateErrors, read_errors
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import FULLRES
from virchow_st.field.table import NAME, read_loadings
from virchow_st.field.write import (
    ABOUT,
    COVERED,
    FAILED,
    FORMAT,
    MAPS,
    PROVENANCE,
    SOURCE_NAMES,
    SOURCES,
    TISSUE,
)
from virchow_st.kernels.pooling import pool_mask
from virchow_st.schema import MismatchError, check
from virchow_st.types import (
    BIN_UM,
    CELL_BINS,
    SCALES_UM,
    BoolArray,
    Float32Array,
    Float64Array,
    UInt8Array,
)

_CELL_UM = BIN_UM * CELL_BINS
_MOST_BINS = 1 << 20
_PICTURE = "images/he"


class About(TypedDict):
    """The attribute ``virchow_st_field``, but for its format."""

    maps: Literal["factors", "rates"]
    bin_um: Literal[2]


@dataclass(frozen=True, eq=False)
class Layers:
    """The parts of an opened field.

    Attributes:
        path: of the folder.
        name: of the maps, ``factors`` or ``rates``.
        maps: (K, R, C) float32 at 2 µm and (K, R / 4, C / 4) at 8 µm, by µm.
        channels: names of the K factors.
        loadings: of the genes.
        covered: (R, C) integers, not 0 where there are values.
        tissue: (R / 4, C / 4) or (R, C) integers, not 0 in tissue.
        failed: (R, C) integers, not 0 in tissue bins whose rates were filled in; None if there are
            none.
        sources: (3, R, C) and (3, R / 4, C / 4) float32, what the rates rest on, by µm; empty if
            that is not known.
        errors: of the rates, if they were measured.
        picture: levels (3, H, W) uint8, finest first, and the finest one's µm per pixel.
        corner_um: ``(x, y)`` of the top left corner.
        um_to_px: (2, 3) affine from ``(x, y, 1)`` in µm to px of the original image, if it is
            known.
        provenance: as the writer recorded it.
    """

    path: Path
    name: str
    maps: dict[int, zarr.Array]
    channels: tuple[str, ...]
    loadings: Loadings
    covered: zarr.Array
    tissue: zarr.Array
    failed: zarr.Array | None
    sources: dict[int, zarr.Array]
    errors: RateErrors | None
    picture: tuple[list[zarr.Array], float] | None
    corner_um: tuple[float, float]
    um_to_px: Float64Array | None
    provenance: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        _, rows, cols = self.maps[BIN_UM].shape
        return rows, cols

    def size(self, scale_um: int) -> tuple[int, int]:
        """Rows and columns of bins of ``scale_um``; `ConfigError` for a scale that there is not."""
        if scale_um not in SCALES_UM:
            raise ConfigError(f"scale_um: expected one of {SCALES_UM}; got {scale_um}")
        rows, cols = (n * BIN_UM // scale_um for n in self.shape)
        return rows, cols

    @cached_property
    def covered_cells(self) -> BoolArray:
        """(R / 4, C / 4) bool, the 8 µm bins whose 2 µm bins all have values."""
        step = self.covered.chunks[0] * CELL_BINS
        bands = (slice(top, top + step) for top in range(0, self.shape[0], step))
        return np.concatenate(
            [pool_mask(self.read_labels(self.covered, rows), CELL_BINS) for rows in bands]
        )

    def read_labels(
        self, labels: zarr.Array, rows: slice = slice(None), cols: slice = slice(None)
    ) -> BoolArray:
        """Where labels are not 0, in some rows and columns or everywhere."""
        with unpacked(self.path, labels.path):
            mask: BoolArray = np.asarray(labels[rows, cols]) != 0
        return mask

    def read_sources(self, scale_um: int, rows: slice = slice(None)) -> Float32Array:
        """Shares of what the rates rest on, in some rows of bins of 2 or 8 µm, (3, h, w)."""
        with unpacked(self.path, SOURCES):
            shares = np.asarray(self.sources[scale_um][:, rows])
        return shares

    def read_pixels(self, level: int, rows: slice = slice(None)) -> UInt8Array:
        """Rows of a level of the picture, (h, W, 3) uint8 RGB."""
        assert self.picture is not None
        with unpacked(self.path, _PICTURE):
            pixels = np.asarray(self.picture[0][level][:, rows])
        return np.ascontiguousarray(np.moveaxis(pixels, 0, 2))

    def read_picture(self, longest_px: int) -> tuple[UInt8Array, float] | None:
        """See `virchow_st.field.read.Field.picture`."""
        if self.picture is None:
            return None
        levels, um_per_px = self.picture
        sides = [max(level.shape[1:]) for level in levels]
        level = next((i for i, side in enumerate(sides) if side <= longest_px), len(sides) - 1)
        return self.read_pixels(level), um_per_px * (1 << level)


def open_layers(path: Path) -> Layers:
    """Open a field's folder and check all that can be checked without reading its maps.

    Raises:
        FieldError: see `virchow_st.field.read.open_field`.
    """
    root = _open_root(path)
    name = _check_about(path, dict(root.attrs))
    with unpacked(path, name):
        maps = {um: _finest(root, f"images/{name}_{um}um")[0] for um in (BIN_UM, _CELL_UM)}
        _check_maps(maps)
        _, rows, cols = maps[BIN_UM].shape
        frames = _frames(root, f"images/{name}_{BIN_UM}um")
        um_to_px = _um_to_px(frames)
        channels = _channels(root, f"images/{name}_{BIN_UM}um", maps[BIN_UM].shape[0])
    cells = rows // CELL_BINS, cols // CELL_BINS
    with unpacked(path, "labels"):
        covered = _labels(root, COVERED, ((rows, cols),))
        tissue = _labels(root, TISSUE, ((rows, cols), cells))
        has_failed = f"labels/{FAILED}" in root
        failed = _labels(root, FAILED, ((rows, cols),)) if has_failed else None
    with unpacked(path, SOURCES):
        sources = _sources(root, (rows, cols))
    with unpacked(path, f"tables/{NAME}"):
        loadings = read_loadings(_group(root, f"tables/{NAME}"), name == MAPS[1])
        errors = read_errors(_group(root, f"tables/{NAME}"), len(loadings.genes))
        if loadings.n_factors != maps[BIN_UM].shape[0]:
            raise MismatchError(
                f"expected {maps[BIN_UM].shape[0]} factors, as the maps; got {loadings.n_factors}"
            )
    picture = None
    if _PICTURE in root:
        with unpacked(path, _PICTURE):
            um_per_px = float(_frames(root, _PICTURE)["global"][0, 0])
            picture = _finest(root, _PICTURE), um_per_px
    provenance = root.attrs.get(PROVENANCE)
    return Layers(
        path=path,
        name=name,
        maps=maps,
        channels=channels,
        loadings=loadings,
        covered=covered,
        tissue=tissue,
        failed=failed,
        sources=sources,
        errors=errors,
        picture=picture,
        corner_um=(float(frames["global"][0, 2]), float(frames["global"][1, 2])),
        um_to_px=um_to_px,
        provenance=provenance if isinstance(provenance, dict) else {},
    )


@contextmanager
def unpacked(path: Path, part: str) -> Iterator[None]:
    """Turn what Zarr and its codecs raise about a damaged file into a `FieldError` of one line.

    They raise errors of many kinds, since a damaged file says anything; a programming error within
    such a block would be a `FieldError` too, hence the blocks are small.
    """
    try:
        yield
    except FieldError:
        raise
    except Exception as e:
        said = " ".join(str(e).split()) or type(e).__name__
        raise FieldError(f"{path}: {part}: {said[:200]}; copy or predict the field again") from None


def _open_root(path: Path) -> zarr.Group:
    if not path.is_dir():
        raise FieldError(f"{path}: no such field; write it with `vst predict … --out {path}`")
    if not (path / "zarr.json").is_file():
        raise FieldError(f"{path}: expected a Zarr folder of a field; found no zarr.json in it")
    with unpacked(path, "zarr.json"):
        root = zarr.open_group(str(path), mode="r", zarr_format=3)
    return root


def _check_about(path: Path, attributes: dict[str, Any]) -> str:
    """What the maps are called; `FieldError` unless it is a field that this version reads."""
    about = attributes.get(ABOUT)
    if not isinstance(about, dict):
        kind = attributes.get(PROVENANCE)
        found = kind.get("format") if isinstance(kind, dict) else None
        raise FieldError(
            f"{path}: expected a field, {FORMAT}; found {found or 'another Zarr folder'}; "
            "give what `vst predict` of this version wrote"
        )
    if about.get("format") != FORMAT:
        raise FieldError(
            f"{path}: expected a field of {FORMAT}; found {about.get('format')!r:.60}; read it "
            "with the version of virchow_st that wrote it"
        )
    with unpacked(path, ABOUT):
        check(about, About)
    return str(about["maps"])


def _check_maps(maps: dict[int, zarr.Array]) -> None:
    fine, coarse = maps[BIN_UM], maps[_CELL_UM]
    for um, array in maps.items():
        if array.ndim != 3 or array.dtype != np.float32:
            raise MismatchError(
                f"expected float32 (factors, rows, columns) at {um} µm; got {array.dtype} "
                f"{array.shape}"
            )
    n, rows, cols = fine.shape
    side = 1 << (LEVELS - 1)
    if n < 1 or any(s % side or not 0 < s <= _MOST_BINS for s in (rows, cols)):
        raise MismatchError(
            f"expected maps of multiples of {side} up to {_MOST_BINS:,} bins; got {fine.shape}"
        )
    expected = n, rows // CELL_BINS, cols // CELL_BINS
    if coarse.shape != expected:
        raise MismatchError(f"expected {expected} at {_CELL_UM} µm; got {coarse.shape}")


def _sources(root: zarr.Group, shape: tuple[int, int]) -> dict[int, zarr.Array]:
    if f"images/{SOURCES}_{BIN_UM}um" not in root:
        return {}
    found = {um: _finest(root, f"images/{SOURCES}_{um}um")[0] for um in (BIN_UM, _CELL_UM)}
    for um, array in found.items():
        expected = len(SOURCE_NAMES), *(n * BIN_UM // um for n in shape)
        if array.shape != expected or array.dtype != np.float32:
            raise MismatchError(
                f"expected float32 {expected} at {um} µm; got {array.dtype} {array.shape}"
            )
    return found


def _labels(root: zarr.Group, name: str, shapes: tuple[tuple[int, int], ...]) -> zarr.Array:
    (array, *_) = _finest(root, f"labels/{name}")
    if array.shape not in shapes or array.dtype.kind not in "iu":
        expected = " or ".join(map(str, shapes))
        raise MismatchError(
            f"{name}: expected integers {expected}; got {array.dtype} {array.shape}"
        )
    return array


# --- OME-Zarr -------------------------------------------------------------------------------------


def _group(root: zarr.Group, name: str) -> zarr.Group:
    found = root.get(name)
    if not isinstance(found, zarr.Group):
        raise MismatchError(f"{name} is missing")
    return found


def _finest(root: zarr.Group, name: str) -> list[zarr.Array]:
    """Levels of an image or of labels, finest first."""
    group = _group(root, name)
    (scales,) = group.attrs["ome"]["multiscales"]
    levels = [group[dataset["path"]] for dataset in scales["datasets"]]
    if not levels or not all(isinstance(level, zarr.Array) for level in levels):
        raise MismatchError(f"{name} has no pixels")
    return levels


def _channels(root: zarr.Group, name: str, n: int) -> tuple[str, ...]:
    listed = _group(root, name).attrs["ome"]["omero"]["channels"]
    names = tuple(str(channel["label"]) for channel in listed)
    if len(names) != n:
        raise MismatchError(f"expected names of {n} channels; got {len(names)}")
    return names


def _frames(root: zarr.Group, name: str) -> dict[str, Float64Array]:
    """(2, 3) affines from ``(x, y, 1)`` in pixels of the finest level, by coordinate system.

    SpatialData has them in the image's transformations, OME-Zarr the one to µm in the level's.
    """
    (scales,) = _group(root, name).attrs["ome"]["multiscales"]
    steps = scales.get("coordinateTransformations", ())
    frames = {step["output"]["name"]: _affine(step) for step in steps}
    if not steps:
        of_level = scales["datasets"][0]["coordinateTransformations"]
        by_type = {step["type"]: step for step in of_level}
        frames["global"] = _affine(by_type["scale"])
        if "translation" in by_type:
            frames["global"][:, 2] = by_type["translation"]["translation"][:0:-1]
    if "global" not in frames or not all(np.isfinite(affine).all() for affine in frames.values()):
        raise MismatchError("expected finite transformations, one of them to 'global'")
    return frames


def _affine(step: dict[str, Any]) -> Float64Array:
    if step["type"] == "scale":
        _, y, x = step["scale"]
        return np.array([[x, 0, 0], [0, y, 0]], np.float64)
    if step["type"] != "affine":
        raise MismatchError(f"expected a scale or an affine; got {step['type']!r:.60}")
    _, (_, d, c, y), (_, b, a, x) = step["affine"][:3]
    return np.array([[a, b, x], [c, d, y]], np.float64)


def _um_to_px(frames: dict[str, Float64Array]) -> Float64Array | None:
    """From µm to px of the original image, by way of the pixels of the image that knows both."""
    if FULLRES not in frames:
        return None
    to_um = np.vstack([frames["global"], [0, 0, 1]])
    affine: Float64Array = frames[FULLRES] @ np.linalg.inv(to_um)
    return affine
