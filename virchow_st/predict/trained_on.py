"""Tells whether a run was trained on the slide that it is asked to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from virchow_st.errors import ConfigError, SlideError, StoreError
from virchow_st.predict.load import Run
from virchow_st.runtime.progress import Progress
from virchow_st.slide.image import SlideImage
from virchow_st.store.reader import Patch, Store, open_store
from virchow_st.types import UInt8Array

_COMPARED_PATCHES = 3
_COMPARED_PX = 64  # side of the pictures compared, 4 µm per pixel
# Correlation of grey values. The same slide reaches more than 0.9 whatever it was compressed with;
# two slides at the same coordinates share nothing but that tissue is darker than glass.
_SAME = 0.8


def check_not_trained_on(runs: Sequence[Run], image: SlideImage, progress: Progress) -> None:
    """Refuse, for several runs, a slide that one of them was trained on; warn about it for one.

    The mean of runs that know the slide and of runs that do not is no prediction, and their spread
    no measure of its error. A run's stores tell what it was trained on, where they still are.

    Args:
        runs: one run or several.
        image: the slide.
        progress: receives a warning for a single run, and a note where stores are gone.

    Raises:
        ConfigError: one of several runs was trained on the slide.
    """
    for run in runs:
        missing = 0
        for path in _training_stores(run):
            try:
                store = open_store(path)
            except StoreError:
                missing += 1
                continue
            if not (reason := _why_same(store, image)):
                continue
            if len(runs) > 1:
                raise ConfigError(
                    f"{run.path}: was trained on this slide, {image.path.name} ({store.path}: "
                    f"{reason}); several runs predict slides that none of them has seen; leave "
                    f"this run out"
                )
            progress.warn(
                f"{run.path}: was trained on this slide ({store.path}: {reason}); its rates say "
                f"nothing about slides that the run has not seen"
            )
            return
        if missing and len(runs) > 1:
            progress.note(
                f"{run.path}: {missing} of its training stores cannot be opened; whether one of "
                f"them is this slide is not known"
            )


def _training_stores(run: Run) -> list[Path]:
    used = {member.store for member in (*run.split.train, *run.split.validation)}
    return [Path(path) for i, path in enumerate(run.config.stores) if i in used]


def _why_same(store: Store, image: SlideImage) -> str:
    """Why a store is of the image's slide; empty where it is not."""
    source = store.manifest["job"]["inputs"].get("image")
    if isinstance(source, dict) and source.get("fingerprint") == image.fingerprint():
        return "it was made from this file"
    size = np.array([image.width, image.height])
    whole = [
        i
        for i, info in enumerate(store.patch_table)
        if (info.corners_px >= 0).all() and (info.corners_px <= size).all()
    ]
    if not whole:
        return ""
    spread = np.linspace(0, len(whole) - 1, _COMPARED_PATCHES).astype(int)
    r = min(_agreement(store[whole[i]], image) for i in spread.tolist())
    return f"its patches are found on it, r {r:.2f}" if r > _SAME else ""


def _agreement(patch: Patch, image: SlideImage) -> float:
    """Pearson's r of a patch's stored picture and what the image shows at its place."""
    corners = patch.info.corners_px
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    width, height = (high - low).tolist()
    try:
        rgb, _, scale = image.read_region(
            int(low[0]), int(low[1]), width, height, max(1.0, width / (2 * _COMPARED_PX))
        )
    except SlideError:  # the job itself will say so
        return 0.0
    # Pixel centres lie on integers in OpenCV.
    source = ((corners - low) / scale - 0.5).astype(np.float32)
    end = _COMPARED_PX - 0.5
    target = np.array([[-0.5, -0.5], [end, -0.5], [end, end], [-0.5, end]], np.float32)
    size = (_COMPARED_PX, _COMPARED_PX)
    shown = cv2.warpPerspective(
        rgb, cv2.getPerspectiveTransform(source, target), size, flags=cv2.INTER_LINEAR
    )
    kept = cv2.resize(patch.image, size, interpolation=cv2.INTER_AREA)
    return _correlation(np.asarray(shown, np.uint8), np.asarray(kept, np.uint8))


def _correlation(a: UInt8Array, b: UInt8Array) -> float:
    x, y = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float64) for one in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else 0.0
