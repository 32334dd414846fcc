"""Segmenters: the built-in one against planted nuclei, one of another package, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import anndata
import cv2
import numpy as np
import pytest
import tifffile
from cli_place import Answer
from drawn_nuclei import HALF_UM, discs, found_once, lattice_of, write_image
from installed_example import installed_example

from virchow_st import open_store
from virchow_st.errors import ConfigError, SlideError
from virchow_st.slide.cells import segment, segmenters
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.nuclei import Nuclei
from virchow_st.slide.cells.segment import segment_cells
from virchow_st.slide.cells.segmenter import Segmenter
from virchow_st.types import Array, UInt8Array


def test_every_disc_is_found_once_where_it_lies(tmp_path: Path) -> None:
    shape = 200, 150  # tiles begin at bins 0, 96 and 192
    picture, labels = discs(shape)
    image = write_image(tmp_path / "i.tif", picture)
    cells, package = segment_cells("nuclei", image, lattice_of(shape))
    assert package == "virchow_st"
    assert labels.max() == 300
    found_once(cells, labels)


def test_touching_discs_are_parted_and_debris_is_none() -> None:
    picture = np.full((512, 512, 3), (236, 190, 214), np.uint8)
    for x in (200, 220, 300):
        cv2.circle(picture, (x, 200), 11, (92, 62, 140), -1)
    cv2.circle(picture, (400, 400), 2, (92, 62, 140), -1)
    found = Nuclei().segment(picture)
    assert len(np.unique(found)) == 4  # none and three
    assert found[200, 195] != found[200, 225] != 0
    assert not found[380:, 380:].any()
    assert not Nuclei().segment(np.full((512, 512, 3), 255, np.uint8)).any()


@pytest.mark.slow
def test_planted_nuclei_are_found_in_a_simulated_slide(
    simulated: Path, stores: dict[str, Path], tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    out, image = tmp_path / "c.h5ad", simulated / "P1" / "tissue_image.tif"
    answer = vst("cells", stores["P1"], "--cells", "nuclei", "--image", image, "--out", out)
    assert answer.code == 0, answer.err
    table = anndata.read_h5ad(out)
    assert '"segmenter": "virchow_st"' in table.uns["virchow_st"]
    assert table.n_obs > 500
    assert table.obs["covered"].mean() > 0.9
    # Nuclei hold more UMIs than as many bins elsewhere.
    per_bin = table.obs["umis"].sum() / table.obs["bins"].sum()
    store = open_store(stores["P1"])
    total = sum(float(patch.sparse_counts.counts.sum()) for patch in store)
    assert per_bin > 1.1 * total / store.manifest["tissue_bins"]["patches"]


def test_a_segmenter_of_another_package(
    simulated: Path, stores: dict[str, Path], tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    image = simulated / "P1" / "tissue_image.tif"
    typed = ["cells", stores["P1"], "--cells", "blobs", "--image", image, "--expand-um", 4]
    with installed_example("blob-segmenter", tmp_path):
        out = tmp_path / "c.h5ad"
        answer = vst(*typed, "--out", out)
        assert answer.code == 0, answer.err
        table = anndata.read_h5ad(out)
        assert '"segmenter": "blob-segmenter 1.0"' in table.uns["virchow_st"]
        assert table.n_obs > 100
        answer = vst("cells", stores["P1"], "--cells", "blobs", "--out", tmp_path / "d.h5ad")
        assert answer.code == 2
        assert "--cells blobs: expected --image" in answer.err
    answer = vst(*typed, "--out", tmp_path / "d.h5ad")
    assert answer.code == 2
    assert answer.err.strip().endswith("installed segmenters: nuclei")
    assert not (tmp_path / "d.h5ad").exists()


class _Failing(Segmenter):
    def segment(self, image: UInt8Array) -> Array:
        raise RuntimeError("no weights\nhere")


class _Pictures(Segmenter):
    def segment(self, image: UInt8Array) -> Array:
        return image


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (_Failing, r"segmenter s: failed on a tile \(RuntimeError: no weights here\)"),
        (_Pictures, r"expected whole numbers of 0 or more, of shape \(512, 512\); got uint8"),
        (dict, r"expected x:y to make a virchow_st.Segmenter; got \{\}"),
        (lambda: 1 / 0, r"x:y cannot be made \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_another_package_does_wrong_is_said_in_one_line(
    made: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        name, value, dist = "s", "x:y", None

        def load(self) -> object:
            return made

    monkeypatch.setattr(segmenters, "entry_points", lambda **_: [Entry()])
    image = write_image(tmp_path / "i.tif", discs((64, 64))[0])
    with pytest.raises(ConfigError, match=message) as e:
        segment_cells("s", image, lattice_of((64, 64)))
    assert "\n" not in str(e.value)
    two = [EntryPoint("s", f"{name}:y", segmenters.GROUP) for name in "ab"]
    monkeypatch.setattr(segmenters, "entry_points", lambda **_: two)
    with pytest.raises(ConfigError, match="expected one package that adds it"):
        segmenters.find_segmenter("s")


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    picture, _ = discs((64, 64))
    image = write_image(tmp_path / "i.tif", picture)
    lattice = Lattice("S", HALF_UM, 0, 0, np.ones((64, 64), bool), (300, 256))
    with pytest.raises(SlideError, match=r"expected 300 × 256 px, .* got 256 × 256"):
        segment_cells("nuclei", image, lattice)
    with pytest.raises(SlideError, match=r"its 256 × 256 px hold 25%"):
        segment_cells("nuclei", image, lattice_of((128, 128)))
    empty = write_image(tmp_path / "e.tif", np.full((256, 256, 3), 255, np.uint8))
    with pytest.raises(SlideError, match="the segmenter nuclei found none"):
        segment_cells("nuclei", empty, lattice_of((64, 64)))
    tagged = tmp_path / "t.tif"
    tifffile.imwrite(tagged, picture, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(SlideError, match="without an Orientation tag"):
        segment_cells("nuclei", tagged, lattice_of((64, 64)))


def test_tiles_without_tissue_are_not_looked_at() -> None:
    tissue = np.zeros((300, 300), bool)
    tissue[200, 10] = True
    lattice = Lattice("S", HALF_UM, 0, 0, tissue)
    assert list(segment._tiles(lattice)) == [(192, 0)]
