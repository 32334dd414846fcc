"""Training on stores that measured different genes: a gene that is absent is not a gene of 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lacking_store import without_genes
from tiny_store import write_store
from tiny_training import few_steps, tiny_config

from virchow_st.errors import ConfigError
from virchow_st.predict.load import load_run
from virchow_st.run.panel import ABSENT, candidate_genes, choose_panel
from virchow_st.run.split import Member
from virchow_st.run.transcriptome import choose_genes
from virchow_st.store.reader import Store, open_store
from virchow_st.training.coverage import Coverage
from virchow_st.training.dataset import PatchDataset, plans
from virchow_st.training.factor_start import start_loadings
from virchow_st.training.factor_steps import single_factor
from virchow_st.training.factorise import factorise
from virchow_st.training.feed.resident import Resident
from virchow_st.training.feed.streamed import Streamed
from virchow_st.training.rows import SparseRows, rows_of
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import train

LACKING = (14, 15)
ABSENT_IDS = tuple(f"ENSG{g:05d}" for g in LACKING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A and B train, B without two genes and with another symbol for a third; C is the test."""
    folder = tmp_path_factory.mktemp("mixed")
    for seed, name in enumerate("ABC"):
        write_store(folder / f"{name}.vst", name, 5, n_genes=16, seed=seed, columns=5)
    whole = open_store(folder / "B.vst")
    without_genes(whole, folder / "B-lacking.vst", LACKING, symbols={"GENE0": "OLDNAME"})
    ids = {"ENSG00001": "ENSG00099"}  # a gene that no other store has
    without_genes(open_store(folder / "C.vst"), folder / "C-lacking.vst", LACKING, ids=ids)
    return folder


@pytest.fixture(scope="module")
def mixed(folder: Path) -> list[Store]:
    return [open_store(folder / f"{name}.vst") for name in ("A", "B-lacking", "C")]


def test_genes_are_those_of_any_or_of_all_stores(folder: Path, mixed: list[Store]) -> None:
    *training, test = mixed
    assert len(candidate_genes(training, [test], genes_in="any")) == 16
    assert set(candidate_genes(training, [test]).ids) == {f"ENSG{g:05d}" for g in range(14)}
    panel = choose_panel("top:16", training, [test], genes_in="any")
    assert set(ABSENT_IDS) < set(panel.ids)
    found = dict(zip(panel.ids, panel.places(mixed[1]), strict=True))
    assert [gene for gene, place in found.items() if place == ABSENT] == sorted(
        ABSENT_IDS, key=panel.ids.index
    )
    # By id, although the symbol is another one there; the panel has that of the first store.
    assert mixed[1].genes.symbols[found["ENSG00000"]] == "OLDNAME"
    assert panel.symbols[panel.ids.index("ENSG00000")] == "GENE0"
    # Only training stores bring genes: one that the test slide alone has cannot be learned.
    lacking = open_store(folder / "C-lacking.vst")
    assert "ENSG00099" in lacking.genes.ids
    assert "ENSG00099" not in candidate_genes(training, [lacking], genes_in="any").ids


def test_the_most_variable_genes_are_so_where_they_were_measured(mixed: list[Store]) -> None:
    """The variance of a gene that B lacks is that of A alone, not diluted by B's bins."""
    alone = choose_panel("top:16", mixed[:1]).ids
    order = choose_panel("top:16", mixed[:2], genes_in="any").ids
    assert [g for g in order if g in ABSENT_IDS] == [g for g in alone if g in ABSENT_IDS]
    from virchow_st.run.panel import _variance

    candidates = candidate_genes(mixed[:2], genes_in="any")
    both, only = _variance(mixed[:2], candidates), _variance(mixed[:1], candidates)
    np.testing.assert_array_equal(both[list(LACKING)], only[list(LACKING)])
    assert (both[:14] != only[:14]).all()


def test_a_panel_that_the_test_slide_lacks_is_refused(folder: Path, mixed: list[Store]) -> None:
    (folder / "absent.txt").write_text("\n".join(ABSENT_IDS), "utf-8")
    lacking = [open_store(folder / "C-lacking.vst")]
    spec = str(folder / "absent.txt")
    with pytest.raises(ConfigError, match=r"measured on .*C-lacking.* none of the 2 .*-in all"):
        choose_genes(spec, mixed[:2], lacking, genes_in="any")
    with pytest.raises(ConfigError, match="2 of 2 genes are not in every store"):
        choose_genes(spec, mixed[:2], mixed[2:], genes_in="all")
    (folder / "absent.txt").write_text("NOGENE\nGENE4", "utf-8")
    with pytest.raises(ConfigError, match="1 of 2 genes are not in any training store"):
        choose_genes(spec, mixed[:2], mixed[2:], genes_in="any")


def of(stores: list[Store]) -> tuple[PatchDataset, list[Member]]:
    panel = candidate_genes(stores[:2], stores[2:], genes_in="any")
    return PatchDataset(stores, panel), [Member(s, p) for s in range(2) for p in range(5)]


def test_statistics_are_of_the_stores_that_measured_a_gene(mixed: list[Store]) -> None:
    dataset, members = of(mixed)
    found = training_statistics(dataset, members)
    alone = training_statistics(PatchDataset(mixed[:1], dataset.panel), members[:5])
    for name in ("rate", "std"):
        values, of_one = getattr(found, name), getattr(alone, name)
        np.testing.assert_array_equal(values[..., LACKING], of_one[..., LACKING])
        assert (values[..., :14] != of_one[..., :14]).all()


def test_feeds_say_what_was_measured(mixed: list[Store]) -> None:
    dataset, members = of(mixed)
    plan = plans(members[3:7], 4)
    for feed in (
        Streamed(dataset, torch.device("cpu")),
        Resident(dataset, members, torch.device("cpu")),
    ):
        (batch,) = feed.batches(plan)
        assert batch.measured is not None
        expected = [[True] * 16] * 2 + [[True] * 14 + [False] * 2] * 2
        assert batch.measured.tolist() == expected
        dense = batch.counts.dense()
        assert not dense[2:, LACKING].any()
        whole = dataset.patch(members[5]).dense_counts(range(14))
        np.testing.assert_array_equal(dense[2, :14], whole)
        (complete,) = feed.batches(plans(members[:3], 3))
        assert complete.measured is None


def mixed_rows(rng: np.random.Generator) -> tuple[SparseRows, np.ndarray]:
    """Rows of two stores, of three programmes of 40 genes; the second lacks a third of them."""
    programmes = rng.dirichlet(np.full(40, 0.3), 3)
    mean = 64 * rng.gamma(0.4, 20.0, (1200, 3)) @ programmes
    counts = rng.poisson(mean)
    measured = np.ones((2, 40), bool)
    measured[1, 27:] = False
    store = np.repeat([0, 1], 600)
    rows = SparseRows.from_dense(counts * measured[store], np.full(1200, 64.0))
    return SparseRows(
        rows.indptr, rows.gene, rows.count, rows.exposure, 40, coverage=Coverage(store, measured)
    ), programmes


def test_a_factorisation_is_not_misled_by_absent_genes() -> None:
    rows, programmes = mixed_rows(np.random.default_rng(3))
    plain = SparseRows(rows.indptr, rows.gene, rows.count, rows.exposure, 40)
    errors = []
    for counts in rows, plain:
        found = factorise(counts, 3, seed=0, n_steps=100, tolerance=0)
        assert (np.diff(found.objective) > -1e-6 * abs(found.objective[0])).all()
        apart = np.abs(found.loadings.T[:, None] - programmes[None]).sum(2)
        errors.append(apart.min(0).max())
    assert errors[0] < 0.08  # of at most 2
    assert errors[1] > 0.2  # taking absent for 0
    start = start_loadings(rows, 3, seed=0)
    np.testing.assert_allclose(start.sum(0), 1)
    assert (start > 0).all()
    assert found.log_likelihood[-1] > single_factor(plain)
    with_all = Coverage(rows.coverage.store, np.ones((2, 40), bool))
    complete = SparseRows(
        plain.indptr, plain.gene, plain.count, plain.exposure, 40, coverage=with_all
    )
    assert single_factor(complete) == pytest.approx(single_factor(plain), rel=1e-9)
    np.testing.assert_allclose(
        factorise(complete, 3, 0, 10).loadings, factorise(plain, 3, 0, 10).loadings, rtol=1e-6
    )


def test_rows_of_stores_know_their_genes(mixed: list[Store]) -> None:
    dataset, members = of(mixed)
    rows = rows_of(dataset, members, seed=0)
    assert rows.coverage is not None
    assert rows.coverage.everywhere.tolist() == [True] * 14 + [False] * 2
    assert rows_of(dataset, members[:5], seed=0).coverage is None
    rate = training_statistics(dataset, members).rate
    np.testing.assert_allclose(rows.gene_shares, rate / rate.sum(), rtol=0.02)


@pytest.mark.parametrize("panel", ["top:16", "all:top:16"])
def test_absent_genes_are_learned_from_the_other_store(folder: Path, panel: str) -> None:
    """Their level is that of the store that has them; half of it if absent were taken for 0."""
    stores = tuple(str(folder / f"{name}.vst") for name in ("A", "B-lacking", "C"))
    factors = 3 if panel.startswith("all") else 0
    config = tiny_config(stores, test_patient="C", panel=panel, factors=factors, epochs=3)
    run = folder / panel.replace(":", "-")
    with few_steps(8):
        train(run, config)
    loaded = load_run(run, "cpu")
    expected, observed = np.zeros(16), np.zeros(16)
    for patch in open_store(folder / "C.vst"):
        tissue = patch.tissue_mask
        expected += loaded.predict(patch)[:, tissue].sum(1)
        places = loaded.panel.indices(patch.store)
        observed += patch.dense_counts(places)[:, tissue].sum(1)
    absent = np.isin(loaded.panel.ids, ABSENT_IDS)
    assert absent.sum() == 2
    np.testing.assert_allclose((expected / observed)[absent], 1.0, atol=0.25)
