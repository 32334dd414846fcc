"""Gene sets of a run with factors are scored as the sum of their genes."""

import csv
import math

import numpy as np
import pytest
from tiny_training import few_steps, tiny_config, two_patients

from virchow_st.errors import ConfigError
from virchow_st.evaluation.all_genes import _q_value
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.metrics.accumulate import ScaleAccumulator
from virchow_st.metrics.factor_scores import AllGeneScores
from virchow_st.predict.load import load_run
from virchow_st.run.all_genes import read_all_genes
from virchow_st.run.gene_sets import GENE_SETS, read_gmt
from virchow_st.run.results import read_metrics
from virchow_st.runtime.progress import Recording
from virchow_st.store.reader import open_store
from virchow_st.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gene_sets")
    config = tiny_config(two_patients(folder), panel="all:top:2", factors=2, epochs=2)
    with few_steps(3):
        train(folder / "run", config)
    return folder / "run"


def write_sets(path, sets):
    lines = ("\t".join([name, "http://somewhere", *genes]) for name, genes in sets.items())
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read_rows(run):
    with open(run / GENE_SETS, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_a_set_is_scored_as_the_sum_of_its_genes(run, tmp_path):
    loaded = load_run(run, "cpu")
    genes = loaded.genes.all
    sets = {
        "=pair": [genes.ids[0], genes.symbols[2], "NOT_MEASURED"],
        "one": [genes.symbols[1], genes.ids[1]],
        "elsewhere": ["NOT_MEASURED"],
    }
    progress = Recording()
    path = write_sets(tmp_path / "sets.gmt", sets)
    evaluate_run(run, "cpu", progress, gene_sets=path)
    assert any("left out, without a gene of the run: 'elsewhere'" in w for w in progress.warnings)

    members = np.array([[1, 0, 1, 0], [0, 1, 0, 0]])
    store = open_store(loaded.config.stores[1])
    places = genes.indices(store)
    rows = read_rows(run)
    assert [(r["gene_set"], r["genes_listed"], r["genes_found"]) for r in rows[::4]] == [
        ("'=pair", "3", "2"),
        ("one", "2", "1"),
    ]
    for i, scale in enumerate((2, 4, 8, 16)):
        expected = ScaleAccumulator(2, scale, members @ loaded.all_train_rate)
        for member in loaded.split.test:
            patch = store[member.patch]
            rates = np.einsum("gk,krc->grc", loaded.loadings, loaded.predict_factors(patch))
            counts = np.einsum("sg,grc->src", members, patch.dense_counts(places))
            expected.update(np.einsum("sg,grc->src", members, rates), counts, patch.tissue_mask)
        expected = expected.compute()
        of_scale = rows[i::4]
        assert [row["scale_um"] for row in of_scale] == [str(scale)] * 2
        for name in ("mean", "nonzero", "pcc", "pcc_ceiling", "d2_poisson", "calibration"):
            found = [float(row[name] or "nan") for row in of_scale]
            np.testing.assert_allclose(found, getattr(expected, name), rtol=2e-4, atol=1e-5)
        tested = [row["q_value"] != "" for row in of_scale]
        assert tested == [scale in (8, 16)] * 2
    found = read_metrics(run)["gene_sets"]
    assert found["n_sets"] == 2
    assert found["n_tested"] == {"8": 2, "16": 2}
    q = [float(row["q_value"]) for row in rows[2::4]]
    assert found["n_predicted"]["8"] == sum(value <= found["fdr"] for value in q)
    assert not any(map(math.isnan, q))
    # One set is tested as the gene that it consists of: both stand in one list of correlations.
    of_gene = [r for r in read_all_genes(run) if r.gene.id == genes.ids[1] and r.scale_um == 8]
    assert float(rows[6]["pcc"]) == pytest.approx(of_gene[0].pcc, rel=1e-5)
    assert float(rows[6]["pcc_null"]) == pytest.approx(of_gene[0].pcc_null, rel=1e-4, abs=1e-6)

    evaluate_run(run, "cpu")  # without sets: no scores of another evaluation stay
    assert not (run / GENE_SETS).exists()
    assert "gene_sets" not in read_metrics(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file names none"),
        ("only_a_name\n", "line 1: expected a name, a description and at least one gene"),
        ("a\tb\tEPCAM\n\na\tb\tPIGR\n", "line 3: gene set 'a' comes twice"),
        ("a\x1b[31m\tb\tEPCAM\n", "line 1: gene set: expected a name without control characters"),
    ],
)
def test_what_is_no_gmt_file_is_refused(tmp_path, text, message):
    (tmp_path / "sets.gmt").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"sets.gmt: .*{message}"):
        read_gmt(tmp_path / "sets.gmt")


def test_line_ends_and_repeated_genes(tmp_path):
    (tmp_path / "sets.gmt").write_bytes(b"a\t\tEPCAM\tPIGR\tEPCAM\t\r\nb\tx\tLGR5\r\n")
    assert [one.genes for one in read_gmt(tmp_path / "sets.gmt")] == [("EPCAM", "PIGR"), ("LGR5",)]


def test_sets_of_another_species_are_refused(run, tmp_path):
    path = write_sets(tmp_path / "sets.gmt", {"gut": ["Pigr", "Lgr5"]})
    with pytest.raises(ConfigError, match=r"no gene of 'gut' is one of them; check species"):
        evaluate_run(run, "cpu", gene_sets=path)


def test_a_run_without_factors_is_refused(tmp_path):
    with few_steps(1):
        train(tmp_path / "run", tiny_config(two_patients(tmp_path), panel="top:2", epochs=1))
    path = write_sets(tmp_path / "sets.gmt", {"gut": ["PIGR"]})
    with pytest.raises(ConfigError, match="train it with --panel all"):
        evaluate_run(tmp_path / "run", "cpu", gene_sets=path)


def test_few_sets_are_tested_together_with_the_genes():
    rng = np.random.default_rng(0)

    def scores(pcc):
        n = len(pcc)
        same = dict.fromkeys(
            ("nonzero", "pcc_ceiling", "d2_poisson", "calibration"), np.full(n, 0.5)
        )
        nulls = rng.normal(0, 0.01, (8, n))
        return AllGeneScores(8, 1000, np.ones(n), pcc=pcc, pcc_null=nulls, **same)

    of_genes = rng.normal(0, 0.01, 200)
    of_genes[:20] += 0.3
    sets, genes = scores(np.array([0.3, 0.0])), scores(of_genes)
    alone, together = _q_value(sets, None), _q_value(sets, genes)
    assert alone[0] > 0.05  # of 16 null correlations the largest is no rarer
    assert together[0] <= 0.05 < together[1]
