"""Checks the levels of a TIFF pyramid for damage, and settles how their samples become RGB."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.cloud.ranged import RangedFile
from virchow_st.errors import StorageError
from virchow_st.slide.backends import Plain, TiffLevel
from virchow_st.slide.deep import alpha_says_nothing, used_bits
from virchow_st.slide.tiff_choice import TiffChoice, channel_step, strips_refusal
from virchow_st.slide.tiff_tiles import TiffTiles, segment_size
from virchow_st.types import Array, BoolArray

_LARGEST_CHUNK_BYTES = 256 << 20  # largest strip or tile, decoded
_LOOKED_AT = 64  # tiles or strips that are decoded to find the bit depth and transparency
_LOOKED_AT_FOR_BLANKS = 128  # tiles of a reduced level, those of fewest bytes, that are decoded
_LARGEST_OFF = 24  # largest difference in grey level between a uniform tile and the finer level
_LOOKED_AT_PX = 256  # rows and columns of a window of uncompressed pixels


def whole_levels(
    path: Path, choice: TiffChoice, ranged: RangedFile | None = None
) -> tuple[list[Any], tuple[str, ...]]:
    """The finest level and the undamaged reduced levels of a TIFF.

    Args:
        path: the file.
        choice: the image of the TIFF.
        ranged: reads the bytes of a file in object storage.

    Returns:
        The levels, as tifffile has them; and a warning for each level that is left out.

    Raises:
        SlideError: tiles or strips of the finest level are too large to be read separately.
        ValueError: the finest level is damaged.
    """
    finest, *reduced = choice.series.levels
    if (fault := _fault(path, finest, choice)) is not None:
        raise ValueError(fault)
    if (chunk := _chunk_bytes(finest)) > _LARGEST_CHUNK_BYTES and not is_plain(finest, choice):
        raise strips_refusal(path, chunk >> 20, _LARGEST_CHUNK_BYTES >> 20)
    kept, warnings = [finest], []
    listed = len(getattr(finest.pages[0], "subifds", None) or ())
    if listed > len(reduced):  # tifffile drops levels whose tags it cannot read
        warnings.append(
            f"{listed - len(reduced)} of {listed} reduced levels are damaged (no tags); a finer "
            "one is read instead, which takes longer"
        )
    for level in reduced:
        try:
            fault = _fault(path, level, choice) or _empty(level, finest, choice)
            fault = fault or _blank(path, level, kept[-1], choice, ranged)
            if fault is None and _chunk_bytes(level) > _LARGEST_CHUNK_BYTES:
                fault = "its tiles or strips are too large"
        except StorageError:  # the network's fault, not the file's
            raise
        except Exception as e:  # decoders raise many kinds of errors on damaged tiles
            fault = " ".join(str(e).split())[:100] or type(e).__name__
        if fault is None:
            kept.append(level)
        else:
            height, width = level.keyframe.imagelength, level.keyframe.imagewidth
            warnings.append(
                f"the reduced level of {width}×{height} px is damaged ({fault}); a finer one is "
                "read instead, which takes longer"
            )
    return kept, tuple(warnings)


def level_sources(
    path: Path, level: Any, choice: TiffChoice, ranged: RangedFile | None = None
) -> list[TiffTiles | Plain]:
    """Open the sources of a level's samples: one for all samples, or one per sample."""
    key = level.keyframe
    if choice.apart == "page":
        page = level.pages[choice.page]
        return [TiffTiles(path, page, sample, ranged) for sample in range(key.samplesperpixel)]
    if is_plain(level, choice):
        shape = (key.imagelength, key.imagewidth, key.samplesperpixel)
        dtype = key.dtype.newbyteorder(key.parent.byteorder)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if level.dataoffset is not None:
            first = level.dataoffset
            return [Plain(path, first + n * n_bytes, shape, dtype) for n in _pages(level, choice)]
        pages = [level.pages[n] for n in _pages(level, choice)]
        return [Plain(path, page.dataoffsets[0], shape, dtype) for page in pages]
    return [TiffTiles(path, level.pages[n], None, ranged) for n in _pages(level, choice)]


def levels_with_samples(
    sources: list[list[TiffTiles | Plain]], choice: TiffChoice
) -> tuple[list[TiffLevel], int, str | None, tuple[str, ...]]:
    """Determine bit depth and transparency from some pixels, and make the levels.

    Args:
        sources: the sources of each level, finest first.
        choice: the image of the TIFF.

    Returns:
        The levels; the bits that the pixels use; a description of the colours if it differs from
        the choice's, else None; and warnings.
    """
    samples, colour = choice.samples, None
    warnings: tuple[str, ...] = ()
    finest = TiffLevel(sources[0], samples)
    deep = choice.series.keyframe.dtype != np.uint8
    bits = 8
    if deep or samples.alpha is not None:
        seen = _some_pixels(finest, choice.series.keyframe)
        if samples.alpha is not None:
            reason = alpha_says_nothing(seen[:, samples.alpha])
            if reason is not None:
                samples = replace(samples, alpha=None, premultiplied=False)
                colour, warnings = "RGB, transparency left out", (reason,)
        if deep:
            bits = used_bits(int(seen[:, list(samples.colours)].max()))
            samples = replace(samples, largest=(1 << bits) - 1)
    return [TiffLevel(of_level, samples) for of_level in sources], bits, colour, warnings


def _pages(level: Any, choice: TiffChoice) -> list[int]:
    if choice.apart != "pages":
        return [choice.page]
    step = channel_step(choice.series)
    n = choice.series.shape[choice.series.axes.index("C")]
    return [choice.page + channel * step for channel in range(n)]


def _fault(path: Path, level: Any, choice: TiffChoice) -> str | None:
    """Describe what is wrong with a level, as far as its tags show; None if nothing is."""
    key = level.keyframe
    if 0 in level.shape or not key.imagelength or not key.imagewidth:
        return f"a level of it has the shape {level.shape}"
    if key.dtype != choice.series.keyframe.dtype:
        return f"its pixels are {key.dtype}"
    if key.samplesperpixel != choice.series.keyframe.samplesperpixel:
        return f"it has {key.samplesperpixel} samples"
    size = key.parent.filehandle.size
    if level.dataoffset is not None:
        n_bytes = int(np.prod(level.shape, dtype=np.float64)) * key.dtype.itemsize
        end = level.dataoffset + n_bytes
        return f"its pixels end at byte {end} of {size}" if end > size else None
    for n in _pages(level, choice):
        page = level.pages[n]
        if page is None or page.parent is not key.parent:
            return "its pixels lie in another file"
        ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if (end := max(ends, default=0)) > size:
            return f"its pixels end at byte {end} of {size}"
    return None


def _chunk_bytes(level: Any) -> int:
    key = level.keyframe
    rows, cols = segment_size(key)
    return rows * cols * key.samplesperpixel * key.dtype.itemsize


def is_plain(level: Any, choice: TiffChoice) -> bool:
    """Whether the pixels are uncompressed and contiguous in the file."""
    if choice.apart == "page":
        return False
    if level.dataoffset is not None:
        return True
    return all(
        level.pages[n] is not None and level.pages[n].is_final for n in _pages(level, choice)
    )


def _some_pixels(level: TiffLevel, key: Any) -> Array:
    """Pixels (N, S) as stored, from tiles, strips or windows spaced evenly over a level."""
    width, height = level.size
    rows, cols = (min(n, _LOOKED_AT_PX) for n in segment_size(key))
    cols = min(cols, width)
    down, across = -(-height // rows), -(-width // cols)
    places = np.unique(np.linspace(0, down * across - 1, _LOOKED_AT).round().astype(int))
    seen = []
    for place in places:
        top, left = (int(place) // across) * rows, (int(place) % across) * cols
        right, bottom = min(left + cols, width), min(top + rows, height)
        pixels, there = level.raw(slice(top, bottom), slice(left, right))
        seen.append(pixels[there > 0] if there is not None else pixels.reshape(-1, pixels.shape[2]))
    return np.concatenate(seen)


def _empty(level: Any, finest: Any, choice: TiffChoice) -> str | None:
    """Describe tiles of a reduced level that are empty although the finest level has pixels."""
    page = level.pages[_pages(level, choice)[0]]
    if 0 not in page.databytecounts:
        return None
    full = finest.pages[_pages(finest, choice)[0]]
    if 0 not in full.databytecounts:
        return "tiles without bytes"
    there, below = _occupied(page), _occupied(full)
    # Assign each tile of the finest level to the reduced level's tile over its centre.
    row, col = np.nonzero(below)
    down, across = segment_size(full.keyframe), segment_size(page.keyframe)
    y = (row + 0.5) * down[0] / full.keyframe.imagelength * page.keyframe.imagelength
    x = (col + 0.5) * down[1] / full.keyframe.imagewidth * page.keyframe.imagewidth
    at = np.minimum((y // across[0]).astype(int), there.shape[0] - 1)
    left = np.minimum((x // across[1]).astype(int), there.shape[1] - 1)
    return None if there[at, left].all() else "tiles without bytes"


def _occupied(page: Any) -> BoolArray:
    """(rows, cols) bool over a page's tiles or strips, True for those with bytes in the file."""
    rows, cols = segment_size(page.keyframe)
    down, across = -(-page.keyframe.imagelength // rows), -(-page.keyframe.imagewidth // cols)
    return np.array(page.databytecounts[: down * across]).reshape(down, across) > 0


def _blank(
    path: Path, level: Any, finer: Any, choice: TiffChoice, ranged: RangedFile | None
) -> str | None:
    """Describe tiles of a reduced level that are of one colour unlike the finer level's pixels.

    Some scanners write such blank tiles. Only the tiles with the fewest bytes are decoded, because
    a blank tile compresses to almost nothing.
    """
    if choice.apart or is_plain(level, choice) or is_plain(finer, choice):
        return None
    page = level.pages[choice.page]
    rows, cols = segment_size(page.keyframe)
    across = -(-page.keyframe.imagewidth // cols)
    order = np.argsort(page.databytecounts, kind="stable")
    few = order[: max(_LOOKED_AT_FOR_BLANKS, 1)]
    own = TiffTiles(path, page, None, ranged)
    below = TiffTiles(path, finer.pages[choice.page], None, ranged)
    try:
        for index in map(int, few):
            top, left = index // across * rows, index % across * cols
            pixels = _whole(own, top, left, top + rows, left + cols)
            if pixels is None or np.ptp(pixels.reshape(-1, pixels.shape[2]), axis=0).max() > 1:
                continue
            down, right = (b / a for a, b in zip(own.shape[:2], below.shape[:2], strict=True))
            under = _whole(
                below, round(top * down), round(left * right),
                round((top + rows) * down), round((left + cols) * right),
            )  # fmt: skip
            if under is None:
                continue
            off = np.abs(under.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max()
            if off > _LARGEST_OFF * np.iinfo(own.dtype).max / 255:
                return "blank tiles"
    finally:
        own.close()
        below.close()
    return None


def _whole(source: TiffTiles, top: int, left: int, bottom: int, right: int) -> Array | None:
    """Pixels of a window, clipped to the image; None if some are missing from the file."""
    height, width, _ = source.shape
    pixels = source[top : min(bottom, height), left : min(right, width)]
    if source.has_holes and not pixels[..., -1].all():
        return None
    return pixels[..., : source.shape[2]] if pixels.size else None
