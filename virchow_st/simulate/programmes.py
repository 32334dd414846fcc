"""Gene programmes: expression of each material, and loadings of genes on programmes.

The rate of a gene is ``depth[row, col] * sum_k loading[gene, k] * programme_k[row, col]``: expected
UMIs per 2 µm bin, before hidden variation (`HiddenVariation`). Programmes are areas of materials
weighted by `_EXPRESSION`, blurred by the lateral diffusion of transcripts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from virchow_st.simulate.abundance import abundance_curve
from virchow_st.simulate.morphology import MARGIN_BINS, PX_PER_BIN, Material, Tissue
from virchow_st.types import BIN_UM, Array, Float32Array

DIFFUSION_UM = 2.5
"""Sd of the lateral diffusion of transcripts, µm."""

_M = Material
# Expression of each programme per unit area of a material.
_EXPRESSION: dict[str, dict[Material, float]] = {
    "epithelial": {
        _M.GLAND_CYTOPLASM: 1.0,
        _M.GLAND_APEX: 1.6,
        _M.MEMBRANE: 2.2,
        _M.GLAND_NUCLEUS: 0.3,
        _M.TUMOUR_CYTOPLASM: 0.9,
        _M.TUMOUR_NUCLEUS: 0.25,
    },
    "secretory": {_M.GOBLET: 2.5, _M.GLAND_APEX: 1.2, _M.GLAND_CYTOPLASM: 0.25},
    "tumour": {_M.TUMOUR_CYTOPLASM: 1.5, _M.TUMOUR_NUCLEUS: 0.7},
    "stromal": {
        _M.FIBROBLAST: 1.8,
        _M.FIBROBLAST_NUCLEUS: 0.7,
        _M.COLLAGEN: 0.15,
        _M.MUSCLE: 0.5,
    },
    "immune": {_M.LYMPHOCYTE: 2.2, _M.LYMPHOCYTE_NUCLEUS: 1.2, _M.PLASMA_CELL: 0.3},
    "plasma": {_M.PLASMA_CELL: 3.0, _M.PLASMA_NUCLEUS: 1.0},
    "muscle": {
        _M.MUSCLE: 2.5,
        _M.ENDOTHELIAL_NUCLEUS: 1.0,
        _M.FIBROBLAST: 0.12,
        _M.COLLAGEN: 0.03,
    },
    "mitochondrial": {
        _M.GLAND_CYTOPLASM: 1.6,
        _M.GLAND_APEX: 0.8,
        _M.MEMBRANE: 0.7,
        _M.TUMOUR_CYTOPLASM: 1.3,
        _M.FIBROBLAST: 0.3,
        _M.PLASMA_CELL: 0.6,
        _M.MUSCLE: 0.5,
    },
    "housekeeping": {
        _M.GLAND_CYTOPLASM: 1.0,
        _M.GLAND_APEX: 0.8,
        _M.MEMBRANE: 0.8,
        _M.GOBLET: 0.3,
        _M.TUMOUR_CYTOPLASM: 1.3,
        _M.FIBROBLAST: 0.7,
        _M.LYMPHOCYTE: 0.9,
        _M.PLASMA_CELL: 1.2,
        _M.MUSCLE: 0.6,
        _M.COLLAGEN: 0.08,
        _M.GLAND_NUCLEUS: 0.5,
        _M.TUMOUR_NUCLEUS: 0.6,
        _M.FIBROBLAST_NUCLEUS: 0.4,
        _M.LYMPHOCYTE_NUCLEUS: 0.5,
        _M.PLASMA_NUCLEUS: 0.5,
        _M.ENDOTHELIAL_NUCLEUS: 0.5,
    },
    "nuclear": {m: 1.5 for m in Material if m.name.endswith("_NUCLEUS")},
}
AMBIENT = "ambient"
"""The last programme: ambient transcripts, equal in all bins inside and outside of tissue."""
PROGRAMMES = (*_EXPRESSION, AMBIENT)
# Mean of each programme over the tissue of a typical section; converts gene means to loadings.
_TYPICAL_MEAN = np.array([0.29, 0.07, 0.20, 0.30, 0.11, 0.12, 0.03, 0.30, 0.53, 0.45, 1.0])
_AMBIENT_SHARE = 0.01

# The sixty most abundant genes by their main programme; the rest of their expression follows the
# housekeeping programme. Two gene ids have the symbol HSPA14, as in the human reference.
_MARKERS: dict[str, str] = {
    "epithelial": "EPCAM KRT8 KRT18 KRT19 KRT20 CDH1 CLDN4 CEACAM5 CEACAM6 LGALS4 TSPAN8 S100A6",
    "secretory": "PIGR MUC2 FCGBP TFF3 AGR2 SPINK4 ZG16 OLFM4",
    "tumour": "MYC CCND1 TOP2A MKI67 STMN1 ERBB2",
    "stromal": "COL1A1 COL1A2 COL3A1 SPARC VIM DCN LUM FN1",
    "immune": "CD74 HLA-DRA PTPRC CD3E CXCR4 LTB",
    "plasma": "IGKC IGHA1 JCHAIN MZB1",
    "muscle": "ACTA2 TAGLN MYH11",
    "mitochondrial": "MT-CO1 MT-CO2 MT-ND4 MT-CYB",
    "housekeeping": "ACTB B2M RPLP0 RPS18 GAPDH HSPA14 HSPA14",
    "nuclear": "MALAT1 NEAT1",
}


@dataclass(frozen=True)
class Genes:
    """Genes of a cohort: ``ids`` and ``symbols`` (G,), ``loadings`` (G, K) float64."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    loadings: Array


def draw_genes(rng: np.random.Generator, n_genes: int) -> Genes:
    """Draw the gene means, `abundance_curve` varied by 25 %, and the loadings on the programmes."""
    # The programmes take turns, each with its markers in order of abundance.
    names = {k: symbols.split() for k, symbols in _MARKERS.items()}
    turns = range(max(map(len, names.values())))
    marked = [(names[k][turn], k) for turn in turns for k in names if turn < len(names[k])]
    symbols = [symbol for symbol, _ in marked]
    symbols += [f"SIM{i + 1:04d}" for i in range(len(marked), n_genes)]

    mean = abundance_curve(n_genes) * np.exp(rng.normal(0.0, 0.25, n_genes))
    housekeeping = PROGRAMMES.index("housekeeping")
    n_own = len(_EXPRESSION)
    share = np.zeros((n_genes, len(PROGRAMMES)))
    for gene, (_, programme) in enumerate(marked):
        own = rng.uniform(0.88, 0.98)
        share[gene, PROGRAMMES.index(programme)] = own
        share[gene, housekeeping] += 1 - own
    rest = n_genes - len(marked)
    share[len(marked) :, :n_own] = 0.8 * rng.dirichlet(np.full(n_own, 0.3), rest)
    share[len(marked) :, housekeeping] += 0.2
    share[:, -1] = _AMBIENT_SHARE
    ids = tuple(f"ENSG{90_000_000_000 + i:011d}" for i in range(n_genes))
    return Genes(ids, tuple(symbols), mean[:, None] * share / _TYPICAL_MEAN)


def patient_loadings(rng: np.random.Generator, genes: Genes) -> Array:
    """Draw the loadings of a patient, (G, K) float64: the cohort's, varied by about 10 %."""
    loadings: Array = genes.loadings * np.exp(rng.normal(0.0, 0.1, genes.loadings.shape))
    return loadings


def programme_maps(tissue: Tissue) -> Float32Array:
    """Diffused programmes of the bins, (K, bins, bins) float32, in the order of `PROGRAMMES`."""
    areas = material_areas(tissue, weight=tissue.tone * tissue.thickness)
    table = np.array([[_EXPRESSION[k].get(m, 0.0) for m in Material] for k in _EXPRESSION])
    mixed = np.tensordot(table.astype(np.float32), areas, axes=1)
    sigma = DIFFUSION_UM / BIN_UM
    diffused = [_inner(gaussian_filter(p, sigma, mode="nearest")) for p in mixed]
    return np.stack([*diffused, np.ones_like(diffused[0])])


def material_areas(tissue: Tissue, weight: Float32Array) -> Float32Array:
    """Weighted share of every material in every bin, margin included: (materials, n, n) float32."""
    return np.stack([_bin_mean(np.where(tissue.material == m, weight, 0)) for m in Material])


def nuclear_map(tissue: Tissue) -> Float32Array:
    """Share of every bin covered by nuclei, (bins, bins) float32 in 0 to 1, before diffusion."""
    nuclear = tissue.material >= Material.GLAND_NUCLEUS
    return _inner(_bin_mean(nuclear.astype(np.float32)))


def tissue_map(tissue: Tissue) -> Array:
    """Tissue mask (bins, bins), bool: True for bins more than half inside the tissue outline."""
    inside: Array = _inner(_bin_mean(tissue.outline.astype(np.float32))) > 0.5
    return inside


def _bin_mean(canvas: Array) -> Float32Array:
    n = canvas.shape[0] // PX_PER_BIN
    blocks = canvas.reshape(n, PX_PER_BIN, n, PX_PER_BIN).astype(np.float32, copy=False)
    mean: Float32Array = blocks.mean(axis=(1, 3))
    return mean


def _inner(bins: Float32Array) -> Float32Array:
    return bins[MARGIN_BINS:-MARGIN_BINS, MARGIN_BINS:-MARGIN_BINS]
