"""Gene sets: named lists of genes, such as pathways, read from a GMT file and found in a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virchow_st.errors import ConfigError
from virchow_st.names import check_plain, csv_text
from virchow_st.run.all_genes import COLUMNS, AllGenesTable, score_texts
from virchow_st.run.panel import Panel
from virchow_st.runtime.atomic import written_table
from virchow_st.runtime.lists import strip
from virchow_st.schema import read_text
from virchow_st.store.genes import core_id, named_places, some

GENE_SETS = "gene_sets.csv"
_REMEDY = "give a GMT file: per line a name, a description and genes, separated by tabs"


@dataclass(frozen=True)
class GeneSet:
    """A named list of genes.

    Attributes:
        name: As in the file.
        genes: Ids or symbols, each once.
    """

    name: str
    genes: tuple[str, ...]


def read_gmt(path: Path) -> list[GeneSet]:
    """Gene sets of a GMT file, in its order; the format is that of GSEA and MSigDB.

    A line holds a name, a description that is not used, and genes, separated by tabs. A name is
    used once; genes that a line repeats, and blank fields, count once and not at all.

    Raises:
        ConfigError: The file cannot be read as text, holds no set, a line has no genes, or a name
            comes twice.
    """
    sets: dict[str, GeneSet] = {}
    for number, line in enumerate(read_text(path, _REMEDY).split("\n"), start=1):
        cells = [strip(cell) for cell in line.split("\t")]
        if not any(cells):
            continue
        name, genes = cells[0], tuple(dict.fromkeys(cell for cell in cells[2:] if cell))
        if not name or not genes:
            raise ConfigError(
                f"{path}: line {number}: expected a name, a description and at least one gene, "
                f"separated by tabs; got {line[:60]!a}; {_REMEDY}"
            )
        check_plain(name, f"{path}: line {number}: gene set")
        if name in sets:
            raise ConfigError(
                f"{path}: line {number}: gene set {name!a} comes twice; give each a name of its own"
            )
        sets[name] = GeneSet(name, genes)
    if not sets:
        raise ConfigError(f"{path}: expected gene sets; the file names none; {_REMEDY}")
    return list(sets.values())


def genes_of_sets(sets: Sequence[GeneSet], genes: Panel) -> list[list[int]]:
    """Indices in a panel of the genes of each set, sorted; genes that it lacks are left out.

    A symbol that belongs to several genes stands for all of them.

    Example:
        >>> panel = Panel(ids=("ENSG00000119888", "ENSG00000162896"), symbols=("EPCAM", "PIGR"))
        >>> genes_of_sets([GeneSet("gut", ("PIGR", "LGR5", "EPCAM"))], panel)
        [[0, 1]]
    """
    places = named_places(genes.ids, genes.symbols)
    return [
        sorted({i for name in one.genes for i in places.get(name) or places.get(core_id(name), [])})
        for one in sets
    ]


def without_genes(sets: Sequence[GeneSet], found: Sequence[Sequence[int]], path: Path) -> str:
    """A warning about sets of which no gene was found, or "".

    Raises:
        ConfigError: No set has a gene among those of the run.
    """
    lacking = [one.name for one, places in zip(sets, found, strict=True) if not places]
    if len(lacking) == len(sets):
        raise ConfigError(
            f"{path}: expected ids or symbols of the run's genes; no gene of {some(lacking)} is "
            f"one of them; check species and kind of names"
        )
    return f"{path}: left out, without a gene of the run: {some(lacking)}" if lacking else ""


def write_gene_sets(
    run: Path, sets: Sequence[GeneSet], found: Sequence[Sequence[int]], table: AllGenesTable
) -> None:
    """Write ``gene_sets.csv``: a line for each set and scale, with the columns of all_genes.csv.

    Args:
        run: Folder to write to.
        sets: The S sets.
        found: Indices of each set's genes among those of the run.
        table: Scores of the S sets, each as of one gene.
    """
    head = ["gene_set", "genes_listed", "genes_found", "scale_um", *COLUMNS]
    with written_table(run / GENE_SETS, head) as write_row:
        texts = {scale: score_texts(table, scale) for scale in table.scores}
        for i, one in enumerate(sets):
            for scale, of_scale in texts.items():
                n = len(one.genes), len(found[i])
                write_row([csv_text(one.name), *n, scale, *of_scale[i]])
