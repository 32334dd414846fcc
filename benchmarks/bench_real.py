"""Measures decoders, tokens and losses on real 2 µm counts, on tiles that were not trained on.

    python benchmarks/bench_real.py TILES.npz --json real.json
    python benchmarks/bench_real.py TILES.npz --test OTHER.npz --ways ridge:stain pixels

The format of a file of tiles is described in real_tiles.py. A way is ``DECODER[:TOKENS][/mse]``:
``pixels``, ``guided:stain``, ``fusion:stain+efficientnet_lite0/mse``, or ``ridge:TOKENS``; tokens
are encoders as ``--encoder`` names them, joined by ``+``. Scores are Pearson's r between the counts
of a gene in a tile and the rates predicted from H&E alone, averaged over maps. Intervals are 95 %,
from drawing groups of touching tiles with replacement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_baselines import beyond, nuclear_density, ridge
from real_picture import draw
from real_tiles import Tiles, ceilings, folds, pcc, read_tiles
from real_training import TileTokens, encode, train_decoder
from report import Table, publish
from scipy.sparse.csgraph import connected_components

from virchow_st.errors import VirchowSTError
from virchow_st.types import SCALES_UM, Array, Float32Array, Float64Array

CNN = "efficientnet_lite0"
WAYS = (
    "ridge:stain", f"ridge:{CNN}", f"ridge:stain+{CNN}", "pixels", "guided:stain", "fusion:stain",
    f"fusion:{CNN}", f"fusion:stain+{CNN}", "fusion:stain/mse",
)  # fmt: skip
SIDES = tuple(scale // 2 for scale in SCALES_UM)
_DRAWS = 2000


def scores_of(tiles: Tiles, maps: Array, rates: Float32Array) -> Float64Array:
    """PCC (maps, 4) at 2, 4, 8 and 16 µm."""
    return np.array(
        [
            [pcc(rate, tiles.counts[m], tiles.mask[m], side) for side in SIDES]
            for m, rate in zip(maps, rates, strict=True)
        ]
    )


def partial_scores_of(
    tiles: Tiles, maps: Array, rates: Float32Array, nuclei: Float32Array
) -> Float64Array:
    """Partial correlation (maps, 4) with the counts, given what nuclear density predicts."""
    return np.array(
        [
            [beyond(rate, density, tiles.counts[m], tiles.mask[m], side) for side in SIDES]
            for m, rate, density in zip(maps, rates, nuclei, strict=True)
        ]
    )


def parse(way: str) -> tuple[str, tuple[str, ...], str]:
    """Decoder, encoders and loss of a way; ``pixels`` gets stain tokens, which it does not use.

    >>> parse("fusion:stain+efficientnet_lite0/mse")
    ('fusion', ('stain', 'efficientnet_lite0'), 'mse')
    >>> parse("pixels")
    ('pixels', ('stain',), 'poisson')
    """
    rest, _, loss = way.partition("/")
    decoder, _, encoders = rest.partition(":")
    return decoder, tuple((encoders or "stain").split("+")), loss or "poisson"


def predict(
    tiles: Tiles, way: str, tokens: TileTokens, seed: int, passes: int
) -> tuple[Array, Float32Array]:
    """Test maps of all folds and their predicted rates."""
    decoder, _, loss = parse(way)
    maps, rates = [], []
    for train, test in folds(tiles):
        test = test[np.isin(tiles.gene[test], tiles.gene[train])]
        if decoder == "nuclei":
            found = nuclear_density(tiles, train, test)
        elif decoder == "ridge":
            found, _ = ridge(tiles, tokens.tokens, train, test)
        else:
            found = train_decoder(tiles, tokens, train, test, decoder, loss, seed, passes)
        maps.append(test)
        rates.append(found)
    return np.concatenate(maps), np.concatenate(rates)


def nulls(tiles: Tiles, maps: Array, rates: Float32Array) -> dict[str, Float64Array]:
    """Scores of shuffled predictions, and of those of another tile for the same gene."""
    rng = np.random.default_rng(0)
    shuffled = rates.copy()
    for i, m in enumerate(maps):
        shuffled[i][tiles.mask[m]] = rng.permutation(rates[i][tiles.mask[m]])
    other = rates.copy()
    for i, m in enumerate(maps):
        same = np.flatnonzero(
            (tiles.gene[maps] == tiles.gene[m]) & (tiles.tile[maps] != tiles.tile[m])
        )
        other[i] = rates[same[0]] if len(same) else rates[i].mean()
    return {
        "shuffled bins": scores_of(tiles, maps, shuffled),
        "another tile's prediction": scores_of(tiles, maps, other),
    }


def measure(
    tiles: Tiles,
    ways: Sequence[str],
    seeds: Sequence[int],
    passes: int,
    weights: str,
    save: Callable[[dict[str, Any]], None],
    picture: Path | None = None,
) -> dict[str, Any]:
    """Scores per way, seed, map and scale; ``save`` receives them after every way.

    ``picture`` is drawn after every way too: of the map with the highest ceiling.
    """
    every = np.arange(len(tiles.gene))
    results: dict[str, Any] = {
        "genes": list(tiles.genes),
        "gene": tiles.gene.tolist(),
        "tile": tiles.tile.tolist(),
        "group": groups_of(tiles).tolist(),
        "passes": passes,
        "ceiling": np.array(
            [
                ceilings(
                    tiles.counts[m], tiles.mask[m], tiles.exposure[tiles.tile[m]],
                    int(tiles.clip[tiles.gene[m]]), SIDES,
                )
                for m in every
            ]
        ).tolist(),
        "ways": {},
        "beyond nuclei": {},
    }  # fmt: skip
    nuclei: Float32Array | None = None
    encoded: dict[tuple[str, ...], TileTokens] = {}
    drawn: dict[str, list[Float32Array]] = {}
    for seed in seeds:
        for way in ("nuclei", *ways):
            is_drawn = parse(way)[0] not in ("nuclei", "ridge")
            found = results["ways"].setdefault(way, {})
            if found and not is_drawn:
                continue
            names = parse(way)[1]
            if names not in encoded:
                encoded[names] = encode(tiles, names, weights)
            began = time.monotonic()
            maps, rates = predict(tiles, way, encoded[names], seed, passes)
            found[str(seed)] = by_map(tiles, maps, scores_of(tiles, maps, rates))
            if nuclei is None:  # the first way; all ways have the same maps in the same order
                nuclei = rates
            else:
                partial = partial_scores_of(tiles, maps, rates, nuclei)
                of_way = results["beyond nuclei"].setdefault(way, {})
                of_way[str(seed)] = by_map(tiles, maps, partial)
            if is_drawn:
                drawn.setdefault(way, []).append(rates)
            if "nulls" not in results and is_drawn:
                results["nulls"] = {
                    name: by_map(tiles, maps, scores)
                    for name, scores in nulls(tiles, maps, rates).items()
                }
            mean = np.nanmean(np.array(found[str(seed)], float), 0).round(4).tolist()
            print(f"seed {seed}  {way}  {mean}  {time.monotonic() - began:.0f} s", flush=True)
            save(results)
            if picture is not None:
                m = maps[int(np.argmax([results["ceiling"][m][0] for m in maps]))]
                draw(tiles, int(m), rates[np.flatnonzero(maps == m)[0]], way, picture)
    if len(seeds) > 1:  # the maps of a way are in the same order with every seed
        results["ensembles"] = {
            way: by_map(tiles, maps, scores_of(tiles, maps, np.mean(rates, axis=0)))
            for way, rates in drawn.items()
        }
        save(results)
    return results


def by_map(tiles: Tiles, maps: Array, scores: Float64Array) -> list[list[float | None]]:
    """Scores in the order of all maps; None where a map was not scored."""
    rows: list[list[float | None]] = [[None] * len(SIDES) for _ in tiles.gene]
    for m, row in zip(maps, scores.round(5).tolist(), strict=True):
        rows[m] = row
    return rows


def groups_of(tiles: Tiles) -> Array:
    """Group of touching tiles of each map, (M,)."""
    apart = np.abs(tiles.place[:, None] - tiles.place[None]).max(-1) > 1
    apart |= tiles.source[:, None] != tiles.source[None]
    return connected_components(~apart)[1][tiles.tile]


def interval(values: Float64Array, group: Array) -> tuple[float, float, float]:
    """Mean over maps (M,), and its 95 % interval over groups of maps drawn with replacement.

    >>> interval(np.array([1.0, 1.0, 1.0]), np.array([0, 0, 1]))
    (1.0, 1.0, 1.0)
    """
    kept = np.isfinite(values)
    values, group = values[kept], np.unique(group[kept], return_inverse=True)[1]
    total, n = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(0).integers(len(n), size=(_DRAWS, len(n)))
    low, high = np.percentile(total[drawn].sum(1) / n[drawn].sum(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def tables(results: dict[str, Any]) -> list[Table]:
    """Means with intervals, what is beyond nuclear density, and paired differences.

    Differences are those to ``pixels`` and between the losses.
    """
    group = np.array(results["group"])
    rows: list[tuple[str, Float64Array]] = [("ceiling", np.array(results["ceiling"]))]
    rows += [(name, np.array(x, float)) for name, x in results.get("nulls", {}).items()]
    of_way = {
        way: np.array(list(seeds.values()), float).mean(0) for way, seeds in results["ways"].items()
    }
    rows += of_way.items()
    rows += [
        (f"{way}, mean of the seeds' rates", np.array(x, float))
        for way, x in results.get("ensembles", {}).items()
    ]
    heads = [f"PCC {scale} µm" for scale in SCALES_UM]
    first = [[name, *(_cell(x[:, s], group) for s in range(len(SIDES)))] for name, x in rows]
    n_seeds = max(len(seeds) for seeds in results["ways"].values())
    notes = [
        f"{len(group)} maps of {len(results['genes'])} genes in {len(set(results['tile']))} tiles; "
        f"{n_seeds} seeds, averaged; {results['passes']} passes over the training tiles."
    ]
    pairs = [(way, "pixels") for way in of_way if way != "pixels" and "pixels" in of_way]
    pairs += [(w.removesuffix("/mse"), w) for w in of_way if w.endswith("/mse")]
    second = [
        [f"{a} − {b}", *(_cell((of_way[a] - of_way[b])[:, s], group) for s in range(len(SIDES)))]
        for a, b in pairs
        if a in of_way
    ]
    made = [Table("Real counts, tiles left out", ["", *heads], first, notes)]
    third = [
        [way, *(_cell(scores[:, s], group) for s in range(len(SIDES)))]
        for way, seeds in results["beyond nuclei"].items()
        for scores in [np.array(list(seeds.values()), float).mean(0)]
    ]
    if third:
        title = "Partial correlation given nuclear density"
        made.append(Table(title, ["", *(f"{scale} µm" for scale in SCALES_UM)], third))
    return [*made, Table("Paired differences", ["", *heads], second)] if second else made


def _cell(values: Float64Array, group: Array) -> str:
    mean, low, high = interval(values, group)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--test", type=Path, help="tiles to test on, instead of folds by place")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--weights", default="", help="weights of the encoder other than stain")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a picture of one tile, by the last way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def save(results: dict[str, Any]) -> None:
        if arguments.json:
            beside = arguments.json.with_suffix(".scores.json")
            beside.write_text(json.dumps(results) + "\n", "utf-8")

    try:
        tiles = read_tiles([arguments.tiles, *([arguments.test] if arguments.test else [])])
        results = measure(
            tiles, arguments.ways, arguments.seeds, arguments.passes, arguments.weights, save,
            arguments.picture,
        )  # fmt: skip
    except VirchowSTError as e:
        sys.exit(str(e))
    publish("real", tables(results), arguments.json, ("torch", "timm"))


if __name__ == "__main__":
    main()
