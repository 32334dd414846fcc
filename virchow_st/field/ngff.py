"""Images and labels in a Zarr folder, as SpatialData or OME-Zarr 0.5 describe them.

Both hold the same arrays: axes c, y, x in µm, one folder ``s0``, ``s1``, … per pyramid level.
SpatialData 0.2 (https://spatialdata.scverse.org) is OME-Zarr 0.5
(https://ngff.openmicroscopy.org/0.5) with a version, the name of a coordinate system and an
attribute of its own. Strict readers of one format do not accept the other, hence two flavours.

Pixel ``i`` of a level spans ``[i, i + 1)`` times its size in µm, from the top left corner that all
images of a folder share.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from virchow_st.types import Float64Array

FLAVOURS = ("spatialdata", "ome-zarr")
_SPACE = {"type": "space", "unit": "micrometer"}
_AXES = {"c": {"name": "c", "type": "channel"}} | {n: {"name": n, **_SPACE} for n in "yx"}
_OME = "0.5"
FULLRES = "fullres_px"
"""Name of the second coordinate system, in pixels of the original image."""
# Rounded rates take 0.43 of their bytes, against 0.63 with Zarr's default, in half the time.
PACKED = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]


class Folder:
    """A Zarr folder of images and labels that is being written.

    What is there already, of a writer that was killed, is opened as it is.

    Args:
        path: folder to create.
        flavour: ``"spatialdata"`` or ``"ome-zarr"``.
        attributes: further attributes of the folder, by name.
        corner_um: ``(x, y)`` of the images' top left corner.
        um_to_px: (2, 3) affine from ``(x, y, 1)`` in µm to ``(x, y)`` px of the original image.
            SpatialData stores it as the coordinate system `FULLRES`; OME-Zarr cannot store it.
    """

    def __init__(
        self,
        path: Path,
        flavour: str,
        attributes: dict[str, Any],
        corner_um: tuple[float, float] = (0.0, 0.0),
        um_to_px: Float64Array | None = None,
    ) -> None:
        self._is_spatialdata = flavour == "spatialdata"
        self._corner_um = corner_um
        self._um_to_px = um_to_px
        self._root = zarr.open_group(str(path), mode="a", zarr_format=3)
        self._names: list[str] = []
        self._labels: list[str] = []
        if self._is_spatialdata:
            self._root.attrs["spatialdata_attrs"] = {"version": "0.2"}
        else:
            self._root.attrs["ome"] = {"version": _OME, "bioformats2raw.layout": 3}
        self._root.attrs.update(attributes)

    def add_image(
        self,
        name: str,
        channels: Sequence[str],
        shape: tuple[int, int],
        um_per_px: float,
        levels: int,
        *,
        dtype: str,
        chunk: int,
        fill: float,
        brightest: float,
        in_blocks: bool = False,
        by_channel: bool = False,
    ) -> list[zarr.Array]:
        """Add an image and return its levels, (C, H, W) each, every one half as large as the last.

        Args:
            name: of the image.
            channels: their names, without duplicates.
            shape: (H, W) of the finest level, multiples of ``2 ** (levels - 1)``.
            um_per_px: of the finest level.
            levels: number of pyramid levels.
            dtype: of the pixels.
            chunk: side of the finest level's chunks, px.
            fill: value of chunks that are never written.
            brightest: value that viewers show as white, if the flavour can store it.
            in_blocks: chunks halve with the levels, so that a block of the finest level is one
                file of every level; otherwise the chunks of all levels have one size.
            by_channel: each chunk holds one channel, and the chunks of all channels at a position
                are in one file; otherwise a chunk holds all channels.
        """
        group = self._add(f"images/{name}", "cyx", um_per_px, levels)
        ome = dict(group.attrs["ome"])
        ome["omero"] = {"channels": self._channels(channels, brightest)}
        group.attrs["ome"] = ome
        arrays = []
        for level in range(levels):
            side = max(chunk >> level, 1) if in_blocks else chunk
            depth = len(channels)
            arrays.append(
                _array(
                    group,
                    f"s{level}",
                    shape=(depth, shape[0] >> level, shape[1] >> level),
                    dtype=dtype,
                    chunks=(1 if by_channel else depth, side, side),
                    shards=(depth, side, side) if by_channel else None,
                    compressors=PACKED,
                    fill_value=fill,
                    dimension_names=("c", "y", "x"),
                )
            )
        return arrays

    def add_labels(
        self,
        name: str,
        shape: tuple[int, int],
        um_per_px: float,
        dtype: str = "uint8",
        chunk: int = 512,
    ) -> zarr.Array:
        """Add labels of one level, (H, W) integers; 0 where nothing is written."""
        group = self._add(f"labels/{name}", "yx", um_per_px, 1)
        group.attrs["ome"] = {**group.attrs["ome"], "image-label": {"version": _OME}}
        self._labels.append(name)
        self._root["labels"].attrs["ome"] = {"version": _OME, "labels": self._labels}
        return _array(
            group,
            "s0",
            shape=shape,
            dtype=dtype,
            chunks=(chunk, chunk),
            compressors=PACKED,
            dimension_names=("y", "x"),
        )

    @property
    def root(self) -> zarr.Group:
        """The Zarr group of the folder."""
        return self._root

    def add_table(self, name: str, table: Any, labels: str) -> None:
        """Add an AnnData that annotates labels of this folder (SpatialData flavour only).

        Args:
            name: of the table.
            table: its ``obs["instance_id"]`` are the values in ``labels``; the columns and
                attributes that link both are added to it.
            labels: name of the labels.
        """
        from anndata.io import write_elem

        ties = {"region": labels, "region_key": "region", "instance_key": "instance_id"}
        table.obs["region"] = labels
        table.obs["region"] = table.obs["region"].astype("category")
        table.uns["spatialdata_attrs"] = ties
        with warnings.catch_warnings():
            # Announces that a later version will choose other chunk sizes.
            warnings.filterwarnings("ignore", message=".*autosharding", category=UserWarning)
            write_elem(self._root.require_group("tables"), name, table)
        self._root[f"tables/{name}"].attrs.update(
            {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.2"} | ties
        )

    def finish(self, **attributes: Any) -> None:
        """Add attributes that are known only at the end."""
        self._root.attrs.update(attributes)
        if not self._is_spatialdata:
            listed = self._root.require_group("OME")
            listed.attrs["ome"] = {"version": _OME, "series": self._names}

    def _channels(self, names: Sequence[str], brightest: float) -> list[dict[str, Any]]:
        if self._is_spatialdata:
            return [{"label": name} for name in names]
        window = {"min": 0, "start": 0, "end": brightest, "max": brightest}
        colours = {"r": "FF0000", "g": "00FF00", "b": "0000FF"} if len(names) == 3 else {}
        return [
            {"label": name, "color": colours.get(name, "FFFFFF"), "window": window}
            for name in names
        ]

    def _add(self, path: str, axes: str, um_per_px: float, levels: int) -> zarr.Group:
        named = [_AXES[axis] for axis in axes]

        def scale(factor: float) -> dict[str, Any]:
            return {"type": "scale", "scale": [1.0 if a == "c" else float(factor) for a in axes]}

        # SpatialData expects µm in the image's transformation, OME-Zarr viewers in the levels'.
        level_um = 1.0 if self._is_spatialdata else um_per_px
        datasets: list[dict[str, Any]] = [
            {"path": f"s{level}", "coordinateTransformations": [scale(level_um * (1 << level))]}
            for level in range(levels)
        ]
        scales: dict[str, Any] = {"name": path.rpartition("/")[2], "axes": named}
        scales["datasets"] = datasets
        if self._is_spatialdata:
            scales["coordinateTransformations"] = self._to_frames(axes, um_per_px)
        elif any(self._corner_um):
            x, y = map(float, self._corner_um)
            shift = {"type": "translation", "translation": [*[0.0] * (len(axes) - 2), y, x]}
            for dataset in datasets:
                dataset["coordinateTransformations"].append(shift)
        group = self._root.require_group(path)
        group.attrs["ome"] = {
            "version": "0.5-dev-spatialdata" if self._is_spatialdata else _OME,
            "multiscales": [scales],
        }
        if self._is_spatialdata:
            group.attrs["spatialdata_attrs"] = {"version": "0.3"}
        if path.startswith("images/"):
            self._names.append(path)
        return group

    def _to_frames(self, axes: str, um_per_px: float) -> list[dict[str, Any]]:
        """SpatialData's transformations of an image: to µm, and to px of the original image."""
        named = [_AXES[axis] for axis in axes]
        to_um = np.array([[um_per_px, 0, self._corner_um[0]], [0, um_per_px, self._corner_um[1]]])
        frames = {"global": to_um}
        if self._um_to_px is not None:
            frames[FULLRES] = self._um_to_px @ np.vstack([to_um, [0, 0, 1]])
        found: list[dict[str, Any]] = []
        for name, affine in frames.items():
            if name == "global" and not any(self._corner_um):
                scale = [1.0 if axis == "c" else float(um_per_px) for axis in axes]
                step: dict[str, Any] = {"type": "scale", "scale": scale}
            else:
                step = {"type": "affine", "affine": _for_axes(affine, len(axes))}
            step["input"] = {"name": axes, "axes": named}
            step["output"] = {"name": name, "axes": named}
            found.append(step)
        return found


def remove_chunk(array: zarr.Array, *at: int) -> None:
    """Remove the file of the chunk that holds a pixel, if there is one.

    A write that covers a chunk in part reads it first, and fails where it is damaged.
    """
    sides = array.shards or array.chunks
    index = tuple(place // side for place, side in zip(at, sides, strict=True))
    folder = Path(array.store_path.store.root) / array.store_path.path
    (folder / array.metadata.encode_chunk_key(index)).unlink(missing_ok=True)


def _array(group: zarr.Group, name: str, **options: Any) -> zarr.Array:
    return group[name] if name in group else group.create_array(name, **options)


def _for_axes(affine: Float64Array, n_axes: int) -> list[list[float]]:
    """The (2, 3) affine on ``(x, y, 1)`` as a nested list on the axes ``(c,) y, x``."""
    (a, b, x), (c, d, y) = affine.tolist()
    of_space = [[d, c, y], [b, a, x]]
    if n_axes == 2:
        return of_space
    return [[1.0, 0.0, 0.0, 0.0], *([0.0, *row] for row in of_space)]
