"""Opens slide images in object storage: tiles of a TIFF by byte range, other files as a whole.

A tiled TIFF or SVS whose tiles this package decodes is read tile by tile, as they are needed. The
same code as for a file on disk decides how it is read, and OpenSlide, which reads files only, gets
the bytes of all tags in a sparse file of the same size. Every other format is fetched as a whole
first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tifffile

from virchow_st.cloud.place import Url
from virchow_st.cloud.ranged import RangedFile
from virchow_st.cloud.scratch import held_folder
from virchow_st.cloud.storage import entry
from virchow_st.errors import SlideError, StorageError
from virchow_st.slide.backends import Pixels
from virchow_st.slide.choice import ImageChoice
from virchow_st.slide.choose import NeedsWholeFileError, open_image
from virchow_st.slide.space_ranger import fingerprint_of

_DEEPEST = 3  # of pages below pages


class RemoteImage:
    """The bytes of a slide image in object storage, until `close`.

    Args:
        url: the image, one file.

    Raises:
        SlideError: there is none.
        StorageError: its storage cannot be reached or refuses.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        if (found := entry(url)) is None:
            raise SlideError(f"{url}: expected a slide image; there is no such object; give one")
        with ExitStack() as stack:
            folder = stack.enter_context(held_folder())
            self.ranged = RangedFile(url, folder / url.name, found)
            stack.callback(self.ranged.close)
            self._open = stack.pop_all()

    def open_pixels(self) -> tuple[Pixels, ImageChoice]:
        """Decide how the image is read, as `virchow_st.slide.choose.open_image` does.

        Raises:
            SlideError: as for `virchow_st.slide.choose.open_image`.
            StorageError: the bytes cannot be fetched.
        """
        try:
            if _fetch_tags(self.ranged):
                with contextlib.suppress(NeedsWholeFileError):
                    return open_image(self.url, self.ranged)
            self.ranged.fetch_all()
            return open_image(self.ranged.kept)
        except SlideError as e:
            raise SlideError(str(e).replace(str(self.ranged.kept), str(self.url))) from e.__cause__
        finally:
            self.ranged.check_complete()

    def fingerprint(self) -> str:
        """As `virchow_st.slide.space_ranger.fingerprint`."""
        return fingerprint_of(self.ranged.stream())

    def close(self) -> None:
        """Remove what was fetched."""
        self._open.close()


def image_fingerprint(path: Path) -> str:
    """Fingerprint of an image on disk or in object storage, see `SlideImage.fingerprint`.

    Raises:
        OSError: it is not there.
        SlideError, StorageError: as for `RemoteImage`.
    """
    if not isinstance(path, Url):
        with path.open("rb") as file:
            return fingerprint_of(file)
    image = RemoteImage(path)
    try:
        return image.fingerprint()
    finally:
        image.close()


def _fetch_tags(ranged: RangedFile) -> bool:
    """Fetch all tags of a TIFF, so that OpenSlide finds them; whether it is a TIFF."""
    try:
        with tifffile.TiffFile(ranged.stream(), name=ranged.url.name) as tiff:
            _read_tags(tiff.pages, 0)
    except StorageError:
        raise
    except Exception:  # of a file that is none, or damaged: opening it as a whole will say so
        return False
    return True


def _read_tags(pages: Iterable[Any] | None, depth: int) -> None:
    for page in pages or ():
        for tag in page.tags:
            _ = tag.value
        if depth < _DEEPEST and page.subifds:
            _read_tags(page.pages, depth + 1)
