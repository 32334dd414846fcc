"""`vst denoise` from a store to a field and to scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_place import Answer
from denoised import exposure_of
from tiny_store import make_records, write_records, write_store

import virchow_st
from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.own import OwnRatio, choose_own, with_own
from virchow_st.denoise.slide import read_slide
from virchow_st.denoise.smooth import Smoother
from virchow_st.denoise.store import denoise_store
from virchow_st.errors import ConfigError
from virchow_st.simulate.truth import true_rate
from virchow_st.store.reader import open_store
from virchow_st.training.rows import SparseRows


@pytest.fixture(scope="module")
def denoised(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("denoised") / "P5.zarr"
    done = denoise_store(stores["P5"], out, DenoiseConfig(factors=8))
    assert done.path == out
    assert done.n_factors == 8
    return out


def counts_of(store: virchow_st.Store, gene: str, field: virchow_st.Field) -> np.ndarray:
    """Counts of a gene in tissue, on the field's lattice."""
    grid = np.zeros(field.shape)
    col0, row0 = (int(at / 2) for at in field.corner_um)
    for patch in store:
        at = patch.row0 - row0, patch.col0 - col0
        counts = patch.dense_counts(store.genes.indices(gene))[0] * patch.tissue_mask
        grid[at[0] : at[0] + 128, at[1] : at[1] + 128] = counts
    return grid


def test_field_is_closer_to_the_truth_than_any_gaussian(
    denoised: Path, stores: dict[str, Path], simulated: Path
) -> None:
    field, store = virchow_st.open_field(denoised), open_store(stores["P5"])
    slide = read_slide(store)
    smoother = Smoother(slide.place, slide.tissue.shape)
    order = np.argsort(-slide.rows.gene_totals)[:12]
    ours, gaussian = [], []
    for g in order:
        gene = slide.panel.ids[g]
        window = (*slide.corner, *slide.tissue.shape)
        truth = true_rate(simulated / "P5" / "truth.h5", [gene], *window)[0]
        truth = truth.ravel()[slide.place]
        counts = counts_of(store, gene, field).ravel()[slide.place]
        rate = field.gene(gene) * exposure_of(field)  # as the truth of the simulator is
        ours.append(np.corrcoef(rate.ravel()[slide.place], truth)[0, 1])
        gaussian.append(max(
            np.corrcoef(smoother.smoothed(counts, width), truth)[0, 1]
            for width in (2.0, 4.0, 8.0, 16.0, 32.0)
        ))  # fmt: skip
    assert np.mean(ours) > np.mean(gaussian) + 0.03


def test_field_has_the_counts_mass_and_nothing_outside_tissue(
    denoised: Path, stores: dict[str, Path]
) -> None:
    field, store = virchow_st.open_field(denoised), open_store(stores["P5"])
    slide = read_slide(store)
    rates = np.stack([field.gene(gene) for gene in slide.panel.ids])
    np.testing.assert_array_equal(field.tissue_mask, slide.tissue)
    expected = np.nansum(rates * exposure_of(field))
    assert expected == pytest.approx(slide.rows.count.sum(), rel=5e-3)
    assert not rates[:, field.covered & ~slide.tissue].any()
    assert np.isnan(rates[:, ~field.covered]).all()
    about = field.provenance
    gains = about["held_out_gain"]
    assert gains[f"{about['width_um']:g}"] == max(gains.values())
    assert about["refinement"]["width_um"] == about["width_um"]


def test_borders_of_patches_leave_no_seam(denoised: Path) -> None:
    field = virchow_st.open_field(denoised)
    gene = field.genes[int(np.argmax(field.loadings.sum(1)))]
    rate = field.gene(gene)
    inside = field.tissue_mask[:, 1:] & field.tissue_mask[:, :-1]
    steps = np.abs(np.diff(rate, axis=1))
    across = np.zeros_like(inside)
    across[:, 127::128] = True
    ratio = steps[inside & across].mean() / steps[inside & ~across].mean()
    assert 0.8 < ratio < 1.25


def test_a_missing_patch_is_left_empty_and_its_neighbours_are_read(tmp_path: Path) -> None:
    records = [r for i, r in enumerate(make_records(4, rate=0.5)) if i != 1]
    store = write_records(tmp_path / "A.vst", records, 6, patient="A")
    denoise_store(store.path, tmp_path / "A.zarr", DenoiseConfig(factors=2))
    field = virchow_st.open_field(tmp_path / "A.zarr")
    assert not field.covered[:128, 128:].any()
    assert field.covered.sum() == 3 * 128 * 128


def test_one_gene(tmp_path: Path) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=2, n_genes=1)
    denoise_store(store.path, tmp_path / "A.zarr")
    field = virchow_st.open_field(tmp_path / "A.zarr")
    total = read_slide(store).rows.count.sum()
    assert np.nansum(field.gene(field.genes[0])) == pytest.approx(total, rel=2e-3)


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=3, rate=0.4).path
    code = (
        "import sys, os\n"
        "if sys.argv[3] == '1': os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pathlib import Path\n"
        "from virchow_st.denoise.store import denoise_store\n"
        "denoise_store(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    outs = [tmp_path / f"{n}.zarr" for n in ("1", "2")]
    for n, out in zip("12", outs, strict=True):
        arguments = [sys.executable, "-c", code, str(store), str(out), n]
        subprocess.run(arguments, check=True, env=dict(os.environ))
    files = [{f.relative_to(o): f.read_bytes() for f in o.rglob("*") if f.is_file()} for o in outs]
    assert files[0] == files[1]


def test_a_gene_that_varies_by_itself_gets_its_own_map() -> None:
    side = 64
    n = side * side
    rng = np.random.default_rng(3)
    bump = 1 + 3 * (np.indices((side, side))[1].ravel() > side / 2)
    x = rng.poisson(np.stack([0.5 * bump, np.ones(n), np.ones(n)], 1))
    whole = SparseRows.from_dense(x, np.ones(n))
    fitted, held_out = whole.thinned(0.8, rng)
    smoother = Smoother(np.arange(n), (side, side))
    loadings = (whole.gene_totals / whole.gene_totals.sum())[:, None]
    factors = np.full((n, 1), x.sum() / n, np.float32)
    own = choose_own(fitted, held_out, factors, loadings, smoother)
    assert [ratio.gene for ratio in own] == [0]
    factors, loadings = with_own(whole, factors, loadings, smoother, own)
    rate = factors @ loadings.T
    assert np.corrcoef(rate[:, 0], bump)[0, 1] > 0.9
    np.testing.assert_allclose(rate.sum(0), x.sum(0), rtol=1e-4)


def test_no_own_maps_change_nothing() -> None:
    factors, loadings = np.ones((4, 1), np.float32), np.ones((2, 1))
    rows = SparseRows.from_dense(np.ones((4, 2)), np.ones(4))
    none: list[OwnRatio] = []
    found = with_own(rows, factors, loadings, Smoother(np.arange(4), (2, 2)), none)
    assert found[0] is factors
    assert found[1] is loadings


def test_command_line_end_to_end(
    vst: Callable[..., Answer], stores: dict[str, Path], tmp_path: Path
) -> None:
    scores, out = tmp_path / "scores.json", tmp_path / "P1.zarr"
    options = "--factors", 8, "--score", "--json", scores, "--out", out
    answer = vst("denoise", stores["P1"], *options)
    assert answer.code == 0
    assert "best Gaussian per gene" in answer.out
    found = json.loads(scores.read_text())
    for scale in ("2", "4", "8", "16"):
        at = found["scales"][scale]
        for score in ("d2_poisson", "pcc"):
            assert at["denoised"][score] > at["gaussian"][score] > at["raw"][score] - 0.2
        assert at["denoised"]["calibration"] == pytest.approx(1, abs=0.1)
        low, high = at["denoised"]["d2_poisson_ci95"]
        assert low < at["denoised"]["d2_poisson"] < high
        less = found["differences"]["gaussian"][scale]["d2_poisson"]
        assert less["difference"] == pytest.approx(
            at["denoised"]["d2_poisson"] - at["gaussian"]["d2_poisson"]
        )
        assert less["ci95"][0] < less["difference"] < less["ci95"][1]
    assert (found["n_blocks"], found["block_um"]) == (9, 256)
    assert "Denoised less the other ways" in answer.out
    assert vst("inspect", out).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: expected a field to write, or --score"),
        (["--out", "x.zarr", "--json", "x.json"], "--json: expected --score"),
        (["--out", "x.zarr", "--factors", "200"], "factors: expected at most"),
    ],
)
def test_refusals_are_one_line(
    vst: Callable[..., Answer],
    stores: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = vst("denoise", stores["P1"], *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert not list(tmp_path.iterdir())


def test_too_few_counts_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=1, rate=1e-5)
    with pytest.raises(ConfigError, match="expected a gene with at least 10 UMIs"):
        denoise_store(store.path, tmp_path / "A.zarr")
    assert not (tmp_path / "A.zarr").exists()


def test_estimate_of_a_part_keeps_the_level(stores: dict[str, Path]) -> None:
    slide = read_slide(open_store(stores["P1"]))
    half, _ = slide.rows.thinned(0.5, np.random.default_rng(0))
    found = estimate(slide.with_rows(half), 8, 0)
    total = half.exposure @ (found.rates.factors @ found.rates.loadings.sum(0))
    # Genes with a map of their own leave the factors' sum, and bring that of their counts.
    assert total == pytest.approx(half.count.sum(), rel=5e-3)
