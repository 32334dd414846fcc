"""Extraction of slides whose files lie in object storage, and of stores that go there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from virchow_st.cloud.place import Url
from virchow_st.cloud.scratch import fetched, held_folder, workplace
from virchow_st.cloud.storage import N_AT_ONCE, Entry, below
from virchow_st.cloud.whole import is_there, peek_root, put_whole
from virchow_st.config import ExtractConfig
from virchow_st.errors import SlideError, StoreError
from virchow_st.extract.slide import OpenedSlide, open_slide
from virchow_st.models.encoders.base import Encoder
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.manifest import MANIFEST

# What is read of a Space Ranger folder: the matrix of the 2 µm bins, their positions and scale
# factors, and the pictures, which may lie with another bin size.
_OTHER_BINS = r"[^/]*square_(?!002um)\d+um/"
_READ = (
    r"(?:.*/)?[^/]*{matrix}_feature_bc_matrix\.h5|"
    r"(?:.*/)?[^/]*spatial/[^/]*(?:tissue_positions(?:_list)?\.(?:parquet|csv)|"
    r"scalefactors_json\.json)"
)
_PICTURE = re.compile(r"(?:.*/)?[^/]*spatial/[^/]*tissue_(?:hires|lowres)_image\.png")


class RemoteSlide:
    """A slide as `open_slide` opens it, any of whose places may be a URL; a context manager.

    The files of a Space Ranger folder are staged. A store for a URL is written in scratch, and
    `extract` uploads it. Arguments and errors are those of `open_slide`.

    Raises:
        StorageError: the storage of a URL cannot be reached or refuses.
    """

    def __init__(
        self,
        outs: Path,
        image_path: Path,
        store_path: Path,
        patient: str,
        config: ExtractConfig,
        progress: Progress = SILENT,
        encoder: Encoder | None = None,
    ) -> None:
        self._target, self._is_done = store_path, False
        with ExitStack() as stack:
            if isinstance(outs, Url):
                outs = _staged(outs, stack.enter_context(held_folder()), config.matrix)
            if isinstance(store_path, Url):
                self._is_done = is_there(store_path)
                if self._is_done:
                    store_path = peek_root(store_path, stack.enter_context(held_folder()))
                    if not (store_path / MANIFEST).is_file():
                        raise StoreError(
                            f"{self._target}: is no store; delete it or give another --store"
                        )
                else:
                    store_path = stack.enter_context(workplace(store_path))
            opened = open_slide(outs, image_path, store_path, patient, config, progress, encoder)
            self.opened: OpenedSlide = stack.enter_context(opened)
            self._open = stack.pop_all()

    def __enter__(self) -> RemoteSlide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def extract(self, progress: Progress = SILENT) -> tuple[str, int, int]:
        """Write the store, or go on with one that was begun.

        Returns:
            ``"complete"``, or ``"was complete"`` where nothing was left to do; the number of
            patches; and the number of genes.

        Raises:
            StorageError: the storage of a URL cannot be reached; the store stays in scratch.
            SlideError, StoreError, ConfigError, KeyboardInterrupt: as for `extract_slide`.
        """
        slide = self.opened
        n_genes = len(slide.slide.genes)
        if self._is_done:
            return "was complete", len(slide.patches), n_genes
        text = "was complete" if slide.counts is None else "complete"
        n_patches = len(slide.extract(progress))
        if isinstance(self._target, Url):
            put_whole(slide.store_path, self._target, progress)
            text = "complete"
        return text, n_patches, n_genes


def outs_files(outs: Url, matrix: str) -> Mapping[str, Entry]:
    """The objects of a Space Ranger folder that are read, by their names below it.

    Raises:
        StorageError: the storage cannot be reached or refuses.
    """
    wanted, others = re.compile(_READ.format(matrix=matrix)), re.compile(_OTHER_BINS)
    return {
        name: found
        for name, found in below(outs).items()
        if _PICTURE.fullmatch(name) or (wanted.fullmatch(name) and not others.search(name))
    }


def _staged(outs: Url, folder: Path, matrix: str) -> Path:
    """Copy the files of a Space Ranger folder that are read to a folder on disk."""
    files = outs_files(outs, matrix)
    if not files:
        raise SlideError(
            f"{outs}: expected square_002um, the 2 µm bins, there or in outs/binned_outputs; found "
            "no such objects; give the outs folder of a Visium HD run"
        )
    home = folder / outs.name
    get = partial(_get, outs, home)
    with ThreadPoolExecutor(N_AT_ONCE, "stage") as pool:
        list(pool.map(get, files.items()))
    return home


def _get(outs: Url, home: Path, file: tuple[str, Any]) -> None:
    name, found = file
    place = (home / name).parent
    place.mkdir(parents=True, exist_ok=True)
    fetched(outs / name, place, found)
