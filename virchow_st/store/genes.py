"""Finds genes by symbol or id, reads lists of gene names, and matches the ids of two stores."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.names import csv_name
from virchow_st.runtime.lists import Row, read_rows, strip
from virchow_st.types import Int64Array

# What programs call a column of genes, in lower case, with "_" for all that is no letter or digit.
_ID_HEADS = ("gene_id", "gene_ids", "ensembl_gene_id", "ensembl_id", "ensembl", "feature_id", "id")
_SYMBOL_HEADS = (
    "symbol", "gene", "genes", "gene_symbol", "gene_name", "gene_names", "hgnc_symbol",
    "feature_name", "feature", "name", "x", "v1",
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_LIST_FILES = (".txt", ".csv", ".tsv", ".list", ".grp")

# GRCh38_ENSG00000119888.11: a genome, as 10x writes it for references of several; the id itself;
# its version; and GENCODE's mark of the second of two genes in the pseudo-autosomal region.
_ENSEMBL = re.compile(r"(?P<genome>[\w.-]*?[_:|-]+)?(?P<id>ENS[A-Z]*G\d+)(\.\d+)?(?P<par>_PAR_Y)?")


def split_names(text: str) -> list[str]:
    """Gene names from the value of an option: separated by commas, or the path of a file of names.

    Raises:
        ConfigError: it holds no name, or the file cannot be read.
    """
    path = Path(text)
    if "," not in text and (path.is_file() or path.suffix.lower() in _LIST_FILES):
        return names_in_file(path)
    names = [name for part in text.split(",") if (name := strip(part))]
    if not names:
        raise ConfigError(f"genes: expected symbols or ids with commas, or a file; got {text!r}")
    return names


def names_in_file(path: Path) -> list[str]:
    """Gene ids or symbols that a file lists, in its order, each once.

    Of a file with column names it is the column of gene ids, else that of symbols, else the row
    names; of a file without, the first value of each line that is no number, so that row numbers
    are passed over. In a probe set of 10x Genomics, probes that are not ``included``
    are left out. A ``'`` before what a spreadsheet would compute is no part of a name.

    Raises:
        ConfigError: it cannot be read, or names nothing.
    """
    rows = read_rows(path, "a list of genes")
    names = list(dict.fromkeys(csv_name(name) for name in _gene_column(rows) if name))
    if not names:
        raise ConfigError(f"{path}: expected a gene id or symbol per line; the file names none")
    return names


def _gene_column(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    heads = [re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_") for cell in rows[0].cells]
    body = [list(row.cells) for row in rows[1:]]
    if _names_rows(heads, body):
        heads = ["", *heads]
    if {"included", "probe_id"} <= set(heads):
        place = heads.index("included")
        body = [cells for cells in body if _cell(cells, place).lower() != "false"]
    named = [heads.index(name) for name in (*_ID_HEADS, *_SYMBOL_HEADS) if name in heads]
    if named:  # a row without an id may have a symbol
        return [next((c for i in named if (c := _cell(cells, i))), "") for cells in body]
    if heads[0] == "" and len(heads) > 1:  # row names, of data frames
        return _first_words(body)
    body.insert(0, list(rows[0].cells))
    # pandas calls a column without a name 0.
    return _first_words(body[1:] if rows[0].cells[-1] == "0" and len(body) > 1 else body)


def _names_rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether rows have names whose column has none, as R's ``write.table`` writes them."""
    if not body or any(len(cells) != len(heads) + 1 for cells in body):
        return False
    if not {*_ID_HEADS, *_SYMBOL_HEADS}.isdisjoint(heads):
        return True
    # Unknown column names, as of a table of markers: numbers below them, and none among them.
    return len(heads) > 1 and all(map(_is_number, body[0][1:])) and not any(map(_is_number, heads))


def _first_words(body: Sequence[Sequence[str]]) -> list[str]:
    """Of each row the first value that is no number, or the first of all where there is none."""
    return [next((c for c in cells if not _is_number(c)), cells[0]) for cells in body]


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place] if place < len(cells) else ""


def _is_number(value: str) -> bool:
    return value in ("", "NA") or _NUMBER.fullmatch(value) is not None


# --- ids ------------------------------------------------------------------------------------------


def core_id(gene: str) -> str:
    """An Ensembl id without its version and the genome before it; any other id as it is.

    >>> core_id("GRCh38_ENSG00000119888.11")
    'ENSG00000119888'
    """
    found = _ENSEMBL.fullmatch(gene)
    return gene if found is None else found["id"] + (found["par"] or "")


def core_symbol(gene: str, symbol: str) -> str:
    """A symbol without the genome that its gene's id has before it as well.

    >>> core_symbol("GRCh38_ENSG00000119888", "GRCh38_EPCAM")
    'EPCAM'
    """
    found = _ENSEMBL.fullmatch(gene)
    return symbol.removeprefix(found["genome"] or "") if found else symbol


def same_ids(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two lists name the same genes in the same order, versions and genomes aside."""
    return list(map(core_id, a)) == list(map(core_id, b))


def places_by_id(ids: Sequence[str]) -> dict[str, int]:
    """Index of each gene by its id, and by its core id where that is no other gene's."""
    times = Counter(map(core_id, ids))
    places = {core: i for i, gene in enumerate(ids) if times[core := core_id(gene)] == 1}
    return places | {gene: i for i, gene in enumerate(ids)}


def place_of_id(places: Mapping[str, int], gene: str) -> int | None:
    """Index of a gene in what `places_by_id` gives: by its id as it is, else by its core id."""
    found = places.get(gene)
    return places.get(core_id(gene)) if found is None else found


def places_by_symbol(ids: Sequence[str], symbols: Sequence[str]) -> dict[str, int]:
    """Index of each gene by its core symbol, for those that have one of their own."""
    cores = [core_symbol(*gene) for gene in zip(ids, symbols, strict=True)]
    times = Counter(cores)
    return {symbol: i for i, symbol in enumerate(cores) if times[symbol] == 1}


def some(names: Iterable[str], n: int = 3) -> str:
    """The first names for a message; what cannot be seen in them is written as an escape."""
    names = list(names)
    shown = ", ".join(map(ascii, names[:n]))
    return f"{shown} and {len(names) - n} more" if len(names) > n else shown


# --- by name --------------------------------------------------------------------------------------


def find_genes(
    names: Iterable[str], ids: Sequence[str], symbols: Sequence[str], source: str
) -> Int64Array:
    """Indices of genes in a list, in the order of ``names``.

    Args:
        names: ids or symbols; an id may be with or without its version and genome.
        ids, symbols: of the list.
        source: what the list belongs to, for messages.

    Returns:
        (N,) int64, each once.

    Raises:
        ConfigError: a name is not in the list, or stands for several of its genes; or two names
            are the same gene.
    """
    return find_named(names, named_places(ids, symbols), ids, source)


def find_named(
    names: Iterable[str], by_name: Mapping[str, list[int]], ids: Sequence[str], source: str
) -> Int64Array:
    """As `find_genes`, in the table that `named_places` gives of the list."""
    found: list[int] = []
    for name in names:
        places = by_name.get(name) or by_name.get(core_id(name), [])
        if not places:
            raise ConfigError(f"{source}: has no gene {name!a}; {hint(name, by_name)}")
        if len(places) > 1:
            these = ", ".join(ids[i] for i in places)
            raise ConfigError(f"{source}: symbol {name!a} stands for {these}; give one of these")
        if places[0] in found:
            raise ConfigError(f"{source}: gene {name!a} is asked for twice; name each once")
        found.append(places[0])
    return np.array(found, np.int64)


def named_places(ids: Sequence[str], symbols: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the genes that each name stands for: an id for one, a symbol for any number."""
    by_name = {gene: [i] for gene, i in places_by_id(ids).items()}
    is_id = set(by_name)
    for i, gene in enumerate(zip(ids, symbols, strict=True)):
        for symbol in dict.fromkeys((gene[1], core_symbol(*gene))):
            if symbol not in is_id:
                by_name.setdefault(symbol, []).append(i)
    return by_name


def hint(name: str, known: Iterable[str]) -> str:
    """Names similar to one that was not found, for messages."""
    as_written = {other.upper(): other for other in known}
    close = [as_written[c] for c in difflib.get_close_matches(name.upper(), as_written)]
    return f"did you mean {', '.join(close)}?" if close else "look at its list of genes"
