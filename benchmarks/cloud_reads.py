"""Reading a tiled slide image by byte range from object storage, against the same file on disk.

``python benchmarks/cloud_reads.py [--side 16384] [--wait-ms 30] [--json FILE]``. The storage is
the tests' S3 double in a process of its own, once as fast as it is, once with a pause before every
answer, as real storage has. Read are, by eight threads as `vst predict` reads them: the picture at
4 µm per pixel of the whole slide, then every patch of a disc that holds a third of it, at 0.5 µm
per pixel. Pixels have to be equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import tifffile
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from virchow_st.cloud.place import Url
from virchow_st.slide.image import SlideImage

PATCH_PX, TILE_PX = 512, 256
URL = Url("s3://bucket/slide.tif")


def write_slide(path: Path, side: int) -> None:
    """A pyramid of JPEG tiles at 0.5, 2 and 8 µm per pixel, of pictures that vary."""
    from he_picture import he_picture

    part = he_picture(2048, 2048)
    whole = np.tile(part, (-(-side // 2048),) * 2 + (1,))[:side, :side]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for factor in (1, 4, 16):
            small = (side // factor, side // factor)
            level = cv2.resize(whole, small, interpolation=cv2.INTER_AREA)
            tiff.write(level, tile=(TILE_PX, TILE_PX), photometric="rgb", compression="jpeg",
                       metadata=None)  # fmt: skip


def serve(path: Path, wait_s: float, pipe: Connection) -> None:
    from s3_double import running_s3

    def fault(_: object) -> str:
        return ""

    with running_s3() as s3:
        s3.objects["slide.tif"] = path.read_bytes()
        s3.fault, s3.wait_s = fault, wait_s
        pipe.send(s3.url)
        while pipe.recv() == "count":
            pipe.send((s3.n_sent, len(s3.requests)))


@contextmanager
def storage(path: Path, wait_s: float) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(path, wait_s, there))
    process.start()
    os.environ.update(
        AWS_ENDPOINT_URL=here.recv(), AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret"
    )
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield here
    finally:
        here.send("end")
        process.join()


def read_slide(place: str | Path) -> tuple[float, float, float, str, int]:
    """Seconds to open, to read, of processor time for both; hash of the pixels; patches."""
    began, busy = time.perf_counter(), time.process_time()
    with SlideImage.open(place) as image:
        opened = time.perf_counter()
        side, hashed = image.width, xxhash.xxh64()
        hashed.update(image.read_region(0, 0, side, side, 8)[0].data)
        at = np.arange(0, side - PATCH_PX + 1, PATCH_PX)
        y, x = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))
        centre = (side - PATCH_PX) / 2
        inside = (y - centre) ** 2 + (x - centre) ** 2 < side**2 / (3 * np.pi)
        corners = list(zip(x[inside].tolist(), y[inside].tolist(), strict=True))
        with ThreadPoolExecutor(8) as pool:
            for rgb in pool.map(lambda c: image.read_region(*c, PATCH_PX, PATCH_PX)[0], corners):
                hashed.update(rgb.data)
        ended = time.perf_counter()
    busy = time.process_time() - busy
    return opened - began, ended - opened, busy, hashed.hexdigest(), len(corners)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--wait-ms", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, given.side)
        size = path.stat().st_size
        read_slide(path)  # once for the cache of the disk
        local = read_slide(path)
        found["local"] = {
            "open_s": local[0], "read_s": local[1], "processor_s": local[2], "patches": local[4],
        }  # fmt: skip
        for wait_ms in (0.0, given.wait_ms):
            with storage(path, wait_ms / 1000) as pipe:
                with SlideImage.open(URL):  # makes the client, which takes about half a second
                    pass
                pipe.send("count")
                before = pipe.recv()
                remote = read_slide(URL)
                pipe.send("count")
                n_sent, n_requests = (b - a for a, b in zip(before, pipe.recv(), strict=True))
            assert remote[3:] == local[3:], "other pixels"
            found[f"storage, {wait_ms:g} ms"] = {
                "open_s": remote[0], "read_s": remote[1], "processor_s": remote[2],
                "share": n_sent / size, "requests": n_requests,
            }  # fmt: skip
    found["size_mb"] = size / 1e6
    for name, values in found.items():
        print(name, values)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
