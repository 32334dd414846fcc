"""Writes tiny Visium HD slides with a chosen geometry and known counts, and their images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from virchow_st.slide.geometry import Homography

PITCH_PX = 6.0  # a third of a µm per pixel


# Orientations of a slide: rotated by multiples of 90° (plus a degree), mirrored, tilted, or not.
COMBINATIONS = [
    f"turn {turn}{mirror}{tilt}"
    for turn in range(4)
    for mirror in ("", " mirror")
    for tilt in ("", " perspective")
]


def homography(kind: str, rows: int, cols: int) -> tuple[Homography, tuple[int, int]]:
    """A homography of the named kind, and (width, height) of an image that contains the grid."""
    if kind in COMBINATIONS:
        angle = 90.0 * int(kind.split()[1]) + 1.0
    else:
        angle = {"rotation": 7.0, "mirror": -4.0, "quarter turn": 90.0, "perspective": 2.0}[kind]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = PITCH_PX * np.array([[c, -s], [s, c]])
    if "mirror" in kind or kind == "perspective":
        linear[:, 0] *= -1
    h20, h21 = (2e-6, -1e-6) if "perspective" in kind else (0.0, 0.0)
    matrix = np.array([[*linear[0], 0.0], [*linear[1], 0.0], [h20, h21, 1.0]])
    corners = np.array([[-0.5, -0.5, 1], [cols, -0.5, 1], [-0.5, rows, 1], [cols, rows, 1]])
    x, y, w = matrix @ corners.T
    shift = np.array([[1, 0, 20.3 - (x / w).min()], [0, 1, 15.7 - (y / w).min()], [0, 0, 1]])
    moved = shift @ matrix
    x, y, w = moved @ corners.T
    size = int((x / w).max() + 25), int((y / w).max() + 30)
    return Homography(moved / moved[2, 2]), size


@dataclass
class TinySlide:
    """The content of a slide's files; tests change parts of it before they write it."""

    rows: int = 150
    cols: int = 140
    kind: str = "rotation"
    n_genes: int = 30
    seed: int = 0
    prefix: str = ""
    barcode_format: str = "s_002um_{:05d}_{:05d}-1"
    variable_strings: bool = False
    data_dtype: Any = np.int32
    index_dtype: Any = np.int64
    position_dtype: Any = "uint32"
    scalefactors: dict[str, Any] = field(default_factory=lambda: {"bin_size_um": 2.0})

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (self.rows, self.cols)
        self.homography, self.image_size = homography(self.kind, *shape)
        self.tissue = rng.random(shape) < 0.8
        # counts[gene, row, col]; a few are large
        rate = rng.gamma(0.3, 0.3, self.n_genes)[:, None, None]
        self.counts = rng.poisson(rate, (self.n_genes, *shape))
        self.counts[0, 3, 4] = 70_000
        self.tissue[3, 4] = True
        self.ids = [f"ENSG{i:011d}" for i in range(self.n_genes)]
        self.symbols = [f"GENE{i // 2}" for i in range(self.n_genes)]  # every symbol comes twice
        self.kinds = ["Gene Expression"] * self.n_genes
        self.kinds[5] = "Antibody Capture"

    @property
    def is_gene(self) -> np.ndarray:
        return np.array([k == "Gene Expression" for k in self.kinds])

    def write(self, folder: Path) -> Path:
        """Write outs/binned_outputs/square_002um with both matrices; returns the outs folder."""
        square = folder / f"{self.prefix}binned_outputs" / "square_002um"
        (square / "spatial").mkdir(parents=True)
        rng = np.random.default_rng(self.seed + 1)
        every = np.stack(np.meshgrid(*map(np.arange, self.tissue.shape), indexing="ij"), -1)
        every = every.reshape(-1, 2)
        self._write_matrix(square / f"{self.prefix}raw_feature_bc_matrix.h5", every)
        in_tissue = rng.permutation(every[self.tissue.ravel()])
        self._write_matrix(square / f"{self.prefix}filtered_feature_bc_matrix.h5", in_tissue)
        self.write_positions(
            square / "spatial" / f"{self.prefix}tissue_positions.parquet", rng.permutation(every)
        )
        path = square / "spatial" / f"{self.prefix}scalefactors_json.json"
        path.write_text(json.dumps(self.scalefactors))
        return folder

    def write_positions(self, path: Path, bins: np.ndarray) -> None:
        row, col = bins.T
        x, y = self.homography.to_px(col, row)
        table = {
            "barcode": [self.barcode_format.format(r, c) for r, c in bins],
            "in_tissue": pa.array(self.tissue[row, col].astype(np.uint8)),
            "array_row": pa.array(row).cast(self.position_dtype),
            "array_col": pa.array(col).cast(self.position_dtype),
            "pxl_row_in_fullres": y,
            "pxl_col_in_fullres": x,
        }
        pq.write_table(pa.table(table), path, compression="zstd")

    def _write_matrix(self, path: Path, bins: np.ndarray) -> None:
        columns = self.counts[:, bins[:, 0], bins[:, 1]]  # (G, C)
        column, feature = np.nonzero(columns.T)
        entries = columns[feature, column]
        indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(columns, axis=0))])
        barcodes = [self.barcode_format.format(r, c) for r, c in bins]
        text = h5py.string_dtype() if self.variable_strings else None

        def strings(values: list[str]) -> np.ndarray:
            return np.array(values, dtype=object if self.variable_strings else "S")

        with h5py.File(path, "w") as file:
            m = file.create_group("matrix")
            compress = {"compression": "gzip", "shuffle": True, "chunks": True}
            m.create_dataset("barcodes", data=strings(barcodes), dtype=text, **compress)
            m.create_dataset("data", data=entries.astype(self.data_dtype), **compress)
            m.create_dataset("indices", data=feature.astype(self.index_dtype), **compress)
            m.create_dataset("indptr", data=indptr.astype(self.index_dtype), **compress)
            m.create_dataset("shape", data=np.array(columns.shape, np.int32))
            f = m.create_group("features")
            f.create_dataset("id", data=strings(self.ids), dtype=text, **compress)
            f.create_dataset("name", data=strings(self.symbols), dtype=text, **compress)
            f.create_dataset("feature_type", data=strings(self.kinds), dtype=text, **compress)


def draw_markers(
    h: Homography, size: tuple[int, int], bins: list[tuple[int, int]], side: float = 3.0
) -> np.ndarray:
    """A light image, (h, w, 3) uint8, with dark squares of ``side`` bins around given bins.

    Each pixel is the mean of 8×8 points mapped to the bin grid by the exact homography.
    """
    width, height = size
    image = np.full((height, width, 3), 235, np.uint8)
    for row, col in bins:
        x, y = (float(v) for v in h.to_px(col, row))
        reach = int(side * PITCH_PX * 1.5)
        x0, y0 = int(x) - reach, int(y) - reach
        fine = (np.arange(2 * reach * 8) + 0.5) / 8
        c, r = h.to_bins(*np.meshgrid(x0 + fine, y0 + fine))
        dark = (np.abs(c - col) <= side / 2) & (np.abs(r - row) <= side / 2)
        share = dark.reshape(2 * reach, 8, 2 * reach, 8).mean(axis=(1, 3))[..., None]
        window = image[y0 : y0 + 2 * reach, x0 : x0 + 2 * reach]
        window[:] = np.minimum(window, np.round(235 - share * [200, 180, 100]).astype(np.uint8))
    return image


def halves(image: np.ndarray, factor: int) -> np.ndarray:
    """A pyramid level: means of whole blocks; the remainder at the right and bottom is cut off."""
    h, w = (n // factor * factor for n in image.shape[:2])
    size = (w // factor, h // factor)
    return cv2.resize(image[:h, :w], size, interpolation=cv2.INTER_AREA)


def write_image(path: Path, image: np.ndarray, how: str) -> Path:
    """Write as tiles, vendor, strips, one piece, pyramid, subifds, png or jpg; returns the path."""
    rgb: dict[str, Any] = {"photometric": "rgb", "compression": "lzw"}
    if how == "tiles":
        tifffile.imwrite(path, image, tile=(128, 128), **rgb)
    elif how == "vendor":  # one whose tiles OpenSlide reads, by what the description says
        made = "Aperio Image Library v11.2.1\r\nLZW"
        tifffile.imwrite(path, image, tile=(128, 128), description=made, metadata=None, **rgb)
    elif how == "strips":
        tifffile.imwrite(path, image, rowsperstrip=16, **rgb)
    elif how == "one piece":
        tifffile.imwrite(path, image, photometric="rgb")
    elif how in ("pyramid", "subifds"):
        with tifffile.TiffWriter(path) as tiff:
            more = {"subifds": 2} if how == "subifds" else {}
            tiff.write(image, tile=(128, 128), **more, **rgb)
            for factor in (2, 4):
                tiff.write(halves(image, factor), tile=(128, 128), subfiletype=1, **rgb)
    else:
        path = path.with_suffix(f".{how}")
        cv2.imwrite(str(path), image[..., ::-1])
    return path
