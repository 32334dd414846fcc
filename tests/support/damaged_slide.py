"""Reads slides that may be damaged; a script that reads each slide in a forked process.

``damaged_slide.py WHOLE SLIDE...`` prints one word per folder: ``right`` (everything equals the
folder WHOLE), ``refused`` (a `SlideError` of one line that names one of its files), or the fault of
the reader, such as ``wrong data``.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from damaged_reader import judge_in_a_child

from virchow_st.errors import SlideError
from virchow_st.slide.patches import lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide


def contents(outs: str) -> tuple[Any, np.ndarray]:
    """The contents of a slide that must be exact, and the corners of its first patch."""
    slide = VisiumHDSlide.open(outs)
    counts = slide.read_counts(lay_patches(slide.tissue_mask, 0.0))
    patches = [tuple(values.tobytes() for values in patch) for patch in counts]
    exact = (
        slide.genes,
        slide.tissue_mask.tobytes(),
        patches,
        counts.gene_totals.tobytes(),
    )
    corners = slide.homography.patch_corners_px(0, 0)
    return exact, corners


def judge(outs: str, whole: tuple[Any, np.ndarray]) -> str:
    try:
        exact, corners = contents(outs)
    except SlideError as e:
        return "refused" if outs in str(e) and "\n" not in str(e) else "unclear message"
    near = np.abs(corners - whole[1]).max() < 0.1  # px; a low bit may be flipped
    return "right" if exact == whole[0] and near else "wrong data"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    whole = contents(sys.argv[1])
    for outs in sys.argv[2:]:
        print(judge_in_a_child(outs, whole, judge), flush=True)
