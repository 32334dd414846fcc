"""Hardware limits, measured on the machine itself: memory, matrix product and disk rates."""

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
    """Rate at which one thread copies memory, bytes per second, each byte counted once.

    128 MiB, more than any cache holds, are copied block by block into one buffer that may stay in
    the cache: the access pattern of a loop that reads records or maps into a buffer.

    Args:
        block_bytes: Size of a block, bytes.
        rounds: Timed passes over all blocks; the best time is used.
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
    """Floating point operations per second of a large square matrix product on a device.

    A product of n × n matrices counts as 2 n³ operations.

    Args:
        device: Device; on the CPU with the threads of torch.
        rounds: Timed repetitions; the best time is used.
        precision: Name of the torch dtype; if empty, float32 on the CPU and bfloat16 on CUDA.
    """
    import torch

    on_cuda = device.type == "cuda"
    n = 8192 if on_cuda else 1024
    dtype = getattr(torch, precision or ("bfloat16" if on_cuda else "float32"))
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    burst = 10 if on_cuda else 3  # on a GPU they are queued, so that launching them costs nothing

    def multiply() -> None:
        for _ in range(burst):
            torch.mm(a, b)
        if on_cuda:
            torch.cuda.synchronize(device)

    (seconds,) = interleaved(multiply, rounds=rounds)
    return burst * 2 * n**3 / seconds


@dataclass(frozen=True)
class DiskRates:
    """Sequential write and read rates of the disk of a folder.

    Attributes:
        write: Bytes per second, including the final ``fsync``.
        read: Bytes per second after dropping the file from the page cache; None if the kernel keeps
            the pages, as in a memory file system.
    """

    write: float
    read: float | None


def disk_rates(folder: Path, n_bytes: int = _DISK_BYTES) -> DiskRates:
    """Write a file in a folder, sync it, drop it from the page cache and read it once."""
    path = folder / "disk-rates.bin"
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)  # incompressible
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
    """Drop files from the page cache; returns the share that the kernel keeps, 0 to 1."""
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
    """Total bytes of the arrays among the arguments: the least that a function has to read."""
    return sum(x.nbytes for x in arguments if isinstance(x, np.ndarray))
