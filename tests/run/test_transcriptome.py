"""Genes of a run with ``--panel all``: which are chosen, and how they are written and read."""

import numpy as np
import pytest
from tiny_store import write_store

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.run import transcriptome
from virchow_st.run.panel import Panel, choose_panel
from virchow_st.run.transcriptome import RunGenes, check_factors, choose_genes


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genes")
    return [
        write_store(folder / "A.vst", "A", 2, n_genes=8, seed=1),
        write_store(folder / "B.vst", "B", 1, n_genes=8, seed=2),
    ]


def test_a_panel_alone(stores):
    genes = choose_genes("top:3", stores)
    assert genes.panel == genes.all == choose_panel("top:3", stores)
    assert not genes.are_factors


@pytest.mark.parametrize("spec", ["all:top:3", "all"])
def test_genes_with_enough_umis_in_the_training_stores(stores, spec, monkeypatch):
    umis = stores[0].genes.totals
    limit = int(np.sort(umis)[4])  # the four rarest have fewer
    monkeypatch.setattr(transcriptome, "MIN_UMIS", limit)
    monkeypatch.setattr(transcriptome, "_DEFAULT_PANEL", "top:2")
    genes = choose_genes(spec, stores[:1], stores[1:])
    expected = {g for g, n in zip(stores[0].genes.ids, umis, strict=True) if n >= limit}
    assert set(genes.all.ids) == expected | set(genes.panel.ids)
    assert len(expected) == 4
    assert genes.panel == choose_panel("top:3" if spec == "all:top:3" else "top:2", stores[:1])
    assert genes.are_factors
    assert [genes.all.ids[i] for i in genes.places] == list(genes.panel.ids)


def test_a_rare_gene_of_the_panel_is_kept(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(transcriptome, "MIN_UMIS", 10**9)
    (tmp_path / "mine.txt").write_text("GENE5\n", "utf-8")
    genes = choose_genes(f"all:{tmp_path / 'mine.txt'}", stores)
    assert genes.all.symbols == genes.panel.symbols == ("GENE5",)


def test_written_and_read(stores, tmp_path):
    genes = choose_genes("all:top:3", stores)
    genes.write(tmp_path)
    assert RunGenes.read(tmp_path) == genes
    (tmp_path / "genes.tsv").unlink()
    assert RunGenes.read(tmp_path) == RunGenes(genes.panel, genes.panel)


def test_files_that_do_not_fit_together(stores, tmp_path):
    genes = choose_genes("all:top:3", stores)
    genes.write(tmp_path)
    others = [g for g in genes.all.ids if g != genes.panel.ids[0]]
    genes.all.of(others).write(tmp_path / "genes.tsv")
    with pytest.raises(
        ConfigError, match=rf"genes.tsv: expected every gene .* {genes.panel.ids[0]}"
    ):
        RunGenes.read(tmp_path)


def test_genes_of_a_panel_in_another_order():
    panel = Panel(("a", "b", "c"), ("A", "B", "C"), "symbol")
    assert panel.of(["c", "a"]) == Panel(("c", "a"), ("C", "A"), "symbol")


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="loss: expected poisson with --panel all:top:9"):
        check_factors(TrainConfig(panel="all:top:9", loss="mse"))
    with pytest.raises(ConfigError, match="factors: expected 0 with --panel top50"):
        check_factors(TrainConfig(factors=8))
    check_factors(TrainConfig(panel="all", factors=8))
    check_factors(TrainConfig())
