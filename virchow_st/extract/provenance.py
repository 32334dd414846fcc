"""Records what a store is made from: the job, compared on resuming, and the slide's manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from virchow_st.config import ExtractConfig
from virchow_st.errors import StoreError
from virchow_st.models.encoders.base import Encoder
from virchow_st.runtime.software import versions
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.restain import Restain
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.types import BIN_UM, PATCH_BINS

_NOT_OF_THE_RECORDS = ("device", "weights", "match_stain")
_SOFTWARE = ("virchow_st", "numpy", "opencv-python-headless", "lmdb", "torch", "timm")


def job_of(
    slide: VisiumHDSlide,
    image: SlideImage,
    patches: PatchTable,
    patient: str,
    encoder: Encoder,
    config: ExtractConfig,
    restain: Restain | None,
) -> dict[str, Any]:
    """Describe everything that determines the bytes of the records, except the batches.

    Args:
        slide, image, patches: the slide.
        patient: the patient's name.
        encoder: the encoder.
        config: the options.
        restain: what changes the strength of the stains; None if nothing does.

    Returns:
        A dictionary for JSON. Device and path of the weights are not part of it, nor that of the
        run that stains are matched to, but the factors that follow from it are.
    """
    options = {k: v for k, v in asdict(config).items() if k not in _NOT_OF_THE_RECORDS}
    stain = {} if restain is None else {"stain_factors": restain.factors()}
    return {
        "patient": patient,
        "options": options,
        "encoder": _encoder_id(encoder),
        "inputs": {
            "matrix": {"name": slide.matrix_path.name, "fingerprint": slide.fingerprint()},
            "image": {
                "name": image.path.name, "fingerprint": image.fingerprint(), **image.provenance(),
            },
            "homography": slide.homography.matrix.tolist(),
            "tissue_mask": xxhash.xxh64(np.packbits(slide.tissue_mask).data).hexdigest(),
            "lattice": list(patches.offset),
            "n_patches": len(patches),
        },
        **stain,
    }  # fmt: skip


def _encoder_id(encoder: Encoder) -> dict[str, str]:
    return {"name": encoder.name, "weights": encoder.weights_hash, "licence": encoder.licence}


def check_same_job(store: Path, state: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `StoreError`, naming the difference, if a store was made by another job.

    The batches are not compared: an extraction that resumes keeps the store's batches.

    Args:
        store: the store's folder.
        state: ``"is finished, but was made from"`` or ``"was begun with"``, for the message.
        before: the store's job.
        now: the current job.
    """
    there, here = ({k: v for k, v in _flat(job) if k != "encoding"} for job in (before, now))
    differing = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if differing:
        name = differing[0]
        others = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise StoreError(
            f"{store}: {state} other inputs or options ({name}: {_short(there.get(name))} then, "
            f"{_short(here.get(name))} now{others}); delete it or give another --store"
        )


def _flat(job: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a job; nested ones as ``part.name``, except the encoding, kept whole."""
    for key, value in job.items():
        if isinstance(value, dict) and key != "encoding":
            yield from ((f"{key}.{name}", inner) for name, inner in _flat(value))
        else:
            yield key, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def manifest_of(
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    encoder: Encoder,
    n_tissue: int,
    n_covered: int,
) -> dict[str, Any]:
    """The manifest's entries about the slide; the writer adds the others (docs/store-format.md).

    Args:
        slide, patches, counts, encoder: what the records were made from.
        n_tissue: number of tissue bins on the slide.
        n_covered: number of tissue bins in patches.
    """
    totals = np.zeros(len(slide.genes.ids), np.int64)
    for gene, _, count in counts:
        totals += np.bincount(gene, count, len(totals)).astype(np.int64)  # exact below 2⁵³
    return {
        "grid": encoder.grid,
        "dim": encoder.dim,
        "token_um": PATCH_BINS * BIN_UM // encoder.grid,
        "token_layout": [list(block) for block in encoder.layout],
        "genes": {
            "id": list(slide.genes.ids),
            "symbol": list(slide.genes.symbols),
            "total": totals.tolist(),
        },
        "homography": slide.homography.matrix.tolist(),
        "mpp": float(slide.mpp),
        "bin_um": BIN_UM,
        "patch_bins": PATCH_BINS,
        "grid_shape": list(slide.grid_shape),
        "lattice": list(patches.offset),
        "tissue_bins": {"slide": n_tissue, "patches": n_covered},
        "encoder": _encoder_id(encoder),
        "software": versions(_SOFTWARE),
    }
