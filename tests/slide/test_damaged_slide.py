"""Damaged Space Ranger files end in one line, never in a crash and never in other counts."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_place import Answer
from tiny_slide import TinySlide

SCRIPT = Path(__file__).parents[1] / "support" / "damaged_slide.py"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
MATRIX = "*filtered_feature_bc_matrix.h5"
POSITIONS = "spatial/*tissue_positions.parquet"
SCALES = "spatial/*scalefactors_json.json"


def the_file(outs: Path, pattern: str) -> Path:
    return next(outs.glob(f"binned_outputs/square_002um/{pattern}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose positions have checksums: without, a bin may lose its tissue unnoticed."""
    slide = TinySlide(rows=130, cols=130, n_genes=8)
    outs = slide.write(tmp_path_factory.mktemp("whole") / "outs")
    path = the_file(outs, POSITIONS)
    pq.write_table(pq.read_table(path), path, compression="zstd", write_page_checksum=True)
    return outs


def words(whole: Path, damaged: list[Path]) -> list[str]:
    command = [sys.executable, SCRIPT, whole, *damaged]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def copies(whole: Path, pattern: str, contents: list[bytes], folder: Path) -> list[Path]:
    """Copies of the slide, each with other contents of one file; the rest are hard links."""
    made = []
    for i, content in enumerate(contents):
        outs = shutil.copytree(whole, folder / str(i), copy_function=_link)
        path = the_file(outs, pattern)
        path.unlink()
        path.write_bytes(content)
        made.append(outs)
    return made


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def flipped(content: bytes, places: list[int], rng: np.random.Generator) -> list[bytes]:
    """Copies with one byte changed: a bit in every other, any value in the rest."""
    out = []
    for i, at in enumerate(places):
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256)) if i % 2 else 1 << int(rng.integers(8))
        out.append(bytes(changed))
    return out


def some(number: int, many: int) -> list:
    """A number of flips for every day, and many for a heavier proof."""
    return [number, pytest.param(many, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n", some(30, 1000))
@pytest.mark.parametrize("pattern", [MATRIX, POSITIONS])
def test_flips_anywhere(whole: Path, tmp_path: Path, pattern: str, n: int) -> None:
    content, rng = the_file(whole, pattern).read_bytes(), np.random.default_rng(7)
    places = rng.integers(0, len(content), n).tolist()
    actual = Counter(words(whole, copies(whole, pattern, flipped(content, places, rng), tmp_path)))
    assert set(actual) <= {"right", "refused"}, actual
    assert actual["refused"] > n // 4, actual


@pytest.mark.parametrize("n", some(40, 1000))
def test_flips_in_what_hdf5_keeps_of_itself(whole: Path, tmp_path: Path, n: int) -> None:
    """Headers, trees and heaps, which have no checksums."""
    path, rng = the_file(whole, MATRIX), np.random.default_rng(8)
    content = path.read_bytes()
    own = np.frombuffer(content, np.uint8) > 0
    with h5py.File(path) as file:
        for name in ("barcodes", "data", "indices", "indptr"):
            chunks: list = []
            file[f"matrix/{name}"].id.chunk_iter(chunks.append)
            for chunk in chunks:
                own[chunk.byte_offset : chunk.byte_offset + chunk.size] = False
    assert 1_000 < own.sum() < 20_000
    places = rng.choice(np.flatnonzero(own), n).tolist()
    actual = Counter(words(whole, copies(whole, MATRIX, flipped(content, places, rng), tmp_path)))
    assert set(actual) <= {"right", "refused"}, actual
    assert actual["refused"] > n // 4, actual


@pytest.mark.parametrize("pattern", [MATRIX, POSITIONS, SCALES])
def test_cut_in_ten_places(whole: Path, tmp_path: Path, pattern: str) -> None:
    content = the_file(whole, pattern).read_bytes()
    cut = [content[: len(content) * tenth // 10] for tenth in range(10)]
    assert words(whole, copies(whole, pattern, cut, tmp_path)) == ["refused"] * 10


@pytest.mark.parametrize("pattern", [MATRIX, POSITIONS])
def test_stretch_of_zeros(whole: Path, tmp_path: Path, pattern: str) -> None:
    """As a copy that failed half-way leaves it, its length right."""
    content = the_file(whole, pattern).read_bytes()
    n = len(content) // 8
    zeroed = [content[: i * n] + bytes(n) + content[(i + 1) * n :] for i in range(8)]
    actual = Counter(words(whole, copies(whole, pattern, zeroed, tmp_path)))
    assert set(actual) <= {"right", "refused"}, actual  # the barcodes of the positions are not read
    assert actual["refused"] > 3


@pytest.mark.parametrize("n", some(10, 300))
@pytest.mark.parametrize("pattern", [MATRIX, POSITIONS])
def test_damage_to_real_files(tmp_path: Path, pattern: str, n: int) -> None:
    """The matrix of the fragment holds no counts: what is tried is its header."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared folder is not at {SHARED}")
    whole = shutil.copytree(SHARED / "mouse_brain_hd", tmp_path / "whole")
    content, rng = the_file(whole, pattern).read_bytes(), np.random.default_rng(9)
    cut = [content[: len(content) * tenth // 5] for tenth in range(5)]
    places = rng.integers(0, len(content), n).tolist()
    damaged = copies(whole, pattern, cut + flipped(content, places, rng), tmp_path)
    actual = words(whole, damaged)
    assert actual[:5] == ["refused"] * 5
    assert set(actual) <= {"right", "refused"}, actual


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("room", [0, 200_000])
def test_extraction_without_room_on_the_disk_ends_in_one_line(
    simulated: Path, tmp_path: Path, room: int
) -> None:
    slide, store = simulated / "P1", tmp_path / "P1.vst"
    command = [sys.executable, "-m", "virchow_st_cli.main", "extract", slide / "outs", "--image",
               slide / "tissue_image.tif", "--store", store, "--patient", "P1", "--encoder",
               "stain", "--quiet"]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: {store}")
    assert not (store / "store.json").exists()


def no_tissue(outs: Path) -> None:
    path = the_file(outs, POSITIONS)
    table = pq.read_table(path)
    none = np.zeros(len(table), np.uint8)
    pq.write_table(table.set_column(1, "in_tissue", [none]), path)


def negative(outs: Path) -> None:
    with h5py.File(the_file(outs, MATRIX), "r+") as file:
        file["matrix/data"][-1] = -3  # the last: all else has been read by then


def fractions(outs: Path) -> None:
    with h5py.File(the_file(outs, MATRIX), "r+") as file:
        values = file["matrix/data"][:] / 2
        del file["matrix/data"]
        file["matrix/data"] = values


def cut(pattern: str) -> Callable[[Path], None]:
    def damage(outs: Path) -> None:
        path = the_file(outs, pattern)
        path.write_bytes(path.read_bytes()[:-1000])

    return damage


def coarse(outs: Path) -> None:
    square = outs / "binned_outputs" / "square_002um"
    square.rename(square.with_name("square_008um"))


def of_visium_v1(outs: Path) -> None:
    with h5py.File(the_file(outs, MATRIX), "r+") as file:
        barcodes = file["matrix/barcodes"]
        barcodes[:] = np.full(barcodes.shape, b"AAACAAGTATCTCCCA-1")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut(MATRIX), "cannot be read"),
        (cut(POSITIONS), "cannot be read"),
        (no_tissue, "expected bins in tissue"),
        (negative, "whole and not negative"),
        (fractions, "got fractions"),
        (coarse, "found only square_008um"),
        (of_visium_v1, "of Visium v1"),
    ],
    ids=["cut matrix", "cut positions", "no tissue", "negative", "fractions", "8 µm", "Visium v1"],
)
def test_refused_in_one_line_and_nothing_is_left(
    vst: Callable[..., Answer], simulated: Path, tmp_path: Path, damage: Callable, said: str
) -> None:
    outs = shutil.copytree(simulated / "P1" / "outs", tmp_path / "outs")
    damage(outs)
    image, store = simulated / "P1" / "tissue_image.tif", tmp_path / "P1.vst"
    options = ["--image", image, "--store", store, "--patient", "P1", "--encoder", "stain"]
    answer = vst("extract", outs, *options, "--quiet")
    assert answer.code == 2
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith(f"error: {outs}")
    assert said in answer.err
    assert not store.exists()
