"""Does this image belong to these counts? Orientation, and evidence where no picture tells a size.

Everything here is measured on some patches, spread over the slide, before the encoder runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.extract.registration import TRUSTED, Registration, RegistrationCheck
from virchow_st.runtime.progress import Progress
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.outline import outline_agreement
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import PatchTable, bin_validity, render_patch
from virchow_st.slide.stain_check import StainCheck, check_patches, spread
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, STORED_IMAGE_PX, BoolArray

COMPARED = 48
"""Patches on which an image is compared with the counts before extraction."""
_LEAST_OUTLINE = 0.5  # correlation of the tissue outlines that speaks for an image
_MOST_OFF_MPP = 0.03  # of the bins' µm per pixel; scanners' are within a few in a thousand


def stain_of(image: SlideImage, slide: VisiumHDSlide, patches: PatchTable) -> StainCheck:
    """Whether what the image shows where the tissue bins lie can be H&E."""
    return check_patches(image, slide.homography, patches, _tissue_of(slide))


def measure(
    image: SlideImage, slide: VisiumHDSlide, patches: PatchTable, counts: PatchCounts
) -> Registration:
    """Registration of an image to the counts, on up to 48 patches."""
    check, tissue_of = RegistrationCheck(), _tissue_of(slide)
    for index in spread(len(patches), COMPARED):
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        ((rgb, on_image),) = render_patch(image, slide.homography, row0, col0, (STORED_IMAGE_PX,))
        _, position, count = counts[index]
        umi = np.bincount(position, count, PATCH_POSITIONS).reshape(PATCH_BINS, PATCH_BINS)
        check.add(rgb, bin_validity(on_image), umi, tissue_of(row0, col0))
    return check.result()


def images_that_fit(image: SlideImage, slide: VisiumHDSlide) -> list[SlideImage]:
    """The image as stored and as its Orientation tag says, those of them with the right size.

    Raises:
        SlideError: neither has it.
    """
    ways = [image] if image.choice.orientation == 1 else [image, image.oriented()]
    fitting, first = [], None
    for way in ways:
        try:
            slide.check_image(way)
            fitting.append(way)
        except SlideError as e:
            first = first or e
    if not fitting and first is not None:
        raise first
    return fitting


def choose_orientation(
    ways: list[SlideImage],
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    progress: Progress,
) -> SlideImage:
    """Of an image whose file has an Orientation tag, the way that lies on the counts.

    Measured both ways; where neither lies on the counts beyond doubt, the pixels are taken as
    stored, and a warning says so.
    """
    found = [measure(way, slide, patches, counts) for way in ways]
    strongest = int(np.argmax([one.strength for one in found]))
    chosen, strength = ways[strongest], found[strongest].strength
    tag = ORIENTATIONS[ways[0].choice.orientation]
    if strength < TRUSTED:
        progress.warn(
            f"{chosen.path}: its Orientation tag asks for the picture {tag}; whether the counts "
            f"lie on it so or as stored cannot be measured ({_strengths(ways, found)}); it is read "
            f"{ORIENTATIONS[ways[0].orientation]}; look at the registration"
        )
        return ways[0]
    progress.warn(
        f"{chosen.path}: its Orientation tag asks for the picture {tag}; the counts lie on it "
        f"{ORIENTATIONS[chosen.orientation]} ({_strengths(ways, found)}); it is read so"
    )
    return chosen


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against an image, where none of Space Ranger's pictures does.

    Attributes:
        registration: of the image to the counts.
        mpp_off: the file's µm per pixel over those of the bins, less 1; None where the file says
            none.
        outline: agreement of the tissue's outline (`outline_agreement`), or None.
    """

    registration: Registration
    mpp_off: float | None
    outline: float | None

    @property
    def is_registered(self) -> bool:
        """Whether the counts lie on the image, if need be shifted by some µm."""
        return self.registration.verdict != "undecided"

    @property
    def against(self) -> str:
        """What speaks against the image, in words; empty where nothing does."""
        if self.is_registered:
            return ""
        parts = []
        if self.mpp_off is not None and abs(self.mpp_off) > _MOST_OFF_MPP:
            parts.append(f"its µm per pixel are {self.mpp_off:+.0%} off those of the bins")
        if self.outline is not None and self.outline < _LEAST_OUTLINE:
            parts.append(f"its tissue has another outline than in_tissue (r {self.outline:.2f})")
        return " and ".join(parts)

    @property
    def supports(self) -> bool:
        """Whether anything speaks for the image."""
        return self.is_registered or (self.outline is not None and not self.against)


def gather_evidence(
    image: SlideImage, slide: VisiumHDSlide, patches: PatchTable, counts: PatchCounts
) -> Evidence:
    """Measure registration and, where it does not settle the matter, scale and outline."""
    registration = measure(image, slide, patches, counts)
    off = mpp_off(image, slide)
    if registration.verdict != "undecided":
        return Evidence(registration, off, None)
    return Evidence(registration, off, outline_agreement(slide, image))


def mpp_off(image: SlideImage, slide: VisiumHDSlide) -> float | None:
    """The µm per pixel that the file tells over those of the bins, less 1; None for none."""
    told = next((place.mpp for place in image.choice.mpp_places if place.mpp), None)
    return None if told is None else told / slide.mpp - 1


def check_without_pictures(
    image: SlideImage,
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    progress: Progress,
) -> None:
    """Refuse another image where no picture of Space Ranger's tells the size of the right one.

    Raises:
        SlideError: the counts do not lie on the image, and its scale or its tissue's outline is
            another.
    """
    found = gather_evidence(image, slide, patches, counts)
    where = f"{slide.folder}: has no tissue_hires_image.png that tells the image's size"
    if found.against:
        raise SlideError(
            f"{image.path}: expected the image that Space Ranger got; the counts do not lie on it "
            f"(strength {found.registration.strength:.1f}, {TRUSTED:g} wanted), and "
            f"{found.against}; give that image, full size, or put Space Ranger's "
            "spatial/tissue_hires_image.png back to compare sizes"
        )
    if found.is_registered:
        progress.note(f"{where}; the counts lie on {image.path}, so it is the right one")
    elif found.supports:
        progress.warn(
            f"{where}; {image.path} is taken for the right one by its tissue's outline (r "
            f"{found.outline:.2f}), though no registration with the counts can be measured"
        )
    else:
        progress.warn(
            f"{where}, and neither registration nor the tissue's outline can be measured; nothing "
            f"says that {image.path} is the right one"
        )


def _strengths(ways: list[SlideImage], found: list[Registration]) -> str:
    parts = [
        f"{ORIENTATIONS[way.orientation]} {one.strength:.1f}"
        for way, one in zip(ways, found, strict=True)
    ]
    return f"strength of registration {', '.join(parts)}; {TRUSTED:g} is believed"


def _tissue_of(slide: VisiumHDSlide) -> Callable[[int, int], BoolArray]:
    def tissue_of(row0: int, col0: int) -> BoolArray:
        return slide.tissue_mask[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]

    return tissue_of
