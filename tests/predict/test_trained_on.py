"""Several runs refuse a slide that one of them was trained on; the picture is named by the stem."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tifffile

from virchow_st.errors import ConfigError
from virchow_st.predict.runs import check_alike
from virchow_st.predict.slide import _restored_on_failure, tissue_picture
from virchow_st.predict.trained_on import check_not_trained_on
from virchow_st.run.split import Member
from virchow_st.runtime.progress import Recording
from virchow_st.slide.image import SlideImage


def run_of(name, stores, train, test):
    """What is asked of a run: its stores, and which of them it was trained and validated on."""
    names = list(stores)
    split = SimpleNamespace(
        train=tuple(Member(names.index(patient), 0) for patient in train[:1]),
        validation=tuple(Member(names.index(patient), 0) for patient in train[1:]),
        test=(Member(names.index(test), 0),),
    )
    config = SimpleNamespace(stores=tuple(map(str, stores.values())))
    return SimpleNamespace(path=Path(name), config=config, split=split)


@pytest.fixture
def runs(stores):
    return [run_of("a", stores, ["P1", "P2"], "P5"), run_of("b", stores, ["P5", "P2"], "P1")]


def resaved(path, target):
    """The same slide with other bytes: lossy tiles, as a conversion writes them."""
    pixels = tifffile.imread(path, key=0)
    how = {"compression": "jpeg", "compressionargs": {"level": 70}, "photometric": "rgb"}
    tifffile.imwrite(target, pixels, tile=(256, 256), **how)
    return target


@pytest.mark.parametrize("is_resaved", [False, True])
def test_a_slide_that_one_of_several_runs_was_trained_on_is_refused(
    runs, simulated, tmp_path, is_resaved
):
    path = simulated / "P5" / "tissue_image.tif"
    if is_resaved:
        path = resaved(path, tmp_path / "P5.tif")
    reason = "its patches are found on it, r 0.9" if is_resaved else "it was made from this file"
    with SlideImage.open(path) as image:
        listener = Recording()
        check_not_trained_on(runs[:1], image, listener)  # P5 is this run's test patient
        assert listener.warnings == []
        check_not_trained_on(runs[1:], image, listener)
        (warning,) = listener.warnings
        assert warning.startswith(f"b: was trained on this slide ({runs[1].config.stores[2]}: ")
        assert reason in warning
        with pytest.raises(ConfigError, match=f"b: was trained on this slide.*{reason}.*leave"):
            check_not_trained_on(runs, image, listener)


def test_another_slide_at_the_same_coordinates_is_another(runs, simulated, tmp_path, stores):
    only = run_of("c", {"P1": stores["P1"], "P2": stores["P2"]}, ["P1"], "P2")
    for patient in ("P2", "P5"):
        path = simulated / patient / "tissue_image.tif"
        with SlideImage.open(path) as image:
            check_not_trained_on([only, only], image, Recording())


def test_stores_that_are_gone_are_said(stores, simulated, tmp_path):
    gone = {"P1": tmp_path / "gone.vst", "P2": stores["P2"], "P5": stores["P5"]}
    pair = [run_of(name, gone, ["P1", "P2"], "P5") for name in "ab"]
    with SlideImage.open(simulated / "P5" / "tissue_image.tif") as image:
        listener = Recording()
        check_not_trained_on(pair, image, listener)
    assert len(listener.notes) == 2
    for name, note in zip("ab", listener.notes, strict=True):
        assert note.startswith(f"{name}: 1 of its training stores cannot be opened")


def test_one_run_given_twice_is_refused():
    def run(name, seed):
        state = {"encoder": 0, "grid": 16, "dim": 8, "epoch": 3}
        panel = SimpleNamespace(ids=("E0",))
        return SimpleNamespace(
            path=Path(name), config=seed, split=0, state=state, panel=panel, loadings=None
        )

    check_alike([run("a", 0), run("b", 1)])
    with pytest.raises(ConfigError, match="copy: is the same run as a; their spread would be 0"):
        check_alike([run("a", 0), run("b", 1), run("copy", 0)])


@pytest.mark.parametrize(
    ("out", "picture"),
    [
        ("CRC.P1.zarr", "CRC.P1_tissue.png"),
        ("CRC.P2.ome.zarr", "CRC.P2_tissue.png"),
        ("CRC.P1", "CRC.P1_tissue.png"),
        ("CRC.P1.h5ad", "CRC.P1_tissue.png"),
        ("slide", "slide_tissue.png"),
        (".zarr", ".zarr_tissue.png"),
    ],
)
def test_the_picture_is_named_by_the_whole_stem(out, picture):
    assert tissue_picture(Path("x", out)) == Path("x", picture)


def test_a_failing_job_leaves_the_picture_of_another_result(tmp_path):
    mine, other = tmp_path / "new_tissue.png", tmp_path / "old_tissue.png"
    other.write_bytes(b"of another result")

    def stopped(picture):
        with _restored_on_failure(picture):
            picture.write_bytes(b"of this job")
            raise KeyboardInterrupt

    for picture in (mine, other):
        with pytest.raises(KeyboardInterrupt):
            stopped(picture)
    assert not mine.exists()
    assert other.read_bytes() == b"of another result"
    with _restored_on_failure(other):
        other.write_bytes(b"of this job")
    assert other.read_bytes() == b"of this job"
