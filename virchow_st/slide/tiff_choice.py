"""Chooses the H&E slide among the images of a TIFF: series, plane, and colour samples.

A TIFF may hold many images: macro and label images beside the slide, focal planes, fluorescence
channels. The slide is taken to be the largest RGB image. A file whose largest image is not RGB is
refused, even if it holds thumbnails in RGB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from virchow_st.errors import SlideError
from virchow_st.slide.backends import Samples
from virchow_st.slide.foreign import CONVERT
from virchow_st.slide.ome import OmeImage

_RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
_JPEG = (6, 7, 34892)  # compressions whose decoder turns YCbCr into RGB
_COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_NUMBERED = re.compile(r"(c|ch|channel)?[ :_#-]*\d+(:\d+)*", re.IGNORECASE)
_LEAST_OF_LARGEST = 0.5  # smallest ratio of the slide's area to that of the file's largest image
_REPORTED_FROM = 0.25  # other RGB images are reported if they have this share of the slide's area
_FOCUS = "Z"
_ALPHA = (1, 2)  # ExtraSamples: associated (premultiplied) and unassociated alpha


@dataclass(frozen=True)
class TiffChoice:
    """The image of a TIFF that is read as the slide.

    Attributes:
        series: the tifffile series.
        index: index of the series in the file, from 0.
        page: index of the chosen plane's page among the pages of a level; the first of three if
            every colour has a page of its own.
        apart: how samples are stored: ``""`` interleaved, ``"page"`` as separate planes of one
            page, ``"pages"`` as one page per colour.
        samples: which samples are the colours and the transparency.
        series_text, plane_text, colour_text: descriptions for
            `virchow_st.slide.choice.ImageChoice`.
        warnings: one line each, for the same.
        needs_libtiff: whether the colours can be converted to RGB by OpenSlide's libtiff only.
    """

    series: Any
    index: int
    page: int
    apart: str
    samples: Samples
    series_text: str
    plane_text: str
    colour_text: str
    warnings: tuple[str, ...]
    needs_libtiff: bool


@dataclass(frozen=True)
class _Colours:
    """How a series stores its colours: see `TiffChoice`.

    Attributes:
        channel_axis: the axis of the series that holds the colours, if they have pages of their
            own.
    """

    apart: str
    samples: Samples
    text: str = ""
    warnings: tuple[str, ...] = ()
    needs_libtiff: bool = False
    channel_axis: int | None = None


def choose_in_tiff(
    path: Path, all_series: Sequence[Any], images: Sequence[OmeImage], labels: Sequence[str]
) -> TiffChoice:
    """Choose series, plane and samples.

    Args:
        path: the file, for messages.
        all_series: the file's series, as tifffile finds them.
        images: the images described in OME-XML, in the order of the series; may be empty.
        labels: channel names given by ImageJ; may be empty.

    Raises:
        SlideError: the largest image is not RGB.
    """
    found: list[tuple[int, Any, _Colours]] = []
    refusals: list[tuple[int, str]] = []
    for index, series in enumerate(all_series):
        image = images[index] if index < len(images) else None
        colours = _colours_of(series, image, labels)
        if isinstance(colours, str):
            refusals.append((_area(series), colours))
        else:
            found.append((index, series, colours))
    largest_other = max(refusals, default=(0, ""))
    best = max(found, key=lambda one: (_area(one[1]), -one[0]), default=None)
    if best is None or _area(best[1]) < _LEAST_OF_LARGEST * largest_other[0]:
        thumbnails = f" (and {len(found)} smaller in RGB)" if found else ""
        raise SlideError(
            f"{path}: expected an H&E image in RGB; got {largest_other[1]}{thumbnails}; give the "
            "microscope image of the H&E stain, not cytassist_image.tiff or a fluorescence scan"
        )
    index, series, colours = best
    warnings = list(colours.warnings)
    series_text = ""
    if len(all_series) > 1:
        name = f" ({series.name})" if series.name else ""
        series_text = f"image {index + 1} of {len(all_series)}{name}, the largest in RGB"
        for other, one, _ in found:
            if other != index and _area(one) >= _REPORTED_FROM * _area(series):
                height, width = _sides(one)
                warnings.append(
                    f"image {other + 1} of the file, {width}×{height} px, is left out; if that is "
                    "the slide, save it to a file of its own"
                )
    page, plane_text = _plane(series, colours)
    if plane_text:
        warnings.append(f"the slide is a stack; {plane_text} of it is read")
    return TiffChoice(
        series, index, page, colours.apart, colours.samples, series_text, plane_text, colours.text,
        tuple(warnings), colours.needs_libtiff,
    )  # fmt: skip


def _colours_of(series: Any, image: OmeImage | None, labels: Sequence[str]) -> _Colours | str:
    """How a series stores RGB, or a description of it if it does not."""
    key, axes = series.keyframe, series.axes
    names = tuple(labels) if image is None else image.channels
    what = f"{_described(series)}{_channels(names)}"
    if key.dtype not in (np.uint8, np.uint16) or "Y" not in axes or "X" not in axes:
        return what
    if _is_fluorescence(image, names, key.samplesperpixel):
        return f"{what}: fluorescence"
    if key.photometric in _RGB and key.samplesperpixel >= 3:
        in_page = key.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        needs_libtiff = (
            key.photometric == tifffile.PHOTOMETRIC.YCBCR and key.compression not in _JPEG
        )
        if needs_libtiff and (in_page or len(series.pages) > 1 or key.dtype != np.uint8):
            return f"{what} in YCbCr"
        samples, text, warnings = _extra(key)
        return _Colours("page" if in_page else "", samples, text, warnings, needs_libtiff)
    if "C" in axes and key.samplesperpixel == 1:
        channel_axis = axes.index("C")
        named = [_COLOURS.get(name.strip().lower()) for name in names]
        n = series.shape[channel_axis]
        if len(named) != n or not {0, 1, 2} <= set(named):
            return f"{what}: {n} channels in planes, not named R, G and B"
        first = tuple(named.index(colour) for colour in range(3))
        left_out = [name for name, colour in zip(names, named, strict=True) if colour is None]
        warnings = (f"the channels {', '.join(left_out)} are left out",) if left_out else ()
        colours = Samples((first[0], first[1], first[2]))
        return _Colours("pages", colours, "RGB in planes", warnings, channel_axis=channel_axis)
    return what


def _extra(key: Any) -> tuple[Samples, str, tuple[str, ...]]:
    """Transparency among the samples beyond the three colours, by the ExtraSamples tag."""
    n = key.samplesperpixel - 3
    if n == 0:
        return Samples(), "", ()
    kinds = [int(kind) for kind in key.extrasamples] + [0] * n
    alpha = next((i for i in range(n) if kinds[i] in _ALPHA), None)
    unused = n - (alpha is not None)
    text = "RGB and transparency" if alpha is not None else "RGB"
    warnings: tuple[str, ...] = ()
    if unused:
        which = "a fourth sample" if n == 1 else f"{unused} more samples"
        warnings = (f"{which} beside red, green and blue, no transparency, is left out",)
        text += f", {unused} more left out"
    if alpha is None:
        return Samples(), text, warnings
    return Samples(alpha=3 + alpha, premultiplied=kinds[alpha] == 1), text, warnings


def _plane(series: Any, colours: _Colours) -> tuple[int, str]:
    """Index of the page to read, and a description of its plane.

    The plane is the middle one of a focal stack, and the first along any other axis (time,
    position, pages of equal size).
    """
    axes, shape = series.axes, series.shape
    leading = [i for i, axis in enumerate(axes) if axis not in "YXS" and i != colours.channel_axis]
    if axes.endswith("YXC"):
        leading = [i for i in leading if i != len(axes) - 1]
    pages = [i for i in range(len(axes)) if i in leading or i == colours.channel_axis]
    at = {i: shape[i] // 2 if axes[i] == _FOCUS else 0 for i in leading}
    place = [at.get(i, 0) for i in pages]
    index = int(np.ravel_multi_index(place, [shape[i] for i in pages])) if pages else 0
    said = [f"{axes[i]} {at[i] + 1} of {shape[i]}" for i in leading if shape[i] > 1]
    return index, f"plane {', '.join(said)}" if said else ""


def channel_step(series: Any) -> int:
    """Distance in pages from one channel to the next, in a series with one page per channel."""
    axis = series.axes.index("C")
    after = [i for i in range(axis + 1, len(series.axes)) if series.axes[i] not in "YX"]
    return int(np.prod([series.shape[i] for i in after], dtype=np.int64))


def _is_fluorescence(image: OmeImage | None, names: Sequence[str], n_samples: int) -> bool:
    """Whether the channels are fluorescence, by their contrast, their dyes, or three dye names.

    Wavelengths are considered only for one sample per pixel, because some scanners also record
    them for a colour camera.
    """
    if image is not None and image.says_fluorescence:
        return True
    if n_samples == 1:
        return image is not None and image.has_fluorophores
    told = [name for name in names if name and not _NUMBERED.fullmatch(name)]
    return len(told) >= 3 and not all(name.strip().lower() in _COLOURS for name in told)


def _described(series: Any) -> str:
    height, width = _sides(series)
    key = series.keyframe
    name = f"{series.name}, " if series.name else ""
    samples = f"{key.samplesperpixel} samples" if key.samplesperpixel > 1 else "one sample"
    kind = getattr(key.photometric, "name", str(key.photometric)).lower()
    return f"{name}{width}×{height} px, axes {series.axes}, {key.dtype}, {kind}, {samples}"


def _channels(names: Sequence[str]) -> str:
    told = [re.sub(r"[^\x20-\x7e]", "?", name)[:20] for name in names if name]
    return f", channels {', '.join(told[:6])}" if told else ""


def _sides(series: Any) -> tuple[int, int]:
    return int(series.keyframe.imagelength), int(series.keyframe.imagewidth)


def _area(series: Any) -> int:
    height, width = _sides(series)
    return height * width


def strips_refusal(path: Path, chunk_mib: int, largest_mib: int) -> SlideError:
    """The error for tiles or strips that are too large to decode again for every patch."""
    return SlideError(
        f"{path}: expected tiles, or strips of up to {largest_mib} MiB; one holds {chunk_mib} MiB, "
        f"read anew for every patch; convert it: {CONVERT}"
    )
