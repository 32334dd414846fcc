"""Feed that reads patches from their stores in a thread, into reused buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virchow_st.models.losses.base import on_device
from virchow_st.runtime.prefetch import ahead
from virchow_st.training.dataset import Batch, BatchPlan, PatchDataset
from virchow_st.training.feed.base import DeviceBatch
from virchow_st.types import Array

_N_SLOTS = 3  # one in use, one being read, one whose copy to the device may not be finished


class Streamed:
    """Reads the next batch while the current one is used.

    Args:
        dataset: Patches of the run.
        device: Device of the batches. For a GPU the buffers are pinned, so that copies to it block
            neither the program nor running kernels.
    """

    def __init__(self, dataset: PatchDataset, device: torch.device) -> None:
        self._dataset = dataset
        self._device = device
        self._slots = [_Slot(device) for _ in range(_N_SLOTS)]

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """See `Feed`."""
        with ThreadPoolExecutor(1) as reader:
            slots = [self._slots[i % _N_SLOTS] for i in range(len(plans))]
            work = list(zip(plans, slots, strict=True))
            for (_, slot), batch in ahead(reader, work, self._read):
                yield slot.send(batch)

    def _read(self, work: tuple[BatchPlan, _Slot]) -> Batch:
        plan, slot = work
        slot.wait()
        return self._dataset.load(plan.members, plan.turns, slot.allocate)


class _Slot:
    """Buffers for one batch, and an event that marks the end of its copies to the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Array] = {}
        self._copied: torch.cuda.Event | None = None

    def allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Allocate an array in the buffer of that name, which grows if it is too small."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < n_bytes:
            on_gpu = self._device.type == "cuda"
            buffer = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=on_gpu).numpy()
            self._buffers[name] = buffer
        return buffer[:n_bytes].view(dtype).reshape(shape)

    def send(self, batch: Batch) -> DeviceBatch:
        """Copy a batch to the device."""
        on_cpu = self._device.type == "cpu"
        mask = self._send(batch.tissue_mask)
        sent = DeviceBatch(
            members=batch.members,
            tokens=self._send(batch.tokens),
            image=None if batch.image is None else self._send(batch.image),
            counts=batch.targets if on_cpu else on_device(batch.targets, self._device),
            tissue_mask=mask,
            exposure=mask if batch.exposure is None else self._send(batch.exposure),
            measured=None if batch.measured is None else torch.from_numpy(batch.measured),
        )
        if not on_cpu:
            self._copied = torch.cuda.current_stream(self._device).record_event()
        return sent

    def _send(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def wait(self) -> None:
        """Wait until the device has copied the last batch."""
        if self._copied is not None:
            self._copied.synchronize()
