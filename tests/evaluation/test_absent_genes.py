"""Evaluation where the test slide did not measure genes of the run: they have no scores."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from lacking_store import without_genes
from tiny_store import write_store
from tiny_training import few_steps, tiny_config

from virchow_st.errors import ConfigError
from virchow_st.evaluation.baselines import fit_baselines
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.output.figures.abundance import abundance_figure
from virchow_st.output.report.all_genes import _genes as genes_of_page
from virchow_st.predict.load import load_run
from virchow_st.run.compare import compare_runs
from virchow_st.run.evaluated import read_results
from virchow_st.run.panel import Panel
from virchow_st.run.results import PER_GENE
from virchow_st.run.score_table import table_title
from virchow_st.run.split import Member, Split
from virchow_st.store.reader import Store, open_store
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import train

LACKING = (3, 11)
N = 12


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("absent")
    for seed, name in enumerate("ABC"):
        write_store(folder / f"{name}.vst", name, 5, n_genes=N, seed=seed, columns=5)
    for name in "BC":
        whole = open_store(folder / f"{name}.vst")
        without_genes(whole, folder / f"{name}-lacking.vst", LACKING)
    return {path.stem: open_store(path) for path in sorted(folder.glob("*.vst"))}


@pytest.fixture(scope="module", params=["top:12", "all:top:12"])
def runs(
    request: pytest.FixtureRequest,
    stores: dict[str, Store],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The same training stores, tested on the whole slide and on one that lacks two genes."""
    folder = tmp_path_factory.mktemp("runs")
    gmt = folder / "sets.gmt"
    gmt.write_text("both\t\tGENE3\tGENE5\nabsent\t\tGENE3\tGENE11\n", "utf-8")
    for name, test in (("whole", "C"), ("lacking", "C-lacking")):
        config = tiny_config(
            tuple(str(stores[s].path) for s in ("A", "B-lacking", test)),
            test_patient="C", panel=request.param, epochs=1,
            factors=3 if request.param.startswith("all") else 0,
        )  # fmt: skip
        with few_steps(3):
            train(folder / name, config)
        sets = gmt if config.factors else None
        evaluate_run(folder / name, "cpu", gene_sets=sets)
    return folder / "whole", folder / "lacking"


def lines(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return {(row["gene_id"], row["scale_um"]): row for row in csv.DictReader(f)}


def test_measured_genes_score_as_on_the_whole_slide(runs: tuple[Path, Path]) -> None:
    """And the others are left out, with their names in the metrics and the title."""
    whole, lacking = (lines(run / "per_gene.csv") for run in runs)
    assert {gene for gene, _ in whole} - {gene for gene, _ in lacking} == {"ENSG00003", "ENSG00011"}
    # `pcc_partial` is given the UMIs of all other genes that the store lists, which are fewer here.
    partial = {name for name in PER_GENE if name.startswith("pcc_partial")}
    assert len(partial) == 3
    for key, row in lacking.items():
        other = {name for name, value in row.items() if value != whole[key][name]}
        assert other <= partial
    results = read_results(runs[1])
    assert results.metrics["n_genes"] == len(results.panel) == N - 2
    assert {gene["symbol"] for gene in results.metrics["not_measured"]} == {"GENE3", "GENE11"}
    title = table_title(results.metrics)
    assert "10 genes (not measured there: " in title
    assert "GENE3" in title
    assert "not_measured" not in read_results(runs[0]).metrics
    assert len(load_run(runs[1], "cpu").panel) == N  # it predicts them all the same
    with pytest.raises(ConfigError, match="expected the panel of"):
        compare_runs(runs)


def test_a_row_without_values_for_genes_that_were_not_measured(runs: tuple[Path, Path]) -> None:
    results = read_results(runs[1])
    if not results.has_factors:
        assert not (runs[1] / "all_genes.csv").exists()
        return
    whole, lacking = (lines(run / "all_genes.csv") for run in runs)
    assert list(whole) == list(lacking)
    for (gene, scale), row in lacking.items():
        values = {name: row[name] for name in row if name not in ("gene_id", "symbol", "scale_um")}
        if gene in ("ENSG00003", "ENSG00011"):
            assert set(values.values()) == {""}
        else:
            del values["q_value"]  # which depends on all genes that are tested together
            assert values == {name: whole[gene, scale][name] for name in values}
    found = results.metrics["all_genes"]
    assert (found["n_genes"], found["n_not_measured"]) == (N, 2)
    assert found["scales"]["8"]["n_genes_scored"] == N - 2
    genes = [row.gene for row in results.all_genes[::4]]
    picture = abundance_figure(results.all_genes, [g.symbol for g in genes], 0.05, 8)
    assert picture.numbers["scales"]["8"]["n_not_measured"] == 2
    # A set is the sum of its genes that were measured; one without any is not scored.
    rows = (runs[1] / "gene_sets.csv").read_text("utf-8")
    assert "absent" not in rows
    assert "both" in rows
    assert "absent" in (runs[0] / "gene_sets.csv").read_text("utf-8")
    # The page shows such a gene's map, and "not measured" where it has no mean.
    in_page = genes_of_page(results)
    place = in_page["ids"].index("ENSG00003")
    assert in_page["scores"]["8"]["mean"][place] is None
    assert in_page["scores"]["8"]["mean"][in_page["ids"].index("ENSG00004")] > 0


def test_baselines_are_fitted_where_a_gene_was_measured(stores: dict[str, Store]) -> None:
    both = [stores["A"], stores["B-lacking"]]
    members = tuple(Member(s, p) for s in range(2) for p in range(4))
    validation = (Member(0, 4), Member(1, 4))
    panel = Panel(tuple(f"ENSG{g:05d}" for g in range(N)), tuple(f"GENE{g}" for g in range(N)))

    def fitted(stores: list[Store], panel: Panel, n: int):  # type: ignore[no-untyped-def]
        split = Split(
            tuple(m for m in members if m.store < n),
            tuple(m for m in validation if m.store < n), (Member(0, 0),), ("",) * n,
        )  # fmt: skip
        rate = training_statistics(PatchDataset(stores, panel), split.train).rate
        return fit_baselines(stores, panel, split, rate)

    found = fitted(both, panel, 2)
    alone = fitted(both[:1], panel.of(["ENSG00003", "ENSG00011"]), 1)
    shared = [g for g in range(N) if g not in LACKING]
    common = fitted(both, panel.of([panel.ids[g] for g in shared]), 2)
    for places, expected in ((list(LACKING), alone), (shared, common)):
        np.testing.assert_array_equal(found.depth_odds[places], expected.depth_odds)
        np.testing.assert_allclose(
            found.nuclear.weights[:, places], expected.nuclear.weights, rtol=1e-9
        )
        if found.ridge_penalty == expected.ridge_penalty:
            np.testing.assert_allclose(
                found.ridge.weights[:, places], expected.ridge.weights, rtol=1e-6, atol=1e-12
            )
    assert found.ridge_penalty == common.ridge_penalty
