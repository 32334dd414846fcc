"""The command line refuses mistakes in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli_place import Place, refused

SHARED = Path(__file__).resolve().parents[3] / "shared"
SQUARE = "binned_outputs/square_002um"


def test_missing_image(vst, place: Place) -> None:
    image = place.folder / "no_such.tif"
    assert str(image) in refused(vst, place, place.extract(image=image))


def test_cytassist_image(vst, place: Place) -> None:
    image = place.folder / "cytassist_image.tiff"
    cv2.imwrite(str(image), np.full((300, 300, 3), 200, np.uint8))
    line = refused(vst, place, place.extract(image=image))
    assert str(image) in line
    assert "microscope image" in line


@pytest.mark.parametrize("slide", ["C2", "C5"])
def test_cytassist_image_of_a_shared_slide(vst, place: Place, slide: str) -> None:
    outs = SHARED / "slides" / slide
    images = sorted(outs.rglob("*cytassist_image.tiff"))
    if not images:
        pytest.skip(f"{outs} with a cytassist_image.tiff is not here")
    line = refused(vst, place, place.extract(outs=outs, image=images[0]))
    assert "microscope image" in line


def test_image_that_is_no_image(vst, place: Place) -> None:
    image = place.folder / "slide.tif"
    image.write_text("not a TIFF")
    assert str(image) in refused(vst, place, place.extract(image=image))


def test_image_of_another_slide(vst, place: Place) -> None:
    other = place.slide.parent / "P2" / "tissue_image.tif"
    assert str(other) in refused(vst, place, place.extract(image=other))


def test_8_um_folder(vst, place: Place) -> None:
    eight = place.outs() / "binned_outputs" / "square_008um"
    (eight.parent / "square_002um").rename(eight)
    path = eight / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bin_size_um": 8.0}))
    line = refused(vst, place, place.extract(outs=eight))
    assert "8 µm" in line
    assert "square_002um" in line
    assert "square_008um" in refused(vst, place, place.extract(outs=eight.parent))


def test_8_um_fixture(vst, place: Place) -> None:
    outs = SHARED / "fixtures" / "seurat_hd"
    if not outs.is_dir():
        pytest.skip(f"{outs} is not here")
    for folder in (outs, outs / "binned_outputs" / "square_008um"):
        assert "square_002um" in refused(vst, place, place.extract(outs=folder))


def test_missing_outs(vst, place: Place) -> None:
    outs = place.folder / "none"
    assert str(outs) in refused(vst, place, place.extract(outs=outs))


def test_empty_outs(vst, place: Place) -> None:
    outs = place.folder / "empty"
    outs.mkdir()
    assert "square_002um" in refused(vst, place, place.extract(outs=outs))


@pytest.mark.parametrize(
    "missing",
    [
        "spatial/tissue_positions.parquet",
        "spatial/scalefactors_json.json",
        "filtered_feature_bc_matrix.h5",
    ],
)
def test_outs_without_a_part(vst, place: Place, missing: str) -> None:
    outs = place.outs()
    (outs / SQUARE / missing).unlink()
    assert missing.split("/")[-1] in refused(vst, place, place.extract(outs=outs))


@pytest.mark.parametrize(
    "damaged", ["spatial/tissue_positions.parquet", "filtered_feature_bc_matrix.h5"]
)
def test_outs_with_a_part_cut_off(vst, place: Place, damaged: str) -> None:
    outs = place.outs()
    path = outs / SQUARE / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert damaged.split("/")[-1] in refused(vst, place, place.extract(outs=outs))


def test_store_place_that_is_not_a_store(vst, place: Place) -> None:
    (place.folder / "new.vst").mkdir()
    (place.folder / "new.vst" / "thesis.docx").write_text("years of work")
    assert "new.vst" in refused(vst, place, place.extract())


def test_store_place_below_a_file(vst, place: Place) -> None:
    (place.folder / "file").write_text("")
    assert "file" in refused(vst, place, place.extract(store="file/new.vst"))


def test_finished_store_of_other_options(vst, place: Place) -> None:
    shutil.copytree(place.stores["P1"], place.folder / "new.vst")
    line = refused(vst, place, [*place.extract(), "--min-tissue", 0.9])
    assert "other inputs or options" in line


def test_begun_store_of_other_options(vst, place: Place, monkeypatch) -> None:
    from virchow_st.store.writer import StoreWriter

    def killed(self: StoreWriter, manifest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", killed)
        answer = vst(*place.extract())
    assert answer.code == 130
    assert answer.err.splitlines()[-1].startswith("error: stopped")
    before = {k: v for k, v in place.listing().items() if "lock" not in k}
    answer = vst(*place.extract(), "--matrix", "raw")
    assert answer.code == 2
    assert "other inputs or options" in answer.err
    assert {k: v for k, v in place.listing().items() if "lock" not in k} == before
    assert "unfinished" in refused(vst, place, ["inspect", place.folder / "new.vst"])
    assert vst(*place.extract()).code == 0


def test_min_tissue_that_no_patch_has(vst, place: Place) -> None:
    outs = place.outs()
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = outs / SQUARE / "spatial" / "tissue_positions.parquet"
    table = pq.read_table(path)
    thin = table["in_tissue"].to_numpy() & (table["array_row"].to_numpy() % 2 == 0)
    at = table.schema.get_field_index("in_tissue")
    pq.write_table(table.set_column(at, "in_tissue", pa.array(thin.astype(np.uint8))), path)
    line = refused(vst, place, [*place.extract(outs=outs), "--min-tissue", 0.9])
    assert "--min-tissue" in line


def test_tissue_wholly_off_the_image(vst, place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    outs = place.outs()
    path = outs / SQUARE / "spatial" / "tissue_positions.parquet"
    table, name = pq.read_table(path), "pxl_col_in_fullres"
    off = pa.array(table[name].to_numpy() + 1e5)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, off), path)
    line = refused(vst, place, place.extract(outs=outs))
    assert "image" in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--min-tissue", "1.5", "min_tissue"),
        ("--min-tissue", "half", "--min-tissue"),
        ("--matrix", "both", "--matrix"),
        ("--token-um", "12", "token_um"),
        ("--device", "gpu", "device"),
        ("--weights", "w.bin", "weights"),
        ("--patient", "", "--patient"),
        ("--colour", "1", "--colour"),
    ],
)
def test_bad_extract_options(vst, place: Place, option: str, value: str, expected: str) -> None:
    arguments = [*place.extract(), option, value]
    if option == "--device":
        arguments += ["--encoder", "vit_tiny_patch16_224"]
    assert expected in refused(vst, place, arguments)


def test_extract_without_a_slide(vst, place: Place) -> None:
    assert "--manifest" in refused(vst, place, ["extract"])
    both = [*place.extract(), "--manifest", "slides.csv"]
    assert "--manifest" in refused(vst, place, both)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        ("", "patient,outs,image,store"),
        ("patient,outs,image\nP1,a,b\n", "store is missing"),
        ("patient,outs,image,store\n", "there is none"),
        ("patient,outs,image,store\nP1,a,b\n", "store is empty"),
        ("patient,outs,image,store\nP1,,b,c\n", "outs is empty"),
        ("patient,outs,image,store\nP1,a,b,c\nP2,d,e,c\n", "named twice"),
    ],
)
def test_bad_manifests(vst, place: Place, text: str | None, expected: str) -> None:
    manifest = place.folder / "slides.csv"
    if text is not None:
        manifest.write_text(text)
    line = refused(vst, place, ["extract", "--manifest", manifest, "--encoder", "stain"])
    assert str(manifest) in line
    assert expected in line


def test_simulate_refusals(vst, place: Place) -> None:
    out = place.folder / "out"
    assert "bins" in refused(vst, place, ["simulate", out, "--bins", 100])
    assert "--bins" in refused(vst, place, ["simulate", out, "--bins", "many"])
    assert "patients" in refused(vst, place, ["simulate", out, "--patients", "a/b"])
    (place.folder / "file").write_text("")
    assert "file" in refused(vst, place, ["simulate", place.folder / "file", "--bins", 128])


def test_demo_leaves_other_folders_alone(vst, place: Place) -> None:
    (place.folder / "mine").mkdir()
    (place.folder / "mine" / "thesis.docx").write_text("years of work")
    assert "mine" in refused(vst, place, ["demo", place.folder / "mine"])
    mark = place.folder / "mine" / "demo.json"
    for text in ('{"title": "my own demo"}', "[]", "{", '{"format": 1, "program": []}', "\udcff"):
        mark.write_text(text, "utf-8", "surrogateescape")
        assert str(mark) in refused(vst, place, ["demo", place.folder / "mine"])


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_stores_that_are_none(vst, place: Place, command: str) -> None:
    folder = place.folder / "folder"
    folder.mkdir()
    assert "no such store" in refused(vst, place, [command, place.folder / "none.vst"])
    assert "not a store" in refused(vst, place, [command, folder])
    (folder / "store.json").write_text('{"format": "another/1"}')
    assert "expected format" in refused(vst, place, [command, folder])
    (folder / "store.json").write_text("{")
    assert "JSON" in refused(vst, place, [command, folder])


def test_train_refusals(vst, place: Place) -> None:
    unknown = refused(vst, place, place.train("--test-patient", "P9"))
    assert "P9" in unknown
    assert "P1, P5" in unknown
    assert "--test-patient" in refused(vst, place, place.train())
    folder = place.folder / "folder"
    folder.mkdir()
    assert "not a store" in refused(
        vst, place, ["train", folder, place.stores["P1"], "--run", "r", "--test-patient", "P1"]
    )
    assert "another patient" in refused(
        vst, place, ["train", place.stores["P1"], "--run", "r", "--test-patient", "P1"]
    )
    nothing = ["train", "--run", place.folder / "r", "--test-patient", "P1"]
    assert "stores" in refused(vst, place, nothing)
    assert "--run" in refused(vst, place, ["train", place.stores["P1"]])
    resumed = refused(vst, place, place.train("--test-patient", "P5", "--resume"))
    assert "nothing to resume" in resumed


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--scales", "2,x", "scales"),
        ("--scales", "2,3", "scales"),
        ("--epochs", "0", "epochs"),
        ("--epochs", "1.5", "--epochs"),
        ("--decoder", "unet", "--decoder"),
        ("--loss", "mae", "--loss"),
        ("--panel", "top:0", "panel"),
        ("--panel", "top:100000", "panel"),
        ("--panel", "no_such_file.txt", "panel"),
        ("--device", "gpu", "device"),
        ("--config", "no_such.toml", "no_such.toml"),
    ],
)
def test_bad_train_options(vst, place: Place, option: str, value: str, expected: str) -> None:
    arguments = place.train("--test-patient", "P5", option, value)
    assert expected in refused(vst, place, arguments)


def test_train_into_a_folder_that_is_there(vst, place: Place) -> None:
    (place.folder / "run").mkdir()
    assert "already there" in refused(vst, place, place.train("--test-patient", "P5"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs = ", "TOML"),
        ("epoch = 1", "unknown keys"),
        ("epochs = 'x'", "expected a whole number"),
    ],
)
def test_broken_config_file(vst, place: Place, text: str, expected: str) -> None:
    path = place.folder / "config.toml"
    path.write_text(text)
    line = refused(vst, place, place.train("--test-patient", "P5", "--config", path))
    assert str(path) in line
    assert expected in line


@pytest.mark.parametrize("command", ["evaluate", "figures"])
def test_runs_that_are_none(vst, place: Place, command: str) -> None:
    assert "no such" in refused(vst, place, [command, place.folder / "none"])
    (place.folder / "folder").mkdir()
    assert "folder" in refused(vst, place, [command, place.folder / "folder"])


def test_a_comparison_needs_two_runs_and_a_place(vst, place: Place) -> None:
    runs = [place.folder / "a", place.folder / "b"]
    arguments = ["evaluate", runs[0], "--json", place.folder / "comparison.json"]
    assert "several runs" in refused(vst, place, arguments)
    arguments = ["evaluate", *runs, "--json", place.folder / "none" / "comparison.json"]
    assert "not a folder" in refused(vst, place, arguments)


def test_unknown_commands(vst, place: Place) -> None:
    assert "'bogus'" in refused(vst, place, ["bogus"])
    assert "extra" in refused(vst, place, ["verify", "a", "b"])
