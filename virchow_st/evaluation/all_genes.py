"""Scores of every gene of a run with factors, without dense rates.

Letters: G genes, K factors, P patches of a slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.kernels.orientation import N_ORIENTATIONS, turn
from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics.discovery import by_decile, predicted_genes
from virchow_st.metrics.factor_scores import AllGeneScores, FactorScores
from virchow_st.run.all_genes import FDR, NULL_SCALES_UM, AllGenesTable
from virchow_st.run.panel import Panel
from virchow_st.run.rates import left_out
from virchow_st.store.panel_reads import PanelCounts
from virchow_st.types import (
    BIN_UM,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
)

N_NULLS = 8
"""Null predictions of a slide: each gives every patch the turned prediction for another one."""
_LEAST_UMIS = 20
"""UMIs on the test slide that a gene needs for its correlation to be tested against the null."""


@dataclass(frozen=True)
class _Kept:
    """A patch whose null predictions are not known yet."""

    counts: PanelCounts
    scored: BoolArray  # (128, 128)
    exposure: Float32Array | None  # (128, 128)
    factors: Float32Array  # (K, 32, 32), at 8 µm


class AllGenes:
    """Accumulates the scores of all genes at every scale.

    At 8 and 16 µm every patch is also scored with the predictions for other patches, as a null. For
    this the counts of a slide's patches, and the factors at 8 µm, are kept until its last patch.

    Args:
        genes: The G genes.
        loadings: (G, K) share of each gene in a factor's UMIs.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patients.
    """

    def __init__(self, genes: Panel, loadings: Float32Array, train_rate: Float64Array) -> None:
        self._genes = genes
        self._scores = {
            scale: FactorScores(
                loadings, scale, train_rate, n_nulls=N_NULLS if scale in NULL_SCALES_UM else 0
            )
            for scale in SCALES_UM
        }
        self._factor_sums = np.zeros(loadings.shape[1])
        self._n_bins = 0
        self._kept: list[_Kept] = []

    def add(
        self,
        counts: PanelCounts,
        tissue_mask: BoolArray,
        factors: Float32Array,
        exposure: Float32Array | None = None,
    ) -> None:
        """Add the prediction for one patch; the patches of a slide follow each other.

        Args:
            counts: Observed counts of the G genes at 2 µm.
            tissue_mask: (128, 128).
            factors: (K, 128, 128) UMIs per 2 µm bin; NaN in bins that are left out, which are not
                scored.
            exposure: (128, 128) exposure, see `metrics.exposed`; None for 1.
        """
        scored = tissue_mask & ~left_out(factors)
        self._factor_sums += factors[:, scored].sum(1, dtype=np.float64)
        factors = np.nan_to_num(factors, nan=0.0)  # those of bins that are not scored
        self._n_bins += int(scored.sum())
        for scale in SCALES_UM:
            if scale not in NULL_SCALES_UM:
                of_bins = _bin_major(factors, scale, exposure=exposure)
                self._update(scale, counts, scored, exposure, of_bins)
        n_fine = NULL_SCALES_UM[0] // BIN_UM
        coarse = _summed(factors, n_fine, exposure).astype(np.float32)
        self._kept.append(_Kept(counts, scored, exposure, coarse))

    def finish_slide(self) -> None:
        """Score the slide at 8 and 16 µm, once all its patches were added."""
        partners = null_partners(len(self._kept))
        for place, kept in enumerate(self._kept):
            others = [
                turn(self._kept[other].factors, orientation, axes=(1, 2))
                for other, orientation in partners[:, place].tolist()
            ]
            coarse = None
            if kept.exposure is not None:
                n_fine = NULL_SCALES_UM[0] // BIN_UM
                coarse = sum_pool(kept.exposure[None], n_fine)[0].astype(np.float32) / n_fine**2
            for scale in NULL_SCALES_UM:
                own, *nulls = (
                    _bin_major(x, scale, NULL_SCALES_UM[0], coarse) for x in (kept.factors, *others)
                )
                self._update(scale, kept.counts, kept.scored, kept.exposure, own, nulls)
        self._kept = []

    def _update(
        self,
        scale: int,
        counts: PanelCounts,
        scored: BoolArray,
        exposure: Float32Array | None,
        factors: Float32Array,
        nulls: Sequence[Float32Array] = (),
    ) -> None:
        start = np.searchsorted(counts.gene, np.arange(len(self._genes) + 1)).astype(np.int64)
        self._scores[scale].update(
            start, counts.position, counts.count, factors, scored, nulls, exposure=exposure
        )

    @property
    def mean_factors(self) -> Float64Array:
        """(K,) predicted UMIs of each factor per 2 µm tissue bin."""
        return self._factor_sums / max(self._n_bins, 1)

    def table(self, beside: AllGenesTable | None = None) -> AllGenesTable:
        """The scores of all genes.

        Args:
            beside: Genes that are tested against the null together with these. A few rows by
                themselves, such as gene sets, have too few null correlations for a small rate.
        """
        scores = {scale: scores.compute() for scale, scores in self._scores.items()}
        q_value = {
            scale: _q_value(scores[scale], None if beside is None else beside.scores[scale])
            for scale in NULL_SCALES_UM
        }
        return AllGenesTable(self._genes, scores, q_value)


def null_partners(n: int) -> Int64Array:
    """Partner and orientation of every patch in each null prediction, (N_NULLS, n, 2).

    A row moves a random order of the patches on by another number of places and turns all of them
    by another orientation, so that no patch has its own prediction as it is.

    Example:
        >>> pairs = null_partners(3)
        >>> pairs.shape, bool((pairs == np.stack([np.arange(3), np.zeros(3)], 1)).all(2).any())
        ((8, 3, 2), False)
    """
    order = np.random.default_rng(0).permutation(n)
    pairs = np.empty((N_NULLS, n, 2), np.int64)
    for i in range(N_NULLS):
        shift = 1 + i % (n - 1) if n > 1 else 0
        pairs[i, order, 0] = np.roll(order, shift)
        pairs[i, :, 1] = i % N_ORIENTATIONS if n > 1 else 1 + i % (N_ORIENTATIONS - 1)
    return pairs


def _bin_major(
    factors: Float32Array,
    scale_um: int,
    of_um: int = BIN_UM,
    exposure: Float32Array | None = None,
) -> Float32Array:
    """Factors (K, R, C) summed to a scale, (bins, K), at an exposure of 1; see `_summed`."""
    pooled = factors
    if scale_um > of_um:
        pooled = _summed(factors, scale_um // of_um, exposure)
    return np.ascontiguousarray(pooled.reshape(len(factors), -1).T)


def _summed(factors: Float32Array, factor: int, exposure: Float32Array | None) -> Array:
    """Factors (K, R, C) summed over squares, each weighted by its exposure (R, C) over their mean.

    The product with the mean exposure is the expected UMIs of the square.
    """
    if exposure is None:
        return sum_pool(factors, factor)
    return sum_pool(factors * exposure, factor) / (sum_pool(exposure[None], factor) / factor**2)


def _q_value(scores: AllGeneScores, beside: AllGeneScores | None) -> Float64Array:
    """(G,) smallest false discovery rate at which each gene is predicted; NaN where not tested."""
    tested = [scores] if beside is None else [scores, beside]
    pcc = np.concatenate([_tested_pcc(of) for of in tested])
    nulls = np.concatenate([of.pcc_null for of in tested], axis=1)
    return predicted_genes(pcc, nulls, FDR).q_value[: len(scores.pcc)]


def _tested_pcc(scores: AllGeneScores) -> Float64Array:
    """``pcc``, NaN for genes with hardly any UMIs, which are not tested."""
    return np.where(scores.mean * scores.n_bins >= _LEAST_UMIS, scores.pcc, np.nan)


def summary(table: AllGenesTable, n_factors: int, n_genes: int) -> dict[str, Any]:
    """``all_genes`` of ``metrics.json``, see docs/metrics.md.

    Args:
        table: Scores of the genes that the test slides measured.
        n_factors: Number of factors.
        n_genes: Number of genes that the run predicts.
    """
    n_absent = n_genes - len(table.genes)
    return {
        "n_genes": n_genes,
        **({"n_not_measured": n_absent} if n_absent else {}),
        "n_factors": n_factors,
        "null_draws": N_NULLS,
        "fdr": FDR,
        "n_tested": _by_scale({s: int(np.isfinite(q).sum()) for s, q in table.q_value.items()}),
        "n_predicted": _by_scale({s: int((q <= FDR).sum()) for s, q in table.q_value.items()}),
        "scales": _by_scale({scale: _means(scores) for scale, scores in table.scores.items()}),
        "deciles": _by_scale({scale: _deciles(scores) for scale, scores in table.scores.items()}),
    }


def _by_scale(values: dict[int, Any]) -> dict[str, Any]:
    return {str(scale): value for scale, value in values.items()}


def _means(scores: AllGeneScores) -> dict[str, Any]:
    """Means over scored genes, and the share of the ceiling."""
    scored = scores.scored
    pcc, ceiling = scores.pcc[scored], scores.pcc_ceiling[scored]
    return {
        "n_bins": scores.n_bins,
        "n_genes_scored": int(scored.sum()),
        "pcc": _number(_mean(pcc)),
        "pcc_ceiling": _number(_mean(ceiling)),
        "pcc_of_ceiling": _ratio(pcc.sum(), ceiling.sum()),
        "d2_poisson": _number(_mean(scores.d2_poisson[scored])),
        "calibration": _number(np.nanmedian(scores.calibration) if scored.any() else np.nan),
    }


def _deciles(scores: AllGeneScores) -> list[dict[str, Any]]:
    """Ten groups of genes, from the least to the most abundant on the test slide."""
    of_score = {
        name: by_decile(getattr(scores, name), scores.mean)
        for name in ("pcc", "pcc_ceiling", "d2_poisson")
    }
    pcc, ceiling = of_score["pcc"], of_score["pcc_ceiling"]
    umis = pcc.abundance / (scores.scale_um // BIN_UM) ** 2
    return [
        {
            "umis_per_2um_bin": _number(umis[i]),
            "n_genes_scored": int(pcc.n_genes[i]),
            "pcc": _number(pcc.mean[i]),
            "pcc_ceiling": _number(ceiling.mean[i]),
            "pcc_of_ceiling": _ratio(pcc.mean[i], ceiling.mean[i]),
            "d2_poisson": _number(of_score["d2_poisson"].median[i]),
        }
        for i in range(len(umis))
    ]


def _mean(values: Float64Array) -> float:
    return float(values.mean()) if values.size else float("nan")


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b > 0 else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
