"""The report of ``vst doctor IMAGE OUTS``: whether image and counts belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virchow_st.config import ExtractConfig
from virchow_st.errors import SlideError
from virchow_st.extract.fit import (
    COMPARED,
    Evidence,
    choose_orientation,
    images_that_fit,
    measure,
    mpp_off,
    stain_of,
)
from virchow_st.extract.registration import describe
from virchow_st.runtime.progress import SILENT, Progress, Recording
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.image_report import report_on
from virchow_st.slide.outline import outline_agreement
from virchow_st.slide.patches import PatchTable, lay_patches
from virchow_st.slide.sample import spread
from virchow_st.slide.visium_hd import VisiumHDSlide


@dataclass(frozen=True)
class PairReport:
    """What was found for an image and a Space Ranger folder.

    Attributes:
        rows: label → text, for a table.
        warnings: one line each.
        faults: reasons why extraction would refuse the pair or its store would be useless, one
            line each.
    """

    rows: dict[str, str]
    warnings: tuple[str, ...]
    faults: tuple[str, ...]


def report_on_pair(image_path: Path, outs: Path, progress: Progress = SILENT) -> PairReport:
    """Run the checks of ``vst extract`` on up to 48 patches, without an encoder.

    Nothing is written.

    Args:
        image_path: the microscope image.
        outs: Space Ranger's folder.
        progress: receives notes, warnings and step counts.

    Raises:
        SlideError: the image or the folder cannot be opened.
    """
    slide = VisiumHDSlide.open(outs)
    with SlideImage.open(image_path) as opened:
        of_image = report_on(opened)
        rows, warnings = dict(of_image.rows), list(of_image.warnings)
        del rows["stain"]  # checked below on the patches
        rows["bins"] = (
            f"{slide.grid_shape[0]}×{slide.grid_shape[1]} of 2 µm, {slide.mpp:.4g} µm per pixel"
        )
        size, picture_faults = slide.expected_size()
        warnings += picture_faults
        rows["size expected"] = (
            "not known: Space Ranger's pictures are missing"
            if size is None
            else f"{size.width:.0f}×{size.height:.0f} px, by {size.picture.name}"
        )
        if (off := mpp_off(opened, slide)) is not None:
            rows["scale of the file"] = f"{off:+.1%} from that of the bins"
        try:
            ways = images_that_fit(opened, slide)
        except SlideError as e:
            return PairReport(rows, tuple(warnings), (str(e),))
        patches = _some(lay_patches(slide.tissue_mask, ExtractConfig().min_tissue))
        counts = slide.read_counts(patches)
        recording = Recording()
        image = ways[0]
        if opened.choice.orientation != 1:
            image = choose_orientation(ways, slide, patches, counts, recording)
            rows["orientation"] = f"read {ORIENTATIONS[image.orientation]}"
        faults = []
        stain = stain_of(image, slide, patches)
        rows["stain"] = stain.describe()
        if stain.fault:
            faults.append(f"{opened.path}: {stain.fault}")
        registration = measure(image, slide, patches, counts)
        rows["registration"] = f"{describe(registration.to_manifest())}; {len(patches)} patches"
        outline = outline_agreement(slide, image)
        rows["tissue's outline"] = (
            "cannot be compared" if outline is None else f"correlation with in_tissue {outline:.2f}"
        )
        if registration.verdict == "shifted":
            faults.append(f"{opened.path}: the image is shifted from the counts; align it again")
        evidence = Evidence(registration, off, outline)
        if size is None and evidence.against:
            faults.append(f"{opened.path}: is not the right image: {evidence.against}")
        return PairReport(rows, tuple(warnings + recording.warnings), tuple(faults))


def _some(patches: PatchTable) -> PatchTable:
    at = spread(len(patches), COMPARED)
    return PatchTable(patches.row0[at], patches.col0[at], patches.tissue_fraction[at])
