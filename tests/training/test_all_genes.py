"""Training with ``--panel all``: factors, resuming, and what a run predicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from dying import DiesAfterEpoch, Killed
from tiny_training import few_steps, history, tiny_config, two_patients

from virchow_st.errors import ConfigError
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.output.share import save_run
from virchow_st.predict.load import Run, load_run
from virchow_st.run.split import split_patients
from virchow_st.run.transcriptome import choose_genes
from virchow_st.runtime.progress import SILENT
from virchow_st.store.reader import open_store
from virchow_st.training.closed_form import umis_of_factors
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.start import starting_point
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import train


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_steps(3):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    stores = two_patients(tmp_path_factory.mktemp("stores"))
    return tiny_config(stores, panel="all:top:2", factors=2, epochs=3)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, config)
    return path


def test_it_learns(run):
    lines = history(run)
    assert lines[-1]["validation"]["score"] < 0.9  # below the mean factors that it starts from
    state = json.loads((run / "checkpoints/last/state.json").read_text("utf-8"))
    assert state["n_factors"] == 2
    assert sorted(state["files"]) == ["config.toml", "genes.tsv", "panel.tsv", "split.json"]
    assert lines[-1]["validation"]["pcc"]["16"] > 0.5


def test_shared_it_predicts_the_same(run, config, tmp_path):
    save_run(run, tmp_path / "model", license="mit")
    assert (tmp_path / "model/genes.tsv").read_bytes() == (run / "genes.tsv").read_bytes()
    patch = open_store(config.stores[1])[0]
    shared = Run.from_pretrained(tmp_path / "model", device="cpu")
    expected = load_run(run, "cpu").predict_factors(patch)
    np.testing.assert_array_equal(shared.predict_factors(patch), expected)
    (tmp_path / "model/genes.tsv").unlink()
    with pytest.raises(ConfigError, match=r"genes\.tsv: is listed in config\.json"):
        Run.from_pretrained(tmp_path / "model", device="cpu")


def test_what_it_predicts(run, config):
    loaded = load_run(run, "cpu")
    assert len(loaded.genes.all) == 4
    assert len(loaded.panel) == 2
    assert loaded.loadings.shape == (4, 2)
    np.testing.assert_allclose(loaded.loadings.sum(0), 1.0, rtol=1e-5)
    patch = open_store(config.stores[1])[0]
    factors = loaded.predict_factors(patch)
    of_panel = np.einsum("gk,krc->grc", loaded.loadings[loaded.genes.places], factors)
    np.testing.assert_allclose(loaded.predict(patch), of_panel, rtol=1e-4)
    for g, symbol in enumerate(loaded.genes.all.symbols):
        expected = np.tensordot(loaded.loadings[g], factors, axes=1)
        np.testing.assert_allclose(loaded.predict_gene(patch, symbol), expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="NOGENE"):
        loaded.predict_gene(patch, "NOGENE")


def test_a_run_of_a_panel_has_no_factors(config, tmp_path):
    train(tmp_path / "run", replace(config, panel="top:2", factors=0, epochs=1))
    direct = load_run(tmp_path / "run", "cpu")
    patch = open_store(config.stores[1])[0]
    assert direct.loadings is None
    assert direct.genes.all == direct.panel
    gene = direct.panel.ids[1]
    np.testing.assert_array_equal(direct.predict_gene(patch, gene), direct.predict(patch)[1])
    with pytest.raises(ConfigError, match="has no factors"):
        direct.predict_factors(patch)


def test_resumed_it_is_the_same(run, config, tmp_path):
    again = tmp_path / "again"
    with pytest.raises(Killed):
        train(again, config, progress=DiesAfterEpoch(2))
    train(again, config, resume=True)
    assert history(again) == history(run)
    for name in ("last", "best"):
        tensors = f"checkpoints/{name}/tensors.safetensors"
        assert (again / tensors).read_bytes() == (run / tensors).read_bytes()


def test_a_changed_gene_list_is_refused(config, tmp_path):
    train(tmp_path / "run", config)
    genes = tmp_path / "run" / "genes.tsv"
    header, *rows = genes.read_text("utf-8").splitlines()
    genes.write_text("\n".join([header, *rows[::-1]]) + "\n", "utf-8")
    with pytest.raises(ConfigError, match="genes.tsv: is not the file that the run was trained"):
        load_run(tmp_path / "run", "cpu")
    genes.unlink()
    with pytest.raises(ConfigError, match="genes.tsv: cannot be read"):
        load_run(tmp_path / "run", "cpu")


def test_the_panel_is_scored(run):
    metrics = evaluate_run(run, "cpu")
    assert metrics["n_genes"] == 2
    assert metrics["scales"]["16"]["pcc"] > 0.5


def test_the_start_has_the_training_means(config):
    stores = [open_store(path) for path in config.stores]
    split = split_patients(stores, "P5", 0)
    genes = choose_genes(config.panel, stores[:1], stores[1:])
    dataset = PatchDataset(stores, genes.all)
    statistics = training_statistics(dataset, split.train)
    start = starting_point(dataset, split.train, statistics, genes, config, True, SILENT)
    mean = start.factors.loadings_GK.double() @ start.factors.rate_K
    np.testing.assert_allclose(mean, statistics.rate, rtol=0.05)
    assert start.regression.weights.shape == (dataset.token_shape[-1], 2)
    # The intercept is the log-rate at the mean token.
    assert (np.exp(start.regression.intercept) < 3 * start.factors.rate_K.numpy()).all()


def test_umis_of_factors():
    rng = np.random.default_rng(0)
    loadings = rng.dirichlet(np.full(30, 0.1), 3).T
    h = rng.gamma(1.0, 500.0, (20, 3))
    counts = rng.poisson(h @ loadings.T).astype(float)
    found = umis_of_factors(counts, loadings.astype("f4"))
    np.testing.assert_allclose(found.sum(1), counts.sum(1))
    assert np.corrcoef(found.ravel(), h.ravel())[0, 1] > 0.98
    assert not umis_of_factors(np.zeros((1, 30)), loadings.astype("f4")).any()


def test_training_reads_no_test_patient(config, monkeypatch):
    """The factorisation and the regression read the patches that train, and no others."""
    stores = [open_store(path) for path in config.stores]
    split = split_patients(stores, "P5", 0)
    genes = choose_genes(config.panel, stores[:1], stores[1:])
    dataset = PatchDataset(stores, genes.all)
    statistics = training_statistics(dataset, split.train)
    read = []
    of_patch = PatchDataset.patch
    monkeypatch.setattr(
        PatchDataset, "patch", lambda self, member: read.append(member) or of_patch(self, member)
    )
    starting_point(dataset, split.train, statistics, genes, config, True, SILENT)
    assert set(read) == set(split.train)
