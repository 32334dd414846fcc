"""Scores of all genes of a run with factors, against those of dense rates."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_store import write_store
from tiny_training import few_steps, tiny_config, two_patients

from virchow_st.errors import ConfigError
from virchow_st.evaluation.all_genes import N_NULLS, null_partners
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.evaluation.fields import SlideField
from virchow_st.evaluation.slide import Slide
from virchow_st.field.read import open_field
from virchow_st.field.write import FieldMaps
from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics.accumulate import ScaleAccumulator
from virchow_st.predict.load import load_run
from virchow_st.run.all_genes import read_all_genes
from virchow_st.run.results import read_metrics, read_per_gene
from virchow_st.run.score_table import abundance_rows
from virchow_st.store.reader import open_store
from virchow_st.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all_genes")
    config = tiny_config(two_patients(folder), panel="all:top:2", factors=2, epochs=3)
    with few_steps(3):
        train(folder / "run", config)
    evaluate_run(folder / "run", "cpu")
    return folder / "run"


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_they_are_those_of_dense_rates(run, scale):
    loaded = load_run(run, "cpu")
    store = open_store(loaded.config.stores[1])
    expected = ScaleAccumulator(4, scale, loaded.all_train_rate)
    genes = loaded.genes.all.indices(store)
    for member in loaded.split.test:
        patch = store[member.patch]
        factors = loaded.predict_factors(patch)
        rates = np.einsum("gk,krc->grc", loaded.loadings, factors)
        expected.update(rates, patch.dense_counts(genes), patch.tissue_mask)
    expected = expected.compute()
    rows = [row for row in read_all_genes(run) if row.scale_um == scale]
    assert [row.gene.id for row in rows] == list(loaded.genes.all.ids)
    for name in ("mean", "nonzero", "pcc", "pcc_ceiling", "d2_poisson", "calibration"):
        found = [getattr(row, name) for row in rows]
        np.testing.assert_allclose(found, getattr(expected, name), rtol=2e-4, atol=1e-5)
    tested = [not math.isnan(row.q_value) for row in rows]
    assert all(tested) if scale in (8, 16) else not any(tested)


def test_genes_of_the_panel_have_the_same_scores(run):
    of_panel = {(row.gene.id, row.scale_um): row for row in read_per_gene(run)}
    of_all = {(row.gene.id, row.scale_um): row for row in read_all_genes(run)}
    assert len(of_panel) == 8
    assert len(of_all) == 16
    for key, row in of_panel.items():
        assert of_all[key].pcc == pytest.approx(row.pcc, rel=1e-3, abs=1e-5)


def test_metrics(run):
    found = read_metrics(run)["all_genes"]
    assert (found["n_genes"], found["n_factors"], found["null_draws"]) == (4, 2, N_NULLS)
    for scale in ("8", "16"):
        assert 0 <= found["n_predicted"][scale] <= found["n_tested"][scale] == 4
    rows = [row for row in read_all_genes(run) if row.scale_um == 16]
    assert found["scales"]["16"]["pcc"] == pytest.approx(np.mean([r.pcc for r in rows]), rel=1e-4)
    groups = found["deciles"]["16"]
    assert sum(group["n_genes_scored"] for group in groups) == 4
    table = abundance_rows(read_metrics(run))
    assert len(table) == 11
    assert table[0][2] == "4"


def test_factors(run):
    lines = (run / "factors.csv").read_text("utf-8").splitlines()
    assert lines[0] == "factor,umis_per_2um_bin,leading_genes"
    assert len(lines) == 3
    total = sum(float(line.split(",")[1]) for line in lines[1:])
    loaded = load_run(run, "cpu")
    store = open_store(loaded.config.stores[1])
    sums = [
        loaded.predict_factors(store[m.patch])[:, store[m.patch].tissue_mask].sum(0)
        for m in loaded.split.test
    ]
    assert total == pytest.approx(np.concatenate(sums).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], "expected 4 lines for each gene"),
        (lambda lines: [lines[0], *lines[5:], *lines[5:9]], "expected every gene once"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "expected its lines for"),
    ],
)
def test_a_damaged_table_is_refused(run, tmp_path, damage, message):
    lines = (run / "all_genes.csv").read_text("utf-8").splitlines()
    (tmp_path / "all_genes.csv").write_text("\n".join(damage(lines)) + "\n", "utf-8")
    with pytest.raises(ConfigError, match=rf"all_genes.csv: .*{message}"):
        read_all_genes(tmp_path)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 40])
def test_nulls_are_never_the_prediction_itself(n):
    pairs = null_partners(n)
    assert pairs.shape == (N_NULLS, n, 2)
    own = np.stack([np.arange(n), np.zeros(n, int)], axis=1)
    assert not (pairs == own).all(2).any()
    for row in pairs:
        assert sorted(row[:, 0]) == list(range(n))
    assert len({tuple(map(tuple, row)) for row in pairs}) == min(N_NULLS, 7 if n == 1 else N_NULLS)


def test_a_run_of_a_panel_has_no_such_files(run, tmp_path):
    config = replace(load_run(run, "cpu").config, panel="top:2", factors=0, epochs=1)
    with few_steps(1):
        train(tmp_path / "run", config)
    assert "all_genes" not in evaluate_run(tmp_path / "run", "cpu")
    assert not (tmp_path / "run" / "all_genes.csv").exists()
    assert not (tmp_path / "run" / "fields").exists()


# --- fields -------------------------------------------------------------------------------------


def test_the_field_holds_the_predicted_factors(run):
    loaded = load_run(run, "cpu")
    store = open_store(loaded.config.stores[1])
    field = open_field(run / "fields" / "P5.zarr")
    infos = store.patch_table
    row0, col0 = min(i.row0 for i in infos), min(i.col0 for i in infos)
    assert field.corner_um == (2 * col0, 2 * row0)
    assert field.genes == loaded.genes.all.ids
    np.testing.assert_array_equal(field.loadings, loaded.loadings)
    covered, tissue = np.zeros(field.shape, bool), np.zeros(field.shape, bool)
    picture, um_per_px = field.picture()
    assert um_per_px == 2
    for member in loaded.split.test:
        patch = store[member.patch]
        row, col = patch.row0 - row0, patch.col0 - col0
        at = slice(row, row + 128), slice(col, col + 128)
        covered[at], tissue[at] = True, patch.tissue_mask
        expected = loaded.predict_factors(patch)
        np.testing.assert_allclose(
            field.factors(row, col, 128, 128), expected, rtol=2**-11 + 1e-6, atol=0
        )
        gene = loaded.genes.all.ids[1]
        at_8um = sum_pool(loaded.predict_gene(patch, gene)[None], 4)[0]
        np.testing.assert_allclose(
            field.gene(gene, 8)[row // 4 : row // 4 + 32, col // 4 : col // 4 + 32],
            at_8um,
            rtol=2**-11 + 1e-5,
        )
        of_patch = patch.image.astype(float).reshape(128, 2, 128, 2, 3).mean((1, 3))
        assert np.abs(picture[at] - of_patch).max() <= 0.5
    np.testing.assert_array_equal(field.covered, covered)
    np.testing.assert_array_equal(field.tissue_mask, tissue)


def test_the_field_says_what_it_is_from(run):
    found = open_field(run / "fields" / "P5.zarr").provenance
    assert (found["patient"], found["n_patches"], found["left_out_bins"]) == ("P5", 4, 0)
    assert found["runs"] == [{"path": "run", "decoder": "linear", "epoch": 3}]
    assert str(run.parent) not in json.dumps(found)


def test_blocks_are_written_once_and_whole(run, tmp_path, monkeypatch):
    """Of 2 × 3 patches, in any order: two blocks, and one that is not whole."""
    written = []
    real = FieldMaps.write

    def write(self, row, col, maps):
        written.append((row, col, maps.shape[1:], int(np.isnan(maps[0]).sum())))
        real(self, row, col, maps)

    monkeypatch.setattr(FieldMaps, "write", write)
    loaded = load_run(run, "cpu")
    store = write_store(tmp_path / "S.vst", "S", 6, n_genes=4, columns=3)
    infos = [store.patch_table[i] for i in (5, 0, 1, 3, 4)]  # without the last of the first row
    slide = Slide("S", "S", store, [], infos, np.arange(4))
    field = SlideField(tmp_path / "fields" / "S.zarr", loaded, slide)
    rng = np.random.default_rng(0)
    factors = {i.row0 * 1000 + i.col0: rng.gamma(1, 1, (2, 128, 128)) for i in infos}
    for info in infos:
        of_patch = factors[info.row0 * 1000 + info.col0].astype(np.float32)
        field.add(info, of_patch, np.ones((128, 128), bool), np.zeros((256, 256, 3), np.uint8))
    field.finish(0)
    assert sorted(written) == [(0, 0, (256, 256), 0), (0, 256, (256, 128), 128 * 128)]
    found = open_field(tmp_path / "fields" / "S.zarr")
    for info in infos:
        at = found.factors(info.row0 - infos[1].row0, info.col0 - infos[1].col0, 128, 128)
        expected = factors[info.row0 * 1000 + info.col0]
        np.testing.assert_allclose(at, expected, rtol=2**-11 + 1e-6)


def test_an_evaluation_that_fails_leaves_the_old_field(run, monkeypatch):
    before = {p: p.read_bytes() for p in (run / "fields").rglob("*") if p.is_file()}
    stale = run / "fields" / "OTHER.zarr"
    monkeypatch.setattr("virchow_st.evaluation.fields.SlideField.finish", fail)
    with pytest.raises(OSError, match="no space"):
        evaluate_run(run, "cpu")
    assert {p: p.read_bytes() for p in (run / "fields").rglob("*") if p.is_file()} == before
    monkeypatch.undo()
    stale.mkdir()
    evaluate_run(run, "cpu")
    assert not stale.exists()
    assert {p: p.read_bytes() for p in (run / "fields").rglob("*") if p.is_file()} == before


def fail(*_):
    raise OSError("no space")
