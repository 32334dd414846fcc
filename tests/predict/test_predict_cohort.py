"""``vst predict --manifest``: a list of slides on every executor, as if each was made alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from cohort_job import workers_of

from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.predict.cohort import predict_cohort, read_slides
from virchow_st.predict.runs import load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.runtime.progress import SILENT, Recording

CONFIG = PredictConfig(device="cpu", mpp=0.5, min_tissue=0.1)
OPTIONS = ("--device", "cpu", "--mpp", "0.5", "--min-tissue", "0.1")


def make_slides(simulated: Path, folder: Path, n: int, broken: tuple[int, ...]) -> Path:
    """Crops of the simulated slides, some of them no images, and their list."""
    pixels = [tifffile.imread(simulated / p / "tissue_image.tif") for p in ("P1", "P2", "P5")]
    lines = ["image,mpp,out,patient"]
    for i in range(n):
        of, top = pixels[i % 3], 16 * (i // 3)
        crop = of[300 + top : 1000 + top, 300:1000]
        path = folder / f"s{i}.tif"
        tifffile.imwrite(path, crop, tile=(256, 256), photometric="rgb", compression="zlib")
        if i in broken:
            path.write_bytes(b"broken")
        lines.append(f"s{i}.tif,{0.5 if i % 2 else ''},out/s{i}.zarr,Q{i}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder / "slides.csv"


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def check_as_alone(run: Path, folder: Path, n: int, broken: tuple[int, ...]) -> None:
    """All that can be there is there, byte for byte as made alone, and nothing else."""
    loaded = load_runs([run], CONFIG, SILENT)
    good = [f"s{i}" for i in range(n) if i not in broken]
    left = {p.name for p in (folder / "out").iterdir()}
    assert left == {f"{s}{end}" for s in good for end in (".zarr", "_tissue.png")}
    for slide in good:
        alone = folder / f"{slide}.zarr"
        predict_slide([], folder / f"{slide}.tif", alone, CONFIG, SILENT, loaded)
        assert content(folder / "out" / f"{slide}.zarr") == content(alone)


def test_a_list_in_this_process(
    vst: Callable[..., Any], stain_run: Path, simulated: Path, tmp_path: Path
) -> None:
    broken = (1,)
    slides = make_slides(simulated, tmp_path, 3, broken)
    first = vst("predict", stain_run, "--manifest", slides, *OPTIONS)
    assert first.code == 1
    (warning,) = [line for line in first.err.splitlines() if line.startswith("warning: ")]
    assert "s1.tif" in warning
    assert "Traceback" not in first.err
    rows = [line for line in first.out.splitlines() if line.startswith("│ s")]
    assert ["complete" in row for row in rows] == [True, False, True]
    check_as_alone(stain_run, tmp_path, 3, broken)
    # Again: one was deleted; one lost its mark, as when it was killed after the last rename.
    (tmp_path / "out/s0_tissue.png").unlink()
    os.rename(tmp_path / "out/s0.zarr", tmp_path / "moved")
    for mark in (tmp_path / "slides.cohort/marks").glob("*s2*"):
        mark.unlink()
    found = predict_cohort([stain_run], slides, CONFIG)
    assert [o.text for o in found][::2] == ["complete", "was complete"]
    assert found[2].n_patches
    assert content(tmp_path / "out/s0.zarr") == content(tmp_path / "moved")
    # With other options what is there is something else, and stays.
    other = PredictConfig(device="cpu", mpp=0.5, min_tissue=0.1, overlap_um=64)
    found = predict_cohort([stain_run], slides, other)
    assert all("is already there, and is no prediction of this slide" in o.text for o in found[::2])
    assert content(tmp_path / "out/s0.zarr") == content(tmp_path / "moved")


def test_a_training_patient_is_pointed_out(
    stain_run: Path, simulated: Path, tmp_path: Path
) -> None:
    slides = make_slides(simulated, tmp_path, 2, ())
    slides.write_text(slides.read_text().replace("Q1", "P1"))
    reports = Recording()
    outcomes = predict_cohort([stain_run], slides, CONFIG, reports)
    assert [o.is_done for o in outcomes] == [True, True]
    assert [w for w in reports.warnings if w.startswith("P1 is a patient that the run was trained")]


def test_lists_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"

    def read(text: str) -> Any:
        path.write_text(text)
        return read_slides(path)

    (slide,) = read("Out;Image\na.zarr;/scans/a.svs\n")
    assert (slide.image, slide.out) == (Path("/scans/a.svs"), tmp_path / "a.zarr")
    assert (slide.mpp, slide.patient) == (0.0, "")
    (slide,) = read("image,mpp,out,patient\na,0.25,b,P 1 \n")
    assert (slide.mpp, slide.patient) == (0.25, "P 1")
    for text, refusal in (
        ("image,mpp\na,1\n", "expected the columns image,out in the first line; out is missing"),
        ("image,out\n", "expected a slide per line; there is none"),
        ("image,out\na,\n", "line 2: expected a value in every column; out is empty"),
        ("image,out,mpp\na,b,x\n", "line 2: mpp: expected µm per pixel, or nothing.*got 'x'"),
        ("image,out,mpp\na,b,nan\n", "line 2: mpp: expected µm per pixel, or nothing.*'nan'"),
        ("image,out\na,b\nc,b\n", "expected an output per slide; .*b is named twice"),
        ("image,out,mpp,mpp\na,b,1,1\n", "mpp comes twice"),
    ):
        with pytest.raises(ConfigError, match=refusal):
            read(text)


def test_what_does_not_go_together(vst: Callable[..., Any], tmp_path: Path) -> None:
    for arguments, refusal in (
        (("run", "a.svs", "--manifest", "s.csv"), "leave out IMAGE and --out"),
        (("run", "a.svs"), "expected IMAGE and --out, or --manifest"),
        (("run", "a.svs", "--out", "o", "--workers", "2"), "--workers: expected --manifest"),
    ):
        answer = vst("predict", *arguments)
        assert answer.code == 2
        assert refusal in answer.err


def command(run: Path, slides: Path, executor: str) -> list[str]:
    options = ["--executor", executor, "--workers", "2"]
    code = "from virchow_st_cli.main import main; main()"
    if executor == "slurm":  # submitit's own stand-in for Slurm: processes of this machine
        code = (
            "import virchow_st.cohort.on_slurm as s; real = s.SlurmExecutor\n"
            "s.SlurmExecutor = lambda folder, options: real(folder, options, 'local')\n" + code
        )
    words = [sys.executable, "-c", code, "predict", run, "--manifest", slides, *OPTIONS, *options]
    return [str(word) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm", "ray"])
def test_twenty_slides_and_workers_killed(
    stain_run: Path, simulated: Path, tmp_path: Path, executor: str
) -> None:
    """Three are broken; two commands at once; workers killed; 17 as if made alone."""
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is 240 MB; pip install 'virchow_st[cluster]'")
    broken = (3, 8, 14)
    slides = make_slides(simulated, tmp_path, 20, broken)
    typed = command(stain_run, slides, executor)
    started = [
        subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    n_kills, claims = 0, tmp_path / "slides.cohort/claims"
    while n_kills < 4 and any(process.poll() is None for process in started):
        time.sleep(3)
        workers = [pid for process in started for pid in workers_of(process.pid)]
        if workers and claims.is_dir() and any(claims.iterdir()):
            os.kill(workers[n_kills % len(workers)], signal.SIGKILL)
            n_kills += 1
    for process in started:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 1, err
        assert sum(" complete" in line for line in out.splitlines()) <= 17
        for i in broken:
            assert f"s{i}.tif" in err or f"s{i}.tif" in out
    assert n_kills == 4
    check_as_alone(stain_run, tmp_path, 20, broken)
