"""Writes the predicted factors of a test slide as a field (docs/field-format.md).

Letters: K factors; R, C rows and columns of the slide's 2 µm bins, from the first patch's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.evaluation.slide import Slide
from virchow_st.field.he_image import add_picture
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import FULLRES, Folder
from virchow_st.field.write import TISSUE, FieldMaps
from virchow_st.predict.load import Run
from virchow_st.runtime.software import versions
from virchow_st.store.format import PatchInfo
from virchow_st.types import (
    BIN_UM,
    BLOCK_BINS,
    PATCH_BINS,
    BoolArray,
    Float32Array,
    UInt8Array,
)

FORMAT = "virchow_st.evaluation/1"
_SOFTWARE = ("virchow_st", "numpy", "torch", "zarr")


class SlideField:
    """The field of one test slide, from the factors of its patches.

    Factors are held until the four patches of a block of 256 × 256 bins are there, so that each
    chunk is packed once. With patches in rows this is one row of blocks: 4 bytes per factor and
    bin, 110 MB for 32 factors on a full slide.

    Args:
        path: Zarr folder to write, within a folder that the caller writes whole.
        run: A run with factors.
        slide: The test slide, whose patches lie at multiples of 128 bins from each other.
    """

    def __init__(self, path: Path, run: Run, slide: Slide) -> None:
        self._row0 = min(info.row0 for info in slide.infos)
        self._col0 = min(info.col0 for info in slide.infos)
        rows = max(info.row0 for info in slide.infos) + PATCH_BINS - self._row0
        cols = max(info.col0 for info in slide.infos) + PATCH_BINS - self._col0
        self._shape = rows, cols
        corner_um = float(BIN_UM * self._col0), float(BIN_UM * self._row0)
        affine, error_px = slide.homography.um_to_px(self._row0, self._col0, rows, cols)
        path.parent.mkdir(exist_ok=True)
        self._folder = Folder(path, "spatialdata", {}, corner_um, affine)
        loadings = Loadings(run.genes.all, run.loadings)
        self._n_factors = loadings.n_factors
        self._maps = FieldMaps(self._folder, loadings, self._shape)
        self._tissue = np.zeros(self._shape, bool)
        self._picture = np.full((rows, cols, 3), 255, np.uint8)
        self._open: dict[tuple[int, int], Float32Array] = {}
        self._awaited = Counter(self._block(info) for info in slide.infos)
        self._provenance = _provenance(run, slide, error_px)

    def add(
        self, info: PatchInfo, factors: Float32Array, tissue_mask: BoolArray, image: UInt8Array
    ) -> None:
        """Put one patch in its place.

        Args:
            info: Where the patch lies.
            factors: (K, 128, 128), UMIs per 2 µm bin; NaN in bins that are left out.
            tissue_mask: (128, 128).
            image: (256, 256, 3) RGB at 1 µm/px.
        """
        row, col = info.row0 - self._row0, info.col0 - self._col0
        at = slice(row, row + PATCH_BINS), slice(col, col + PATCH_BINS)
        self._tissue[at] = tissue_mask
        squares = image.reshape(PATCH_BINS, BIN_UM, PATCH_BINS, BIN_UM, 3)
        self._picture[at] = squares.mean(axis=(1, 3)).round()
        block = self._block(info)
        if block not in self._open:
            size = (min(BLOCK_BINS, n - at) for n, at in zip(self._shape, block, strict=True))
            self._open[block] = np.full((self._n_factors, *size), np.nan, np.float32)
        row, col = row - block[0], col - block[1]
        self._open[block][:, row : row + PATCH_BINS, col : col + PATCH_BINS] = factors
        self._awaited[block] -= 1
        if not self._awaited[block]:
            self._maps.write(*block, self._open.pop(block))

    def finish(self, n_left_out: int) -> None:
        """Write what makes the folder a field, once all patches were added.

        Args:
            n_left_out: Bins without a prediction.
        """
        rows, cols = self._shape
        self._folder.add_labels(TISSUE, self._shape, BIN_UM)[:] = self._tissue
        picture = add_picture(self._folder, rows, cols, BIN_UM)
        picture.write(0, self._picture)
        picture.fill_coarser()
        self._maps.finish(self._provenance | {"left_out_bins": n_left_out})

    def _block(self, info: PatchInfo) -> tuple[int, int]:
        row, col = info.row0 - self._row0, info.col0 - self._col0
        return row // BLOCK_BINS * BLOCK_BINS, col // BLOCK_BINS * BLOCK_BINS


def _provenance(run: Run, slide: Slide, error_px: float) -> dict[str, Any]:
    manifest = slide.store.manifest
    encoder = run.state["encoder"]
    image = manifest["job"]["inputs"].get("image")
    return {
        "format": FORMAT,
        "unit": "expected UMIs per bin",
        "patient": manifest["patient"],
        "slide": manifest["slide"],
        "runs": [
            {
                "path": run.path.resolve().name,
                "decoder": run.config.decoder,
                "epoch": run.state["epoch"],
            }
        ],
        "encoder": {name: encoder[name] for name in ("name", "weights")},
        "licence": encoder["licence"],
        "image": image and {**image, "mpp": manifest["mpp"]},
        "homography": manifest["homography"],
        FULLRES: {"largest_error": error_px},
        "n_patches": len(slide.infos),
        "software": versions(_SOFTWARE),
    }
