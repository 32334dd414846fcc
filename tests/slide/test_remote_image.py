"""Slide images in object storage: the same pixels as on disk, and no more bytes than are read."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from he_picture import he_picture
from s3_double import S3, Request
from tiny_slide import halves, write_image

from virchow_st.cloud import ranged
from virchow_st.cloud.place import Url
from virchow_st.errors import SlideError, StorageError
from virchow_st.slide.image import SlideImage
from virchow_st.slide.remote import image_fingerprint
from virchow_st.slide.space_ranger import fingerprint

APERIO = "Aperio Image Library v11.2.1\r\n1024x1024 |AppMag = 20|MPP = 0.5"
URL = Url("s3://bucket/slides/P 1.svs")
BY_RANGE = {"aperio": True, "tiles": True, "pyramid": True, "subifds": True, "vendor": False,
            "strips": False, "one piece": False, "png": False}  # fmt: skip


@pytest.fixture(scope="module")
def he() -> np.ndarray:
    return he_picture(1024, 1024)


def aperio(path: Path, he: np.ndarray) -> Path:
    """A pyramid of JPEG tiles as Aperio writes it, with a thumbnail in strips."""
    how = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(he, description=APERIO, **how)
        tiff.write(halves(he, 8), photometric="rgb", compression="jpeg", metadata=None)
        tiff.write(halves(he, 4), **how)
    return path


def put(s3: S3, path: Path, url: Url = URL) -> None:
    s3.objects[str(url).removeprefix("s3://bucket/")] = path.read_bytes()


@pytest.mark.parametrize("how", BY_RANGE)
def test_pixels_and_choice_are_those_of_the_file_on_disk(
    s3: S3, he: np.ndarray, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "image"
    if how == "aperio":
        aperio(path, he)
    else:
        write_image(tmp_path / "a.tif", he[:400, :516], how).rename(path)
    path = path.rename(tmp_path / URL.name)
    put(s3, path)
    with SlideImage.open(path) as local, SlideImage.open(str(URL)) as remote:
        assert remote.choice == local.choice
        assert remote.describe() == local.describe()
        assert str(remote.path) == "s3://bucket/slides/P 1.svs"
        assert remote.path.name == path.name
        assert remote.level_factors() == local.level_factors()
        for region in ((101, 37, 333, 205), (-30, -7, 100, 90)):
            for downsample in (1.0, 4.0):
                ours, theirs = (i.read_region(*region, downsample) for i in (remote, local))
                assert (ours[0] == theirs[0]).all()
                assert (ours[1] == theirs[1]).all()
        assert remote.read_warnings() == local.read_warnings() == []
        assert remote.fingerprint() == local.fingerprint() == fingerprint(path)
        assert remote.backend == local.backend
        was_staged = remote._pixels.__dict__.get("_path", remote.path) != URL
        assert was_staged != BY_RANGE[how] or how == "png"
    assert image_fingerprint(URL) == fingerprint(path)
    assert not list((tmp_path / "scratch").rglob("held-*")), "what was fetched is left behind"


def test_only_what_is_read_is_fetched(
    s3: S3, he: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "BLOCK_BYTES", 4096)
    path = tmp_path / "a.tif"
    tiles = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(path, np.tile(he, (2, 2, 1)), **tiles)
    put(s3, path)
    size = path.stat().st_size
    with SlideImage.open(URL) as image:
        opened = s3.n_sent
        assert opened < 0.02 * size
        image.read_region(512, 512, 512, 512)
        assert 1 / 16 < (s3.n_sent - opened) / size < 1.3 / 16
        before = s3.n_sent
        with ThreadPoolExecutor(8) as pool:  # tiles that several threads want are fetched once
            regions = list(pool.map(lambda _: image.read_region(0, 0, 400, 300)[0], range(16)))
        assert all((r == regions[0]).all() for r in regions)
        assert (s3.n_sent - before) / size < 1.5 * 12 / 256
        before = s3.n_sent
        image.read_region(512, 512, 512, 512)
        image._pixels._levels[0]._sources[0]._kept.clear()
        image.read_region(512, 512, 512, 512)
        assert s3.n_sent == before


@pytest.mark.parametrize("fault", ["500", "reset", "cut", "503"])
def test_faults_that_pass_change_nothing(
    s3: S3, he: np.ndarray, tmp_path: Path, fault: str
) -> None:
    path = aperio(tmp_path / URL.name, he)
    put(s3, path)
    seen: set[str] = set()

    def once(request: Request) -> str:
        is_new = request.method == "GET" and request.range not in seen
        seen.add(request.range)
        return fault if is_new else ""

    s3.fault = once
    with SlideImage.open(path) as local, SlideImage.open(URL) as remote:
        assert remote.choice == local.choice
        assert (remote.read_region(0, 0, 512, 512)[0] == local.read_region(0, 0, 512, 512)[0]).all()
        assert remote.read_warnings() == []
    assert len(seen) > 3


def test_faults_that_stay_end_the_job_and_never_change_the_pixels(
    s3: S3, he: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level that cannot be fetched is not taken for damaged, nor a tag for missing."""
    from virchow_st.cloud import client

    monkeypatch.setattr(client, "TRIES", 1)
    monkeypatch.setattr(ranged, "BLOCK_BYTES", 4096)
    path = aperio(tmp_path / URL.name, he)
    put(s3, path)
    with SlideImage.open(path) as local:
        choice, pixels = local.choice, local.read_region(0, 0, 1024, 1024, 4)[0]
    outcomes = []
    s3.requests.clear()
    with SlideImage.open(URL) as image:
        image.read_region(0, 0, 1024, 1024, 4)
        gets = [r.range for r in s3.requests if r.method == "GET"]
    for failing in gets[:: max(1, len(gets) // 24)]:
        s3.fault = lambda r, failing=failing: "500" if r.range == failing else ""
        try:
            with SlideImage.open(URL) as image:
                assert image.choice == choice
                assert (image.read_region(0, 0, 1024, 1024, 4)[0] == pixels).all()
                image.read_warnings()
            outcomes.append("same")
        except StorageError as e:
            assert str(e).startswith(f"{URL}: cannot be read, tried 1 times")  # noqa: PT017
            outcomes.append("refused")
    assert set(outcomes) == {"refused"}


def test_a_full_disk_is_not_taken_for_a_damaged_level(
    s3: S3, he: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "BLOCK_BYTES", 4096)
    put(s3, aperio(tmp_path / URL.name, he))
    with SlideImage.open(URL) as image:
        real, n_written = os.pwrite, [0]

        def pwrite(file: int, content: memoryview, at: int) -> int:
            n_written[0] += 1
            if n_written[0] > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, content[:1000], at)  # a disk may also take less than was given

        monkeypatch.setattr(os, "pwrite", pwrite)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"\(No space left on device\); free disk space"):
                image.read_region(0, 0, 1024, 1024)
        with pytest.raises(StorageError, match="free disk space"):
            image.read_warnings()


def test_an_object_that_is_replaced_meanwhile_is_refused(
    s3: S3, he: np.ndarray, tmp_path: Path
) -> None:
    put(s3, aperio(tmp_path / URL.name, he))
    with SlideImage.open(URL) as image:
        image.read_region(0, 0, 100, 100)
        put(s3, aperio(tmp_path / URL.name, he[::-1].copy()))
        with pytest.raises(StorageError, match="P 1.svs: was replaced while it was read"):
            image.read_warnings()


def test_refusals_name_the_url(s3: S3, he: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=f"{URL}: expected a slide image; there is no such object"):
        SlideImage.open(URL)
    s3.objects["slides/P 1.svs"] = b"no image"
    with pytest.raises(SlideError, match=f"{URL}: expected an image that OpenSlide or tifffile"):
        SlideImage.open(URL)
    whole = aperio(tmp_path / URL.name, he).read_bytes()
    s3.objects["slides/P 1.svs"] = whole[: len(whole) // 2]
    with pytest.raises(SlideError, match=rf"{URL}: expected a TIFF image; it cannot be read"):
        SlideImage.open(URL)
