"""Images and labels in a Zarr folder, as SpatialData or OME-Zarr 0.5 describe them.

Both are the same arrays: axes c, y, x in µm, a folder ``s0``, ``s1`` … a pyramid level. SpatialData
0.2 (https://spatialdata.scverse.org) is OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5) with a
version, a coordinate system's name and an attribute of its own, which strict readers of the one
and of the other do not take for each other; hence two flavours. Pixel ``i`` of a level spans
``[i, i + 1)`` times its side in µm, from the image's top left corner on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import BloscCodec

FLAVOURS = ("spatialdata", "ome-zarr")
_SPACE = {"type": "space", "unit": "micrometer"}
_AXES = {"c": {"name": "c", "type": "channel"}} | {n: {"name": n, **_SPACE} for n in "yx"}
_OME = "0.5"
# Rounded rates take 0.43 of their bytes so, 0.63 with Zarr's default, and in half its time.
_PACKED = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")


class Folder:
    """A Zarr folder of images and labels that is being written.

    Args:
        path: folder to make.
        flavour: ``"spatialdata"`` or ``"ome-zarr"``.
        attributes: what else the folder says of itself, by name.
    """

    def __init__(self, path: Path, flavour: str, attributes: dict[str, Any]) -> None:
        self._is_spatialdata = flavour == "spatialdata"
        self._root = zarr.create_group(str(path), zarr_format=3)
        self._names: list[str] = []
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
        together: bool = False,
    ) -> list[zarr.Array]:
        """Add an image; returns its levels, (C, H, W) each, half the size from one to the next.

        Args:
            name: of the image.
            channels: their names, each once.
            shape: (H, W) of the finest level, multiples of ``2 ** (levels - 1)``.
            um_per_px: of the finest level.
            levels: how many.
            dtype: of the pixels.
            chunk: side of the finest level's chunks, px.
            fill: value of chunks that are never written.
            brightest: value that viewers show as white, where the flavour has a place for it.
            together: chunks are a channel each, all channels of a place in one file; else a chunk
                holds all channels.
        """
        group = self._add(f"images/{name}", "cyx", um_per_px, levels)
        ome = dict(group.attrs["ome"])
        ome["omero"] = {"channels": self._channels(channels, brightest)}
        group.attrs["ome"] = ome
        arrays = []
        for level in range(levels):
            side = max(chunk >> level, 1) if together else chunk
            depth = len(channels)
            arrays.append(
                group.create_array(
                    f"s{level}",
                    shape=(depth, shape[0] >> level, shape[1] >> level),
                    dtype=dtype,
                    chunks=(1 if together else depth, side, side),
                    shards=(depth, side, side) if together else None,
                    compressors=_PACKED,
                    fill_value=fill,
                    dimension_names=("c", "y", "x"),
                )
            )
        return arrays

    def add_labels(self, name: str, shape: tuple[int, int], um_per_px: float) -> zarr.Array:
        """Add labels of one level, (H, W) uint8, 0 where never written."""
        group = self._add(f"labels/{name}", "yx", um_per_px, 1)
        group.attrs["ome"] = {**group.attrs["ome"], "image-label": {"version": _OME}}
        self._root["labels"].attrs["ome"] = {"version": _OME, "labels": [name]}
        return group.create_array(
            "s0", shape=shape, dtype="uint8", chunks=(512, 512), dimension_names=("y", "x")
        )

    def finish(self, **attributes: Any) -> None:
        """Add what is known at the end."""
        self._root.attrs.update(attributes)
        if not self._is_spatialdata:
            listed = self._root.create_group("OME")
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

        # SpatialData wants µm in the image's transformation; viewers of OME-Zarr read the levels'.
        level_um = 1.0 if self._is_spatialdata else um_per_px
        datasets = [
            {"path": f"s{level}", "coordinateTransformations": [scale(level_um * (1 << level))]}
            for level in range(levels)
        ]
        scales: dict[str, Any] = {"name": path.rpartition("/")[2], "axes": named}
        scales["datasets"] = datasets
        if self._is_spatialdata:
            frames = {
                "input": {"name": axes, "axes": named},
                "output": {"name": "global", "axes": named},
            }
            scales["coordinateTransformations"] = [scale(um_per_px) | frames]
        group = self._root.create_group(path)
        group.attrs["ome"] = {
            "version": "0.5-dev-spatialdata" if self._is_spatialdata else _OME,
            "multiscales": [scales],
        }
        if self._is_spatialdata:
            group.attrs["spatialdata_attrs"] = {"version": "0.3"}
        if path.startswith("images/"):
            self._names.append(path)
        return group
