"""Which genes of two stores are the same: by id without version and genome, or by symbol."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_store import write_store

from virchow_st.errors import ConfigError
from virchow_st.run.compare import check_same_panel
from virchow_st.run.panel import Panel, choose_panel
from virchow_st.runtime.progress import Recording
from virchow_st.store.genes import core_id, core_symbol, places_by_id

N = 8
IDS = [f"ENSG{g:011d}" for g in range(N)]
SYMBOLS = [f"GENE{g}" for g in range(N)]


def store(folder, name, ids=IDS, symbols=SYMBOLS, seed=0):
    genes = {"id": list(ids), "symbol": list(symbols), "total": [0] * len(ids)}
    return write_store(folder / f"{name}.vst", name, 1, n_genes=len(ids), seed=seed, genes=genes)


@pytest.fixture
def plain(tmp_path):
    return store(tmp_path, "A", seed=1)


@pytest.mark.parametrize(
    ("gene", "core"),
    [
        ("ENSG00000119888", "ENSG00000119888"),
        ("ENSG00000119888.11", "ENSG00000119888"),
        ("GRCh38_ENSG00000119888.11", "ENSG00000119888"),
        ("GRCh38-2020-A_ENSG00000119888", "ENSG00000119888"),
        ("mm10___ENSMUSG00000045394", "ENSMUSG00000045394"),
        ("gene:ENSDARG00000000001", "ENSDARG00000000001"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENST00000263735.4", "ENST00000263735.4"),  # no gene
        ("AT1G01010.1", "AT1G01010.1"),
        ("4072", "4072"),
        ("my_ENSG_thing", "my_ENSG_thing"),
    ],
)
def test_core_ids(gene, core):
    assert core_id(gene) == core


def test_panels_are_the_same_whatever_versions_their_first_store_wrote():
    versioned = [f"GRCh38_{gene}.3" for gene in IDS]
    check_same_panel("a", IDS, "b", versioned)
    for other in (versioned[::-1], versioned[:-1]):
        with pytest.raises(ConfigError, match="b: expected the panel of a, 8 genes"):
            check_same_panel("a", IDS, "b", other)


def test_a_symbol_loses_the_genome_that_its_id_has():
    assert core_symbol("GRCh38_ENSG00000119888", "GRCh38_EPCAM") == "EPCAM"
    assert core_symbol("ENSG00000119888", "GRCh38_EPCAM") == "GRCh38_EPCAM"
    assert core_symbol("4072", "EPCAM") == "EPCAM"


CHANGES = {
    "versions": ([f"{gene}.{g + 1}" for g, gene in enumerate(IDS)], SYMBOLS),
    "genome": ([f"GRCh38_{gene}" for gene in IDS], [f"GRCh38_{name}" for name in SYMBOLS]),
    "genome and versions": ([f"hg38_{gene}.2" for gene in IDS], SYMBOLS),
    "another order": (IDS[::-1], SYMBOLS[::-1]),
}


@pytest.mark.parametrize("other_first", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_genes_are_the_same_without_version_and_genome(plain, tmp_path, change, other_first):
    other = store(tmp_path, "B", *CHANGES[change], seed=2)
    listener = Recording()
    stores = [other, plain] if other_first else [plain, other]
    panel = choose_panel(f"top:{N}", stores, progress=listener)
    assert listener.warnings == []
    assert panel.key == "id"
    assert set(panel.ids) == set(stores[0].genes.ids)  # as the first training store writes them
    cores = [core_id(gene) for gene in panel.ids]
    for one in stores:
        assert [core_id(one.genes.ids[i]) for i in panel.indices(one)] == cores
    # The variances that order the panel were those of the same genes in both stores.
    same = store(tmp_path, "C", seed=2) if change != "another order" else other
    plainly = choose_panel(f"top:{N}", [plain, same])
    assert cores == list(plainly.ids)


def test_ids_of_another_kind_give_way_to_unique_symbols(plain, tmp_path):
    entrez = [str(4000 + g) for g in range(N)]
    symbols = [*SYMBOLS[:6], "GENE5", "OTHER"]  # GENE5 twice: it is no longer unique
    other = store(tmp_path, "B", entrez, symbols, seed=2)
    listener = Recording()
    panel = choose_panel("top:5", [plain], [other], listener)
    (warning,) = listener.warnings
    assert "share 0 gene ids and 5 symbols" in warning
    assert "'ENSG00000000000' ('GENE0')" in warning
    assert "'4000' ('GENE0')" in warning
    assert panel.key == "symbol"
    assert set(panel.symbols) == set(SYMBOLS[:5])
    assert [other.genes.symbols[i] for i in panel.indices(other)] == list(panel.symbols)
    panel.write(tmp_path / "panel.tsv")
    again = Panel.read(tmp_path / "panel.tsv")
    np.testing.assert_array_equal(again.indices(other), panel.indices(other))


def test_nothing_in_common_shows_three_of_each(plain, tmp_path):
    ids = [f"ENSMUSG{g:011d}" for g in range(N)]
    other = store(tmp_path, "B", ids, [f"Gene{g}" for g in range(N)], seed=2)
    with pytest.raises(ConfigError) as error:
        choose_panel("top:3", [plain, other])
    text = str(error.value)
    assert "\n" not in text
    assert "has no gene in common with" in text
    for gene in (*IDS[:3], *ids[:3], "'GENE2'", "'Gene2'"):
        assert gene in text
    assert IDS[3] not in text


def test_a_few_shared_ids_are_no_warning_where_symbols_tell_no_more(plain, tmp_path):
    """Two panels of 10x that overlap in two genes: the ids are sound."""
    ids = [*IDS[:2], *(f"ENSG{g:011d}" for g in range(100, 106))]
    symbols = [*SYMBOLS[:2], *(f"GENE{g}" for g in range(100, 106))]
    listener = Recording()
    panel = choose_panel("top:2", [plain, store(tmp_path, "B", ids, symbols, seed=2)], (), listener)
    assert set(panel.ids) == set(IDS[:2])
    assert listener.warnings == []


def test_a_core_id_of_two_genes_stands_for_neither(plain, tmp_path):
    """Two versions of one gene in a store: which of them another store's is cannot be told."""
    ids = [*IDS[:6], f"{IDS[6]}.1", f"{IDS[6]}.2"]
    assert IDS[6] not in places_by_id(ids)
    other = store(tmp_path, "B", ids, [*SYMBOLS[:6], "V1", "V2"], seed=2)
    for stores in ([plain, other], [other, plain]):
        assert set(choose_panel("top:6", stores).ids) == set(IDS[:6])
        with pytest.raises(ConfigError, match="among the 6 that all stores list"):
            choose_panel("top:7", stores)


def test_a_missing_panel_gene_is_shown_beside_the_stores(plain):
    panel = Panel((IDS[0], "ENSMUSG00000000009"), ("GENE0", "Xkr4"))
    with pytest.raises(ConfigError, match="lacks 1 of 2 panel genes, 'ENSMUS.*its genes are 'ENSG"):
        panel.indices(plain)
