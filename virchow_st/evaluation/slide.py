"""A test slide of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.errors import StoreError
from virchow_st.run.exposure import SlideExposure
from virchow_st.run.split import Member
from virchow_st.slide.geometry import Homography
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import Int64Array


@dataclass(frozen=True)
class Slide:
    """A test slide: its name in results and in files, its store, and its patches of the split."""

    name: str
    file_name: str
    store: Store
    members: Sequence[Member]
    """Test patches of the slide."""
    infos: Sequence[PatchInfo]
    """Positions of these patches."""
    genes: Int64Array
    """(G,) indices of the panel's genes in the store."""
    exposure: SlideExposure | None = None
    """Stripes of the slide; None if the run knows no exposure."""

    @property
    def homography(self) -> Homography:
        """From the slide's bins to full-resolution px; `StoreError` if the manifest has none."""
        try:
            return Homography(np.array(self.store.manifest["homography"], np.float64))
        except (ValueError, TypeError) as e:
            raise StoreError(
                f"{self.store.path}: homography: {e}; extract the slide again"
            ) from None
