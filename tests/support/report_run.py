"""Pictures and hostile names for tests of the report."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import h5py
import numpy as np

HOSTILE = "</script><script>alert(1)</script><!--"


def write_picture(path: Path, width: int = 2160, height: int = 400) -> None:
    """Write a PNG with a line on a white background, like a figure."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[height // 2] = 0
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), image)


def rename_gene(run: Path, symbol: str) -> None:
    """Give the panel's first gene another symbol in every result file."""
    with (run / "per_gene.csv").open(newline="") as f:
        rows = list(csv.reader(f))
    first = rows[1][0]
    for row in rows[1:]:
        row[1] = symbol if row[0] == first else row[1]
    with (run / "per_gene.csv").open("w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(rows)
    for path in (run / "maps").glob("*.h5"):
        with h5py.File(path, "r+") as f:
            f["gene_symbol"][list(f["gene_id"].asstr()[:]).index(first)] = symbol
