"""Which genes of a shared run can be trusted: a section of the model card from ``per_gene.csv``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from virchow_st.output.share.markdown import code, table
from virchow_st.run.panel import gene_labels
from virchow_st.run.results import GeneScore

SCALE_UM = 8
"""Side of the bins that genes are ranked at, the scale at which Visium HD is mostly analysed."""
_SHARES = (0.75, 0.5, 0.25)
_SHOWN = 5  # best and worst genes


def share_of_ceiling(score: GeneScore) -> float:
    """PCC divided by its ceiling: the share of the PCC that the noise of the counts allows.

    NaN if one of them is undefined or the ceiling is 0.
    """
    if math.isnan(score.pcc) or not score.pcc_ceiling > 0:
        return math.nan
    return score.pcc / score.pcc_ceiling


def is_above_nulls(score: GeneScore) -> bool:
    """Whether the PCC is above both nulls (predictions for other patches, and the shifted map)."""
    return all(
        math.isnan(null) or score.pcc > null for null in (score.pcc_shuffled, score.pcc_shifted)
    )


def gene_section(scores: Sequence[GeneScore]) -> str:
    """Section with the shares of the ceiling that genes reach, and the best and worst genes.

    Args:
        scores: lines of ``per_gene.csv``.
    """
    of_scale = [score for score in scores if score.scale_um == SCALE_UM]
    label_of = gene_labels([score.gene for score in of_scale])
    share_of = {score.gene.id: share_of_ceiling(score) for score in of_scale}
    scored = [score for score in of_scale if not math.isnan(share_of[score.gene.id])]
    scored.sort(key=lambda score: (-share_of[score.gene.id], score.gene.id))
    n = len(scored)
    counts = [
        (f"at least {limit:.0%} of the ceiling", sum(s >= limit for s in share_of.values()))
        for limit in _SHARES
    ]
    counts.append(("not above the nulls", sum(not is_above_nulls(score) for score in scored)))
    rows = [(label, f"{k} of {n}") for label, k in counts]
    if undefined := len(of_scale) - n:
        rows.append(("without a score (too few UMIs)", str(undefined)))
    n_shown = min(_SHOWN, (n + 1) // 2)
    lists = {"best": scored[:n_shown], "worst": scored[max(n_shown, n - n_shown) :]}
    ranked = [
        (code(label_of[s.gene.id]), rank, f"{s.mean:.2g}", f"{s.pcc:.2f}", f"{s.pcc_ceiling:.2f}",
         f"{share_of[s.gene.id]:.0%}", "yes" if is_above_nulls(s) else "no")
        for rank, of_rank in lists.items() for s in of_rank
    ]  # fmt: skip
    heads = ("gene", "rank", "UMIs per bin", "PCC", "ceiling", "share of it", "above the nulls")
    return "\n\n".join(
        [
            f"## How far to trust each gene, at {SCALE_UM} µm",
            table((f"PCC on the held-out patient at {SCALE_UM} µm", "genes"), rows),
            table(heads, ranked),
            "`per_gene.csv` has every gene of the panel at every scale.",
        ]
    )
