"""Writes a slide in the layout of Space Ranger 3.x, and its microscope image.

Types and compression are those of real outputs. Matrix columns and position rows are written in the
random orders given by the caller, because their order differs between releases of Space Ranger.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.simulate.frame import SlideFrame
from virchow_st.simulate.programmes import Genes
from virchow_st.simulate.sequencing import SlideCounts
from virchow_st.types import BIN_UM, Array, BoolArray, Int64Array, UInt8Array

_CHUNK = 80_000
_GENOME = b"GRCh38"
_HIRES_PX, _LOWRES_PX = 1200, 600
_SMALLEST_LEVEL_PX = 512
_FIDUCIAL_UM = 330.0


def barcodes(rows: Array, cols: Array) -> Array:
    """Barcodes of 2 µm bins as Space Ranger writes them, (N,) S21.

    Example:
        >>> barcodes(np.array([3]), np.array([12])).tolist()
        [b's_002um_00003_00012-1']
    """
    names = [
        f"s_002um_{r:05d}_{c:05d}-1" for r, c in zip(rows.tolist(), cols.tolist(), strict=True)
    ]
    return np.array(names, dtype="S21")


def write_matrix(
    path: Path, counts: SlideCounts, bins: Int64Array, side: int, genes: Genes
) -> None:
    """Write a feature-barcode matrix of the row-major bins ``bins`` (N,), columns in that order."""
    chosen = counts.columns(bins)
    names = barcodes(bins // side, bins % side)
    with written_hdf5(path) as output:
        f = output.file
        f.attrs["filetype"] = "matrix"
        f.attrs["software_version"] = "spaceranger-3.1.2"
        f.attrs["version"] = 2
        matrix = f.create_group("matrix")
        for name, data in (
            ("barcodes", names),
            ("data", chosen.count.astype(np.int32)),
            ("indices", chosen.gene.astype(np.int64)),
            ("indptr", chosen.indptr.astype(np.int64)),
        ):
            matrix.create_dataset(
                name,
                data=data,
                maxshape=(None,),
                chunks=(_CHUNK,),
                compression="gzip",
                compression_opts=4,
                shuffle=True,
            )
        matrix["shape"] = np.array([len(genes.ids), bins.size], np.int32)
        features = matrix.create_group("features")
        n = len(genes.ids)
        features["_all_tag_keys"] = np.array([b"genome"])
        features["feature_type"] = np.full(n, b"Gene Expression")
        features["genome"] = np.full(n, _GENOME)
        features["id"] = np.array([gene.encode() for gene in genes.ids])
        features["name"] = np.array([symbol.encode() for symbol in genes.symbols])


def write_positions(path: Path, bins: Int64Array, tissue: BoolArray, frame: SlideFrame) -> None:
    """Write ``tissue_positions.parquet`` of the row-major bins ``bins``, rows in that order."""
    rows, cols = np.divmod(bins, tissue.shape[1])
    x, y = frame.to_px(cols.astype(np.float64), rows.astype(np.float64))
    table = pa.table(
        {
            "barcode": pa.array(barcodes(rows, cols).astype(str), pa.string()),
            "in_tissue": pa.array(tissue[rows, cols].astype(np.uint8)),
            "array_row": pa.array(rows.astype(np.uint32)),
            "array_col": pa.array(cols.astype(np.uint32)),
            "pxl_row_in_fullres": pa.array(y),
            "pxl_col_in_fullres": pa.array(x),
        }
    )
    pq.write_table(table, path, compression="zstd", row_group_size=len(table))


def write_spatial_images(spatial: Path, image: UInt8Array, frame: SlideFrame) -> None:
    """Write the high- and low-resolution images, their scale factors and the CytAssist image."""
    longest = max(image.shape[:2])
    scales = {}
    for name, side in (("hires", _HIRES_PX), ("lowres", _LOWRES_PX)):
        scale = scales[name] = min(1.0, side / longest)
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        path = spatial / f"tissue_{name}_image.png"
        path.write_bytes(cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes())
    factors = {
        "spot_diameter_fullres": BIN_UM / frame.mpp,
        "bin_size_um": float(BIN_UM),
        "microns_per_pixel": frame.mpp,
        "regist_target_img_scalef": scales["hires"],
        "tissue_lowres_scalef": scales["lowres"],
        "fiducial_diameter_fullres": _FIDUCIAL_UM / frame.mpp,
        "tissue_hires_scalef": scales["hires"],
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors, indent=1) + "\n", "utf-8")
    # Users confuse this image with the microscope image: it is small, grey and rotated.
    grey = cv2.cvtColor(cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE), cv2.COLOR_RGB2GRAY)
    decoy = cv2.resize(grey, (320, 300), interpolation=cv2.INTER_AREA)
    tifffile.imwrite(spatial / "cytassist_image.tiff", decoy)


def write_pyramid(path: Path, image: UInt8Array, mpp: float) -> None:
    """Write the microscope image as a tiled pyramidal BigTIFF (JPEG), levels halved.

    Levels are pages flagged as reduced, not SubIFDs: OpenSlide finds only the former.
    """
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        level, step = image, 1
        while True:
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                subfiletype=int(step > 1),
                resolution=(1e4 / mpp / step, 1e4 / mpp / step),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            if max(level.shape[:2]) <= _SMALLEST_LEVEL_PX:
                return
            size = (level.shape[1] // 2, level.shape[0] // 2)
            level, step = cv2.resize(level, size, interpolation=cv2.INTER_AREA), step * 2
