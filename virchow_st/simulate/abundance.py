"""Mean expression of genes by rank: a power law for panels, log-normal for whole transcriptomes.

In whole-transcriptome Visium HD, a 2 µm bin of tissue has about 9 UMIs, of which the fifty most
abundant genes have 2.5, and most genes have less than 1e-4 each. Abundant transcripts fall with
their rank about as a power law (Furusawa and Kaneko, Phys. Rev. Lett. 90 (2003) 088102), but a
power law that fits them has too many genes of middling abundance and no rare ones. A log-normal
curve is curved in the same way as real ones. Two figures determine it: 18,000 genes with 9 UMIs, of
which 2.5 in the top fifty, need a standard deviation of 2.2 of the natural logarithm. The third
figure follows: 64 % of the genes lie below 1e-4, and the median is 4.4e-5.

Two real sections of breast cancer (Andersson et al., Nat. Commun. 12 (2021) 6012; spots of 100 µm
with 15,706 and 15,721 genes, taken as 18,000 genes with 9 UMIs) agree in the width of the middle
and have a lighter head: the logarithm of upper to lower quartile is 3.5 in both (3.0 for the
curve), the median 1.4e-4 and 1.3e-4, the share below 1e-4 45 % in both, and the share of the UMIs
in the top fifty genes 16 and 17 % (28 % for the curve).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from virchow_st.types import Float64Array

PANEL_GENES = 1000
"""Largest number of genes with the power law of a panel."""
TRANSCRIPTOME_GENES = 18_000
"""Genes of a transcriptome, of which smaller numbers are the most abundant."""
_LOG_SD = 2.2


def abundance_curve(n_genes: int) -> Float64Array:
    """Relative mean expression of genes in order of abundance, (n_genes,) float64, falling.

    Up to `PANEL_GENES` genes it is ``(1 + rank / 25) ** -1.15``. Above, it is that of the most
    abundant ``n_genes`` of `TRANSCRIPTOME_GENES` log-normally distributed genes (of ``n_genes``, if
    these are more): ``exp(2.2 * z)``, z the normal quantile of the rank. The scale is arbitrary;
    sequencing depth sets it.

    Example:
        >>> curve = abundance_curve(18_000)
        >>> per_bin = 2.5 * curve / curve[:50].sum()
        >>> round(float(per_bin.sum()), 1), round(float((per_bin < 1e-4).mean()), 2)
        (9.1, 0.64)
    """
    rank = np.arange(n_genes)
    if n_genes <= PANEL_GENES:
        panel: Float64Array = (1 + rank / 25) ** -1.15
        return panel
    quantile = 1 - (rank + 0.5) / max(n_genes, TRANSCRIPTOME_GENES)
    curve: Float64Array = np.exp(_LOG_SD * ndtri(quantile))
    return curve
