"""Batches where the decoder is: from patches that are held there, or read while it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virchow_st.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from virchow_st.run.split import Member
    from virchow_st.training.dataset import PatchDataset
    from virchow_st.training.feed.base import Feed

# What the other half is for: activations on a GPU, other programs in main memory.
_SHARE_TO_HOLD = 0.5


def open_feed(
    dataset: PatchDataset,
    members: Sequence[Member],
    device: torch.device,
    progress: Progress = SILENT,
    n_sharing: int = 1,
) -> Feed:
    """The faster of the two feeds that fits; both give the same batches, bit for bit.

    Args:
        dataset: the run's patches.
        members: all that will be asked for.
        device: where the decoder is.
        progress: told which feed it is.
        n_sharing: processes that share this machine's memory; each has a GPU of its own.
    """
    from virchow_st.runtime.devices import free_memory
    from virchow_st.training.feed.resident import Resident, resident_bytes
    from virchow_st.training.feed.streamed import Streamed

    n_bytes = resident_bytes(dataset, members)
    room = int(_SHARE_TO_HOLD * free_memory(device)) // (n_sharing if device.type == "cpu" else 1)
    size = f"{len(members)} patches, {_size(n_bytes)},"
    place = "in memory" if device.type == "cpu" else f"on {device}"
    if n_bytes <= room:
        progress.note(f"{size} are held {place}")
        return Resident(dataset, members, device, progress)
    progress.note(f"{size} are read from the stores all along: {_size(room)} may be taken {place}")
    return Streamed(dataset, device)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
