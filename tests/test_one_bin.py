"""Genes with all of their counts in one bin, from the slide to the export."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from cli_place import Answer
from tiny_slide import TinySlide, draw_markers, write_image

from virchow_st.config import ExtractConfig
from virchow_st.extract.slide import extract_slide
from virchow_st.store.reader import open_store, verify

pytestmark = pytest.mark.usefixtures("markers_for_tissue")

SIDE, N_GENES = 256, 12
BIN = (77, 200)
EVERYWHERE, IN_TRAINING, IN_TEST = 7, 8, 9
N_UMIS = 300


def write_slide(folder: Path, patient: str, seed: int) -> Path:
    """Write a slide and its store; the ordinary genes are Poisson, three have one bin or none."""
    slide = TinySlide(rows=SIDE, cols=SIDE, n_genes=N_GENES, seed=seed)
    slide.tissue[:] = True  # else no window of 8 µm is whole, and scores there are undefined
    slide.counts[0, 3, 4] = 2  # the large count there is another test's
    for gene, patients in ((EVERYWHERE, "ABT"), (IN_TRAINING, "AB"), (IN_TEST, "T")):
        slide.counts[gene] = 0
        slide.counts[gene][BIN] = N_UMIS if patient in patients else 0
    outs = slide.write(folder / patient)
    image = draw_markers(slide.homography, slide.image_size, [])
    image -= np.random.default_rng(seed).integers(0, 60, image.shape, np.uint8)  # all differ
    path = write_image(folder / f"{patient}.tif", image, "tiles")
    config = ExtractConfig(encoder="stain", device="cpu")
    return extract_slide(outs, path, folder / f"{patient}.vst", patient, config).path


@pytest.fixture(scope="module")
def one_bin(tmp_path_factory: pytest.TempPathFactory, markers_for_tissue: None) -> list[Path]:
    folder = tmp_path_factory.mktemp("one_bin")
    return [write_slide(folder, patient, seed) for seed, patient in enumerate("ABT")]


@pytest.mark.parametrize("loss", ["poisson", "nb", "mse"])
def test_one_bin_holds_all_of_a_gene(
    vst: Callable[..., Answer], one_bin: list[Path], tmp_path: Path, loss: str
) -> None:
    for path in one_bin:
        store = open_store(path)
        assert verify(store) == []
        assert store.genes.totals[EVERYWHERE - 1] == N_UMIS  # the antibody, the fifth, is left out
    ids = [f"ENSG{gene:011d}" for gene in (0, 1, 2, EVERYWHERE, IN_TRAINING, IN_TEST)]
    (tmp_path / "panel.txt").write_text("\n".join(ids) + "\n")
    run = tmp_path / "run"
    for arguments in (
        ["train", *one_bin, "--run", run, "--test-patient", "T", "--panel", tmp_path / "panel.txt",
         "--decoder", "linear", "--epochs", 1, "--batch-size", 4, "--accumulate", 1, "--loss", loss,
         "--device", "cpu"],
        ["evaluate", run, "--device", "cpu"],
        ["export", run, "--out", tmp_path / "e.npz", "--format", "npz"],
    ):  # fmt: skip
        answer = vst(*arguments)
        assert answer.code == 0, answer
        assert "Warning" not in answer.err, answer.err

    with h5py.File(run / "maps" / "T.h5") as file:
        counts, rates = file["counts"][:], file["rate"][:].astype(np.float32)
        mask = file["scored_mask"][:]
    assert np.isfinite(rates).all()
    row, col = BIN
    for of_gene, expected in zip(counts[3:], (N_UMIS, 0, N_UMIS), strict=True):
        assert of_gene.sum() == of_gene[row, col] == expected
    exported = np.load(tmp_path / "e.npz")
    assert list(exported["gene_id"]) == ids
    coarse = exported["counts_8um"][3]
    assert np.nansum(coarse) == coarse[row // 4, col // 4] == N_UMIS

    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    scores = {
        (line["gene_id"], line["scale_um"]): line
        for line in csv.DictReader((run / "per_gene.csv").read_text("utf-8").splitlines())
    }
    for scale in ("2", "8"):
        for name in ("pcc", "ssim", "d2_poisson"):
            assert metrics["scales"][scale][name] is not None
        absent = scores[ids[4], scale]  # no UMI in the test slide: nothing to correlate with
        assert (float(absent["mean"]), absent["pcc"], absent["auroc"]) == (0, "", "")
        for gene in (ids[3], ids[5]):
            assert abs(float(scores[gene, scale]["pcc"])) <= 1
    single, n_bins = scores[ids[3], "2"], int(mask.sum())
    assert float(single["nonzero"]) == pytest.approx(1 / n_bins, rel=1e-4)
    assert float(single["mean"]) == pytest.approx(N_UMIS / n_bins, rel=1e-4)
    # One positive among n bins: the area under the ROC curve is its rank among the others, of rates
    # that docs/metrics.md, "Rank scores", cuts to nine significant bits.
    cut = (rates[3].view(np.uint32) & np.uint32(0xFFFF8000)).view(np.float32)
    of_bins, at = cut[mask], cut[row, col]
    auroc = ((of_bins < at).sum() + 0.5 * ((of_bins == at).sum() - 1)) / (n_bins - 1)
    assert float(single["auroc"]) == pytest.approx(auroc, abs=1e-5)
