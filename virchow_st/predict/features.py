"""One vector per patch, collected while a slide is predicted, and its file for other tools.

The vector is the encoder's class token. It is kept as float16, the precision of a store, in the
unfinished output, so that a prediction that was killed goes on with it. At the end it is written as
one of the two HDF5 layouts that tools for multiple-instance learning read:

- ``stamp`` (https://github.com/KatherLab/STAMP): ``feats`` (N, D), ``coords`` (N, 2) in µm, and the
  attributes ``unit``, ``tile_size_um``, ``tile_size_px``, ``extractor``, ``feat_type``;
- ``trident`` (https://github.com/mahmoodlab/TRIDENT): ``features`` (N, D), ``coords`` (N, 2) in
  pixels of the full-resolution image, whose attributes describe the patches.

Coordinates are (x, y) of a patch's top left corner. The group ``slide`` holds the means that
`virchow_st.predict.feature_table` collects; both tools pass over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError, to_write_or
from virchow_st.field.read import open_field
from virchow_st.models.encoders.base import Encoder
from virchow_st.predict.journal import VECTORS, Journal
from virchow_st.runtime.atomic import written_whole
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.runtime.lock import locked
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable
from virchow_st.types import BIN_UM, CELL_BINS, PATCH_UM, Array, BoolArray, Float64Array

FORMAT = "virchow_st.features/1"
_ROWS = 64  # of 8 µm bins that are read at once
# Magnification that scanners name, by the largest µm per pixel of it.
_MAGNIFICATIONS = ((0.15, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10))


class PatchFeatures:
    """The vectors of a slide's patches in the unfinished output.

    Args:
        journal: of the prediction; batches that it has are not encoded again.
        folder: the unfinished output.
        n_patches: number of patches, N.
        dim: length of a vector, D.
    """

    def __init__(self, journal: Journal, folder: Path, n_patches: int, dim: int) -> None:
        self._journal, self._path, self._shape = journal, folder / VECTORS, (n_patches, dim)
        size = n_patches * dim * 2
        if not self._path.is_file() or self._path.stat().st_size != size:
            with open(self._path, "wb") as file:
                file.truncate(size)

    def has(self, batch: range) -> bool:
        """Whether a batch is finished, and is on disk as it was written."""
        return self._journal.has_vectors(batch.start, partial(self._rows, batch.start, batch.stop))

    def add(self, batch: range, vectors: Array) -> None:
        """Keep the vectors (B, D) of a batch."""
        rows = np.ascontiguousarray(vectors, np.float16)
        with open(self._path, "r+b", buffering=0) as file:
            file.seek(batch.start * self._shape[1] * 2)
            file.write(rows.tobytes())
        self._journal.vectors(batch.start, rows)

    def read(self) -> Array:
        """All vectors, (N, D) float16."""
        return self._rows(0, self._shape[0])

    def _rows(self, start: int, stop: int) -> Array:
        dim = self._shape[1]
        rows = np.fromfile(self._path, np.float16, (stop - start) * dim, offset=start * dim * 2)
        return rows.reshape(stop - start, dim)


def features_file(folder: Path, image: Path) -> Path:
    """Where the vectors of a slide go; both tools look for the image's name.

    >>> features_file(Path("features"), Path("scans/S1.svs")).as_posix()
    'features/S1.h5'
    """
    return folder / f"{image.stem}.h5"


def check_replaceable(path: Path, fingerprint: str) -> None:
    """Raise `ConfigError` if a file is there that is not of an earlier prediction of this image."""
    if not path.exists():
        return
    try:
        with h5py.File(path) as file:
            about = json.loads(file.attrs["virchow_st"])
        same = about["format"] == FORMAT and about["image"]["fingerprint"] == fingerprint
    except (OSError, KeyError, ValueError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"{path}: is already there, and holds no features of this image by vst predict; delete "
            "it or give another --features"
        )


def write_features(
    path: Path,
    layout: str,
    vectors: Array,
    image: SlideImage,
    mpp: float,
    patches: PatchTable,
    overlap_um: int,
    encoder: Encoder,
    means: Mapping[str, float],
    about: Mapping[str, Any],
) -> None:
    """Write a slide's vectors; a file of an earlier prediction is replaced.

    Args:
        path: the file.
        layout: ``stamp`` or ``trident``.
        vectors: (N, D) float16.
        image, mpp: the slide and its µm per pixel.
        patches, overlap_um: the N patches, and by how much neighbours overlap.
        encoder: which made the vectors.
        means: of each map of the rates over the tissue, see `mean_rates`.
        about: provenance.

    Raises:
        ConfigError: it cannot be written.
    """
    corners_um = BIN_UM * np.stack([patches.col0, patches.row0], axis=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path), written_whole(path) as aside, written_hdf5(aside) as output:
            file = output.file
            if layout == "stamp":
                file["feats"] = vectors
                file["coords"] = corners_um.astype(np.float32)
                file.attrs.update(
                    extractor=encoder.name, unit="um", tile_size_um=float(PATCH_UM),
                    tile_size_px=encoder.image_px, feat_type="tile",
                )  # fmt: skip
            else:
                file["features"] = vectors
                file["coords"] = np.rint(corners_um / mpp).astype(np.int64)
                file["features"].attrs.update(name=path.stem, encoder=encoder.name)
                file["coords"].attrs.update(_trident(image, mpp, overlap_um, encoder, path.stem))
            slide = file.create_group("slide")
            slide["feature_mean"] = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            slide["rate_mean"] = np.array(list(means.values()), np.float32)
            slide["rate_name"] = np.array(list(means), dtype=object)
            file.attrs["virchow_st"] = json.dumps({**about, "format": FORMAT})
    except OSError as e:
        raise ConfigError(
            f"{path}: cannot be written ({e.strerror}); {to_write_or(e, 'give another --features')}"
        ) from None


def mean_rates(zarr_path: Path, cells: BoolArray) -> dict[str, float]:
    """Mean of each map of a field over the tissue that has rates, expected UMIs per 8 µm bin.

    Args:
        zarr_path: the field: factors, or genes that are held directly.
        cells: (R, C) bool, tissue on cells of 8 µm.
    """
    field = open_field(zarr_path)
    names = field.factor_names
    sums: Float64Array = np.zeros(len(names))
    n_cells = 0
    for row in range(0, cells.shape[0], _ROWS):
        maps = field.factors(row, 0, min(_ROWS, cells.shape[0] - row), cells.shape[1],
                             BIN_UM * CELL_BINS)  # fmt: skip
        counts = cells[row : row + _ROWS] & ~np.isnan(maps[0])
        sums += maps[:, counts].sum(axis=1, dtype=np.float64)
        n_cells += int(counts.sum())
    means = sums / max(n_cells, 1)
    if field.is_direct:
        return dict(zip(names, means.tolist(), strict=True))
    return {f"factor {k}": mean for k, mean in enumerate(means.tolist(), start=1)}


def made_by(about: Mapping[str, Any]) -> dict[str, Any]:
    """Of a prediction's provenance, what has to be the same for all slides of a table."""
    options = {name: value for name, value in about["options"].items() if name != "mpp"}
    return {"runs": about["runs"], "encoder": about["encoder"], "options": options}


def _trident(
    image: SlideImage, mpp: float, overlap_um: int, encoder: Encoder, name: str
) -> dict[str, Any]:
    """Attributes of TRIDENT's coordinates."""
    magnification = next((m for most, m in _MAGNIFICATIONS if mpp <= most), 5)
    return {
        "patch_size": encoder.image_px,
        "patch_size_level0": round(PATCH_UM / mpp),
        "level0_magnification": magnification,
        "target_magnification": magnification * mpp * encoder.image_px / PATCH_UM,
        "overlap": round(overlap_um * encoder.image_px / PATCH_UM),
        "name": name,
        "savetodir": "",
        "level0_width": image.width,
        "level0_height": image.height,
    }


def check_features(folder: Path, images: Sequence[Path]) -> None:
    """Raise `ConfigError` if two slides would have one file."""
    seen: dict[str, Path] = {}
    for image in images:
        other = seen.setdefault(image.stem, image)
        if other is not image:
            raise ConfigError(
                f"{features_file(folder, image)}: expected a file per slide; {other} and {image} "
                "have one name; rename one, or predict them in two lists"
            )
