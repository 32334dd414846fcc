"""Feed that keeps all patches on the device, where batches are assembled and rotated.

Shape suffixes: N patches kept, B patches of a batch, T tokens per side, D token channels, G genes,
P = 256 px, R = C = 128 bins per side, n non-zero counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from virchow_st.kernels.orientation import N_ORIENTATIONS, turn
from virchow_st.models.losses.base import Counts, DeviceCounts
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.run.split import Member
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.dataset import BatchPlan, PatchDataset, turned_positions
from virchow_st.training.feed.base import DeviceBatch
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, Int64Array

_N_READERS = 4
_BLOCK_PATCHES = 16  # read and sent to the device together
_COUNT_BYTES = 6  # position and count of a non-zero entry


class Resident:
    """Keeps all patches of a run on the decoder's device, so that a step copies nothing to it.

    Tokens are kept as in the stores: float16, or int8 with a float32 scale per channel. Patches and
    channels are rotated by indexing; the batches are bit-identical to those of
    `PatchDataset.load`.

    Args:
        dataset: Patches of the run.
        members: Patches to keep.
        device: Device to keep them on.
        progress: Receives the number of patches read.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        members: Sequence[Member],
        device: torch.device,
        progress: Progress = SILENT,
    ) -> None:
        self._device = device
        self._n_genes = len(dataset.panel)
        self._measured = dataset.measured
        members = list(dict.fromkeys(members))
        self._place = {member: i for i, member in enumerate(members)}
        N, D = len(members), dataset.token_shape[2]
        T = dataset.token_shape[0] + 2 * dataset.margin_tokens
        self._grid, self._image_px = T, dataset.image_px

        def held(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        as_codes = _keeps_codes(dataset)
        self._tokens_NTD = held(N, T * T, D, dtype=torch.int8 if as_codes else torch.float16)
        self._scales_ND = held(N, D, dtype=torch.float32) if as_codes else None
        self._image_NP3 = None
        if dataset.wants_image:
            self._image_NP3 = held(N, self._image_px**2, 3, dtype=torch.uint8)
        self._mask_NR = held(N, PATCH_POSITIONS, dtype=torch.bool)
        self._exposure_NR = None
        if dataset.cohort_exposure is not None:
            self._exposure_NR = held(N, PATCH_POSITIONS, dtype=torch.float32)
        self._hold(dataset, members, progress)

        def turning(side: int) -> Tensor:
            cells = np.arange(side * side).reshape(side, side)
            turned = np.stack([turn(cells, o).ravel() for o in range(N_ORIENTATIONS)])
            return torch.from_numpy(turned).to(device)

        self._tokens_8T, self._bins_8R = turning(T), turning(PATCH_BINS)
        self._pixels_8P = turning(self._image_px) if dataset.wants_image else None
        channels = [dataset.channels(o) for o in range(N_ORIENTATIONS)]
        self._channels_8D: Tensor | None = None
        if channels[0] is not None:
            self._channels_8D = torch.from_numpy(np.stack(channels)).to(device)  # type: ignore[arg-type]
        positions = np.stack([turned_positions(o) for o in range(N_ORIENTATIONS)])
        self._positions_8R = torch.from_numpy(positions.astype(np.int16)).to(device)

    # --- reading ------------------------------------------------------------------------------

    def _hold(self, dataset: PatchDataset, members: Sequence[Member], progress: Progress) -> None:
        """Read the patches into the allocated tensors, several blocks in parallel."""
        G = self._n_genes
        starts, positions, counts, n = [np.zeros(1, np.int64)], [], [], 0
        blocks = [members[i : i + _BLOCK_PATCHES] for i in range(0, len(members), _BLOCK_PATCHES)]
        first = 0
        with ThreadPoolExecutor(_N_READERS) as pool:
            for block, batch in ahead(
                pool, blocks, lambda members: _Block(dataset, members), _N_READERS
            ):
                at = slice(first, first + len(block))
                self._tokens_NTD[at] = torch.from_numpy(batch.tokens).to(self._device)
                if self._scales_ND is not None:
                    self._scales_ND[at] = torch.from_numpy(batch.scales).to(self._device)
                if self._image_NP3 is not None:
                    self._image_NP3[at] = torch.from_numpy(batch.images).to(self._device)
                self._mask_NR[at] = torch.from_numpy(batch.masks).to(self._device)
                if self._exposure_NR is not None:
                    self._exposure_NR[at] = torch.from_numpy(batch.exposures).to(self._device)
                starts.append(n + batch.start)
                positions.append(batch.position)
                counts.append(batch.count)
                n += len(batch.position)
                first = at.stop
                progress.step(first, len(members), "patches read")
        self._start_NG: Int64Array = np.concatenate(starts)
        assert len(self._start_NG) == len(members) * G + 1
        self._starts_NG = torch.from_numpy(self._start_NG).to(self._device)
        self._position_n = torch.from_numpy(np.concatenate(positions)).to(self._device)
        self._count_n = torch.from_numpy(np.concatenate(counts)).to(self._device)

    # --- batches ------------------------------------------------------------------------------

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """See `Feed`."""
        places = [[self._place[member] for member in plan.members] for plan in plans]
        # One copy per epoch: a copy per batch would wait for the work queued on the device.
        at = torch.tensor([i for batch in places for i in batch], dtype=torch.int64)
        turns = torch.tensor([t for p in plans for t in p.turns], dtype=torch.int64)
        at, turns = at.to(self._device), turns.to(self._device)
        first = 0
        for plan, batch_places in zip(plans, places, strict=True):
            part = slice(first, first + len(plan))
            first = part.stop
            yield self._batch(plan.members, batch_places, at[part], turns[part])

    def _batch(
        self, members: tuple[Member, ...], places: list[int], at_B: Tensor, turn_B: Tensor
    ) -> DeviceBatch:
        B, T = len(members), self._grid
        at_B1 = at_B[:, None]
        image = None
        if self._image_NP3 is not None and self._pixels_8P is not None:
            side = self._image_px
            image = self._image_NP3[at_B1, self._pixels_8P[turn_B]].view(B, side, side, 3)
        bins_BR = self._bins_8R[turn_B]
        mask = exposure = self._mask_NR[at_B1, bins_BR].view(B, PATCH_BINS, PATCH_BINS)
        if self._exposure_NR is not None:
            exposure = self._exposure_NR[at_B1, bins_BR].view(B, PATCH_BINS, PATCH_BINS)
        measured = self._measured(members)
        return DeviceBatch(
            members=members,
            tokens=self._tokens(at_B, turn_B).view(B, T, T, -1),
            image=image,
            counts=self._counts(places, at_B, turn_B),
            tissue_mask=mask,
            exposure=exposure,
            measured=None if measured is None else torch.from_numpy(measured),
        )

    def _tokens(self, at_B: Tensor, turn_B: Tensor) -> Tensor:
        """(B, T·T, D) float16."""
        tokens_BTD = self._tokens_NTD[at_B[:, None], self._tokens_8T[turn_B]]
        if self._scales_ND is not None:
            tokens_BTD = (tokens_BTD.float() * self._scales_ND[at_B][:, None]).half()
        if self._channels_8D is not None:  # contiguous per channel in memory, as in `load`
            order_BD1 = self._channels_8D[turn_B][:, :, None]
            tokens_BDT = tokens_BTD.transpose(1, 2)
            return tokens_BDT.gather(1, order_BD1.expand_as(tokens_BDT)).transpose(1, 2)
        return tokens_BTD

    def _counts(self, places: list[int], at_B: Tensor, turn_B: Tensor) -> Counts:
        """Sparse counts of the batch; the entries of a patch are contiguous and sorted by gene."""
        B, G, device = len(places), self._n_genes, self._device
        # The number of entries is computed on the host, so that nothing waits for the device.
        n = sum(int(self._start_NG[(i + 1) * G] - self._start_NG[i * G]) for i in places)
        begin_B = self._starts_NG[at_B * G]
        size_B = self._starts_NG[(at_B + 1) * G] - begin_B
        shift_B = begin_B - (size_B.cumsum(0) - size_B)  # from index in the batch to kept index
        patch_n = torch.repeat_interleave(torch.arange(B, device=device), size_B, output_size=n)
        entry_n = torch.arange(n, device=device) + shift_B[patch_n]
        map_BG = at_B[:, None] * G + torch.arange(G, device=device)
        start_BG = self._starts_NG[map_BG] - shift_B[:, None]
        start = torch.cat([start_BG.flatten(), torch.full((1,), n, device=device)])
        position_n = self._positions_8R[turn_B[patch_n], self._position_n[entry_n].long()]
        count_n = self._count_n[entry_n]
        shape = (B, G, PATCH_BINS, PATCH_BINS)
        if device.type == "cpu":
            position = position_n.numpy().view(np.uint16)
            return BatchCounts(start.numpy(), position, count_n.numpy(), shape)
        return DeviceCounts(start, position_n, count_n, shape)


class _Block:
    """Some patches in main memory, in the layout in which they are kept on the device."""

    def __init__(self, dataset: PatchDataset, members: Sequence[Member]) -> None:
        patches = [dataset.patch(member) for member in members]
        D = dataset.token_shape[2]
        self.scales: Array = np.empty((len(members), D), np.float32)
        if _keeps_codes(dataset):
            codes = [patch.token_codes for patch in patches]
            tokens = np.stack([code for code, _ in codes])
            self.scales = np.stack([scales for _, scales in codes])
        else:
            tokens = np.stack([dataset.tokens(member) for member in members])
        self.tokens = tokens.reshape(len(members), -1, D)
        self.images = np.empty((0, dataset.image_px**2, 3), np.uint8)
        if dataset.wants_image:
            images = [dataset.image(member) for member in members]
            self.images = np.stack(images).reshape(-1, dataset.image_px**2, 3)
        self.masks = np.stack([patch.tissue_mask.ravel() for patch in patches])
        self.exposures: Array = np.empty((len(members), PATCH_POSITIONS), np.float32)
        if dataset.cohort_exposure is not None:
            self.exposures = np.stack([dataset.exposure(member).ravel() for member in members])
        counts = [dataset.panel_counts(member) for member in members]
        genes = np.arange(len(dataset.panel))
        ends = np.concatenate([np.searchsorted(c.gene, genes, "right") for c in counts])
        before = np.cumsum([0, *(len(c.gene) for c in counts)])[:-1]
        self.start = ends + np.repeat(before, len(genes))  # end of each map's entries
        self.position = np.concatenate([c.position for c in counts]).astype(np.int16)
        self.count = np.concatenate([c.count for c in counts]).astype(np.float32)


def resident_bytes(dataset: PatchDataset, members: Sequence[Member]) -> int:
    """Upper estimate of the memory that `Resident` needs, in bytes."""
    T, D = dataset.token_shape[0] + 2 * dataset.margin_tokens, dataset.token_shape[2]
    token_bytes = T * T * D + 4 * D if _keeps_codes(dataset) else 2 * T * T * D
    image_bytes = 3 * dataset.image_px**2 if dataset.wants_image else 0
    bin_bytes = PATCH_POSITIONS * (1 if dataset.cohort_exposure is None else 5)
    per_patch = token_bytes + image_bytes + bin_bytes + 8 * len(dataset.panel)
    stores = {member.store for member in members}
    return len(members) * per_patch + _COUNT_BYTES * sum(dataset.panel_umis(s) for s in stores)


def _keeps_codes(dataset: PatchDataset) -> bool:
    if dataset.margin_um:  # whose tokens have scales of their own
        return False
    return all(store.token_dtype == "int8" for store in dataset.stores)
