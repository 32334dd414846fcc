"""Result files of runs whose rates are known, as ``vst evaluate`` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter

from virchow_st.evaluation.by_scale import scale_scores
from virchow_st.metrics import ScaleAccumulator
from virchow_st.output.figures import draw
from virchow_st.output.figures.run import OtherRun
from virchow_st.output.figures.style import Picture
from virchow_st.run.blocks import RUN, RunBlocks, write_blocks
from virchow_st.run.evaluated import read_results
from virchow_st.run.maps import open_maps
from virchow_st.run.overview import read_overviews
from virchow_st.run.panel import Panel
from virchow_st.run.results import write_metrics, write_per_gene
from virchow_st.types import SCALES_UM

SYMBOLS = ("EPCAM", "PIGR", "HLA-A", "SAA2", "SAA2", "NONE")
MEANS = (0.15, 0.05, 0.4, 0.02, 0.02, 0.0)
ROW0, COL0 = 256, 128
P = 128


@dataclass
class FigureRun:
    """The content of the result files; tests change parts of it before they call `write`.

    Attributes:
        patient: of the test slide.
        lattice: (row, col) of the patches, in patches.
        symbols, means: of the genes; means in UMIs per 2 µm bin.
        skill: of the prediction: 1 is the true rate, 0 the gene's mean.
        loss: named in ``metrics.json``.
        epochs: in the history.
    """

    patient: str = "P5"
    lattice: Sequence[tuple[int, int]] = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1))
    symbols: Sequence[str] = SYMBOLS
    means: Sequence[float] = MEANS
    skill: float = 1.0
    loss: str = "poisson"
    epochs: int = 18
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.ids = [f"ENSG{g:04d}" for g in range(len(self.symbols))]
        rows, cols = (P * (1 + max(at[i] for at in self.lattice)) for i in range(2))
        inside = np.zeros((rows, cols), bool)
        for row, col in self.lattice:
            inside[P * row : P * row + P, P * col : P * col + P] = True
        tissue = gaussian_filter(rng.normal(size=(rows, cols)), 30) > -0.009
        self.mask = inside & tissue
        self.mask[100:128, 130:170] = False
        self.blocks = np.arange(len(self.lattice))
        rates, counts = [], []
        for mean in self.means:
            coarse = np.exp(0.7 * _standardised(gaussian_filter(rng.normal(size=(rows, cols)), 18)))
            fine = np.exp(0.8 * _standardised(gaussian_filter(rng.normal(size=(rows, cols)), 2)))
            rate = mean * coarse * fine / (coarse * fine).mean()
            counts.append(rng.poisson(rate) * self.mask)
            rates.append((self.skill * rate + (1 - self.skill) * mean) * inside)
        self.rates = np.array(rates, np.float16)
        self.counts = np.array(counts, np.uint16)
        self.image = _stain(self.mask, rates[0], rng)

    def write(self, run: Path) -> Path:
        """Write all result files of the run; returns its folder."""
        (run / "maps").mkdir(parents=True)
        rows, cols = np.array(self.lattice, np.int32).T * P
        table = {
            "patch_row0": rows + ROW0, "patch_col0": cols + COL0,
            "patch_block": self.blocks.astype(np.int32),
        }  # fmt: skip
        with h5py.File(run / "maps" / f"{self.patient}.h5", "w") as f:
            f.attrs.update(
                format="virchow_st.maps/1", patient=self.patient, row0=ROW0, col0=COL0, bin_um=2
            )
            datasets = {"rate": self.rates, "counts": self.counts, "scored_mask": self.mask}
            for name, value in {**datasets, "image": self.image, **table}.items():
                f[name] = value
            f["gene_id"], f["gene_symbol"] = self.ids, list(self.symbols)
        with h5py.File(run / "overview.h5", "w") as f:
            f.attrs.update(format="virchow_st.overview/1", bin_um=2, block_um=256)
            for i, patient in enumerate(("P1", self.patient)):
                self._write_overview(f.create_group(str(i)), patient, table)
        self._write_tables(run)
        (run / "history.jsonl").write_text(
            "".join(history_line(e) for e in range(1, self.epochs + 1))
        )
        return run

    def _write_overview(self, group: Any, patient: str, table: dict[str, np.ndarray]) -> None:
        is_test = patient == self.patient
        group.attrs.update(name=patient, patient=patient, row0=ROW0, col0=COL0, um_per_px=1)
        valid = np.zeros_like(self.mask)
        for row, col in self.lattice:
            valid[P * row : P * row + P, P * col : P * col + P] = True
        valid[:20, :60] = False
        n = len(self.lattice)
        parts = np.full(n, 2) if is_test else (np.arange(n) % 3 == 0).astype(int)
        umis = [int(self.counts[:, r * P : r * P + P, c * P : c * P + P].sum())
                for r, c in self.lattice]  # fmt: skip
        values = {
            **table, "image": self.image, "tissue_mask": self.mask, "validity_mask": valid,
            "patch_part": parts.astype(np.int32), "patch_total_umi": np.array(umis, np.int64),
        }  # fmt: skip
        values["patch_block"] = table["patch_block"] if is_test else np.full(n, -1, np.int32)
        for name, value in values.items():
            group[name] = value

    def _write_tables(self, run: Path) -> None:
        n_blocks, means = int(self.blocks.max()) + 1, np.array(self.means)
        scored = {s: ScaleAccumulator(len(means), s, means, n_blocks) for s in SCALES_UM}
        for i, block in enumerate(self.blocks.tolist()):
            rate, counts, mask = self.patch(i)
            other = self.patch(i - 1)[0] if len(self.lattice) > 1 else None
            for accumulator in scored.values():
                accumulator.update(rate, counts, mask, other, block=block)
        panel = Panel(tuple(self.ids), tuple(self.symbols))
        write_per_gene(run, panel, {scale: a.compute() for scale, a in scored.items()})
        sums = {scale: a.block_sums() for scale, a in scored.items()}
        write_blocks(run, RunBlocks(panel.ids, {RUN: sums}))
        metrics: dict[str, Any] = {
            "format": "virchow_st.metrics/1", "test_patients": [self.patient],
            "n_patches": len(self.lattice), "n_genes": len(panel), "loss": self.loss,
            "decoder": "hist2st", "epoch": 12,
            "encoder": {"name": "stain", "weights": "0" * 16, "licence": ""},
            "bootstrap": {"block_um": 256, "n_blocks": n_blocks, "draws": 1000},
            "scales": scale_scores(scored, int(self.mask.sum())),
            "baselines": {}, "oracles": [], "differences": {},
        }  # fmt: skip
        write_metrics(run, metrics)

    def patch(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rates float32, counts and mask of one patch."""
        row, col = (P * n for n in self.lattice[i])
        window = np.s_[..., row : row + P, col : col + P]
        return self.rates[window].astype(np.float32), self.counts[window], self.mask[window]


def all_pictures(run: Path, other: Path | None, n_genes: int) -> dict[str, list[Picture]]:
    """The pictures that ``vst figures`` would save for a run's first genes: name → pages."""
    results = read_results(run)
    against = None if other is None else OtherRun.read(results, other)
    (path,) = (run / "maps").glob("*.h5")
    with open_maps(path) as slide:
        genes, overviews = slide.genes[:n_genes], list(read_overviews(run))
        return dict(draw.pictures(results, genes, [slide], overviews, against))


def _standardised(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _stain(mask: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image with pink stroma, purple nuclei where the first gene is high, and white glass."""
    up = np.ones((2, 2))
    tissue = np.kron(mask, up)[..., None]
    chance = np.kron(rate / rate.max(), up) * 0.02 + 0.002
    nuclei = gaussian_filter((rng.random(chance.shape) < chance).astype(float), 2.5)
    alpha = np.clip(nuclei * 30, 0, 0.9)[..., None]
    noise = gaussian_filter(rng.normal(size=chance.shape), 3)[..., None] * 60
    pink = np.array([226, 160, 196]) + noise
    colour = (1 - alpha) * pink + alpha * np.array([84, 48, 132])
    return np.where(tissue, colour, 245).clip(0, 255).astype(np.uint8)


def history_line(epoch: int) -> str:
    """A line of ``history.jsonl``; the best epoch is the 12th."""
    fall = np.exp(-epoch / 4)
    by_scale = {"2": 0.30, "4": 0.62, "8": 1.10, "16": 2.2}
    line = {
        "epoch": epoch, "step": 12 * epoch, "lr": 5e-5,
        "train": {"loss": {s: d * (0.8 + fall) for s, d in by_scale.items()}},
        "weights": {s: 1 + (0.2 * np.log2(d)) * (1 - fall) for s, d in by_scale.items()},
        "validation": {
            "loss": {s: d * (0.9 + fall + 4e-4 * epoch**2) for s, d in by_scale.items()},
            "pcc": {s: (0.2 + 0.03 * int(s)) * (1 - fall) for s in by_scale},
        },
        "best": epoch <= 12, "seconds": 1.0, "patches_per_s": 100.0,
    }  # fmt: skip
    return json.dumps(line) + "\n"
