"""A tiny field with known factors, its dense rates, and how its files look without Zarr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numcodecs import blosc

from virchow_st.field.loadings import Loadings
from virchow_st.field.write import Block, write_field
from virchow_st.run.panel import Panel
from virchow_st.types import BLOCK_BINS

PROVENANCE = {"format": "test/1", "made": {"by": "hand", "n": 3}}
CORNER_UM = 40.0, 16.0


@dataclass
class TinyField:
    """K factors on R × C bins, some of which have no values: whole 8 µm bins, and single ones."""

    shape: tuple[int, int] = (264, 520)
    n_genes: int = 30
    n_factors: int = 4
    direct: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        rows, cols = self.shape
        # Few binary digits, so that nothing is lost where they are rounded.
        n = self.n_genes if self.direct else self.n_factors
        maps = rng.integers(0, 32, (n, rows, cols)) / 16
        cells = rng.random((rows // 4, cols // 4)) < 0.7
        self.covered = cells.repeat(4, 0).repeat(4, 1) & (rng.random(self.shape) < 0.995)
        self.tissue = self.covered & (rng.random(self.shape) < 0.5)
        self.maps = np.where(self.covered, maps, np.nan).astype(np.float32)
        weights = rng.gamma(0.3, 1, (self.n_genes, self.n_factors)).astype(np.float32)
        weights[rng.random(weights.shape) < 0.4] = 0
        weights[2] = 0
        self.weights = np.eye(n, dtype=np.float32) if self.direct else weights
        self.genes = Panel(
            tuple(f"ENSG{g:05d}" for g in range(self.n_genes)),
            (*(f"GENE{g}" for g in range(self.n_genes - 1)), "GENE0"),  # a symbol twice
        )
        self.loadings = Loadings(self.genes, None if self.direct else self.weights)
        self.picture = rng.integers(0, 255, (rows * 2, cols * 2, 3), dtype=np.uint8)

    @property
    def rates(self) -> np.ndarray:
        """(G, R, C) float64, of which the field is the product."""
        return np.tensordot(self.weights.astype(np.float64), self.maps.astype(np.float64), 1)

    def blocks(self) -> Iterator[Block]:
        """As a stitcher hands them on; one without values is left out."""
        for row in range(0, self.shape[0], BLOCK_BINS):
            for col in range(0, self.shape[1], BLOCK_BINS):
                at = slice(row, row + BLOCK_BINS), slice(col, col + BLOCK_BINS)
                if self.covered[at].any():
                    yield row, col, self.maps[:, *at]

    def write(self, path: Path, picture: bool = True) -> Path:
        """Write the field."""
        write_field(
            path, self.blocks(), self.loadings, self.tissue, PROVENANCE,
            picture=(self.picture, 1.0) if picture else None, corner_um=CORNER_UM,
            um_to_px=np.array([[0, 4, 7], [4, 0, 9.0]]),
        )  # fmt: skip
        return path


def plain_chunk(data: bytes) -> bytes:
    """What is in a chunk file: Blosc's frame, then its CRC-32C, little-endian."""
    frame, crc = data[:-4], data[-4:]
    assert crc32c(frame) == int.from_bytes(crc, "little")
    return bytes(blosc.decompress(frame))


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit: reflected polynomial 0x82F63B78."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
