"""Simulated cohorts: Visium HD slides with an H&E image, counts, and their true rates."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

import numpy as np

from virchow_st.config import SimulateConfig
from virchow_st.errors import ConfigError
from virchow_st.names import csv_name, csv_text
from virchow_st.runtime.atomic import remove_leftovers, whole_folder, written_whole
from virchow_st.runtime.lock import LOCK_NAME, locked
from virchow_st.schema import Name, check, read_table
from virchow_st.simulate.cells import planted_cells, write_segmentation
from virchow_st.simulate.exposure import draw_depth, draw_exposure
from virchow_st.simulate.frame import draw_frame
from virchow_st.simulate.hidden import HiddenVariation
from virchow_st.simulate.morphology import grow_tissue
from virchow_st.simulate.programmes import (
    PROGRAMMES,
    Genes,
    draw_genes,
    nuclear_map,
    patient_loadings,
    programme_maps,
    tissue_map,
)
from virchow_st.simulate.sequencing import draw_counts
from virchow_st.simulate.spaceranger import (
    write_matrix,
    write_positions,
    write_pyramid,
    write_spatial_images,
)
from virchow_st.simulate.stain import draw_laboratory, photograph, stain_density
from virchow_st.simulate.truth import Origin, Truth, read_origin, write_truth

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LATER = ("hidden_variation", "depth", "stripes", "cells")
_MANIFEST_COLUMNS = ("patient", "outs", "image", "store")


def simulate_cohort(
    out: Path, config: SimulateConfig, on_slide: Callable[[str], None] | None = None
) -> list[Path]:
    """Simulate one slide per patient.

    ``out/PATIENT/`` contains ``outs/`` in the layout of Space Ranger 3.x, ``tissue_image.tif`` and
    ``truth.h5`` (see `true_rate`). ``out/slides.csv`` lists the slides for ``vst extract``, in
    addition to those that it listed before. With ``cells``, ``outs/`` also contains the planted
    cells as Space Ranger 4 writes its segmentation. A slide depends only on the seed, the name of
    the patient and the settings other than ``patients``; its image, on the seed, the name and
    ``bins``. A folder is created complete or not at all; a folder that already contains the same
    slide is kept.

    Args:
        out: Folder of the cohort; created if it does not exist.
        config: Patients, size of the slides and seed.
        on_slide: Called with the name of a patient when its folder is complete.

    Returns:
        The folders of the patients, in the order of the configuration.

    Raises:
        ConfigError: Unusable names, a patient's folder with other content, a ``slides.csv`` with
            other columns, or another process that is simulating into ``out``.
    """
    _check_patients(config.patients)
    folders = [out / patient for patient in config.patients]
    origins = [_origin(patient, config) for patient in config.patients]
    for folder, origin in zip(folders, origins, strict=True):
        _stands(folder, origin)  # refused before anything is made
    _read_list(out / "slides.csv")
    with _cohort_folder(out):
        remove_leftovers(out)
        standing = [_stands(folder, o) for folder, o in zip(folders, origins, strict=True)]
        genes = draw_genes(np.random.default_rng(config.seed), config.genes)
        for folder, origin, stands in zip(folders, origins, standing, strict=True):
            if not stands:
                with whole_folder(folder) as aside:
                    _write_slide(aside, folder.name, config, genes, origin)
            _list_slide(out / "slides.csv", folder.name)
            if on_slide is not None:
                on_slide(folder.name)
    return folders


@contextmanager
def _cohort_folder(out: Path) -> Iterator[None]:
    """The cohort's folder, locked; one that is new and stays empty is removed."""
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, out / LOCK_NAME):
            yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def _write_slide(
    folder: Path, patient: str, config: SimulateConfig, genes: Genes, origin: Origin
) -> None:
    """Draw one patient's slide and write its files."""
    name = crc32(patient.encode())
    # One generator per part, so that a change in one part does not change the others.
    *seeds, key, further = np.random.SeedSequence([config.seed, name]).spawn(10)
    grow, stain, camera, pose, loading, deep, draw, order = map(np.random.default_rng, seeds)
    tissue = grow_tissue(grow, config.bins)
    frame = draw_frame(pose, config.bins, mirrored=name % 2 == 0, overhang=name % 3 == 0)
    laboratory = draw_laboratory(stain)
    image = photograph(camera, stain_density(stain, tissue), frame, laboratory)

    programmes, mask = programme_maps(tissue), tissue_map(tissue)
    loadings = patient_loadings(loading, genes).astype(np.float32)
    depth, exposure = draw_depth(deep, programmes, loadings, mask)
    if given := config.depth > 0 or config.stripes > 0:
        rng = np.random.default_rng(further)
        more = draw_exposure(rng, config.bins, config.bins, config.depth, config.stripes)
        exposure *= more
        depth = (depth * more.map()).astype(np.float32)
    hidden = None
    if config.hidden_variation > 0:
        hidden = HiddenVariation(config.hidden_variation, int(key.generate_state(1, np.uint64)[0]))
    counts = draw_counts(draw, programmes, loadings, depth, hidden)

    square = folder / "outs" / "binned_outputs" / "square_002um"
    (square / "spatial").mkdir(parents=True)
    every, within = np.arange(mask.size), np.flatnonzero(mask)
    for matrix, bins in (("raw", every), ("filtered", within)):
        path = square / f"{matrix}_feature_bc_matrix.h5"
        write_matrix(path, counts, order.permutation(bins), config.bins, genes)
    positions = square / "spatial" / "tissue_positions.parquet"
    write_positions(positions, order.permutation(every), mask, frame)
    write_spatial_images(square / "spatial", image, frame)
    write_pyramid(folder / "tissue_image.tif", image, frame.mpp)
    if config.cells:
        write_segmentation(folder / "outs", *planted_cells(tissue), frame)
    truth = Truth(
        programmes=programmes,
        loadings=loadings,
        depth=depth,
        nuclei=nuclear_map(tissue),
        homography=frame.homography,
        gene_ids=genes.ids,
        gene_symbols=genes.symbols,
        programme_names=PROGRAMMES,
        hidden=hidden,
        exposure=exposure if given else None,
    )
    write_truth(folder / "truth.h5", truth, origin)


def _origin(patient: str, config: SimulateConfig) -> Origin:
    """Parameters that determine a slide."""
    origin: Origin = {"patient": patient, "seed": config.seed}
    origin |= {"bins": config.bins, "genes": config.genes}
    # Left out at 0, as in files from before there were these settings.
    return origin | {name: x for name in _LATER if (x := getattr(config, name)) > 0}


def _stands(folder: Path, origin: Origin) -> bool:
    """Whether the folder contains this slide; raises if it contains anything else."""
    if not folder.exists():
        return False
    found = read_origin(folder / "truth.h5")
    if found == origin:
        return True
    names = origin | found  # where a name is left out, it is 0
    actual = ", ".join(f"{k}={found.get(k, 0)}" for k in names) if found else "no simulated slide"
    want = ", ".join(f"{k}={origin.get(k, 0)}" for k in names)
    raise ConfigError(
        f"{folder}: expected to be absent or to hold {want}; it holds {actual}; "
        "remove it or choose another output folder"
    )


def _check_patients(patients: Sequence[str]) -> None:
    if not patients:
        raise ConfigError("patients: expected at least one name; got none")
    for patient in patients:
        if not _NAME.fullmatch(patient):
            raise ConfigError(
                f"patients: expected names of letters, digits, - and _; got {patient!r}"
            )
    if len(set(patients)) < len(patients):
        raise ConfigError(f"patients: expected different names; got {', '.join(patients)}")


def _read_list(path: Path) -> dict[str, dict[str, str]]:
    """Rows of ``slides.csv`` by patient; none where there is no such file."""
    if not path.exists():
        return {}
    columns = dict.fromkeys(_MANIFEST_COLUMNS, lambda text: check(csv_name(text), Name))
    rows = read_table(path, columns, "remove it or choose another folder", only=True)
    return {row["patient"]: row for row in rows}


def _list_slide(path: Path, patient: str) -> None:
    """Add a patient to ``slides.csv``, with relative paths; existing rows are kept.

    Names that a spreadsheet would compute begin with ``'`` in it, see `csv_text`.
    """
    rows = _read_list(path)
    values = (patient, f"{patient}/outs", f"{patient}/tissue_image.tif", f"{patient}.vst")
    rows[patient] = dict(zip(_MANIFEST_COLUMNS, values, strict=True))
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(_MANIFEST_COLUMNS)
        for row in rows.values():
            writer.writerow([csv_text(row[name]) for name in _MANIFEST_COLUMNS])
