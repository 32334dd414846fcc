"""URLs of object storage on the command line: understood, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_place import Place, refused
from s3_double import S3


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "s3://bucket/P1.vst", "--run", "run", "--test-patient", "P1"],
        ["train", "P1.vst", "--run", "gs://bucket/run", "--test-patient", "P1"],
        ["inspect", "s3://bucket/P1.vst"],
        ["export", "s3://bucket/F.zarr", "--out", "o.h5ad"],
        ["cells", "F.zarr", "--cells", "https://host/cells.geojson", "--out", "o.h5ad"],
        ["predict", "run", "--manifest", "slides.csv", "--also", "s3://bucket/run"],
        ["predict", "run", "a.svs", "--out", "o.zarr", "--features", "s3://bucket/features"],
    ],
)
def test_commands_on_disks_refuse_urls(
    vst: Callable[..., Any], place: Place, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    error = refused(vst, place, arguments)
    assert "expected a path on a disk; got " in error
    assert "://" in error
    assert "vst copy copies stores and fields" in error


def test_copies_are_refused(
    s3: S3, vst: Callable[..., Any], place: Place, stores: dict[str, Path]
) -> None:
    there = place.folder / "there"
    there.mkdir()
    for source, target, words in (
        ("a", "b", "expected a URL such as s3://bucket/b and a path on a disk; got a and b"),
        ("s3://bucket/a", "s3://bucket/b", "expected a URL such as"),
        (place.folder / "none", "s3://bucket/a", "none: is not there; give a finished store"),
        (there, "s3://bucket/a", "there: expected a finished result"),
        ("s3://bucket/a", there, "there: is already there; delete it or give another place"),
        ("s3://bucket/a", place.folder / "b", "s3://bucket/a: expected a result that vst has uplo"),
        (stores["P1"], "https://127.0.0.1:9/P1.vst", "cannot be "),
    ):
        assert words in refused(vst, place, ["copy", source, target])
