"""Panels as Excel, R, pandas and 10x Genomics write them."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from tiny_store import write_store

from virchow_st.errors import ConfigError
from virchow_st.run.panel import Panel, choose_panel
from virchow_st.store.genes import names_in_file, split_names


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Genes E0 to E7 with symbols PIGR, EPCAM, G2, G3, …"""
    ids = [f"ENSG0000000000{g}" for g in range(8)]
    symbols = ["PIGR", "EPCAM", *(f"G{g}" for g in range(2, 8))]
    genes = {"id": ids, "symbol": symbols, "total": [0] * 8}
    folder = tmp_path_factory.mktemp("panels")
    return write_store(folder / "A.vst", n_patches=1, n_genes=8, genes=genes)


PIGR_EPCAM = {
    "plain": b"PIGR\nEPCAM\n",
    "bom": "\ufeffPIGR\r\nEPCAM\r\n".encode(),
    "Excel's Unicode text": "Gene\tNote\r\nPIGR\t\r\nEPCAM\tx\r\n".encode("utf-16"),
    "Excel in German": "\ufeffsep=;\r\nGene;Wert\r\nPIGR;1,5\r\nEPCAM;2\r\n".encode(),
    "quoted": b'"PIGR"\n"EPCAM"\n',
    "R write.csv of a vector": b'"","x"\n"1","PIGR"\n"2","EPCAM"\n',
    "R write.csv, row.names = FALSE": b'"x"\n"PIGR"\n"EPCAM"\n',
    "R write.table": b'"x"\n"1"\t"PIGR"\n"2"\t"EPCAM"\n',
    "R table of markers": b'"","p_val","avg_log2FC"\n"PIGR",0,2.5\n"EPCAM",1e-9,-1\n',
    "R table of markers by write.table": b"p_val\tavg_log2FC\nPIGR\t0\t2.5\nEPCAM\t1e-9\tNA\n",
    "R findAllMarkers": b'"","p_val","cluster","gene"\n"a",0,1,"PIGR"\n"b",1,1,"EPCAM"\n',
    "pandas series": b",0\n0,PIGR\n1,EPCAM\n",
    "pandas without index": b"0\nPIGR\nEPCAM\n",
    "pandas var table": b"gene_ids,feature_types\nENSG00000000000,GE\nENSG00000000001,GE\n",
    "10x features.tsv": b"ENSG00000000000\tPIGR\tGene Expression\nENSG00000000001\tEPCAM\tGene\n",
    "10x probe set": (
        b"#probe_set_file_format=3.0\n#panel_name=Human\n"
        b"gene_id,probe_seq,probe_id,included,region\n"
        b"ENSG00000000000,ACGT,ENSG00000000000|PIGR|a,TRUE,unspliced\n"
        b"ENSG00000000000,ACGT,ENSG00000000000|PIGR|b,TRUE,unspliced\n"
        b"ENSG00000000001,ACGT,ENSG00000000001|EPCAM|a,TRUE,spliced\n"
        b"ENSG00000000002,ACGT,ENSG00000000002|G2|a,FALSE,spliced\n"
        b"DEPRECATED_ENSG00000000009,ACGT,DEPRECATED_ENSG00000000009|X|a,FALSE,spliced\n"
    ),
    "ids with versions": b"ENSG00000000000.7\nENSG00000000001.12\n",
    "ids with genome": b"GRCh38_ENSG00000000000\nGRCh38_ENSG00000000001\n",
    "symbol beside id": b"symbol,gene_id\nWRONG,ENSG00000000000\nWRONG,ENSG00000000001\n",
    "MSigDB grp": b"HALLMARK_X\n".replace(b"HALLMARK_X", b"# HALLMARK_X") + b"PIGR\nEPCAM\n",
    "repeats, by id too": b"PIGR\nEPCAM\nPIGR\nENSG00000000001\n",
    "ranked": b"1,PIGR\n2,EPCAM\n",
    "blanks and invisible ends": "\u200bPIGR \n\tEPCAM\u00a0\n\n \n".encode(),
    "old Mac": b"PIGR\rEPCAM\r",
}


@pytest.mark.parametrize("how", PIGR_EPCAM)
def test_two_genes_whoever_wrote_them(store, tmp_path, how):
    path = tmp_path / "panel.csv"
    path.write_bytes(PIGR_EPCAM[how])
    assert choose_panel(str(path), [store]).symbols == ("PIGR", "EPCAM")
    # The genes of `vst export --genes FILE` are read by the same reader.
    names = [name for name in split_names(str(path)) if not name.startswith("ENSG00000000001")]
    if how != "repeats, by id too":
        names = split_names(str(path))
    np.testing.assert_array_equal(store.genes.indices(*names), [0, 1])


def test_a_list_without_column_names_keeps_its_first_gene(tmp_path):
    for text in ("G3\nPIGR,known\n", "G3,a\nPIGR,b,c\n", "G3\nPIGR\t1\nEPCAM\t2\n"):
        (tmp_path / "panel.txt").write_text(text, "utf-8")
        assert names_in_file(tmp_path / "panel.txt")[:2] == ["G3", "PIGR"]


def test_ids_that_are_numbers_are_names(tmp_path):
    (tmp_path / "panel.txt").write_text("4072\n5284\n", "utf-8")
    assert names_in_file(tmp_path / "panel.txt") == ["4072", "5284"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "gene_id,symbol\n", '"","x"\n'])
def test_files_without_genes_are_refused(tmp_path, text):
    (tmp_path / "panel.csv").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"panel\.csv: expected a gene id or symbol per line"):
        names_in_file(tmp_path / "panel.csv")


def test_a_missing_list_is_no_gene(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.txt: cannot be read as a list of genes \(No such"):
        split_names(str(tmp_path / "no.txt"))


def test_names_on_the_command_line():
    assert split_names(" PIGR,EPCAM\u200b,") == ["PIGR", "EPCAM"]
    with pytest.raises(ConfigError, match="expected symbols or ids separated by commas, or a file"):
        split_names(" , ")


def test_more_genes_than_a_read_can_number_are_refused(tmp_path, monkeypatch, store):
    monkeypatch.setattr("virchow_st.run.panel.MAX_PANEL", 3)
    (tmp_path / "panel.txt").write_text("PIGR\nEPCAM\nG2\nG3\n", "utf-8")
    with pytest.raises(ConfigError, match="panel: expected at most 3 genes; got 4"):
        choose_panel(str(tmp_path / "panel.txt"), [store])


def test_no_field_of_a_panel_is_a_formula_and_every_name_comes_back(tmp_path):
    names = ("=cmd|' /C calc'!A0", "+1", "-x", "@SUM", "'=quoted", "\ttab", "CD74")
    panel = Panel(names, names[::-1])
    panel.write(tmp_path / "panel.tsv")
    with open(tmp_path / "panel.tsv", newline="", encoding="utf-8") as file:
        fields = [field for row in csv.reader(file, delimiter="\t") for field in row]
    assert not [field for field in fields if field[0] in "=+-@\t\r"]
    assert Panel.read(tmp_path / "panel.tsv") == panel
    # As a list of genes for another run:
    assert names_in_file(tmp_path / "panel.tsv") == list(panel.ids)
