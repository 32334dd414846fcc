"""The panel: the fixed, ordered list of genes that a run predicts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.names import csv_name, csv_text
from virchow_st.run.matching import matching_key, shared_ids
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import MismatchError, read_table
from virchow_st.store.format import MAX_PANEL
from virchow_st.store.genes import (
    core_id,
    core_symbol,
    find_genes,
    hint,
    named_places,
    names_in_file,
    place_of_id,
    places_by_id,
    places_by_symbol,
    some,
)
from virchow_st.types import BoolArray, Float64Array, Int64Array

if TYPE_CHECKING:
    from virchow_st.store.reader import Genes, Store

ABSENT = -1
"""Index, in a store, of a gene that the store does not list."""


@dataclass(frozen=True)
class Panel:
    """Ids and symbols of the genes of a run, in the order of a decoder's output.

    Attributes:
        ids, symbols: gene ids and symbols, as in the first training store that lists the gene.
        key: how genes are found in other stores: by ``"id"``, or by ``"symbol"`` if the ids of
            the run's slides do not identify the same genes.

    Example:
        >>> panel = Panel(ids=("ENSG00000119888", "ENSG00000162896"), symbols=("EPCAM", "PIGR"))
        >>> panel.index("PIGR")
        1
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    key: str = "id"

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, store: Store) -> Int64Array:
        """Indices of the panel's genes in a store, (G,) int64.

        Raises:
            ConfigError: the store lacks a gene of the panel.
        """
        found = self.places(store)
        if len(missing := np.flatnonzero(found == ABSENT)):
            names = self.ids if self.key == "id" else self.symbols
            theirs = store.genes.ids if self.key == "id" else store.genes.symbols
            raise ConfigError(
                f"{store.path}: lacks {len(missing)} of {len(self)} panel genes, "
                f"{some(names[i] for i in missing)}; its genes are {some(theirs)}; choose a panel "
                f"of genes that were measured on every slide"
            )
        return found

    def places(self, store: Store) -> Int64Array:
        """Indices of the panel's genes in a store, (G,) int64; `ABSENT` where it lists none.

        A gene that a store does not list was not measured on its slide, which says nothing about
        its UMIs: its counts are unknown there and not 0.
        """
        genes = store.genes
        if self.key == "id":
            places = places_by_id(genes.ids)
            found = [place_of_id(places, gene) for gene in self.ids]
        else:
            places = places_by_symbol(genes.ids, genes.symbols)
            wanted = zip(self.ids, self.symbols, strict=True)
            found = [places.get(core_symbol(*gene)) for gene in wanted]
        return np.array([ABSENT if place is None else place for place in found], np.int64)

    def measured(self, stores: Sequence[Store]) -> BoolArray:
        """Whether each store lists each gene of the panel, (len(stores), G)."""
        return np.stack([self.places(store) != ABSENT for store in stores])

    def measured_everywhere(self, stores: Sequence[Store]) -> BoolArray:
        """(G,) bool, whether all of the stores list a gene of the panel."""
        return np.asarray(self.measured(stores).all(axis=0))

    def of(self, ids: Sequence[str]) -> Panel:
        """The panel's genes of these ids, in this order."""
        symbol_of = dict(zip(self.ids, self.symbols, strict=True))
        return Panel(*_columns(ids, symbol_of), self.key)

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes of the panel, in its order."""
        return tuple(map(Gene, self.ids, self.symbols))

    @property
    def labels(self) -> list[str]:
        """A unique label for each gene, see `gene_labels`."""
        return list(gene_labels(self.genes).values())

    def index(self, gene: str) -> int:
        """Index in the panel of a gene given by symbol or id.

        Raises:
            ConfigError: the panel has no such gene, or the symbol belongs to several genes.
        """
        return int(find_genes([gene], self.ids, self.symbols, "panel")[0])

    def write(self, path: Path) -> None:
        """Write the panel as a tab-separated table with the columns gene_id, symbol, matched_by.

        A ``'`` is put before names that a spreadsheet would compute, see `csv_text`.
        """
        with open(path, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, delimiter="\t", lineterminator="\n")
            rows.writerow(_COLUMNS)
            for gene in zip(self.ids, self.symbols, strict=True):
                rows.writerow([*map(csv_text, gene), self.key])

    @classmethod
    def read(cls, path: Path) -> Panel:
        """Read a table written by `write`.

        Raises:
            ConfigError: the file is missing or is not such a table.
        """
        columns = dict.fromkeys(_COLUMNS, csv_name)
        rows = read_table(path, columns, "train again", delimiter="\t", also=_check_rows)
        ids, symbols, keys = zip(*(row.values() for row in rows), strict=True)
        return cls(ids, symbols, keys[0])


@dataclass(frozen=True)
class Gene:
    """A gene of the panel; the id is unique, the symbol need not be."""

    id: str
    symbol: str


def find_in(panel: Sequence[Gene], names: Iterable[str], source: str) -> list[Gene]:
    """Find genes of a panel by symbol or id.

    Args:
        panel: the genes to choose from.
        names: symbols or ids.
        source: what the panel belongs to, for messages.

    Returns:
        The genes, in the order of ``names``.

    Raises:
        ConfigError: as for `find_genes`.
    """
    ids, symbols = [gene.id for gene in panel], [gene.symbol for gene in panel]
    return [panel[i] for i in find_genes(names, ids, symbols, source)]


def gene_labels(panel: Sequence[Gene]) -> dict[str, str]:
    """A unique label for each gene.

    The label is the symbol, followed by the id if several genes have that symbol, or the id alone
    if there is no symbol.

    Returns:
        Gene id → label.

    Example:
        >>> gene_labels([Gene("E1", "TBCE"), Gene("E2", "TBCE"), Gene("E3", "PIGR")])
        {'E1': 'TBCE (E1)', 'E2': 'TBCE (E2)', 'E3': 'PIGR'}
    """
    times = Counter(gene.symbol for gene in panel)
    found = {}
    for gene in panel:
        if not gene.symbol:
            found[gene.id] = gene.id
        else:
            found[gene.id] = f"{gene.symbol} ({gene.id})" if times[gene.symbol] > 1 else gene.symbol
    # A symbol may look like what was made of another gene; ids are unique, and end every label.
    while len(alike := _repeated(found)) > 0:
        found |= {gene: f"{label} ({gene})" for gene, label in alike.items()}
    return found


def _repeated(labels: dict[str, str]) -> dict[str, str]:
    times = Counter(labels.values())
    return {gene: label for gene, label in labels.items() if times[label] > 1}


def _check_rows(rows: Any) -> None:
    if not rows:
        raise MismatchError("expected at least one gene")
    if len({row["gene_id"] for row in rows}) < len(rows):
        raise MismatchError("gene_id: expected every gene once")
    if len({row["matched_by"] for row in rows}) > 1 or rows[0]["matched_by"] not in _KEYS:
        raise MismatchError(f"matched_by: expected one of {', '.join(_KEYS)} in every line")


_KEYS = ("id", "symbol")
_COLUMNS = ["gene_id", "symbol", "matched_by"]


def choose_panel(
    spec: str,
    train: Sequence[Store],
    others: Sequence[Store] = (),
    progress: Progress = SILENT,
    genes_in: str = "all",
) -> Panel:
    """Choose a panel: the most variable genes (``top50``, ``top:N``), or those listed in a file.

    The most variable genes are those with the largest variance of counts per 2 µm tissue bin over
    the training stores that list them. Only `candidate_genes` can be chosen; nothing but the list
    of genes is read from ``others``, which include the test patient's stores.

    Args:
        spec: value of ``--panel``: ``top50``, ``top:N``, or the path of a list of ids or symbols.
        train: stores of the training patients.
        others: further stores.
        progress: receives warnings of `candidate_genes`.
        genes_in: see `candidate_genes`.

    Raises:
        ConfigError: the value is none of these, there are too few or too many genes, stores have no
            gene in common, or a gene is missing or ambiguous.

    Example:
        >>> panel = choose_panel("top:200", [open_store("P1.vst")])  # doctest: +SKIP
    """
    candidates = candidate_genes(train, others, progress, genes_in)
    listed = "all stores list" if genes_in == "all" else "training stores list"
    if spec == "top50" or spec.startswith("top:"):
        ids = _most_variable(_size(spec), train, candidates, listed)
    else:
        ids = _named_genes(Path(spec), candidates, genes_in)
    if len(ids) > MAX_PANEL:
        raise ConfigError(f"panel: expected at most {MAX_PANEL} genes; got {len(ids)}")
    return candidates.of(ids)


def candidate_genes(
    train: Sequence[Store],
    others: Sequence[Store] = (),
    progress: Progress = SILENT,
    genes_in: str = "all",
) -> Panel:
    """All genes that a run could predict, in the order of their ids.

    Genes of different stores are the same if their ids are equal, regardless of version and genome
    prefix. If ids contradict the symbols, or few ids are shared, genes are matched by unique
    symbols instead, with a warning; then, whatever ``genes_in`` says, only genes that every store
    lists are taken, since an id does not say which gene it is.

    Args:
        train: stores of the training patients.
        others: further stores, such as the test patient's.
        progress: receives the warning.
        genes_in: ``"all"`` for genes that every store lists; ``"any"`` for those that at least one
            training store with patches lists.

    Raises:
        ConfigError: two stores have no gene in common.
    """
    stores = [*train, *others]
    key = matching_key(stores, progress)
    first = train[0].genes
    symbol_of = dict(zip(first.ids, first.symbols, strict=True))
    found = set(symbol_of)
    for store in stores[1:]:
        found &= shared_ids(first, store.genes, key)
    if genes_in == "any" and key == "id":
        symbol_of, found = _union([s.genes for s in train if len(s)], symbol_of, found)
    return Panel(*_columns(sorted(found), symbol_of), key)


def shared_places(stores: Sequence[Store]) -> list[Int64Array] | None:
    """Indices, in each store, of the genes that all of them list; None if all list the same."""
    common = candidate_genes(stores)
    if all(len(store.genes) == len(common) for store in stores):
        return None
    return [common.indices(store) for store in stores]


def _union(
    lists: Sequence[Genes], symbol_of: dict[str, str], common: set[str]
) -> tuple[dict[str, str], set[str]]:
    """Symbol of every gene that any list has, by id, and the ids to take.

    A gene that several lists have under ids of different versions is taken under the first. Where
    several genes share one id but for the version, none of them is, unless all stores have it.
    """
    union: dict[str, str] = {}
    for genes in lists:
        known = places_by_id(tuple(union))
        for gene, symbol in zip(genes.ids, genes.symbols, strict=True):
            if place_of_id(known, gene) is None:
                union[gene] = symbol
    times = Counter(map(core_id, union))
    found = common | {gene for gene in union if times[core_id(gene)] == 1}
    return symbol_of | union, found


def _columns(
    ids: Sequence[str], symbol_of: dict[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(ids), tuple(symbol_of[gene] for gene in ids)


def _size(spec: str) -> int:
    size = spec.removeprefix("top").removeprefix(":")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"panel: expected top50, top:N or a file; got {spec!r}")
    return int(size)


def _most_variable(
    size: int, train: Sequence[Store], candidates: Panel, listed: str
) -> tuple[str, ...]:
    variance = _variance(train, candidates)
    order = np.argsort(-variance, kind="stable")
    detected = [candidates.ids[i] for i in order if variance[i] > 0]
    if len(detected) < size:
        raise ConfigError(
            f"panel: expected at least {size} genes with counts, among the {len(candidates)} that "
            f"{listed}; got {len(detected)}; give a smaller number with --panel top:N"
        )
    return tuple(detected[:size])


def _variance(stores: Sequence[Store], candidates: Panel) -> Float64Array:
    """Variance of each candidate's counts per 2 µm tissue bin, over patches that have it, (G,)."""
    sums: Float64Array = np.zeros((2, len(candidates)))
    n_bins = np.zeros(len(candidates), np.int64)
    for store in stores:
        places = candidates.places(store)
        measured = places != ABSENT
        to_candidate = np.full(len(store.genes), -1)
        to_candidate[places[measured]] = np.flatnonzero(measured)
        for patch in store:
            stored = patch.sparse_counts
            gene = np.repeat(to_candidate[stored.genes], np.diff(stored.indptr))
            counts = stored.counts[gene >= 0].astype(np.float64)
            gene = gene[gene >= 0]
            sums[0] += np.bincount(gene, counts, len(candidates))
            sums[1] += np.bincount(gene, counts**2, len(candidates))
            n_bins += measured * int(patch.tissue_mask.sum())
    mean, mean_square = sums / np.maximum(n_bins, 1)
    return mean_square - mean**2


def _named_genes(path: Path, common: Panel, genes_in: str) -> tuple[str, ...]:
    if not path.is_file():
        raise ConfigError(f"panel: expected top50, top:N or a readable file; got {path}")
    names = names_in_file(path)
    ids, symbols = common.ids, common.symbols
    places = named_places(ids, symbols)
    found = {name: places.get(name) or places.get(core_id(name), []) for name in names}
    if missing := [name for name, those in found.items() if not those]:
        if len(missing) == len(names):
            remedy = f"genes of the stores are {some(ids)} or {some(symbols)}"
        else:
            remedy = f"remove it or give the gene's id; {hint(missing[0], places)}"
        raise ConfigError(
            f"{path}: {len(missing)} of {len(names)} genes are not in "
            f"{'every store' if genes_in == 'all' else 'any training store'}: {some(missing)}; "
            f"{remedy}"
        )
    for name, those in found.items():
        if len(those) > 1:
            raise ConfigError(
                f"{path}: symbol {name!a} belongs to {', '.join(ids[i] for i in those)}; give "
                f"the gene id"
            )
    # A gene listed both by id and by symbol occurs once in the panel.
    return tuple(dict.fromkeys(ids[those[0]] for those in found.values()))
