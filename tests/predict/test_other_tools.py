"""The adapters of docs/examples/other-tools in the tools that they are for (`make tools`)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile

import virchow_st

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "other-tools"
pytestmark = pytest.mark.filterwarnings("default")  # what the tools warn of is theirs


def example(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def image(simulated: Path) -> Path:
    return simulated / "P5" / "tissue_image.tif"


def test_lazyslide_maps_are_those_of_the_run(stain_run: Path, image: Path) -> None:
    zs = pytest.importorskip("lazyslide", reason="`make tools` installs it")
    from wsidata import open_wsi

    run = virchow_st.load_run(stain_run, "cpu")
    wsi = open_wsi(str(image), store=None)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, tile_px=256, mpp=1.0)
    zs.tl.virtual_stain(wsi, example("lazyslide_rates").RunRates(run), device="cpu", pbar=False)
    made = wsi.images["runrates_prediction"]
    assert list(made.coords["c"].values) == run.panel.labels
    values = made.values
    # The tile with most UMIs, predicted by itself.
    tiles, mpp = wsi.shapes["tiles"].bounds, wsi.properties.mpp
    pixels = tifffile.imread(image)
    best = None
    for x0, y0, x1, y1 in tiles[["minx", "miny", "maxx", "maxy"]].astype(int).to_numpy():
        tile = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        if tile.shape[0] != y1 - y0 or tile.shape[1] != x1 - x0:
            continue
        row, col = int(y0 * mpp / 2), int(x0 * mpp / 2)
        here = values[:, row : row + 128, col : col + 128]
        if here.shape[1:] == (128, 128) and (best is None or here.sum() > best[0].sum()):
            best = here, tile
    assert best is not None
    here, tile = best
    alone = run.predict_image(tile, mpp=mpp).rates[:, :128, :128]
    assert here.max() > 0
    both = np.isfinite(alone)
    # LazySlide resizes tiles by itself, so that values differ where the image is resampled.
    assert np.corrcoef(here[both], alone[both])[0, 1] > 0.95


def test_tiatoolbox_patches_have_the_umis_of_the_run(stain_run: Path, image: Path) -> None:
    pytest.importorskip("tiatoolbox", reason="`make tools` installs it")
    from tiatoolbox.models.engine.patch_predictor import PatchPredictor

    rates = example("tiatoolbox_rates")
    run = virchow_st.load_run(stain_run, "cpu")
    mpp = virchow_st.open_store(run.config.stores[0]).manifest["mpp"]
    pixels, side = tifffile.imread(image), round(256 / mpp)
    middle = [n // 2 for n in pixels.shape[:2]]
    patch = pixels[middle[0] : middle[0] + side, middle[1] : middle[1] + side]
    import cv2

    patches = np.stack([cv2.resize(patch, (512, 512), interpolation=cv2.INTER_AREA)] * 2)
    patches[1] = 255
    engine = PatchPredictor(model=rates.RunRates(run), batch_size=2, num_workers=0)
    output = engine.run(
        patches, patch_mode=True, ioconfig=rates.io_config(), device="cpu",
        return_probabilities=True, output_type="dict",
    )  # fmt: skip
    umis = np.asarray(output["probabilities"])
    alone = np.nansum(run.predict_image(patches[0], mpp=0.5).rates[:, :128, :128], axis=(1, 2))
    np.testing.assert_allclose(umis[0], alone, rtol=1e-5)
    assert umis.shape == (2, run.n_genes)
    assert (umis[1] == 0).all()
