"""Finds out where Poisson and squared error differ on real counts, with regressions on tokens.

    python benchmarks/real_losses.py TILES.npz --json real_losses.json

The same linear predictor, the 64 main components of the training tiles' stain tokens, is fitted to
the counts of 16 µm tokens in three ways: squared error of a linear rate (``mse``), squared error of
an exponential rate, and Poisson likelihood of an exponential rate (``poisson``). Comparing the
second with the first shows what the exponential does, and with the third what the weights of the
likelihood do. Each is fitted with several penalties, and scored with the one that is best on
average, on the tiles that bench_real.py leaves out. Then the counts are changed, one property at a
time, and ``poisson`` is compared with ``mse`` again. Nothing is random but the changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_real import groups_of, interval
from real_tiles import Tiles, folds, pcc, pooled, read_tiles
from real_training import encode
from report import Table, publish

from virchow_st.errors import VirchowSTError
from virchow_st.types import PATCH_BINS, Array, Float32Array, Float64Array, Int64Array

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
N_COMPONENTS = 64
_SIDE = 8  # bins of a token
_SEEDS = (0, 1, 2)


def fit(
    x: Float64Array, y: Float64Array, exposure: Float64Array, way: str, penalty: float
) -> Array:
    """Weights and intercept (F + 1,) of a linear predictor, by L-BFGS in float64.

    The loss is a mean over tokens, relative to the gene's mean rate, as in
    `virchow_st.training.closed_form`: half the squared error for ``mse`` and ``exp``, the Poisson
    log-likelihood for ``poisson``; plus ``penalty·Σw²/2``.
    """
    X = torch.tensor(np.concatenate([x, np.ones((len(x), 1))], 1))
    mean = max(y.sum() / exposure.sum(), 1e-9)
    target, share = torch.tensor(y / mean), torch.tensor(exposure)
    scale = share.mean()
    w = torch.zeros(X.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        linear = X @ w
        if way == "poisson":
            loss = (share * linear.clamp(-8, 8).exp() - target * linear).mean() / scale
        else:
            expected = share * (1 + linear if way == "mse" else linear.clamp(-8, 8).exp())
            loss = 0.5 * ((expected - target) ** 2).mean() / scale**2
        loss = loss + 0.5 * penalty * (w[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach().numpy()


def scores(tiles: Tiles, tokens: Float32Array, way: str) -> Float64Array:
    """PCC at 16 µm of every map, left out, for every penalty: (penalties, M)."""
    found = np.full((len(PENALTIES), len(tiles.gene)), np.nan)
    exposure = [pooled(tiles.mask[m] * tiles.exposure[t], _SIDE) for m, t in enumerate(tiles.tile)]
    umis = [pooled(tiles.counts[m], _SIDE) for m in range(len(tiles.gene))]
    for train, test in folds(tiles):
        x = components(tokens, np.unique(tiles.tile[train]))
        for g in np.unique(tiles.gene[test]):
            maps = train[tiles.gene[train] == g]
            if not len(maps):
                continue
            full = [2 * pooled(tiles.mask[m], _SIDE) >= _SIDE**2 for m in maps]
            chosen = list(zip(maps, full, strict=True))
            X = np.concatenate([x[tiles.tile[m]][inside] for m, inside in chosen])
            y = np.concatenate([umis[m][inside] for m, inside in chosen])
            e = np.concatenate([exposure[m][inside] for m, inside in chosen])
            for p, penalty in enumerate(PENALTIES):
                w = fit(X, y, e, way, penalty)
                for m in test[tiles.gene[test] == g]:
                    linear = x[tiles.tile[m]] @ w[:-1] + w[-1]
                    rate = linear if way == "mse" else np.exp(np.clip(linear, -8, 8))
                    found[p, m] = pcc(_at_bins(rate), tiles.counts[m], tiles.mask[m], _SIDE)
    return found


def _at_bins(rate: Array) -> Array:
    return rate.repeat(_SIDE, 0).repeat(_SIDE, 1)


def components(tokens: Float32Array, of_train: Int64Array) -> Float64Array:
    """Main components (N, T, T, 64) of standardised tokens, each of variance 1 in training."""
    flat = tokens[of_train].reshape(-1, tokens.shape[-1]).astype(np.float64)
    mean, std = flat.mean(0), np.maximum(flat.std(0), 1e-6)
    z = np.clip((flat - mean) / std, -8, 8)
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    basis = vectors[:, -N_COMPONENTS:] / np.sqrt(np.maximum(values[-N_COMPONENTS:], 1e-9))
    every = np.clip((tokens - mean) / std, -8, 8)
    # They keep their share of the variance, so that a penalty treats them as ridge does.
    size = np.sqrt(values[-N_COMPONENTS:] / values[-N_COMPONENTS:].mean())
    return np.asarray(every @ (basis * size))


# --- one property changed at a time ---------------------------------------------------------------


def thinned(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """All maps of a gene thinned to the UMIs per bin of its poorest: no range of depth."""
    depth = np.array([tiles.counts[m].sum() / tiles.mask[m].sum() for m in range(len(tiles.gene))])
    lowest = np.array([depth[tiles.gene == g].min() for g in range(len(tiles.genes))])
    keep = (lowest[tiles.gene] / depth)[:, None, None]
    return replace(tiles, counts=rng.binomial(tiles.counts.astype(int), keep).astype(np.float32))


def halved(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """Half of the UMIs: more Poisson noise."""
    return replace(tiles, counts=rng.binomial(tiles.counts.astype(int), 0.5).astype(np.float32))


def without_bright_tokens(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """UMIs of tokens above the 80th percentile of their map are thinned to it."""
    counts = tiles.counts.copy()
    for m, k in enumerate(counts):
        sums = pooled(k, _SIDE)
        keep = np.minimum(1.0, np.quantile(sums, 0.8) / np.maximum(sums, 1e-9))
        counts[m] = rng.binomial(k.astype(int), _at_bins(keep))
    return replace(tiles, counts=counts)


def without_overdispersion(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """Counts drawn anew, Poisson about the measured ones smoothed over 3 × 3 tokens."""
    counts = tiles.counts.copy()
    for m, k in enumerate(counts):
        sums, n = (np.pad(pooled(a, _SIDE), 1) for a in (k, tiles.mask[m]))
        around = [
            sum(np.roll(a, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))[1:-1, 1:-1]
            for a in (sums, n)
        ]
        rate = _at_bins(around[0] / np.maximum(around[1], 1))
        counts[m] = rng.poisson(rate * tiles.exposure[tiles.tile[m]]) * tiles.mask[m]
    return replace(tiles, counts=counts)


def shuffled(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """Tokens' counts permuted within each map: the null."""
    counts = tiles.counts.copy()
    n = PATCH_BINS // _SIDE
    for m, k in enumerate(counts):
        blocks = k.reshape(n, _SIDE, n, _SIDE).swapaxes(1, 2).reshape(n * n, _SIDE, _SIDE)
        blocks = rng.permutation(blocks).reshape(n, n, _SIDE, _SIDE)
        counts[m] = blocks.swapaxes(1, 2).reshape(PATCH_BINS, PATCH_BINS)
    return replace(tiles, counts=counts)


CHANGES: dict[str, Callable[[Tiles, np.random.Generator], Tiles]] = {
    "half of the UMIs": halved,
    "equal depth of a gene's maps": thinned,
    "no bright tokens": without_bright_tokens,
    "no overdispersion": without_overdispersion,
    "tokens' counts shuffled": shuffled,
}


def best(found: Sequence[Float64Array]) -> Float64Array:
    """Scores (M,) with the penalty that is best on average; mean over repetitions."""
    mean = np.mean(found, axis=0)
    return np.asarray(mean[int(np.nanmean(mean, 1).argmax())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scores", type=Path, help="file for the scores of every map")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        tiles = read_tiles([arguments.tiles])
        tokens = encode(tiles, ["stain"], "").tokens
    except VirchowSTError as e:
        sys.exit(str(e))
    group = groups_of(tiles)
    kept: dict[str, dict[str, list[float]]] = {}
    rows = []
    for name, change in {"as measured": None, **CHANGES}.items():
        seeds = _SEEDS if change else _SEEDS[:1]
        changed = [change(tiles, np.random.default_rng(s)) if change else tiles for s in seeds]
        ways = ("mse", "exp", "poisson") if change is None else ("mse", "poisson")
        of = {way: best([scores(t, tokens, way) for t in changed]) for way in ways}
        kept[name] = {way: values.tolist() for way, values in of.items()}
        texts = ["{:.3f} ({:.3f} to {:.3f})".format(*interval(of[way], group)) for way in ways]
        difference = interval(of["poisson"] - of["mse"], group)
        rows.append(
            [name, texts[0], texts[1] if change is None else None, texts[-1],
             "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference)]
        )  # fmt: skip
        print(rows[-1], flush=True)
    if arguments.scores:
        arguments.scores.write_text(json.dumps(kept) + "\n", "utf-8")
    table = Table(
        "PCC at 16 µm on tiles left out, regressions on stain tokens",
        ["counts", "mse", "squared error, exponential rate", "poisson", "poisson − mse"],
        rows,
        [f"{len(group)} maps; changed counts: {len(_SEEDS)} draws, averaged."],
    )
    publish("real_losses", [table], arguments.json, ("torch",))


if __name__ == "__main__":
    main()
