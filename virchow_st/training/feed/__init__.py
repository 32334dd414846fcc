"""Batches on the decoder's device: from patches kept in memory, or read during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virchow_st.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from virchow_st.run.split import Member
    from virchow_st.training.dataset import PatchDataset
    from virchow_st.training.feed.base import Feed

# The other half is left for activations on a GPU, or for other programs in main memory.
_SHARE_TO_HOLD = 0.5


def open_feed(
    dataset: PatchDataset,
    members: Sequence[Member],
    device: torch.device,
    progress: Progress = SILENT,
    n_sharing: int = 1,
) -> Feed:
    """Open the in-memory feed if the patches fit, else the feed that reads from the stores.

    Both give bit-identical batches.

    Args:
        dataset: Patches of the run.
        members: All patches that will be requested.
        device: Device of the decoder.
        progress: Receives a note that names the feed.
        n_sharing: Number of processes that share this machine's memory; each has its own GPU.
    """
    from virchow_st.runtime.devices import free_memory
    from virchow_st.training.feed.resident import Resident, resident_bytes
    from virchow_st.training.feed.streamed import Streamed

    n_bytes = resident_bytes(dataset, members)
    room = int(_SHARE_TO_HOLD * free_memory(device)) // (n_sharing if device.type == "cpu" else 1)
    size = f"{len(members)} patches, {_size(n_bytes)},"
    place = "in memory" if device.type == "cpu" else f"on {device}"
    if n_bytes <= room:
        progress.note(f"{size} are kept {place}")
        return Resident(dataset, members, device, progress)
    progress.note(f"{size} are read during training: {_size(room)} may be used {place}")
    return Streamed(dataset, device)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
