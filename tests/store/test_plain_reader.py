"""The reader in docs/read-a-store.md, as it stands there, reads what the package wrote."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_store import make_manifest, make_records, write_records, write_store

from virchow_st.store.reader import Store, open_store

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "read-a-store.md"
READER, EXAMPLE = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)

HIDE_THE_PACKAGE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("virchow_st", "virchow_st_cli"):
            raise ImportError(f"{name} is hidden from the plain reader")
sys.meta_path.insert(0, Hidden())
"""
READ_ALL = """
store, genes = PlainStore(sys.argv[1]), sys.argv[3:]
patches = range(store.manifest["n_patches"])
np.savez(
    sys.argv[2],
    tokens=[store.tokens(i) for i in patches],
    tissue_mask=[store.tissue_mask(i) for i in patches],
    counts=[[store.counts(i, gene) for gene in genes] for i in patches],
)
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE_THE_PACKAGE + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def assert_read_alike(store: Store, folder: Path, genes: list[int]) -> None:
    """Everything the plain reader gives equals what the package gives, dtypes included."""
    ids = [store.genes.ids[g] for g in genes]
    done = run(READER + READ_ALL, store.path, folder / "read.npz", *ids)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "read.npz") as read:
        for i, patch in enumerate(store):
            assert read["tokens"].dtype == np.float16
            np.testing.assert_array_equal(read["tokens"][i], patch.tokens)
            assert read["tissue_mask"].dtype == bool
            np.testing.assert_array_equal(read["tissue_mask"][i], patch.tissue_mask)
            counts = patch.counts(genes).toarray().reshape(-1, 128, 128)
            np.testing.assert_array_equal(read["counts"][i], counts)
        assert read["counts"].sum() > 0


def test_the_reader_fits_on_a_page_and_needs_three_libraries():
    assert len(READER.splitlines()) <= 40
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(READER))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"lmdb", "numpy", "xxhash"}


def test_the_package_is_hidden_from_it():
    done = run("import virchow_st")
    assert "hidden from the plain reader" in done.stderr


@pytest.mark.parametrize("token_dtype", ["float16", "int8"])
@pytest.mark.parametrize("grid", [16, 32])
def test_small_stores_are_read(tmp_path, grid, token_dtype):
    records = make_records(3, n_genes=7, grid=grid, rate=2.0)  # many counts above 3: escapes
    assert max(r.count.max() for r in records) > 3
    store = write_records(tmp_path / "A.vst", records, 7, token_dtype=token_dtype)
    assert_read_alike(store, tmp_path, [6, 0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("token_dtype", ["float16", "int8"])
def test_a_store_of_many_genes_is_read(tmp_path, token_dtype):
    records = [
        replace(record, gene=np.where(record.gene < 3, record.gene, record.gene + 69_000))
        for record in make_records(2, n_genes=7, rate=2.0)
    ]
    store = write_records(tmp_path / "A.vst", records, 70_000, token_dtype=token_dtype)
    assert_read_alike(store, tmp_path, [0, 2, 3, 69_003, 69_006])


def test_an_extracted_store_is_read(stores, tmp_path):
    store = open_store(stores["P1"])
    assert_read_alike(store, tmp_path, np.argsort(-store.genes.totals)[:20].tolist())


def test_the_example_runs(tmp_path):
    store = write_store(tmp_path / "P1.vst", "P1", rate=2.0)
    code = READER + f"import os; os.chdir({str(tmp_path)!r})\n" + EXAMPLE
    done = run(code)
    total = int(store[0].counts([0]).sum())
    assert done.stdout == f"P1 4 patches\n(16, 16, 8) {total}.0 UMIs\n", done.stderr


def test_damage_is_noticed(tmp_path):
    store = write_store(tmp_path / "A.vst", n_patches=1)
    token_bytes = store[0].tokens.tobytes()
    copy = shutil.copytree(store.path, tmp_path / "B.vst")
    data = bytearray((copy / "data.mdb").read_bytes())
    data[data.index(token_bytes) + 100] ^= 1
    (copy / "data.mdb").write_bytes(data)
    done = run(READER + "PlainStore(sys.argv[1]).tokens(0)", copy)
    assert "patch 0, kind 7: missing or damaged" in done.stderr


def test_another_format_is_refused(tmp_path):
    folder = tmp_path / "A.vst"
    folder.mkdir()
    manifest = {"format": "virchow_st.store/3"} | make_manifest([], 1)
    (folder / "store.json").write_text(json.dumps(manifest))
    done = run(READER + "PlainStore(sys.argv[1])", folder)
    assert "unknown format virchow_st.store/3" in done.stderr
