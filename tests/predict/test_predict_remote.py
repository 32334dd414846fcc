"""``vst predict`` from and to object storage: the same bytes as on disk, whoever is killed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from cli_place import command
from s3_double import S3, Request
from slurm_here import start

from virchow_st.cloud.place import Url
from virchow_st.cloud.whole import get_whole, is_whole
from virchow_st.config import PredictConfig
from virchow_st.field.read import open_field
from virchow_st.predict.cohort import predict_cohort
from virchow_st.predict.slide import predict_slide
from virchow_st.runtime.progress import Recording

CONFIG = PredictConfig(device="cpu", mpp=0.5, min_tissue=0.1)
OPTIONS = ("--device", "cpu", "--mpp", "0.5", "--min-tissue", "0.1")
OUT = Url("s3://bucket/out/s0.zarr")


@pytest.fixture(scope="module")
def slide(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "s0.tif"
    crop = tifffile.imread(simulated / "P1/tissue_image.tif")[300:1000, 300:1000]
    tifffile.imwrite(path, crop, tile=(128, 128), photometric="rgb", compression="zlib")
    return path


@pytest.fixture(scope="module")
def alone(slide: Path, stain_run: Path) -> dict[str, bytes]:
    """The prediction from disk to disk, and its picture."""
    out = slide.with_name("s0.zarr")
    predict_slide([stain_run], slide, out, CONFIG)
    picture = {"../s0_tissue.png": slide.with_name("s0_tissue.png").read_bytes()}
    return {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    } | picture


def there(s3: S3) -> dict[str, bytes]:
    return s3.below("out/s0.zarr") | {"../s0_tissue.png": s3.objects.get("out/s0_tissue.png", b"")}


def left_in_scratch(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "scratch").glob("virchow_st-*/*")]


def test_a_slide_from_and_to_object_storage(
    vst: Callable[..., Any],
    s3: S3,
    slide: Path,
    stain_run: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
) -> None:
    s3.objects["s0.tif"] = slide.read_bytes()
    arguments = ["predict", stain_run, "s3://bucket/s0.tif", "--out", OUT, *OPTIONS]
    answer = vst(*arguments)
    assert answer.code == 0, answer
    assert answer.out.startswith("s3://bucket/out/s0.zarr: ")
    assert there(s3) == alone
    assert left_in_scratch(tmp_path) == []
    get_whole(OUT, tmp_path / "back.zarr")
    assert open_field(tmp_path / "back.zarr").provenance["image"]["name"] == "s0.tif"
    again = vst(*arguments)
    assert again.code == 2
    assert f"{OUT}: is already there; delete it or give another --out" in again.err
    assert there(s3) == alone
    # Reading from storage to disk.
    answer = vst("predict", stain_run, "s3://bucket/s0.tif", "--out", tmp_path / "o.zarr", *OPTIONS)
    assert answer.code == 0, answer
    assert (tmp_path / "o.zarr/zarr.json").read_bytes() == alone["zarr.json"]


@pytest.mark.slow
def test_a_kill_while_it_is_uploaded(
    s3: S3,
    vst: Callable[..., Any],
    slide: Path,
    stain_run: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """The process is killed at an upload; the next one sends what is left, and predicts nothing."""
    arguments = ["predict", stain_run, slide, "--out", OUT, *OPTIONS]
    child: list[subprocess.Popen[bytes]] = []
    n_puts = [0]

    def kill(request: Request) -> str:
        n_puts[0] += request.method == "PUT"
        if n_puts[0] < 5:
            return ""
        child[0].kill()
        return "torn" if n_puts[0] == 5 else "reset"

    s3.fault = kill
    child.append(subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL))
    assert child[0].wait(120) == -signal.SIGKILL
    s3.fault = lambda _: ""
    assert not is_whole(OUT)
    assert "out/s0.zarr/zarr.json" not in s3.objects
    s3.requests.clear()
    answer = vst(*arguments)
    assert answer.code == 0, answer
    assert "was predicted by an earlier command; the upload goes on" in answer.err + answer.out
    assert there(s3) == alone
    assert is_whole(OUT)
    assert left_in_scratch(tmp_path) == []
    # Only what had not arrived was sent.
    assert sum(r.method == "PUT" for r in s3.requests) <= len(alone) + 1 - 2


def test_a_list_of_urls(
    s3: S3, slide: Path, stain_run: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    s3.objects |= {"s0.tif": slide.read_bytes(), "s1.tif": b"broken"}
    lines = [f"s3://bucket/s{i}.tif,s3://bucket/out/s{i}.zarr" for i in range(3)]
    slides = tmp_path / "slides.csv"
    slides.write_text("\n".join(["image,out", *lines]))
    found = predict_cohort([stain_run], slides, CONFIG)
    assert [o.is_done for o in found] == [True, False, False]
    assert found[0].text == "complete"
    assert "s3://bucket/s1.tif: expected an image" in found[1].text
    assert "s3://bucket/s2.tif: expected a slide image; there is no such object" in found[2].text
    assert there(s3) == alone
    assert [k for k in s3.objects if k.startswith("out/s1")] == []
    assert left_in_scratch(tmp_path) == []
    n = sum(r.writes for r in s3.requests)
    assert predict_cohort([stain_run], slides, CONFIG)[0].text == "was complete"
    # The list's folder is lost: what lies in storage is recognised, or is of something else.
    for mark in (tmp_path / "slides.cohort/marks").iterdir():
        mark.unlink()
    assert predict_cohort([stain_run], slides, CONFIG)[0].text == "was complete"
    other = PredictConfig(device="cpu", mpp=0.5, min_tissue=0.1, overlap_um=64)
    (first, *_) = predict_cohort([stain_run], slides, other)
    assert "is no prediction of this slide by these runs and options" in first.text
    assert sum(r.writes for r in s3.requests) == n
    # A changed slide is predicted anew, when its old prediction is deleted.
    tifffile.imwrite(slide.with_name("m.tif"), tifffile.imread(slide)[::-1], tile=(128, 128),
                     photometric="rgb", compression="zlib")  # fmt: skip
    s3.objects["s0.tif"] = slide.with_name("m.tif").read_bytes()
    (first, *_) = predict_cohort([stain_run], slides, CONFIG)
    assert "is no prediction of this slide by these runs and options" in first.text
    for key in [k for k in s3.objects if k.startswith("out/s0")]:
        del s3.objects[key]
    (first, *_) = predict_cohort([stain_run], slides, CONFIG)
    assert first.text == "complete"
    assert there(s3).keys() == alone.keys()
    assert there(s3) != alone


def test_a_list_in_object_storage(
    s3: S3,
    vst: Callable[..., Any],
    slide: Path,
    stain_run: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Journal, claims and table lie in the bucket, and nothing on this machine's disk."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    s3.objects |= {
        "s0.tif": slide.read_bytes(),
        "lists/slides.csv": b"image,out\n../s0.tif,../out/s0.zarr\ns1.tif,s1.zarr\n",
    }
    arguments = ["predict", stain_run, "--manifest", "s3://bucket/lists/slides.csv", *OPTIONS]
    answer = vst(*arguments)
    assert answer.code == 1
    assert "s3://bucket/lists/s1.tif: expected a slide image; there is no such" in answer.err
    assert there(s3) == alone
    state = s3.below("lists/slides.cohort")
    assert {name.partition("/")[0] for name in state} == {"cohort.jsonl", "marks"}
    lines = [json.loads(line) for line in state["cohort.jsonl"].decode().splitlines()]
    assert [(line["item"], line["state"]) for line in lines] == [
        (str(OUT), "done"), ("s3://bucket/lists/s1.zarr", "failed"),
    ]  # fmt: skip
    assert list((tmp_path / "here").iterdir()) == []
    n = sum(r.key.startswith("out/") and r.writes for r in s3.requests)
    assert vst(*arguments).code == 1
    assert sum(r.key.startswith("out/") and r.writes for r in s3.requests) == n
    answer = vst("predict", stain_run, "--manifest", "s3://bucket/none.csv", *OPTIONS)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "s3://bucket/none.csv: expected an object; there is none" in answer.err


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_workers_share_a_list_in_object_storage(
    s3: S3, slide: Path, stain_run: Path, tmp_path: Path, executor: str
) -> None:
    """Six slides on two workers, three of them broken; the others have the bytes of one alone."""
    whole = slide.read_bytes()
    s3.objects |= {f"scans/s{i}.tif": whole for i in (0, 2, 4)}
    s3.objects |= {"scans/s1.tif": b"broken", "scans/s3.tif": whole[: len(whole) // 2]}
    lines = [f"../scans/s{i}.tif,s3://bucket/out/s{i}.zarr" for i in range(6)]
    s3.objects["lists/slides.csv"] = "\n".join(["image,out", *lines]).encode()
    arguments = ["predict", stain_run, "--manifest", "s3://bucket/lists/slides.csv", *OPTIONS]
    command = start(*arguments, "--executor", executor, "--workers", 2, folder=tmp_path)
    _, err = command.communicate(timeout=400)
    assert command.returncode == 1, err
    assert (tmp_path / "slides.cohort/slurm").is_dir() == (executor == "slurm")
    table = s3.objects["lists/slides.cohort/cohort.jsonl"].decode().splitlines()
    found = {line["item"][-7:-5]: line for line in map(json.loads, table)}
    assert [found[f"s{i}"]["state"] for i in range(6)] == ["done", "failed"] * 3
    for i in (1, 3, 5):
        assert f"s3://bucket/scans/s{i}.tif: " in found[f"s{i}"]["text"]
    for i in (0, 2, 4):
        image, out = tmp_path / f"s{i}.tif", tmp_path / f"s{i}.zarr"
        image.write_bytes(whole)
        predict_slide([stain_run], image, out, CONFIG)
        files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert s3.below(f"out/s{i}.zarr") == files
    assert {key.split("/")[2] for key in s3.objects if key.startswith("lists/slides.cohort/")} == {
        "cohort.jsonl", "marks",
    }  # fmt: skip


def test_storage_that_fails_loses_nothing(
    s3: S3, slide: Path, stain_run: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    slides = tmp_path / "slides.csv"
    slides.write_text(f"image,out\n{slide},{OUT}")
    s3.fault = lambda r: "500" if r.method == "PUT" and r.key.endswith("c/0/0") else ""
    (outcome,) = predict_cohort([stain_run], slides, CONFIG)
    assert not outcome.is_done
    assert "cannot be written, tried 3 times" in outcome.text
    assert not is_whole(OUT)
    s3.fault = lambda _: ""
    reports = Recording()
    (outcome,) = predict_cohort([stain_run], slides, CONFIG, reports)
    assert outcome.is_done
    assert any("the upload goes on" in note for note in reports.notes)
    assert there(s3) == alone
