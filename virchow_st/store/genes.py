"""Finds genes by symbol or id, reads lists of gene names, and matches gene ids between stores."""

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

# Headings of gene columns, in lower case and with "_" for every other character.
_ID_HEADS = ("gene_id", "gene_ids", "ensembl_gene_id", "ensembl_id", "ensembl", "feature_id", "id")
_SYMBOL_HEADS = (
    "symbol", "gene", "genes", "gene_symbol", "gene_name", "gene_names", "hgnc_symbol",
    "feature_name", "feature", "name", "x", "v1",
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_LIST_FILES = (".txt", ".csv", ".tsv", ".list", ".grp")

# GRCh38_ENSG00000119888.11: the genome, which 10x adds for references of several genomes; the id;
# its version; and GENCODE's suffix for a gene's copy on Y in the pseudo-autosomal region.
_ENSEMBL = re.compile(r"(?P<genome>[\w.-]*?[_:|-]+)?(?P<id>ENS[A-Z]*G\d+)(\.\d+)?(?P<par>_PAR_Y)?")


def split_names(text: str) -> list[str]:
    """Gene names given as the value of an option: separated by commas, or as a file of names.

    Args:
        text: symbols or ids separated by commas, or the path of a file for `names_in_file`.

    Raises:
        ConfigError: the value holds no name, or the file cannot be read.

    Example:
        >>> split_names("EPCAM, PIGR")
        ['EPCAM', 'PIGR']
    """
    path = Path(text)
    if "," not in text and (path.is_file() or path.suffix.lower() in _LIST_FILES):
        return names_in_file(path)
    names = [name for part in text.split(",") if (name := strip(part))]
    if not names:
        raise ConfigError(
            f"genes: expected symbols or ids separated by commas, or a file; got {text!r}"
        )
    return names


def names_in_file(path: Path) -> list[str]:
    """Gene ids or symbols listed in a file, in its order and without repetitions.

    If the file has column names, the names are taken from the column of gene ids, or else of
    symbols, or else from the row names. If it has none, they are the first value of each line that
    is not a number, so that row numbers are skipped. In a probe set of 10x Genomics, probes that
    are not ``included`` are left out. A leading ``'`` that protects a value from being computed by
    a spreadsheet is removed.

    Args:
        path: text separated by commas, semicolons or tabs, or with one name per line.

    Raises:
        ConfigError: the file cannot be read, or lists no names.
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
    if named:  # the symbol is used in a row without an id
        return [next((c for i in named if (c := _cell(cells, i))), "") for cells in body]
    if heads[0] == "" and len(heads) > 1:  # row names, of data frames
        return _first_words(body)
    body.insert(0, list(rows[0].cells))
    # pandas writes 0 as the heading of a column without a name.
    return _first_words(body[1:] if rows[0].cells[-1] == "0" and len(body) > 1 else body)


def _names_rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether there is a column of row names without a heading, as R's ``write.table`` writes."""
    if not body or any(len(cells) != len(heads) + 1 for cells in body):
        return False
    if not {*_ID_HEADS, *_SYMBOL_HEADS}.isdisjoint(heads):
        return True
    # Unknown headings, such as those of a table of marker genes: no numbers, but numbers below.
    return len(heads) > 1 and all(map(_is_number, body[0][1:])) and not any(map(_is_number, heads))


def _first_words(body: Sequence[Sequence[str]]) -> list[str]:
    """The first value of each row that is not a number, or its first value if all are numbers."""
    return [next((c for c in cells if not _is_number(c)), cells[0]) for cells in body]


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place] if place < len(cells) else ""


def _is_number(value: str) -> bool:
    return value in ("", "NA") or _NUMBER.fullmatch(value) is not None


# --- ids ------------------------------------------------------------------------------------------


def core_id(gene: str) -> str:
    """An Ensembl id without version and genome prefix; any other id unchanged.

    Example:
        >>> core_id("GRCh38_ENSG00000119888.11")
        'ENSG00000119888'
    """
    found = _ENSEMBL.fullmatch(gene)
    return gene if found is None else found["id"] + (found["par"] or "")


def core_symbol(gene: str, symbol: str) -> str:
    """A symbol without the genome prefix, if the gene's id has the same prefix.

    Example:
        >>> core_symbol("GRCh38_ENSG00000119888", "GRCh38_EPCAM")
        'EPCAM'
    """
    found = _ENSEMBL.fullmatch(gene)
    return symbol.removeprefix(found["genome"] or "") if found else symbol


def same_ids(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether two lists hold the same core ids in the same order.

    Example:
        >>> same_ids(["ENSG00000119888.11"], ["ENSG00000119888"])
        True
    """
    return list(map(core_id, a)) == list(map(core_id, b))


def places_by_id(ids: Sequence[str]) -> dict[str, int]:
    """Gene id → index; also core id → index for core ids that belong to a single gene."""
    times = Counter(map(core_id, ids))
    places = {core: i for i, gene in enumerate(ids) if times[core := core_id(gene)] == 1}
    return places | {gene: i for i, gene in enumerate(ids)}


def place_of_id(places: Mapping[str, int], gene: str) -> int | None:
    """Index of a gene in the result of `places_by_id`, by its id or else its core id, or None."""
    found = places.get(gene)
    return places.get(core_id(gene)) if found is None else found


def places_by_symbol(ids: Sequence[str], symbols: Sequence[str]) -> dict[str, int]:
    """Core symbol → index, for symbols that belong to a single gene."""
    cores = [core_symbol(*gene) for gene in zip(ids, symbols, strict=True)]
    times = Counter(cores)
    return {symbol: i for i, symbol in enumerate(cores) if times[symbol] == 1}


def some(names: Iterable[str], n: int = 3) -> str:
    """The first names of a list, for a message; invisible characters are written as escapes.

    Example:
        >>> some(["EPCAM", "PIGR", "CD3E", "CD8A", "MS4A1"])
        "'EPCAM', 'PIGR', 'CD3E' and 2 more"
    """
    names = list(names)
    shown = ", ".join(map(ascii, names[:n]))
    return f"{shown} and {len(names) - n} more" if len(names) > n else shown


# --- by name --------------------------------------------------------------------------------------


def find_genes(
    names: Iterable[str], ids: Sequence[str], symbols: Sequence[str], source: str
) -> Int64Array:
    """Find genes by name in a list of genes.

    Args:
        names: ids (with or without version and genome prefix) or symbols.
        ids, symbols: ids and symbols of the genes in the list.
        source: what the list belongs to, for messages.

    Returns:
        (N,) int64 indices in the order of ``names``, each once.

    Raises:
        ConfigError: a name is not in the list, a symbol belongs to several genes, or two names
            belong to the same gene.

    Example:
        >>> find_genes(["PIGR"], ["ENSG00000119888", "ENSG00000162896"], ["EPCAM", "PIGR"], "panel")
        array([1])
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
            raise ConfigError(f"{source}: symbol {name!a} belongs to {these}; give one of these")
        if places[0] in found:
            raise ConfigError(f"{source}: gene {name!a} is given twice; give each gene once")
        found.append(places[0])
    return np.array(found, np.int64)


def named_places(ids: Sequence[str], symbols: Sequence[str]) -> dict[str, list[int]]:
    """Name → indices of its genes: an id belongs to one gene, a symbol to one or more."""
    by_name = {gene: [i] for gene, i in places_by_id(ids).items()}
    is_id = set(by_name)
    for i, gene in enumerate(zip(ids, symbols, strict=True)):
        for symbol in dict.fromkeys((gene[1], core_symbol(*gene))):
            if symbol not in is_id:
                by_name.setdefault(symbol, []).append(i)
    return by_name


def hint(name: str, known: Iterable[str]) -> str:
    """Advice for a name that was not found: similar names, if there are any."""
    as_written = {other.upper(): other for other in known}
    close = [as_written[c] for c in difflib.get_close_matches(name.upper(), as_written)]
    return f"did you mean {', '.join(close)}?" if close else "check the spelling in its gene list"
