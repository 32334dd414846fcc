"""Batches of patches from stores: tokens, images, panel counts and masks, rotated together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.kernels.orientation import N_ORIENTATIONS, quarter_turns, turn
from virchow_st.models.encoders.base import dihedral_channels
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.run.exposure import CohortExposure
from virchow_st.run.panel import ABSENT, Panel
from virchow_st.run.split import Member
from virchow_st.runtime.prefetch import ahead
from virchow_st.store.context import with_margin
from virchow_st.store.panel_reads import PanelCounts
from virchow_st.store.reader import Patch, Store
from virchow_st.types import (
    PATCH_BINS,
    PATCH_POSITIONS,
    PATCH_UM,
    STORED_IMAGE_PX,
    Array,
    BoolArray,
    Float32Array,
    Int64Array,
    UInt8Array,
)

Allocate = Callable[[str, tuple[int, ...], Any], Array]
"""Allocator: (name, shape, dtype) → output array; lets a feed reuse pinned buffers."""


@dataclass(frozen=True)
class BatchPlan:
    """Patches of a batch and their orientations.

    Attributes:
        members: (B,) patches.
        turns: (B,) orientations, 0 to 7, see `turn`.
    """

    members: tuple[Member, ...]
    turns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, part: slice) -> BatchPlan:
        return BatchPlan(self.members[part], self.turns[part])


def plans(
    members: Sequence[Member], batch_size: int, rng: np.random.Generator | None = None
) -> list[BatchPlan]:
    """Divide patches into batches, each patch once; the last batch may be smaller.

    Args:
        members: Patches to divide.
        batch_size: Patches per batch.
        rng: Draws a random order and orientation; if None, order and orientation are kept.
    """
    order = np.arange(len(members)) if rng is None else rng.permutation(len(members))
    turns = np.zeros(len(members), int)
    if rng is not None:
        turns = rng.integers(N_ORIENTATIONS, size=len(members))
    chunks = [order[s : s + batch_size] for s in range(0, len(members), batch_size)]
    return [BatchPlan(tuple(members[i] for i in c), tuple(turns[c].tolist())) for c in chunks]


@dataclass(frozen=True)
class Batch:
    """A batch of patches in host memory.

    Attributes:
        members: (B,) patches.
        tokens: (B, T, T, D) float16, with the dataset's margin.
        image: (B, 256, 256, 3) uint8 RGB with the dataset's margin, or None if the decoder does not
            use it.
        targets: Sparse UMI counts of the panel's genes, as a loss takes them.
        tissue_mask: (B, 128, 128) bool, True = tissue.
        exposure: (B, 128, 128) float32, 0 outside tissue; None if it is 1 in all tissue.
        measured: (B, G) bool, whether each patch's store measured each gene; None if all did.
    """

    members: tuple[Member, ...]
    tokens: Array
    image: UInt8Array | None
    targets: BatchCounts
    tissue_mask: BoolArray
    exposure: Float32Array | None = None
    measured: BoolArray | None = None

    @cached_property
    def counts(self) -> Float32Array:
        """Dense counts (B, G, 128, 128), float32 UMIs, computed on first use."""
        return self.targets.dense()


class PatchDataset:
    """Patches of several stores, with the counts of one panel.

    A store may lack genes of the panel (see `Panel.places`): it has no counts of them, and
    `measured` says so.

    Args:
        stores: Stores of the run, all from the same encoder.
        panel: Genes, in the order of the counts.
        wants_image: Whether batches contain the patch images.
        margin_um: Margin of the neighbouring patches around tokens and images, µm, a multiple of a
            token's side.
        exposure: Exposure of the slides; None for 1 in all tissue.

    Raises:
        ConfigError: The stores have different encoders or token sizes.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        panel: Panel,
        wants_image: bool = False,
        margin_um: int = 0,
        exposure: CohortExposure | None = None,
    ) -> None:
        check_same_encoder(stores)
        self.stores = stores
        self.panel = panel
        self.wants_image = wants_image
        self.margin_um = margin_um
        self.cohort_exposure = exposure
        self._places = [panel.places(store) for store in stores]
        self.measured_SG = np.stack([places != ABSENT for places in self._places])
        layout, dim = stores[0].manifest["token_layout"], stores[0].manifest["dim"]
        self._channels = [
            dihedral_channels(layout, dim, *quarter_turns(o)) for o in range(N_ORIENTATIONS)
        ]

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Shape (T, T, D) of the tokens of a patch, the same in all stores."""
        return self.stores[0].token_shape

    @property
    def margin_tokens(self) -> int:
        """Tokens of the margin on each side."""
        return self.margin_um * self.token_shape[0] // PATCH_UM

    @property
    def image_px(self) -> int:
        """Side of an image with its margin, pixels of 1 µm."""
        return STORED_IMAGE_PX + 2 * self.margin_um

    def tokens(self, member: Member) -> Array:
        """(T + 2m, T + 2m, D) float16 with a margin of m tokens."""
        return with_margin(self.patch(member), lambda patch: patch.tokens, self.margin_tokens)

    def image(self, member: Member) -> UInt8Array:
        """(256 + 2m, 256 + 2m, 3) with a margin of m pixels of 1 µm."""
        return with_margin(self.patch(member), lambda patch: patch.image, self.margin_um)

    def channels(self, orientation: int) -> Int64Array | None:
        """Order (D,) of a token's channels in an orientation; None if no channel moves."""
        return self._channels[orientation]

    def patch(self, member: Member) -> Patch:
        """Return a patch."""
        return self.stores[member.store][member.patch]

    def exposure(self, member: Member) -> Float32Array:
        """Exposure of the bins of a patch, (128, 128) float32; 0 outside tissue."""
        patch = self.patch(member)
        tissue = patch.tissue_mask.astype(np.float32)
        if self.cohort_exposure is None:
            return tissue
        return tissue * self.cohort_exposure.of_patch(member.store, patch.info)

    def panel_counts(self, member: Member) -> PanelCounts:
        """Non-zero counts of the panel's genes in a patch, in its original orientation.

        Genes that the store did not measure have none, see `measured`.
        """
        places, measured = self._places[member.store], self.measured_SG[member.store]
        if measured.all():
            return self.patch(member).panel_counts(places)
        counts = self.patch(member).panel_counts(places[measured])
        of_panel = np.flatnonzero(measured).astype(counts.gene.dtype)
        return replace(counts, gene=of_panel[counts.gene], n_genes=len(self.panel))

    def measured(self, members: Sequence[Member]) -> BoolArray | None:
        """Whether the store of each patch measured each gene, (B, G); None if all of them did."""
        measured = self.measured_SG[[member.store for member in members]]
        return None if measured.all() else measured

    def panel_umis(self, store: int) -> int:
        """Total UMIs of the panel's genes in a store, an upper bound of its non-zero counts."""
        places = self._places[store]
        return int(self.stores[store].genes.totals[places[places != ABSENT]].sum())

    def load(
        self,
        members: Sequence[Member],
        orientations: Sequence[int] | None = None,
        allocate: Allocate = lambda _, shape, dtype: np.empty(shape, dtype),
    ) -> Batch:
        """Read patches and rotate each to its orientation.

        Args:
            members: Patches to read.
            orientations: Orientation of each patch, 0 to 7; None for the original orientation.
            allocate: Allocates the arrays of the batch, such as in buffers that are reused.
        """
        turns = [0] * len(members) if orientations is None else orientations
        pairs = list(zip(members, turns, strict=True))
        n, side = len(pairs), self.image_px
        tokens = self._tokens(pairs, allocate)
        image = allocate("image", (n, side, side, 3), np.uint8) if self.wants_image else None
        if image is not None:
            np.stack([self._image(m, o) for m, o in pairs], out=image)
        mask = allocate("tissue_mask", (n, PATCH_BINS, PATCH_BINS), np.bool_)
        np.stack([turn(self.patch(m).tissue_mask, o) for m, o in pairs], out=mask)
        exposure = None
        if self.cohort_exposure is not None:
            exposure = allocate("exposure", (n, PATCH_BINS, PATCH_BINS), np.float32)
            np.stack([turn(self.exposure(m), o) for m, o in pairs], out=exposure)
        targets, measured = self._targets(pairs, allocate), self.measured(members)
        return Batch(tuple(members), tokens, image, targets, mask, exposure, measured)

    def _tokens(self, pairs: Sequence[tuple[Member, int]], allocate: Allocate) -> Array:
        """Tokens (B, T, T, D); if channels move they are contiguous per channel in memory."""
        T, D = self.token_shape[0] + 2 * self.margin_tokens, self.token_shape[2]
        turned = [turn(self.tokens(m), o, axes=(0, 1)) for m, o in pairs]
        if self._channels[0] is None:
            return np.stack(turned, out=allocate("tokens", (len(pairs), T, T, D), np.float16))
        planes = [
            np.moveaxis(grid, 2, 0)[self._channels[o]]
            for grid, (_, o) in zip(turned, pairs, strict=True)
        ]
        out = np.stack(planes, out=allocate("tokens", (len(pairs), D, T, T), np.float16))
        return np.moveaxis(out, 1, 3)

    def _image(self, member: Member, orientation: int) -> UInt8Array:
        return turn(self.image(member), orientation, axes=(0, 1))

    def _targets(self, pairs: Sequence[tuple[Member, int]], allocate: Allocate) -> BatchCounts:
        n_genes = len(self.panel)
        starts, positions, counts, n = [], [], [], 0
        for member, orientation in pairs:
            patch = self.panel_counts(member)
            starts.append(n + np.searchsorted(patch.gene, np.arange(n_genes)))
            positions.append(turned_positions(orientation)[patch.position])
            counts.append(patch.count)
            n += len(patch.count)
        return BatchCounts(
            start=np.concatenate(
                [*starts, [n]], out=allocate("start", (len(pairs) * n_genes + 1,), np.int64)
            ),
            position=np.concatenate(positions, out=allocate("position", (n,), np.uint16)),
            count=np.concatenate(
                counts, out=allocate("count", (n,), np.float32), casting="same_kind"
            ),
            shape=(len(pairs), n_genes, PATCH_BINS, PATCH_BINS),
        )

    def batches(
        self,
        members: Sequence[Member],
        batch_size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate over the batches of `plans`; the next one is read while the last is used."""
        with ThreadPoolExecutor(1) as reader:
            coming = plans(members, batch_size, rng)
            for _, batch in ahead(reader, coming, lambda p: self.load(p.members, p.turns)):
                yield batch


@cache
def turned_positions(orientation: int) -> Array:
    """New position of each position of a patch after `turn`, (16384,) uint16."""
    before = np.arange(PATCH_POSITIONS, dtype=np.uint16).reshape(PATCH_BINS, PATCH_BINS)
    after = np.empty(PATCH_POSITIONS, np.uint16)
    after[turn(before, orientation).ravel()] = before.ravel()
    return after


def check_same_encoder(stores: Sequence[Store]) -> None:
    """Raise `ConfigError` unless all stores have tokens of the same encoder and size."""

    def encoder(store: Store) -> tuple[Any, ...]:
        m = store.manifest
        return m["encoder"]["name"], m["encoder"]["weights"], m["grid"], m["dim"]

    for store in stores[1:]:
        if encoder(store) != encoder(stores[0]):
            raise ConfigError(
                f"{store.path}: expected tokens of {encoder(stores[0])} (name, weights, grid, "
                f"dimension) as in {stores[0].path}; got {encoder(store)}; extract with one encoder"
            )
