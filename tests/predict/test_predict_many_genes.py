"""With many genes a batch is decoded in parts, and every patch still gets its own rates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from virchow_st.predict.image import decoded_together, predict_patches
from virchow_st.runtime.progress import SILENT
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable
from virchow_st.types import PATCH_BINS, PATCH_UM

MPP = 1.0
N_PATCHES = 7  # no multiple of a part


class TellingEncoder:
    """One token: the mean of the patch's picture, which tells its patch from the others."""

    image_px, batch = 64, 16

    def encode(self, images: np.ndarray) -> Any:
        return SimpleNamespace(tokens=images.mean(axis=(1, 2, 3)).reshape(-1, 1, 1, 1))


class TellingRun:
    """Rates that repeat the token, or the image's mean, times the gene's number."""

    def __init__(self, n_genes: int, wants_image: bool) -> None:
        self.path, self.n_genes, self.wants_image = "run", n_genes, wants_image
        self.sizes: list[int] = []

    def rates(self, tokens: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        assert (image is not None) == self.wants_image
        level = tokens.mean(axis=(1, 2, 3)) if image is None else image.mean(axis=(1, 2, 3))
        self.sizes.append(len(level))
        of_gene = level[:, None] * (1 + np.arange(self.n_genes))
        shape = (*of_gene.shape, PATCH_BINS, PATCH_BINS)
        return np.broadcast_to(of_gene[:, :, None, None], shape).astype(np.float32)


@pytest.mark.parametrize(
    ("n_genes", "sizes"), [(40, [7]), (300, [2, 2, 2, 1]), (900, [1] * N_PATCHES)]
)
@pytest.mark.parametrize("wants_image", [(False,), (True,), (False, True)])
def test_parts(n_genes: int, sizes: list[int], wants_image: tuple[bool, ...]) -> None:
    levels = 30 * np.arange(1, N_PATCHES + 1)
    pixels = np.repeat(levels, PATCH_UM)[None, :, None].repeat(PATCH_UM, 0).repeat(3, 2)
    at = np.arange(N_PATCHES, dtype=np.int32) * PATCH_BINS
    patches = PatchTable(np.zeros_like(at), at, np.ones(N_PATCHES, np.float32))
    runs = [TellingRun(n_genes, wants) for wants in wants_image]
    found: dict[int, np.ndarray] = {}
    stitcher: Any = SimpleNamespace(
        add=lambda _, col, rates: found.update({col: rates[:, 0, 0]}),
        needs=lambda *_: True,
        n_left_out=0,
        n_bins=1,
    )
    image = SlideImage.of_array(pixels.astype(np.uint8))
    predict_patches(runs, TellingEncoder(), image, MPP, patches, stitcher, SILENT)  # type: ignore[arg-type]
    assert all(run.sizes == sizes for run in runs)
    assert max(sizes) <= decoded_together(n_genes)
    expected = np.outer(levels, np.tile(1 + np.arange(n_genes), len(runs)))
    np.testing.assert_allclose(np.stack([found[c] for c in at.tolist()]), expected, rtol=0.05)
