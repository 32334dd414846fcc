"""Checks that an image belongs to the counts: its orientation, registration, scale and outline.

All of it is measured before the encoder runs, on up to 48 patches spread over the slide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.extract.registration import TRUSTED, Registration, RegistrationCheck
from virchow_st.metrics.appearance import (
    MOST_PATCHES,
    Appearance,
    appearance,
    matching_factors,
)
from virchow_st.models.encoders.stain import STAINS, UNMIX
from virchow_st.runtime.progress import Progress
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.outline import outline_agreement
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import PatchTable, bin_validity, render_patch
from virchow_st.slide.restain import Restain
from virchow_st.slide.sample import sample_patches, spread
from virchow_st.slide.stain_check import StainCheck, check_patches
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.format import as_stored
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, STORED_IMAGE_PX, BoolArray

COMPARED = 48
"""Patches on which an image is compared with the counts before extraction."""
_LEAST_OUTLINE = 0.5  # smallest correlation of the tissue outlines of a matching image
_MOST_OFF_MPP = 0.03  # largest relative deviation in µm per pixel; scanners are within 0.005


def stain_of(image: SlideImage, slide: VisiumHDSlide, patches: PatchTable) -> StainCheck:
    """Check that the pixels under the tissue bins can be H&E."""
    return check_patches(image, slide.homography, patches, _tissue_of(slide))


def match_stain(
    image: SlideImage,
    slide: VisiumHDSlide,
    patches: PatchTable,
    training: Sequence[Appearance],
    progress: Progress,
) -> Restain:
    """What makes the stains of a slide as strong as those of training patients.

    Args:
        image, slide, patches: the slide.
        training: how the training patients look.
        progress: receives the factors as a note.
    """
    images, masks = sample_patches(
        image, slide.homography, patches, _tissue_of(slide), MOST_PATCHES
    )
    look = appearance([as_stored(i) for i in images], masks, UNMIX[:, :2])
    restain = Restain(*matching_factors(look, training), STAINS)
    progress.note(f"{image.path}: {restain.describe()}, as in the training slides")
    return restain


def measure(
    image: SlideImage, slide: VisiumHDSlide, patches: PatchTable, counts: PatchCounts
) -> Registration:
    """Measure the registration of an image to the counts, on up to 48 patches."""
    check, tissue_of = RegistrationCheck(), _tissue_of(slide)
    for index in spread(len(patches), COMPARED):
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        ((rgb, on_image),) = render_patch(image, slide.homography, row0, col0, (STORED_IMAGE_PX,))
        _, position, count = counts[index]
        umi = np.bincount(position, count, PATCH_POSITIONS).reshape(PATCH_BINS, PATCH_BINS)
        check.add(rgb, bin_validity(on_image), umi, tissue_of(row0, col0))
    return check.result()


def images_that_fit(image: SlideImage, slide: VisiumHDSlide) -> list[SlideImage]:
    """The orientations of an image, as stored and by its Orientation tag, that have the right size.

    Raises:
        SlideError: neither has the right size.
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
    """Choose the orientation of an image with an Orientation tag by its registration to the counts.

    If the registration cannot be measured in either orientation, the pixels are used as stored, and
    a warning tells the user.

    Args:
        ways: the orientations to choose from, as `images_that_fit` returns them.
        slide, patches, counts: the slide, its patches and their counts.
        progress: receives the result as a warning.
    """
    found = [measure(way, slide, patches, counts) for way in ways]
    strongest = int(np.argmax([one.strength for one in found]))
    chosen, strength = ways[strongest], found[strongest].strength
    tag = ORIENTATIONS[ways[0].choice.orientation]
    if strength < TRUSTED:
        progress.warn(
            f"{chosen.path}: its Orientation tag asks for the image {tag}; whether the counts fit "
            f"that or the image as stored cannot be measured ({_strengths(ways, found)}); it is "
            f"read {ORIENTATIONS[ways[0].orientation]}; check the registration"
        )
        return ways[0]
    progress.warn(
        f"{chosen.path}: its Orientation tag asks for the image {tag}; the counts fit it "
        f"{ORIENTATIONS[chosen.orientation]} ({_strengths(ways, found)}), which is how it is read"
    )
    return chosen


@dataclass(frozen=True)
class Evidence:
    """Evidence that an image is the right one, for slides without Space Ranger's pictures.

    Attributes:
        registration: registration of the image to the counts.
        mpp_off: relative deviation of the file's µm per pixel from that of the bins; None if the
            file does not give it.
        outline: agreement of the tissue's outline (see `outline_agreement`), or None if it has not
            been or cannot be measured.
    """

    registration: Registration
    mpp_off: float | None
    outline: float | None

    @property
    def is_registered(self) -> bool:
        """Whether the registration shows that the counts lie on the image, shifted or not."""
        return self.registration.verdict != "undecided"

    @property
    def against(self) -> str:
        """Description of the evidence against the image; empty if there is none."""
        if self.is_registered:
            return ""
        parts = []
        if self.mpp_off is not None and abs(self.mpp_off) > _MOST_OFF_MPP:
            parts.append(f"its µm per pixel deviate by {self.mpp_off:+.0%} from those of the bins")
        if self.outline is not None and self.outline < _LEAST_OUTLINE:
            parts.append(f"its tissue's outline differs from in_tissue (r {self.outline:.2f})")
        return " and ".join(parts)

    @property
    def supports(self) -> bool:
        """Whether there is evidence for the image, and none against it."""
        return self.is_registered or (self.outline is not None and not self.against)


def gather_evidence(
    image: SlideImage, slide: VisiumHDSlide, patches: PatchTable, counts: PatchCounts
) -> Evidence:
    """Measure the registration and, if that is undecided, the agreement of the outlines."""
    registration = measure(image, slide, patches, counts)
    off = mpp_off(image, slide)
    if registration.verdict != "undecided":
        return Evidence(registration, off, None)
    return Evidence(registration, off, outline_agreement(slide, image))


def mpp_off(image: SlideImage, slide: VisiumHDSlide) -> float | None:
    """Relative deviation of the file's µm per pixel from that of the bins; None if not given."""
    mpp = next((place.mpp for place in image.choice.mpp_places if place.mpp), None)
    return None if mpp is None else mpp / slide.mpp - 1


def check_without_pictures(
    image: SlideImage,
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    progress: Progress,
) -> None:
    """Refuse a wrong image of a slide without Space Ranger's pictures, which give the right size.

    Raises:
        SlideError: the registration is undecided, and the scale or the tissue's outline disagrees.
    """
    found = gather_evidence(image, slide, patches, counts)
    where = f"{slide.folder}: has no tissue_hires_image.png to check the image's size by"
    if found.against:
        raise SlideError(
            f"{image.path}: expected the image that Space Ranger got as --image; no registration "
            f"to the counts was found (strength {found.registration.strength:.1f}; at least "
            f"{TRUSTED:g} is needed), and {found.against}; give that image in full size, or put "
            "Space Ranger's spatial/tissue_hires_image.png back to compare sizes"
        )
    if found.is_registered:
        progress.note(f"{where}; the counts lie on {image.path}, so it is the right image")
    elif found.supports:
        progress.warn(
            f"{where}; {image.path} is accepted by its tissue's outline (r {found.outline:.2f}), "
            "although no registration to the counts can be measured"
        )
    else:
        progress.warn(
            f"{where}, and neither registration nor the tissue's outline can be measured; it is "
            f"unknown whether {image.path} is the right image"
        )


def _strengths(ways: list[SlideImage], found: list[Registration]) -> str:
    parts = [
        f"{ORIENTATIONS[way.orientation]} {one.strength:.1f}"
        for way, one in zip(ways, found, strict=True)
    ]
    return f"strength of registration {', '.join(parts)}; at least {TRUSTED:g} is needed"


def _tissue_of(slide: VisiumHDSlide) -> Callable[[int, int], BoolArray]:
    def tissue_of(row0: int, col0: int) -> BoolArray:
        return slide.tissue_mask[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]

    return tissue_of
