"""Opens a Visium HD slide written by Space Ranger 3.x or 4.x: bins, tissue, geometry, counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.matrix import CountMatrix, GeneTable
from virchow_st.slide.patch_counts import PatchCounts, read_patch_counts
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.pictures import ExpectedSize, expected_size
from virchow_st.slide.positions import BinPositions, read_positions
from virchow_st.slide.space_ranger import (
    SlideFiles,
    find_files,
    fingerprint,
    read_scalefactors,
)
from virchow_st.types import BoolArray, Mpp

_COARSEST_MPP = 1.0
_SIZE_TOLERANCE = 0.01
_CYTASSIST_PX = 4500  # CytAssist images have sides of about 3000 px
_LEAST_INSIDE = 0.5
_GIVE_THE_MICROSCOPE_IMAGE = (
    "give the microscope image that Space Ranger got as --image, not cytassist_image.tiff "
    "or a picture from spatial"
)


@dataclass(frozen=True, eq=False)
class VisiumHDSlide:
    """One slide with bins of 2 µm; its counts stay on disk until `read_counts`.

    Attributes:
        files: paths of its files.
        scalefactors: the numbers in ``scalefactors_json.json``, by name.
        bins: the listed bins, tissue mask and homography.
        matrix: the opened count matrix.

    Example:
        >>> slide = VisiumHDSlide.open("outs")  # doctest: +SKIP
        >>> slide.grid_shape  # doctest: +SKIP
        (3350, 3350)
    """

    files: SlideFiles
    scalefactors: dict[str, float]
    bins: BinPositions
    matrix: CountMatrix

    @classmethod
    def open(cls, outs: str | Path, matrix: str = "filtered") -> VisiumHDSlide:
        """Open ``outs/``, ``binned_outputs/`` or ``square_002um/``, with prefixed names or not.

        Args:
            outs: the folder.
            matrix: ``"filtered"`` (genes of the probe panel, bins in tissue) or ``"raw"`` (all
                genes and bins).

        Raises:
            SlideError: a file is missing, damaged, not of 2 µm bins, or of another assay.
        """
        files = find_files(Path(outs), matrix)
        scalefactors = read_scalefactors(files.scalefactors)
        count_matrix = CountMatrix.open(files.matrix)
        return cls(files, scalefactors, read_positions(files.positions), count_matrix)

    @property
    def folder(self) -> Path:
        """The ``square_002um`` folder."""
        return self.files.folder

    @property
    def matrix_path(self) -> Path:
        """The HDF5 file with the counts."""
        return self.files.matrix

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the bin grid."""
        rows, cols = self.bins.tissue_mask.shape
        return rows, cols

    @property
    def tissue_mask(self) -> BoolArray:
        """(rows, cols) bool, True where ``in_tissue`` is 1."""
        return self.bins.tissue_mask

    @property
    def homography(self) -> Homography:
        """The homography from bins to full-resolution px."""
        return self.bins.homography

    @property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel at the centre of the grid."""
        rows, cols = self.grid_shape
        return self.homography.mpp_at((cols - 1) / 2, (rows - 1) / 2)

    @property
    def genes(self) -> GeneTable:
        """The genes, in the order of the matrix."""
        return self.matrix.genes

    def fingerprint(self) -> str:
        """Fingerprint of the count matrix: see `virchow_st.slide.space_ranger.fingerprint`."""
        return fingerprint(self.matrix_path)

    def read_counts(self, patches: PatchTable) -> PatchCounts:
        """Read the counts of tissue bins in ``patches``, and the totals of all genes, in one pass.

        Raises:
            SlideError: the matrix is damaged or disagrees with the bins.
        """
        return read_patch_counts(self.matrix, self.bins, patches, self.files.is_filtered)

    def expected_size(self) -> tuple[ExpectedSize | None, list[str]]:
        """Size of the full-resolution image, derived from one of Space Ranger's pictures.

        Returns:
            The size, or None if no picture can be read; and one line per picture that cannot.
        """
        return expected_size(self.folder, self.scalefactors)

    def check_image(self, image: SlideImage) -> None:
        """Refuse an image other than the one that the bins' pixel positions refer to.

        Its size has to agree with one of Space Ranger's pictures within 1 %, if one can be read,
        and at least half of the tissue bins have to lie on it.

        Raises:
            SlideError: the image has another size, is the CytAssist image, does not contain the
                tissue bins, or is coarser than 1 µm/px.
        """
        size, _ = self.expected_size()
        if size is not None:
            self._check_size(image, size)
        self._check_inside(image)
        if self.mpp > _COARSEST_MPP:
            raise SlideError(
                f"{image.path}: expected {_COARSEST_MPP:g} µm/px or finer; the bins lie "
                f"{self.mpp:.2f} µm/px apart on it; run Space Ranger with a scan at 20x or 40x"
            )

    def _check_size(self, image: SlideImage, size: ExpectedSize) -> None:
        width, height = size.width, size.height
        if _near(image.width, width) and _near(image.height, height):
            return
        found = f"{image.path}: expected about {width:.0f}×{height:.0f} px, the size of "
        found += f"{size.picture} at full resolution; got {image.width}×{image.height} px"
        if _near(image.width, height) and _near(image.height, width):
            raise SlideError(
                f"{found}, as if rotated by 90°; give the image that Space Ranger got as --image"
            )
        if max(image.width, image.height) < min(_CYTASSIST_PX, max(width, height)):
            found += ", as small as a CytAssist or thumbnail image"
        raise SlideError(f"{found}; {_GIVE_THE_MICROSCOPE_IMAGE}")

    def _check_inside(self, image: SlideImage) -> None:
        row, col = np.nonzero(self.tissue_mask)
        step = max(1, len(row) // 100_000)
        x, y = self.homography.to_px(col[::step], row[::step])
        inside = float(((x >= 0) & (x < image.width) & (y >= 0) & (y < image.height)).mean())
        if inside < _LEAST_INSIDE:
            raise SlideError(
                f"{image.path}: expected the tissue bins to lie on the image; {inside:.0%} do, of "
                f"{image.width}×{image.height} px; {_GIVE_THE_MICROSCOPE_IMAGE}"
            )


def _near(actual: float, expected: float) -> bool:
    return abs(actual - expected) <= _SIZE_TOLERANCE * expected
