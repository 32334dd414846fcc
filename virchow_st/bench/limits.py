"""What the machine itself can do, measured on the spot: the ceilings that figures are held to."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.bench.tables import interleaved

if TYPE_CHECKING:
    import torch

_COPY_BYTES = 128 << 20
_DISK_BYTES = 128 << 20
_BLOCK_BYTES = 1 << 20


def copy_rate(block_bytes: int, rounds: int = 5) -> float:
    """Bytes a second that one thread copies in memory, each counted once, as `memcpy` does.

    Blocks of 128 MiB that no cache holds go, one after the other, into one block that a cache may
    hold: what a loop does that reads record after record, or map after map, into a buffer.

    Args:
        block_bytes: size of a block.
        rounds: timed passes over all blocks; the best counts.
    """
    n_blocks = max(1, _COPY_BYTES // block_bytes)
    source = np.ones((n_blocks, block_bytes), np.uint8)
    target = np.empty(block_bytes, np.uint8)

    def copy_all() -> None:
        for block in source:
            np.copyto(target, block)

    (seconds,) = interleaved(copy_all, rounds=rounds)
    return source.nbytes / seconds


def matmul_rate(device: torch.device, rounds: int = 5, precision: str = "") -> float:
    """Floating point operations a second of a large square matrix product on a device.

    A product of n × n matrices counts 2 n³.

    Args:
        device: where; on the CPU with torch's threads.
        rounds: timed turns; the best counts.
        precision: as torch calls it; float32 on the CPU and bfloat16 on CUDA where empty.
    """
    import torch

    on_cuda = device.type == "cuda"
    n = 8192 if on_cuda else 1024
    dtype = getattr(torch, precision or ("bfloat16" if on_cuda else "float32"))
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    burst = 10 if on_cuda else 3  # on a GPU they queue up, so that starting them costs nothing

    def multiply() -> None:
        for _ in range(burst):
            torch.mm(a, b)
        if on_cuda:
            torch.cuda.synchronize(device)

    (seconds,) = interleaved(multiply, rounds=rounds)
    return burst * 2 * n**3 / seconds


@dataclass(frozen=True)
class DiskRates:
    """Plain sequential input and output of a folder's disk.

    Attributes:
        write: bytes a second, the final ``fsync`` included.
        read: bytes a second with the file's pages dropped; None where the kernel keeps them, as it
            does in a file system that lies in memory.
    """

    write: float
    read: float | None


def disk_rates(folder: Path, n_bytes: int = _DISK_BYTES) -> DiskRates:
    """Write a file in a folder, sync it, drop it from the page cache and read it once."""
    path = folder / "disk-rates.bin"
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)  # nothing that could be compressed
    n_blocks = max(1, n_bytes // _BLOCK_BYTES)
    try:
        start = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(n_blocks):
                file.write(block)
            os.fsync(file.fileno())
        write = n_blocks * _BLOCK_BYTES / (time.perf_counter() - start)
        read = None
        if drop_pages([path]) == 0.0:
            buffer = bytearray(_BLOCK_BYTES)
            start = time.perf_counter()
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
            read = n_blocks * _BLOCK_BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)
    return DiskRates(write, read)


def drop_pages(files: Sequence[Path]) -> float:
    """Ask the kernel to forget the files; the share of them that it nevertheless keeps, 0 to 1."""
    kept, looked_at = 0, 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, os.fstat(descriptor).st_size, _BLOCK_BYTES):
            looked_at += 1
            with suppress(BlockingIOError):
                kept += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        os.close(descriptor)
    return kept / max(looked_at, 1)


def bytes_of(*arguments: Any) -> int:
    """Bytes of the arrays among some arguments: what a function has to read at least."""
    return sum(x.nbytes for x in arguments if isinstance(x, np.ndarray))
