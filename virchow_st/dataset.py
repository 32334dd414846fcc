"""Stores → batches: tokens, images, panel counts and masks of the same patches, turned jointly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from virchow_st.counts import BatchCounts
from virchow_st.encoders.base import dihedral_channels
from virchow_st.errors import ConfigError
from virchow_st.folds import Member
from virchow_st.kernels.pooling import sum_pool
from virchow_st.panel import Panel
from virchow_st.store.reader import Patch, Store
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    PATCH_POSITIONS,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    UInt8Array,
)

N_ORIENTATIONS = 8  # four quarter turns, each flipped or not


@dataclass(frozen=True)
class Batch:
    """Patches ready for a decoder.

    Attributes:
        members: which patches, (B,).
        tokens: (B, T, T, D) float16.
        image: (B, 256, 256, 3) uint8, or None where the decoder does not look at it.
        targets: UMIs of the panel's genes where there are any, as a loss takes them.
        tissue_mask: (B, 128, 128) bool.
    """

    members: tuple[Member, ...]
    tokens: Array
    image: UInt8Array | None
    targets: BatchCounts
    tissue_mask: BoolArray

    @cached_property
    def counts(self) -> Float32Array:
        """(B, G, 128, 128) float32 UMIs; made when first asked for, ten times the targets' size."""
        return self.targets.dense()


class PatchDataset:
    """Patches of several stores, with the counts of one panel.

    Args:
        stores: the run's stores; all from the same encoder.
        panel: genes, in the order of the counts.
        wants_image: whether batches carry the patch images.

    Raises:
        ConfigError: stores of different encoders or token sizes, or a panel gene is missing.
    """

    def __init__(self, stores: Sequence[Store], panel: Panel, wants_image: bool = False) -> None:
        check_same_encoder(stores)
        self.stores = stores
        self.panel = panel
        self.wants_image = wants_image
        self._gene_indices = [panel.indices(store) for store in stores]
        layout, dim = stores[0].manifest["token_layout"], stores[0].manifest["dim"]
        self._channels = [
            dihedral_channels(layout, dim, *divmod_orientation(o)) for o in range(N_ORIENTATIONS)
        ]

    def load(self, members: Sequence[Member], orientations: Sequence[int] | None = None) -> Batch:
        """Read patches, each turned by its orientation (0 to 7; all 0 when None)."""
        turns = [0] * len(members) if orientations is None else orientations
        pairs = list(zip(members, turns, strict=True))
        return Batch(
            members=tuple(members),
            tokens=np.stack([self._tokens(m, o) for m, o in pairs]),
            image=np.stack([self._image(m, o) for m, o in pairs]) if self.wants_image else None,
            targets=self._targets(pairs),
            tissue_mask=np.stack([turn(self._patch(m).tissue_mask, o) for m, o in pairs]),
        )

    def _patch(self, member: Member) -> Patch:
        return self.stores[member.store][member.patch]

    def _tokens(self, member: Member, orientation: int) -> Array:
        grid = turn(self._patch(member).tokens, orientation, axes=(0, 1))
        channels = self._channels[orientation]
        return grid if channels is None else grid[..., channels]

    def _image(self, member: Member, orientation: int) -> UInt8Array:
        return turn(self._patch(member).image, orientation, axes=(0, 1))

    def _targets(self, pairs: Sequence[tuple[Member, int]]) -> BatchCounts:
        n_genes = len(self.panel)
        starts, positions, counts, n = [], [], [], 0
        for member, orientation in pairs:
            patch = self._patch(member).panel_counts(self._gene_indices[member.store])
            starts.append(n + np.searchsorted(patch.gene, np.arange(n_genes)))
            positions.append(turned_positions(orientation)[patch.position])
            counts.append(patch.count.astype(np.float32))
            n += len(patch.count)
        return BatchCounts(
            start=np.concatenate([*starts, [n]]).astype(np.int64),
            position=np.concatenate(positions),
            count=np.concatenate(counts),
            shape=(len(pairs), n_genes, PATCH_BINS, PATCH_BINS),
        )

    def batches(
        self,
        members: Sequence[Member],
        batch_size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """All members once, the next batch read while the last is used.

        With ``rng``, in random order and orientation; without, in order and as they lie.
        """
        order = np.arange(len(members)) if rng is None else rng.permutation(len(members))
        turns = np.zeros(len(members), int)
        if rng is not None:
            turns = rng.integers(N_ORIENTATIONS, size=len(members))
        starts = range(0, len(members), batch_size)
        chunks = [order[s : s + batch_size] for s in starts]
        with ThreadPoolExecutor(1) as reader:
            pending = None
            for chunk in chunks:
                coming = reader.submit(
                    self.load, [members[i] for i in chunk], turns[chunk].tolist()
                )
                if pending is not None:
                    yield pending.result()
                pending = coming
            if pending is not None:
                yield pending.result()


def divmod_orientation(orientation: int) -> tuple[int, bool]:
    """Quarter turns (counter-clockwise) and whether a left-right flip comes first."""
    return orientation % 4, orientation >= 4


def turn(x: Array, orientation: int, axes: tuple[int, int] = (-2, -1)) -> Array:
    """Flip and turn the (row, col) axes of an array by one of the 8 orientations."""
    k, flip = divmod_orientation(orientation)
    flipped = np.flip(x, axes[1]) if flip else x
    return np.rot90(flipped, k, axes=axes)


@cache
def turned_positions(orientation: int) -> Array:
    """(16384,) uint16: where each position of a patch comes to lie when `turn` turns the patch."""
    before = np.arange(PATCH_POSITIONS, dtype=np.uint16).reshape(PATCH_BINS, PATCH_BINS)
    after = np.empty(PATCH_POSITIONS, np.uint16)
    after[turn(before, orientation).ravel()] = before.ravel()
    return after


def check_same_encoder(stores: Sequence[Store]) -> None:
    """Raise `ConfigError` unless all stores hold tokens of the same encoder and size."""

    def encoder(store: Store) -> tuple[Any, ...]:
        m = store.manifest
        return m["encoder"]["name"], m["encoder"]["weights"], m["grid"], m["dim"]

    for store in stores[1:]:
        if encoder(store) != encoder(stores[0]):
            raise ConfigError(
                f"{store.path}: expected tokens of {encoder(stores[0])} (name, weights, grid, "
                f"dimension) as in {stores[0].path}; got {encoder(store)}; extract with one encoder"
            )


@dataclass(frozen=True)
class TrainingStatistics:
    """What a run learns from its training patches before the first step.

    Attributes:
        token_mean, token_std: (D,) over all tokens.
        rate: (G,) mean UMIs per tissue bin; a gene never seen gets half a UMI over all bins, so
            that its logarithm exists.
        std: (4, G) standard deviation of the summed counts at 2, 4, 8 and 16 µm, over the bins
            that hold tissue; 1 for a gene without counts.
    """

    token_mean: Float32Array
    token_std: Float32Array
    rate: Float64Array
    std: Float64Array


def training_statistics(dataset: PatchDataset, members: Sequence[Member]) -> TrainingStatistics:
    """One pass over the training patches, in float64."""
    n_tokens = 0
    token_sums: Float64Array = np.zeros((2, dataset.stores[0].manifest["dim"]))
    n_bins = np.zeros(len(SCALES_UM))
    sums: Float64Array = np.zeros((2, len(SCALES_UM), len(dataset.panel)))
    for batch in dataset.batches(members, batch_size=1):
        tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1]).astype(np.float64)
        n_tokens += len(tokens)
        token_sums += [tokens.sum(0), (tokens**2).sum(0)]
        mask = batch.tissue_mask.astype(np.float32)
        for i, scale in enumerate(SCALES_UM):
            counts = sum_pool(batch.counts[0] * mask, scale // BIN_UM)
            n_bins[i] += int((sum_pool(mask, scale // BIN_UM) > 0).sum())
            sums[:, i] += [counts.sum((1, 2)), (counts**2).sum((1, 2))]
    mean, mean_square = token_sums / n_tokens
    count_mean, count_mean_square = sums / n_bins[:, None]
    std = np.sqrt(np.maximum(count_mean_square - count_mean**2, 0.0))
    return TrainingStatistics(
        token_mean=mean.astype(np.float32),
        token_std=np.sqrt(np.maximum(mean_square - mean**2, 0.0)).astype(np.float32),
        rate=np.maximum(sums[0, 0], 0.5) / n_bins[0],
        std=np.where(std > 0, std, 1.0),
    )
