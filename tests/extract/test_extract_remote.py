"""``vst extract`` from and to object storage: the same bytes as on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3_double import S3
from tiny_cohort import STAIN

from virchow_st.cloud.place import Url
from virchow_st.cloud.whole import is_whole
from virchow_st.extract.cohort import extract_cohort
from virchow_st.extract.remote import outs_files
from virchow_st.store.reader import open_store

LIST = (
    "patient,outs,image,store\n"
    "P1,s3://bucket/P1/outs,s3://bucket/P1/tissue_image.tif,s3://bucket/stores/P1.vst\n"
    "P2,s3://bucket/P2/outs,s3://bucket/P1/tissue_image.tif,s3://bucket/stores/P2.vst\n"
)


def put_slide(s3: S3, folder: Path, name: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.objects[f"{name}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    s3.objects[f"{name}/outs/possorted_genome_bam.bam"] = b"large"
    s3.objects[f"{name}/outs/binned_outputs/square_008um/filtered_feature_bc_matrix.h5"] = b"large"


def test_a_list_of_slides_and_their_way_back(
    s3: S3,
    vst: Callable[..., Any],
    simulated: Path,
    stores: dict[str, Path],
    tmp_path: Path,
) -> None:
    put_slide(s3, simulated / "P1", "P1")
    slides = tmp_path / "slides.csv"
    slides.write_text(LIST)
    found = extract_cohort(slides, STAIN)
    assert [o.text for o in found][:1] == ["complete"]
    assert found[1].n_patches is None
    assert "s3://bucket/P2/outs: expected square_002um" in found[1].text
    local = {p.name: p.read_bytes() for p in stores["P1"].iterdir()}
    assert s3.below("stores/P1.vst") == local
    assert is_whole(Url("s3://bucket/stores/P1.vst"))
    asked = {r.key for r in s3.requests if r.method == "GET" and "list-type" not in r.query}
    assert not any(key.endswith(".bam") or "square_008um/filt" in key for key in asked)
    assert not list((tmp_path / "scratch").glob("virchow_st-*/*"))
    assert extract_cohort(slides, STAIN)[0].text == "was complete"
    for mark in (tmp_path / "slides.cohort/marks").iterdir():
        mark.unlink()
    (first, _) = extract_cohort(slides, STAIN)
    assert (first.text, first.n_patches) == ("was complete", 9)
    # And back, checked.
    answer = vst("copy", "s3://bucket/stores/P1.vst", tmp_path / "P1.vst")
    assert answer.code == 0, answer
    assert len(open_store(tmp_path / "P1.vst")) == 9
    assert {p.name: p.read_bytes() for p in (tmp_path / "P1.vst").iterdir()} == local
    data = s3.objects["stores/P1.vst/data.mdb"]
    s3.objects["stores/P1.vst/data.mdb"] = data[:-1] + bytes([data[-1] ^ 1])
    answer = vst("copy", "s3://bucket/stores/P1.vst", tmp_path / "other.vst")
    assert answer.code == 2
    assert "data.mdb: expected the file that was uploaded; it has other bytes" in answer.err
    assert not (tmp_path / "other.vst").exists()


def test_one_slide_and_other_options(
    s3: S3, vst: Callable[..., Any], simulated: Path, tmp_path: Path
) -> None:
    slide = simulated / "P1"
    arguments = [
        "extract", slide / "outs", "--image", slide / "tissue_image.tif", "--store",
        "s3://bucket/P1.vst", "--patient", "P1", "--encoder", "stain",
    ]  # fmt: skip
    s3.fault = lambda r: "500" if r.key.endswith("data.mdb") and r.writes else ""
    answer = vst(*arguments)
    assert answer.code == 2
    assert "s3://bucket/P1.vst/data.mdb: cannot be written, tried 3 times" in answer.err
    assert "store.json" not in str(s3.below("P1.vst"))
    s3.fault = lambda _: ""
    answer = vst(*arguments)
    assert answer.code == 0, answer
    assert "s3://bucket/P1.vst: 9 patches" in answer.out
    assert is_whole(Url("s3://bucket/P1.vst"))
    answer = vst(*arguments, "--token-dtype", "int8")
    assert answer.code == 2
    assert "is finished, but was made from other inputs or options" in answer.err


def test_files_of_a_space_ranger_folder(s3: S3) -> None:
    """What is read, wherever it may lie and whatever its prefix; and nothing else."""
    bins = "s/binned_outputs/A_square_002um"
    read = {
        f"{bins}/A_filtered_feature_bc_matrix.h5",
        f"{bins}/A_spatial/A_tissue_positions.parquet",
        f"{bins}/A_spatial/scalefactors_json.json",
        "s/spatial/tissue_hires_image.png",
        "s/binned_outputs/square_008um/spatial/tissue_lowres_image.png",
    }
    other = {
        f"{bins}/A_raw_feature_bc_matrix.h5",
        f"{bins}/A_analysis/clusters.csv",
        f"{bins}/A_spatial/cytassist_image.tiff",
        "s/binned_outputs/square_008um/filtered_feature_bc_matrix.h5",
        "s/binned_outputs/square_008um/spatial/tissue_positions.parquet",
        "s/molecule_info.h5",
    }
    s3.objects = dict.fromkeys(read | other, b"")
    assert outs_files(Url("s3://bucket/s"), "filtered").keys() == {n[2:] for n in read}
