"""Which genes of different stores are the same: by id, or by symbol if ids mislead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import Progress
from virchow_st.store.genes import (
    core_id,
    core_symbol,
    place_of_id,
    places_by_id,
    places_by_symbol,
)

if TYPE_CHECKING:
    from virchow_st.store.reader import Genes, Store

# Releases of an annotation rename a few per cent of the symbols. If more than this share of the
# shared ids have different symbols, the ids do not identify genes.
_MOST_RENAMED = 0.1
# Two slides of one annotation share most of their genes. If the shared ids are fewer than this
# share of the shared symbols, the two use different kinds of ids.
_LEAST_BY_ID = 0.5


def shared_ids(first: Genes, other: Genes, key: str) -> set[str]:
    """Ids of the genes in ``first`` that ``other`` lists as well."""
    if key == "symbol":
        theirs = places_by_symbol(other.ids, other.symbols)
        ours = places_by_symbol(first.ids, first.symbols)
        return {first.ids[i] for symbol, i in ours.items() if symbol in theirs}
    theirs, own = places_by_id(other.ids), places_by_id(first.ids)
    shared = {gene for gene in first.ids if gene in theirs}
    for i, gene in enumerate(first.ids):  # by core id, if it belongs to this gene only
        if own.get(core_id(gene)) == i and place_of_id(theirs, gene) is not None:
            shared.add(gene)
    return shared


def matching_key(stores: Sequence[Store], progress: Progress) -> str:
    """``"id"``, or ``"symbol"`` if ids do not identify the same genes in different stores.

    Raises:
        ConfigError: two stores share neither an id nor a unique symbol.
    """
    first = stores[0]
    key = "id"
    for store in stores[1:]:
        by_id = shared_ids(first.genes, store.genes, "id")
        by_symbol = shared_ids(first.genes, store.genes, "symbol")
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
    """The reason why ids do not identify the same genes in two stores; empty if they do."""
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
