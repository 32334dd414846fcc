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
from virchow_st.types import Float64Array, Int64Array

if TYPE_CHECKING:
    from virchow_st.store.reader import Genes, Store

# Releases of an annotation rename a few per cent of the symbols. If more than this share of the
# shared ids have different symbols, the ids do not identify genes.
_MOST_RENAMED = 0.1
# Two slides of one annotation share most of their genes. If the shared ids are fewer than this
# share of the shared symbols, the two use different kinds of ids.
_LEAST_BY_ID = 0.5


@dataclass(frozen=True)
class Panel:
    """Ids and symbols of the genes of a run, in the order of a decoder's output.

    Attributes:
        ids, symbols: gene ids and symbols, as the first training store has them.
        key: how genes are found in other stores: by ``"id"``, or by ``"symbol"`` where the ids of
            the run's slides do not tell which genes are the same.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    key: str = "id"

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, store: Store) -> Int64Array:
        """Indices of the panel's genes in a store, (G,); raises `ConfigError` if one is missing."""
        genes = store.genes
        if self.key == "id":
            places = places_by_id(genes.ids)
            found = [place_of_id(places, gene) for gene in self.ids]
        else:
            places = places_by_symbol(genes.ids, genes.symbols)
            wanted = zip(self.ids, self.symbols, strict=True)
            found = [places.get(core_symbol(*gene)) for gene in wanted]
        if missing := [i for i, place in enumerate(found) if place is None]:
            names = self.ids if self.key == "id" else self.symbols
            theirs = genes.ids if self.key == "id" else genes.symbols
            raise ConfigError(
                f"{store.path}: has no counts of {len(missing)} of {len(self)} panel genes, "
                f"{some(names[i] for i in missing)}; its genes are {some(theirs)}; choose a panel "
                f"of genes that every slide measured"
            )
        return np.array(found, np.int64)

    def of(self, ids: Sequence[str]) -> Panel:
        """The panel's genes of these ids, in this order."""
        symbol_of = dict(zip(self.ids, self.symbols, strict=True))
        return Panel(*_columns(ids, symbol_of), self.key)

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, one by one."""
        return tuple(map(Gene, self.ids, self.symbols))

    @property
    def labels(self) -> list[str]:
        """What each gene is called, see `gene_labels`."""
        return list(gene_labels(self.genes).values())

    def index(self, gene: str) -> int:
        """Index of a gene in the panel, by symbol or id; raises `ConfigError` if it is missing."""
        return int(find_genes([gene], self.ids, self.symbols, "panel")[0])

    def write(self, path: Path) -> None:
        """Write as a table of gene_id, symbol and key, tab-separated."""
        with open(path, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, delimiter="\t", lineterminator="\n")
            rows.writerow(_COLUMNS)
            rows.writerows((*gene, self.key) for gene in zip(self.ids, self.symbols, strict=True))

    @classmethod
    def read(cls, path: Path) -> Panel:
        """Read what `write` wrote; raises `ConfigError` for anything else."""
        columns = dict.fromkeys(_COLUMNS, str)
        rows = read_table(path, columns, "train anew", delimiter="\t", also=_check_rows)
        ids, symbols, keys = zip(*(row.values() for row in rows), strict=True)
        return cls(ids, symbols, keys[0])


@dataclass(frozen=True)
class Gene:
    """A gene of the panel; the id is unique, the symbol need not be."""

    id: str
    symbol: str


def find_in(panel: Sequence[Gene], names: Iterable[str], source: str) -> list[Gene]:
    """The genes of these symbols or ids, in this order; see `find_genes`."""
    ids, symbols = [gene.id for gene in panel], [gene.symbol for gene in panel]
    return [panel[i] for i in find_genes(names, ids, symbols, source)]


def gene_labels(panel: Sequence[Gene]) -> dict[str, str]:
    """What each gene is called, by id: its symbol; with the id where several have that symbol.

    The id alone where there is no symbol. No two genes have one label.
    """
    times = Counter(gene.symbol for gene in panel)
    found = {}
    for gene in panel:
        if not gene.symbol:
            found[gene.id] = gene.id
        else:
            found[gene.id] = f"{gene.symbol} ({gene.id})" if times[gene.symbol] > 1 else gene.symbol
    return found


def _check_rows(rows: Any) -> None:
    if not rows:
        raise MismatchError("holds no gene")
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
) -> Panel:
    """Panel from ``top50``, ``top:N``, or a file that lists gene ids or symbols.

    The top genes are those whose counts per 2 µm tissue bin vary most (variance) over the
    training stores. Only genes that every store lists can be chosen; of ``others`` (the test
    patient's) nothing but that list is read. Genes are the same where their ids are, with or
    without version and genome. Where ids contradict the symbols, or hardly any are shared, unique
    symbols count, and `progress` gets a warning.

    Args:
        spec: as ``--panel``.
        train: stores of the training patients; the panel has the ids and symbols of the first.
        others: further stores that have to list the panel's genes.
        progress: receives the warning.

    Raises:
        ConfigError: a spec that is none of these, too few or too many genes, stores without a gene
            in common, a missing or ambiguous gene.
    """
    common = common_genes(train, others, progress)
    if spec == "top50" or spec.startswith("top:"):
        ids = _most_variable(_size(spec), train, common)
    else:
        ids = _named_genes(Path(spec), common)
    if len(ids) > MAX_PANEL:
        raise ConfigError(f"panel: expected at most {MAX_PANEL} genes; got {len(ids)}")
    return common.of(ids)


def common_genes(
    train: Sequence[Store], others: Sequence[Store] = (), progress: Progress = SILENT
) -> Panel:
    """All genes that every store lists, in the order of their ids; see `choose_panel`."""
    stores = [*train, *others]
    key = _matching_key(stores, progress)
    symbol_of = dict(zip(train[0].genes.ids, train[0].genes.symbols, strict=True))
    common = set(symbol_of)
    for store in stores[1:]:
        common &= _shared(train[0].genes, store.genes, key)
    return Panel(*_columns(sorted(common), symbol_of), key)


def _columns(
    ids: Sequence[str], symbol_of: dict[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(ids), tuple(symbol_of[gene] for gene in ids)


def _shared(first: Genes, other: Genes, key: str) -> set[str]:
    """Ids of the genes in ``first`` that ``other`` lists too."""
    if key == "symbol":
        theirs = places_by_symbol(other.ids, other.symbols)
        ours = places_by_symbol(first.ids, first.symbols)
        return {first.ids[i] for symbol, i in ours.items() if symbol in theirs}
    theirs, own = places_by_id(other.ids), places_by_id(first.ids)
    shared = {gene for gene in first.ids if gene in theirs}
    for i, gene in enumerate(first.ids):  # by its core id only where that is no other gene's
        if own.get(core_id(gene)) == i and place_of_id(theirs, gene) is not None:
            shared.add(gene)
    return shared


def _matching_key(stores: Sequence[Store], progress: Progress) -> str:
    """``"id"``, or ``"symbol"`` where ids are no guide to which genes are the same.

    Raises:
        ConfigError: two stores share neither an id nor a unique symbol.
    """
    first = stores[0]
    key = "id"
    for store in stores[1:]:
        by_id = _shared(first.genes, store.genes, "id")
        by_symbol = _shared(first.genes, store.genes, "symbol")
        if not by_id and not by_symbol:
            raise ConfigError(
                f"{store.path}: has no gene in common with {first.path}, by id or by symbol: "
                f"{_examples(store.genes)} here, {_examples(first.genes)} there; give slides of "
                f"one species, counted with the same annotation"
            )
        if key == "symbol":
            continue
        if reason := _ids_mislead(first, store, by_id, by_symbol):
            progress.warn(f"{reason}; genes are matched by symbol")
            key = "symbol"
    return key


def _ids_mislead(first: Store, store: Store, by_id: set[str], by_symbol: set[str]) -> str:
    """Why the ids of two stores do not tell which genes are the same; empty where they do."""
    if len(by_id) < _LEAST_BY_ID * len(by_symbol):
        return (
            f"{first.path} and {store.path} share {len(by_id)} gene ids and {len(by_symbol)} "
            f"symbols ({_examples(first.genes)} there, {_examples(store.genes)} here)"
        )
    places = places_by_id(store.genes.ids)
    renamed = []
    for gene, symbol in zip(first.genes.ids, first.genes.symbols, strict=True):
        if gene in by_id:
            place = place_of_id(places, gene)
            assert place is not None
            other = store.genes.ids[place], store.genes.symbols[place]
            if core_symbol(gene, symbol) != core_symbol(*other):
                renamed.append((gene, symbol, other[1]))
    if len(renamed) > _MOST_RENAMED * len(by_id):
        gene, before, after = renamed[0]
        return (
            f"{len(renamed)} of {len(by_id)} gene ids name different genes in {first.path} "
            f"and {store.path} ({gene} is {before} and {after})"
        )
    return ""


def _examples(genes: Genes) -> str:
    pairs = zip(genes.ids[:3], genes.symbols[:3], strict=True)
    return ", ".join(f"{gene!a} ({symbol!a})" for gene, symbol in pairs)


def _size(spec: str) -> int:
    size = spec.removeprefix("top").removeprefix(":")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"panel: expected top50, top:N or a file; got {spec!r}")
    return int(size)


def _most_variable(size: int, train: Sequence[Store], candidates: Panel) -> tuple[str, ...]:
    variance = _variance(train, candidates)
    order = np.argsort(-variance, kind="stable")
    detected = [candidates.ids[i] for i in order if variance[i] > 0]
    if len(detected) < size:
        raise ConfigError(
            f"panel: expected at least {size} genes with counts in every store, among the "
            f"{len(candidates)} that all stores list; got {len(detected)}; ask for fewer with "
            f"--panel top:N"
        )
    return tuple(detected[:size])


def _variance(stores: Sequence[Store], candidates: Panel) -> Float64Array:
    """Variance of each candidate's counts per 2 µm tissue bin, over all patches, (G,)."""
    sums: Float64Array = np.zeros((2, len(candidates)))
    n_bins = 0
    for store in stores:
        to_candidate = np.full(len(store.genes), -1)
        to_candidate[candidates.indices(store)] = np.arange(len(candidates))
        for patch in store:
            stored = patch.sparse_counts
            gene = np.repeat(to_candidate[stored.genes], np.diff(stored.indptr))
            counts = stored.counts[gene >= 0].astype(np.float64)
            gene = gene[gene >= 0]
            sums[0] += np.bincount(gene, counts, len(candidates))
            sums[1] += np.bincount(gene, counts**2, len(candidates))
            n_bins += int(patch.tissue_mask.sum())
    mean, mean_square = sums / max(n_bins, 1)
    return mean_square - mean**2


def _named_genes(path: Path, common: Panel) -> tuple[str, ...]:
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
            remedy = f"take out what is no gene or give its id; {hint(missing[0], places)}"
        raise ConfigError(
            f"{path}: {len(missing)} of {len(names)} genes are not in every store: "
            f"{some(missing)}; {remedy}"
        )
    for name, those in found.items():
        if len(those) > 1:
            raise ConfigError(
                f"{path}: symbol {name!a} stands for {', '.join(ids[i] for i in those)}; give "
                f"the gene id"
            )
    # A gene that comes by its id and by its symbol is one gene.
    return tuple(dict.fromkeys(ids[those[0]] for those in found.values()))
