"""Writes a random 2 µm slide of full size in Space Ranger's layout: 11.2 M bins, 100 M non-zeros.

The counts of a bin depend only on the seed and the bin, so that the filtered matrix (tissue bins in
random order) and the raw matrix (all bins in row-major order) agree bin by bin. Only one block of
columns is held in memory at a time.

    python benchmarks/full_slide.py FOLDER [--small]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from scipy.ndimage import zoom

CHUNK = 65_536
BLOCK = 1 << 18  # columns drawn at a time
TISSUE_SHARE = 0.78  # 8.7 M of 11.2 M bins, as on the public human colon slide
AMBIENT = 0.02  # rate outside tissue, relative to that in tissue
PITCH_PX = 7.3  # px per bin: 0.274 µm/px
HIRES_PX = 600
MATRICES = ("filtered", "raw")


@dataclass(frozen=True)
class Size:
    """Size of a slide: bins per side, genes, and non-zeros over all bins."""

    side: int = 3350
    n_genes: int = 18_085
    nnz: int = 100_000_000
    seed: int = 0


FULL = Size()
SMALL = Size(side=400, n_genes=1_500, nnz=1_400_000)


@njit(cache=True)
def _uniform(key: int, draw: int) -> float:
    """Random number in [0, 1) for key and draw: two rounds of SplitMix64 (Steele et al. 2014)."""
    z = np.uint64(key) + np.uint64(draw) * np.uint64(0x9E3779B97F4A7C15)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def draw_columns(seed, bins, rate, mix, alias, keep, gene, count, ends):  # type: ignore[no-untyped-def]
    """Draw the UMIs of bins, each a Poisson number of genes from one of two programmes.

    Args:
        seed: seed of the slide.
        bins: (n,) int64 row-major indices of the bins.
        rate: (side²,) float32 expected UMIs of every bin.
        mix: (side²,) float32 share of the second programme.
        alias, keep: (2, G) alias tables of the programmes (Walker 1977).
        gene, count: (room,) output; sorted by gene within a bin, each gene once.
        ends: (n,) int64 output: index after the last entry of each bin.

    Returns:
        The number of entries.
    """
    n_genes, at = alias.shape[1], 0
    for i in range(len(bins)):
        key = (bins[i] + 1) * 1_000_003 + seed
        threshold, product, n_umi = np.exp(-rate[bins[i]]), _uniform(key, 0), 0
        while product > threshold:  # Knuth 1969, 3.4.1
            n_umi += 1
            product *= _uniform(key, n_umi)
        first = at
        for u in range(n_umi):
            draw = n_umi + 1 + 3 * u
            programme = 1 if _uniform(key, draw) < mix[bins[i]] else 0
            g = int(_uniform(key, draw + 1) * n_genes)
            if _uniform(key, draw + 2) >= keep[programme, g]:
                g = alias[programme, g]
            place = at
            while place > first and gene[place - 1] > g:
                place -= 1
            if place > first and gene[place - 1] == g:
                count[place - 1] += 1
                continue
            for k in range(at, place, -1):
                gene[k], count[k] = gene[k - 1], count[k - 1]
            gene[place], count[place] = g, 1
            at += 1
        ends[i] = at
    return at


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's tables: draw k; keep it with probability ``keep[k]``, else take ``alias[k]``."""
    n = len(weights)
    scaled = (weights / weights.sum() * n).tolist()
    alias, keep = np.arange(n), np.ones(n)
    small = [k for k, w in enumerate(scaled) if w < 1]
    large = [k for k, w in enumerate(scaled) if w >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low], keep[low] = high, scaled[low]
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return alias, keep


def smooth_field(rng: np.random.Generator, side: int, knots: int) -> np.ndarray:
    """A smooth random field of mean 0 and deviation 1, (side, side) float32."""
    coarse = rng.normal(size=(knots, knots)).astype(np.float32)
    fine = zoom(coarse, (side + knots - 1) // knots + 1, order=3, mode="nearest")[:side, :side]
    return (fine - fine.mean()) / fine.std()


def barcodes(bins: np.ndarray, side: int) -> np.ndarray:
    """Space Ranger's barcodes of row-major bins, (n,) S21."""
    letters = np.tile(np.frombuffer(b"s_002um_00000_00000-1", np.uint8), (len(bins), 1))
    for number, last in zip(np.divmod(bins, side), (12, 18), strict=True):
        rest = number.copy()
        for column in range(last, last - 5, -1):
            rest, digit = np.divmod(rest, 10)
            letters[:, column] += digit.astype(np.uint8)
    return letters.view("S21").ravel()


class Slide:
    """The maps from which a slide is drawn."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(size.seed)
        self.size, side = size, size.side
        row, col = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
        outline = 0.12 * smooth_field(rng, side, 6) - np.hypot(row, col)
        self.tissue = (outline > np.quantile(outline, 1 - TISSUE_SHARE)).ravel()
        texture = np.exp(
            0.4 * smooth_field(rng, side, 12)  # regions
            + 0.5 * smooth_field(rng, side, side // 8)  # cells, 16 µm apart
        ).ravel()
        self.mix = 1 / (1 + np.exp(-3 * smooth_field(rng, side, 20))).ravel().astype(np.float32)
        mean = (1 + np.arange(size.n_genes) / 25) ** -1.15  # as `vst simulate` draws them
        shares = [mean * np.exp(rng.normal(0, 0.8, size.n_genes)) for _ in range(2)]
        order = rng.permutation(size.n_genes)
        tables = [alias_table(share[order]) for share in shares]
        self.alias = np.stack([t[0] for t in tables]).astype(np.int64)
        self.keep = np.stack([t[1] for t in tables])
        self.rate = np.where(self.tissue, texture, AMBIENT * texture).astype(np.float32)
        # Genes drawn twice in a bin make the non-zeros fewer than the UMIs: scale on a sample.
        sample = np.sort(rng.choice(side * side, side * side // 50, replace=False))
        self.rate *= size.nnz / side**2 / self.rate.mean()
        for _ in range(3):
            n = len(self.draw(sample)[0])
            self.rate *= size.nnz * len(sample) / side**2 / n
        self.filtered_order = rng.permutation(np.flatnonzero(self.tissue))

    def draw(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Genes and counts of the bins, and where each bin's end."""
        mean = float(self.rate[bins].sum())
        room = int(mean + 10 * np.sqrt(mean) + 1000)
        gene, count = np.empty(room, np.int64), np.empty(room, np.int32)
        ends = np.empty(len(bins), np.int64)
        n = draw_columns(
            self.size.seed, bins, self.rate, self.mix, self.alias, self.keep, gene, count, ends
        )
        return gene[:n], count[:n], ends

    def write_matrix(self, path: Path, bins: np.ndarray) -> int:
        """Write the matrix of the bins in that order; returns its non-zeros."""
        n_genes, side = self.size.n_genes, self.size.side
        gzip = {"chunks": (CHUNK,), "compression": "gzip", "compression_opts": 4, "shuffle": True}
        with h5py.File(path, "w") as file:
            file.attrs["filetype"] = "matrix"
            file.attrs["software_version"] = "spaceranger-3.1.2"
            matrix = file.create_group("matrix")
            matrix.create_dataset("barcodes", data=barcodes(bins, side), **gzip)
            data = matrix.create_dataset("data", (0,), np.int32, maxshape=(None,), **gzip)
            indices = matrix.create_dataset("indices", (0,), np.int64, maxshape=(None,), **gzip)
            indptr = np.zeros(len(bins) + 1, np.int64)
            left = (np.zeros(0, np.int64), np.zeros(0, np.int32))  # less than a chunk
            written = 0
            for start in range(0, len(bins), BLOCK):
                block = bins[start : start + BLOCK]
                gene, count, ends = self.draw(block)
                indptr[start + 1 : start + 1 + len(block)] = indptr[start] + ends
                gene, count = np.concatenate([left[0], gene]), np.concatenate([left[1], count])
                whole = len(gene) if start + BLOCK >= len(bins) else len(gene) // CHUNK * CHUNK
                for dataset, values in ((indices, gene), (data, count)):
                    dataset.resize((written + whole,))
                    dataset[written:] = values[:whole]
                written += whole
                left = (gene[whole:].copy(), count[whole:].copy())
            matrix.create_dataset("indptr", data=indptr, **gzip)
            matrix["shape"] = np.array([n_genes, len(bins)], np.int32)
            features = matrix.create_group("features")
            features["_all_tag_keys"] = np.array([b"genome"])
            features["feature_type"] = np.full(n_genes, b"Gene Expression")
            features["genome"] = np.full(n_genes, b"GRCh38")
            features["id"] = np.array([f"ENSG{i:011d}".encode() for i in range(n_genes)])
            features["name"] = np.array([f"GENE{i}".encode() for i in range(n_genes)])
        return written

    def write_positions(self, path: Path) -> None:
        """Write ``tissue_positions.parquet``: every bin, row-major, in one row group."""
        side = self.size.side
        bins = np.arange(side * side)
        row, col = (a.astype(np.uint32) for a in np.divmod(bins, side))
        x, y = self.to_px(col, row)
        table = pa.table(
            {
                "barcode": pa.array(barcodes(bins, side)).cast(pa.string()),
                "in_tissue": self.tissue.astype(np.uint8),
                "array_row": row,
                "array_col": col,
                "pxl_row_in_fullres": y,
                "pxl_col_in_fullres": x,
            }
        )
        pq.write_table(table, path, compression="zstd", row_group_size=side * side)

    def to_px(self, col: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions: mirrored, rotated by a degree, with slight perspective."""
        cos, sin = PITCH_PX * np.cos(0.0175), PITCH_PX * np.sin(0.0175)
        w = 1 + 1.3e-7 * col + 7.6e-8 * row
        x = (PITCH_PX * self.size.side - cos * col + sin * row) / w
        y = (500 + sin * col + cos * row) / w
        return x, y


def write_slide(folder: Path, size: Size) -> Path:
    """Write ``folder/outs`` with both matrices, unless it exists already; returns its path."""
    outs, size_file = folder / "outs", folder / "size.json"
    if size_file.exists() and json.loads(size_file.read_text("utf-8")) == asdict(size):
        return outs
    square = outs / "binned_outputs" / "square_002um"
    (square / "spatial").mkdir(parents=True, exist_ok=True)
    slide = Slide(size)
    slide.write_positions(square / "spatial" / "tissue_positions.parquet")
    longest = PITCH_PX * size.side
    scale = HIRES_PX / longest
    factors = {
        "spot_diameter_fullres": PITCH_PX,
        "bin_size_um": 2.0,
        "microns_per_pixel": 2 / PITCH_PX,
        "regist_target_img_scalef": scale,
        "tissue_lowres_scalef": scale,
        "fiducial_diameter_fullres": 330 * PITCH_PX / 2,
        "tissue_hires_scalef": scale,
    }
    (square / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors), "utf-8")
    with h5py.File(outs / "feature_slice.h5", "w") as file:  # metadata only, which readers need
        layout = json.dumps({"file_format": "1.0", "transform": np.eye(3).tolist()})
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout})
    every = np.arange(size.side**2)
    for name, bins in zip(MATRICES, (slide.filtered_order, every), strict=True):
        slide.write_matrix(square / f"{name}_feature_bc_matrix.h5", bins)
    size_file.write_text(json.dumps(asdict(size)), "utf-8")
    return outs


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a 2 µm slide of full size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="400×400 bins, takes seconds")
    options = parser.parse_args()
    start = time.perf_counter()
    outs = write_slide(options.folder, SMALL if options.small else FULL)
    files = [p for p in outs.rglob("*") if p.is_file()]
    print(f"{outs}: {sum(os.path.getsize(p) for p in files) / 1e6:,.0f} MB", end=", ")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
