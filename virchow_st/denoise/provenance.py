"""What a denoised field and table say of their origin."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import Estimate
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.slide import LEAST_UMIS, SlideCounts
from virchow_st.denoise.uncertainty import Widening
from virchow_st.field.interval import SHARE
from virchow_st.runtime.software import versions
from virchow_st.store.reader import Store

FORMAT = "virchow_st.denoised/1"
_SOFTWARE = ("virchow_st", "numpy", "scipy", "numba", "opencv-python-headless", "zarr")


def provenance(
    store: Store,
    slide: SlideCounts,
    found: Estimate,
    config: DenoiseConfig,
    scores: dict[str, Any] | None,
) -> dict[str, Any]:
    """Of the estimate from a store, with the scores if they were asked for."""
    manifest, recipe = store.manifest, found.recipe
    return {
        "format": FORMAT,
        "source": "counts",
        "store": store.path.resolve().name,
        "patient": manifest["patient"],
        "slide": manifest["slide"],
        "records_xxh64": manifest["records_xxh64"],
        "homography": manifest["homography"],
        "n_patches": len(store),
        "n_tissue_bins": len(slide.place) + len(slide.unseen),
        "n_filled_bins": len(slide.unseen),
        "dead_rows": slide.dead[0],
        "dead_cols": slide.dead[1],
        "exposure": {
            name: {"sd": lines.sd, "efficiency": lines.efficiency.tolist() if lines.sd else None}
            for name, lines in zip(("rows", "cols"), slide.stripes, strict=True)
        },
        "n_umis": int(slide.rows.count.sum(dtype=np.float64)),
        "genes": {"id": list(slide.panel.ids), "symbol": list(slide.panel.symbols)},
        "least_umis": LEAST_UMIS,
        "n_factors": recipe.n_factors,
        "width_um": recipe.width_um,
        "refinement": asdict(recipe.refinement),
        "own_genes": [
            {
                "id": slide.panel.ids[ratio.gene],
                "width_um": ratio.width_um,
                "prior_umis": ratio.prior_umis,
                "gain": ratio.gain,
            }
            for ratio in recipe.own
        ],
        "sources": None if found.rates.sources is None else found.rates.sources.means(),
        "held_out_gain": {f"{width:g}": gain for width, gain in recipe.held_out.items()},
        "scores": scores,
        "options": asdict(config),
        "software": versions(_SOFTWARE),
    }


def about_errors(found: Estimate, prior: Prior | None, widening: Widening) -> dict[str, Any]:
    """The prior's weight, and what held-out counts added to the intervals."""
    recipe = found.recipe
    about: dict[str, Any] = {"interval": asdict(widening) | {"share": SHARE}}
    if prior is not None:
        beta = np.zeros(recipe.n_factors) if recipe.weights is None else recipe.weights.beta
        about["prior"] = {
            "run": prior.run, "weights": beta.tolist(), "gain": recipe.prior_gain,
        }  # fmt: skip
    return about
