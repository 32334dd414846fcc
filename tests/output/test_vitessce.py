"""``vst export --vitessce``: a view that Vitessce's own schema accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_place import Vst
from tiny_store import make_records, write_records

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / ".venv-vitessce" / "node_modules" / "@vitessce" / "schemas"
URL = "http://localhost:8000/T.zarr"


@pytest.fixture(scope="module")
def view(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The view of `tiny_run`, beside the folder that it shows; read only."""
    from virchow_st_cli.main import run as vst

    out = tmp_path_factory.mktemp("vitessce") / "T.zarr"
    assert vst(["export", str(tiny_run), "--out", str(out), "--vitessce", URL]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["T.vitessce.json", "T.zarr"]
    return out.with_name("T.vitessce.json")


def test_every_image_of_the_view_is_in_the_folder(view: Path) -> None:
    (dataset,) = json.loads(view.read_text("utf-8"))["datasets"]
    assert {file["url"] for file in dataset["files"]} == {URL}
    paths = [file["options"]["path"] for file in dataset["files"]]
    assert paths == ["images/he", "images/rates_2um"]
    assert all((view.with_name("T.zarr") / path / "zarr.json").is_file() for path in paths)


def test_every_scope_that_is_named_has_a_value(view: Path) -> None:
    """The schema does not see a scope without a value; Vitessce then shows its own default."""
    space = json.loads(view.read_text("utf-8"))["coordinationSpace"]
    layers = space["metaCoordinationScopes"]["all"]["imageLayer"]
    assert layers == ["he", "genes"], "the gene is drawn over the H&E"
    by = space["metaCoordinationScopesBy"]["all"]
    assert set(by) == {"imageLayer", "imageChannel"}
    for group in by.values():
        for kind, named in group.items():
            for scopes in named.values():
                for scope in scopes if isinstance(scopes, list) else [scopes]:
                    assert scope in space[kind], (kind, scope)


def test_a_store_shows_counts(vst: Vst, tmp_path: Path) -> None:
    store = tmp_path / "s.vst"
    gene = write_records(store, make_records(1), 6).genes.ids[0]
    answer = vst("export", store, "--out", tmp_path / "s.zarr", "--vitessce", URL)
    assert answer.code == 2
    assert "name some with --genes" in answer.err
    answer = vst("export", store, "--out", tmp_path / "s.zarr", "--vitessce", URL + "/",
                 "--genes", gene)  # fmt: skip
    assert answer.code == 0, answer.err
    (dataset,) = json.loads((tmp_path / "s.vitessce.json").read_text())["datasets"]
    assert [file["options"]["path"] for file in dataset["files"]][1:] == ["images/counts_2um"]
    assert dataset["files"][0]["url"] == URL


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (("--vitessce", "P5.zarr"), "expected the URL at which T.zarr will be served"),
        (("--vitessce", URL, "--format", "npz"), "expected --format spatialdata; got npz"),
    ],
)
def test_refused_before_anything_is_written(
    vst: Vst, tiny_run: Path, tmp_path: Path, options: tuple[str, ...], answer: str
) -> None:
    done = vst("export", tiny_run, "--out", tmp_path / "T.zarr", *options)
    assert done.code == 2
    assert answer in done.err
    assert not list(tmp_path.iterdir())


def test_a_view_that_is_there_stays(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    there = tmp_path / "T.vitessce.json"
    there.write_text("mine")
    done = vst("export", tiny_run, "--out", tmp_path / "T.zarr", "--vitessce", URL)
    assert done.code == 2
    assert "T.vitessce.json: is already there" in done.err
    assert there.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [there.name]


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="`make tools` installs Vitessce's schema")
def test_the_schema_of_vitessce_accepts_it(view: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None
    program = tmp_path / "check.mjs"
    program.write_text(
        "import { readFileSync } from 'fs';\n"
        f"import {{ latestConfigSchema, imageSpatialdataSchema }} from '{SCHEMAS}/dist/index.js';\n"
        "const view = JSON.parse(readFileSync(process.argv[2], 'utf-8'));\n"
        "latestConfigSchema.parse(view);\n"
        "for (const f of view.datasets[0].files) imageSpatialdataSchema.parse(f.options);\n"
    )

    def check(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [node, program, path], capture_output=True, text=True, check=False, timeout=60
        )

    done = check(view)
    assert done.returncode == 0, done.stderr
    changed = json.loads(view.read_text("utf-8"))
    changed["layout"][0]["w"] = "wide"
    other = tmp_path / "changed.json"
    other.write_text(json.dumps(changed))
    assert "ZodError" in check(other).stderr, "the schema sees nothing"
