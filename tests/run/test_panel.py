"""The panel: which genes are chosen, how it is written and read, and how genes are found."""

import shutil

import lmdb
import numpy as np
import pytest
from tiny_store import make_record, write_records, write_store

from virchow_st.errors import ConfigError, StoreError
from virchow_st.run.panel import Panel, choose_panel
from virchow_st.store import format as fmt
from virchow_st.store.reader import open_store


def dense(store):
    return np.stack([p.counts().toarray().reshape(-1, 128, 128) for p in store])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    return [
        write_store(folder / "A.vst", "A", 2, n_genes=8, seed=1),
        write_store(folder / "B.vst", "B", 1, n_genes=8, seed=2),
    ]


def by_variance(stores, genes=range(8)):
    """Ids by the variance over all tissue bins, in NumPy, largest first."""
    values = [
        np.concatenate([dense(s)[:, g][[p.tissue_mask for p in s]] for s in stores]) for g in genes
    ]
    order = sorted(zip([v.var() for v in values], genes, strict=True), reverse=True)
    return tuple(f"ENSG{g:05d}" for _, g in order)


def test_top_genes_are_numpys(train):
    expected = by_variance(train)
    for n in (1, 3, 8):
        panel = choose_panel(f"top:{n}", train)
        assert panel.ids == expected[:n]
        assert panel.symbols == tuple(f"GENE{int(i[4:])}" for i in panel.ids)
    assert by_variance(train[:1]) == choose_panel("top:8", train[:1]).ids


def test_variance_not_abundance(tmp_path):
    counts = np.full((2, 128, 128), 3)  # everywhere the same: nothing to predict
    counts[1] = np.arange(128) % 2
    record = make_record(
        np.zeros((16, 16, 8)), counts, np.ones((128, 128), bool), np.zeros((256, 256, 3), np.uint8)
    )
    store = write_records(tmp_path / "A.vst", [record], 2)
    assert choose_panel("top:1", [store]).ids == ("ENSG00001",)


def test_genes_in_another_order_and_missing_ones(train, tmp_path):
    """Stores list genes in their own order; only those that all of them list can be chosen."""
    ids = [f"ENSG{g:05d}" for g in (5, 9, 2, 0)]
    gene = np.zeros((4, 128, 128), int)
    gene[0, 3] = 50  # gene 5 varies most here
    gene[1] = 1000  # gene 9 is in no other store
    record = make_record(
        np.zeros((16, 16, 8)), gene, np.ones((128, 128), bool), np.zeros((256, 256, 3), np.uint8)
    )
    genes = {"id": ids, "symbol": ["GENE5", "GENE9", "GENE2", "GENE0"], "total": [0] * 4}
    other = write_records(tmp_path / "C.vst", [record], 4, patient="C", genes=genes)
    panel = choose_panel("top:3", [*train, other])
    assert panel.ids[0] == "ENSG00005"
    assert set(panel.ids) == {"ENSG00005", "ENSG00002", "ENSG00000"}
    for store in [*train, other]:
        assert [store.genes.ids[i] for i in panel.indices(store)] == list(panel.ids)
    as_test = choose_panel("top:3", train, [other])
    assert as_test.ids == by_variance(train, (0, 2, 5))  # it limits the list, and weighs nothing
    with pytest.raises(ConfigError, match="at least 4 genes .* got 3; give a smaller number"):
        choose_panel("top:4", [*train, other])


def test_no_count_of_the_test_patient_is_read(train, tmp_path):
    """Its counts, masks and tokens are overwritten; the panel is the same and nothing is said."""
    test = write_store(tmp_path / "T.vst", "T", 1, n_genes=8, seed=3, rate=9.0)
    records = [fmt.key(0, kind) for kind in fmt.Kind]
    ruined = tmp_path / "ruined.vst"
    shutil.copytree(test.path, ruined)
    with lmdb.open(str(ruined)) as env, env.begin(write=True) as txn:
        for key in records:
            txn.put(key, b"ruined")
    test = open_store(ruined)
    with pytest.raises(StoreError):
        test[0].counts()
    assert choose_panel("top:5", train, [test]) == choose_panel("top:5", train)


def test_top50_asks_for_fifty(train):
    with pytest.raises(ConfigError, match="expected at least 50 genes .* got 8"):
        choose_panel("top50", train)


@pytest.mark.parametrize("spec", ["top:", "top:0", "top:-3", "top:many", "top:2.5"])
def test_bad_specs_are_refused(train, spec):
    with pytest.raises(ConfigError, match=f"expected top50, top:N or a file; got '{spec}'"):
        choose_panel(spec, train)


@pytest.mark.parametrize(
    "text",
    [
        "ENSG00003\nGENE1\n",
        "gene_id\tsymbol\nENSG00003\tGENE3\nENSG00001\tGENE1\n",
        "symbol\nGENE3\n\n  GENE1  \n",
        "gene,why\nGENE3,known\nGENE1,new\n",
    ],
)
def test_file_of_ids_or_symbols(train, tmp_path, text):
    (tmp_path / "panel.txt").write_text(text, "utf-8")
    panel = choose_panel(str(tmp_path / "panel.txt"), train)
    assert panel.ids == ("ENSG00003", "ENSG00001")
    assert panel.symbols == ("GENE3", "GENE1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("GENE1\nGENE77\n", "1 of 2 genes are not in every store: 'GENE77'; .* did you mean GENE7"),
        (
            "GENE1\nX1\nX2\nX3\nX4\n",
            "4 of 5 genes are not in every store: 'X1', 'X2', 'X3' and 1 more; remove",
        ),
        ("X1\nX2\n", "2 of 2 .* genes of the stores are 'ENSG00000', .* or 'GENE0', 'GENE1'"),
        ("EPC\u200bAM\n", r"'EPC\\u200bAM'"),
        ("\n\n", "names none"),
    ],
)
def test_files_that_do_not_fit_are_refused(train, tmp_path, text, reason):
    (tmp_path / "panel.txt").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"panel\.txt: .*{reason}"):
        choose_panel(str(tmp_path / "panel.txt"), train)


def test_symbol_of_two_genes_is_refused_and_its_ids_are_not(tmp_path):
    genes = {"id": ["E0", "E1", "E2"], "symbol": ["HLA", "TBCE", "TBCE"], "total": [0] * 3}
    store = write_store(tmp_path / "A.vst", n_patches=1, n_genes=3, genes=genes)
    panel = tmp_path / "panel.txt"
    panel.write_text("TBCE\n", "utf-8")
    with pytest.raises(ConfigError, match="symbol 'TBCE' belongs to E1, E2; give the gene id"):
        choose_panel(str(panel), [store])
    panel.write_text("E2\nHLA\n", "utf-8")
    assert choose_panel(str(panel), [store]).ids == ("E2", "E0")


def test_missing_file_is_refused(train, tmp_path):
    with pytest.raises(ConfigError, match=r"readable file; got .*nowhere\.txt"):
        choose_panel(str(tmp_path / "nowhere.txt"), train)


def test_written_panel_is_read_back(tmp_path):
    panel = Panel(("E1", "E0"), ("ODD\tNAME", 'QU"OTED'))
    panel.write(tmp_path / "panel.tsv")
    assert Panel.read(tmp_path / "panel.tsv") == panel
    assert len(panel) == 2
    (tmp_path / "panel.tsv").write_text("E1\tODD\n", "utf-8")
    with pytest.raises(ConfigError, match="panel.tsv: column 'gene_id' is missing"):
        Panel.read(tmp_path / "panel.tsv")


def test_panel_gene_that_a_store_lacks(train):
    with pytest.raises(ConfigError, match=r"A\.vst: lacks 1 of 2 panel genes, 'E9'; its"):
        Panel(("ENSG00001", "E9"), ("GENE1", "X")).indices(train[0])


def test_ids_that_contradict_the_symbols_give_way_to_them(train, tmp_path):
    """A slide whose ids are running numbers: GENE3's counts are found under another id."""
    turned = [(g + 3) % 8 for g in range(8)]
    genes = {
        "id": [f"ENSG{g:05d}" for g in turned],
        "symbol": [f"GENE{g}" for g in range(8)],
        "total": [0] * 8,
    }
    other = write_store(tmp_path / "C.vst", "C", 1, n_genes=8, seed=9, genes=genes)
    warnings = []

    class Listener:
        def warn(self, text):
            warnings.append(text)

    panel = choose_panel("top:4", train, [other], Listener())
    assert len(warnings) == 1
    assert "symbol" in warnings[0]
    assert panel.key == "symbol"
    assert panel.ids == by_variance(train)[:4]
    assert [other.genes.symbols[i] for i in panel.indices(other)] == list(panel.symbols)
    panel.write(tmp_path / "panel.tsv")
    assert Panel.read(tmp_path / "panel.tsv") == panel
    assert choose_panel("top:4", train).key == "id"
