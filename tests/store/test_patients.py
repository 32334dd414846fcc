"""Names of patients: what is left out of them, and which look alike."""

from __future__ import annotations

import json
import os
import unicodedata

import pytest
from tiny_store import write_store

from virchow_st.errors import ConfigError
from virchow_st.extract.cohort import doubtful, read_cohort
from virchow_st.run.split import split_patients, warn_of_alike_patients
from virchow_st.runtime.progress import Recording
from virchow_st.store.patients import alike, patient_name
from virchow_st.store.reader import open_store


@pytest.mark.parametrize("text", ["P2", " P2", "P2 ", "\tP2\u00a0", "\ufeffP2", "P2\u200b "])
def test_blanks_are_no_part_of_a_name(text):
    assert patient_name(text) == "P2"


def test_accents_are_composed_and_the_inside_stays():
    assert patient_name(unicodedata.normalize("NFD", "Zoë  K")) == "Zoë  K"


def test_alike_are_names_that_differ_by_case_or_blanks_alone():
    assert alike(["P2", "p2", "P1", "P 2", "P2"]) == [("P 2", "P2", "p2")]
    assert alike(["P1", "P2", "P10", "P-1"]) == []


def test_a_store_of_old_with_a_blank_is_the_same_patients(tmp_path):
    stores = [
        write_store(tmp_path / f"{i}.vst", patient, 4, seed=i)
        for i, patient in enumerate(["P1", "P2 ", "P2", "p2"])
    ]
    assert [store.patient for store in stores] == ["P1", "P2", "P2", "p2"]
    split = split_patients(stores, "P2", 0)
    assert {member.store for member in split.test} == {1, 2}
    listener = Recording()
    warn_of_alike_patients(stores, listener)
    (warning,) = listener.warnings
    assert warning.startswith(
        "patients 'P2' and 'p2' differ only in upper and lower case or spaces"
    )


HEAD = "patient,outs,image,store\n"


def test_blanks_in_a_list_of_slides_are_no_part_of_paths_and_names(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text(HEAD + "P1,P1/outs,P1/a.tif,m1.vst\nP1 , P1/outs, P1/a.tif, m2.vst\n", "utf-8")
    one, two = read_cohort(path)
    assert (one.patient, one.outs, one.image) == (two.patient, two.outs, two.image)
    assert two.store == tmp_path / "m2.vst"
    (warning,) = doubtful(path, [one, two])
    assert "outs is listed twice, for P1; vst train refuses to use both stores together" in warning


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpatient;outs;image;store\r\nP1;P1/outs;/scans/a, b.tif;s.vst\r\n",
        "# cohort of 2026\npatient\touts\timage\tstore\nP1\tP1/outs\t/scans/a, b.tif\ts.vst\n",
        'Patient,Outs,Image,Store,note\n"P1","P1/outs","/scans/a, b.tif","s.vst",\n\n,,,,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_slides_as_spreadsheets_write_them(tmp_path, text, encoding):
    path = tmp_path / "slides.csv"
    path.write_bytes(text.encode(encoding))
    (slide,) = read_cohort(path)
    assert slide.patient == "P1"
    assert str(slide.image) == "/scans/a, b.tif"
    assert (slide.outs, slide.store) == (tmp_path / "P1/outs", tmp_path / "s.vst")


def test_home_is_known_in_a_list_of_slides(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text(HEAD + "P1,~/P1/outs,a.tif,s.vst\n", "utf-8")
    assert str(read_cohort(path)[0].outs) == os.path.expanduser("~/P1/outs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEAD, "expected a slide per line"),
        (HEAD + "P1,o,i,s.vst\nP2,o2,i2,./x/../s.vst\n", "s.vst is named twice"),
        (HEAD + "P1,o,i\n", "line 2: expected a value in every column; store is empty"),
        (HEAD + " ,o,i,s\n", "line 2: .* patient is empty"),
        (HEAD + "P1,o\x1b[31m,i,s\n", "line 2: outs: expected a name without control characters"),
        (HEAD + "P\x001,o,i,s\n", "is a binary file"),
        ("patient,outs,image\nP1,o,i\n", "store is missing; found 'patient', 'outs', 'image'"),
    ],
)
def test_lists_of_slides_that_do_not_fit_are_refused(tmp_path, text, reason):
    path = tmp_path / "slides.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"slides\.csv: .*" + reason):
        read_cohort(path)


def test_two_patients_of_one_folder_and_names_alike_are_doubted(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text(HEAD + "P1,o,i,a.vst\np1,./o,i,b.vst\n", "utf-8")
    alike_line, twice = doubtful(path, read_cohort(path))
    assert "'P1' and 'p1' differ" in alike_line
    assert "is listed twice, for P1 and p1" in twice


def test_manifest_of_a_store_keeps_the_name(tmp_path):
    store = write_store(tmp_path / "A.vst", "P2 ")
    assert json.loads((store.path / "store.json").read_text("utf-8"))["patient"] == "P2 "
    assert open_store(store.path).patient == "P2"
