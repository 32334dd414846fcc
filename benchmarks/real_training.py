"""Decoders, trained on tiles that each measure some of the genes.

Used by bench_real.py. Genes that a tile lacks are left out of the likelihood.

Shape suffixes: N tiles, T tokens a side, D token channels, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from real_baselines import token_sums
from real_tiles import Tiles, pooled
from torch import Tensor, nn

from virchow_st.kernels.orientation import quarter_turns, turn
from virchow_st.models.decoders import build_decoder, decode, decoder_class
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.decoders.variation import variations
from virchow_st.models.encoders import Encoder, dihedral_channels, load_encoder
from virchow_st.models.encoders.network import native_precision
from virchow_st.models.losses import build_balance, build_objective
from virchow_st.models.losses.balance import gradient_norms
from virchow_st.models.losses.base import Objective
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.predict.orientations import Orientations
from virchow_st.training.closed_form import PENALTY, poisson_regression
from virchow_st.training.muon import Muon, matrices
from virchow_st.types import PATCH_BINS, SCALES_UM, Array, Float32Array, Float64Array, Int64Array

LR, WEIGHT_DECAY, BATCH = 3e-3, 1e-2, 2  # learning rate and decay of `vst train`
_CPU = torch.device("cpu")
_PRECISION = native_precision(_CPU)


@dataclass(frozen=True)
class TileTokens:
    """Tokens (N, T, T, D) float32 of all tiles, and how channels turn (`Encoder.layout`)."""

    tokens: Float32Array
    layout: tuple[tuple[int, int], ...]


def encode(tiles: Tiles, encoders: Sequence[str], weights: str) -> TileTokens:
    """Tokens of one encoder, or the channels of several one after the other.

    Args:
        tiles: The tiles.
        encoders: Names as ``--encoder`` takes them.
        weights: File of weights of the one encoder that is not ``stain``; empty for none.
    """
    parts, layout, start = [], [], 0
    for name in encoders:
        encoder = load_encoder(name, weights="" if name == "stain" else weights, device="cpu")
        parts.append(_encoded(encoder, tiles.images))
        layout += [(start + at, side) for at, side in encoder.layout]
        start += encoder.dim
    return TileTokens(np.concatenate(parts, axis=-1), tuple(layout))


def _encoded(encoder: Encoder, images: Array) -> Float32Array:
    side = encoder.image_px
    sized = [
        x if len(x) == side else cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA)
        for x in images
    ]
    batches = [
        encoder.encode(np.stack(sized[i : i + encoder.batch])).tokens
        for i in range(0, len(sized), encoder.batch)
    ]
    return np.concatenate(batches).astype(np.float32)


# --- decoders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Means of the training maps: tokens (D,), rates (G,), and deviations of counts (4, G)."""

    token_mean: Float32Array
    token_std: Float32Array
    rate: Float64Array
    std: Float64Array


def statistics_of(tiles: Tiles, tokens: Float32Array, train: Int64Array) -> Statistics:
    """Statistics of the training maps; a gene without any gets a rate of 1e-3 and deviations 1."""
    flat = tokens[np.unique(tiles.tile[train])].reshape(-1, tokens.shape[-1])
    G = len(tiles.genes)
    rate, std = np.full(G, 1e-3), np.ones((len(SCALES_UM), G))
    for g in np.unique(tiles.gene[train]):
        maps = train[tiles.gene[train] == g]
        exposure = tiles.exposure[tiles.tile[maps]] * tiles.mask[maps]
        rate[g] = max(tiles.counts[maps].sum(), 0.5) / exposure.sum()
        for s, scale in enumerate(SCALES_UM):
            inside = pooled(tiles.mask[maps], scale // 2) > 0
            std[s, g] = max(pooled(tiles.counts[maps], scale // 2)[inside].std(), 1e-6)
    return Statistics(flat.mean(0), flat.std(0), rate, std)


def train_decoder(
    tiles: Tiles,
    tokens: TileTokens,
    train: Int64Array,
    test: Int64Array,
    name: str,
    loss: str,
    seed: int,
    passes: int,
) -> Float32Array:
    """Train a decoder with the recipe of ``vst train`` and predict rates (test maps, 128, 128).

    Muon, GradNorm over 2, 4, 8 and 16 µm, warm-up of one pass and a cosine; flips and rotations; no
    stain variation, as all tiles are of one slide. The number of passes is fixed beforehand.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    statistics = statistics_of(tiles, tokens.tokens, train)
    bias = torch.tensor(np.log(statistics.rate) if loss != "mse" else 0 * statistics.rate)
    decoder = build_decoder(
        name, tokens.tokens.shape[1], torch.tensor(statistics.token_mean),
        torch.tensor(statistics.token_std), bias.float(),
    )  # fmt: skip
    if decoder_class(name).begins_as_regression:
        decoder.begin(*_regression(tiles, tokens.tokens, train, statistics, loss))
    for variation in variations(decoder):
        variation.amount = 0.0
    by_muon = matrices(decoder)
    taken = {id(p) for p in by_muon}
    groups = [{"params": [p for p in decoder.parameters() if id(p) not in taken]}]
    groups.append({"params": by_muon, "is_muon": True})
    optimizer = Muon([{**group, "lr": LR, "weight_decay": WEIGHT_DECAY} for group in groups])
    balance = build_balance("gradnorm", len(SCALES_UM))
    objectives = [
        build_objective(
            loss, torch.tensor(statistics.rate[[g]]), torch.tensor(statistics.std[:, [g]]),
            SCALES_UM,
        )
        for g in range(len(tiles.genes))
    ]  # fmt: skip

    of_train = np.unique(tiles.tile[train])
    per_pass = math.ceil(len(of_train) / BATCH)
    total, step = passes * per_pass, 0
    for _ in range(passes):
        order = rng.permutation(of_train)
        for batch in np.array_split(order, per_pass):
            losses = _losses(tiles, tokens, train, decoder, objectives, batch, rng)
            if not bool(torch.isfinite(losses).all()):
                raise RuntimeError(f"{name}, {loss}, seed {seed}: loss {losses.tolist()}")
            balance.update(losses.detach(), gradient_norms(losses, decoder.head.weight))
            (balance.weights * losses).sum().backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            done = (step + 1 - per_pass) / max(total - per_pass, 1)
            share = (step + 1) / per_pass if done <= 0 else 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = LR * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            decoder.advance(step / total)
    return _predicted(tiles, tokens, test, decoder.eval(), objectives)


def _forward(decoder: Decoder, tokens: Array | Tensor, images: Array | Tensor | None) -> Tensor:
    """Output (B, G, 128, 128) float32; products in bfloat16 where the CPU has it, as on a GPU."""
    with torch.autocast("cpu", torch.bfloat16, enabled=_PRECISION is torch.bfloat16):
        return decode(decoder, tokens, images if decoder.wants_image else None, _CPU).float()


def _losses(
    tiles: Tiles,
    tokens: TileTokens,
    train: Int64Array,
    decoder: Decoder,
    objectives: Sequence[Objective],
    batch: Int64Array,
    rng: np.random.Generator,
) -> Tensor:
    """Mean loss of the maps of a batch of tiles at each scale, (4,)."""
    turns = rng.integers(8, size=len(batch))
    turned = []
    for t, o in zip(batch, turns, strict=True):
        x = turn(tokens.tokens[t], o, axes=(0, 1))
        order = dihedral_channels(tokens.layout, x.shape[-1], *quarter_turns(int(o)))
        turned.append(x if order is None else x[..., order])
    images = np.stack(
        [turn(tiles.images[t], o, axes=(0, 1)) for t, o in zip(batch, turns, strict=True)]
    )
    output_BGRC = _forward(decoder, np.stack(turned), images)
    losses = []
    for b, (t, o) in enumerate(zip(batch, turns, strict=True)):
        for m in tiles.maps_of(t, train):
            g = tiles.gene[m]
            exposure = torch.tensor(turn(tiles.exposure[t], o).copy())
            counts = turn(tiles.counts[m] * tiles.mask[m], o)[None, None]
            mask = torch.tensor(turn(tiles.mask[m], o).copy())[None]
            own = exposed(objectives[g], output_BGRC[b : b + 1, g : g + 1], exposure)
            losses.append(objectives[g](own, BatchCounts.of_dense(counts), mask))
    return torch.stack(losses).mean(0)


def exposed(objective: Objective, output: Tensor, exposure: Tensor) -> Tensor:
    """The output whose rate is ``exposure`` times that of ``output``."""
    if hasattr(objective, "std_2um"):  # z-scores
        mean, std = objective.train_rate[0], objective.std_2um[0]
        return ((mean + std * output) * exposure - mean) / std
    return output + exposure.log()


def _predicted(
    tiles: Tiles,
    tokens: TileTokens,
    test: Int64Array,
    decoder: Decoder,
    objectives: Sequence[Objective],
) -> Float32Array:
    rates = np.zeros((len(test), PATCH_BINS, PATCH_BINS), np.float32)
    orientations = Orientations(tokens.layout, tokens.tokens.shape[-1])
    with torch.inference_mode():
        for t in np.unique(tiles.tile[test]):
            own = np.flatnonzero(tiles.tile[test] == t)

            def predict(tokens_BTTD: Tensor, image_BPP3: Tensor | None, own: Array = own) -> Tensor:
                output = _forward(decoder, tokens_BTTD, image_BPP3)
                genes = tiles.gene[test[own]]
                of_genes = [objectives[g].rate(output[:, g : g + 1]) for g in genes]
                return torch.cat(of_genes, dim=1)

            patch = torch.from_numpy(tokens.tokens[[t]]), torch.from_numpy(tiles.images[[t]])
            rates[own] = orientations.mean(predict, *patch)[0].numpy()
    return rates


def _regression(
    tiles: Tiles, tokens: Float32Array, train: Int64Array, statistics: Statistics, loss: str
) -> tuple[Tensor, Tensor]:
    """Weights (D, G) and intercept (G,) that the decoder begins as, fitted gene by gene."""
    G = len(tiles.genes)
    weights = np.zeros((tokens.shape[-1], G))
    intercept = np.log(statistics.rate) if loss != "mse" else np.zeros(G)
    for g in np.unique(tiles.gene[train]):
        maps = train[tiles.gene[train] == g]
        x, umis, exposure = map(
            np.concatenate, zip(*(token_sums(tiles, tokens, m) for m in maps), strict=True)
        )
        x = (x - statistics.token_mean) / np.maximum(statistics.token_std, 1e-6)
        n_steps = {"n_steps": 1} if loss == "mse" else {}
        w, b = poisson_regression(
            np.clip(x, -8, 8), umis[:, None], exposure, statistics.rate[[g]], PENALTY, **n_steps
        )
        to_output = statistics.rate[g] / statistics.std[0, g] if loss == "mse" else 1.0
        weights[:, g] = w[:, 0] * to_output
        intercept[g] += b[0] * to_output
    return torch.tensor(weights).float(), torch.tensor(intercept).float()
