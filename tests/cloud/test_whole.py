"""Results in object storage are whole or absent, whatever the storage and the network do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from s3_double import S3, Request

from virchow_st.cloud import client, storage
from virchow_st.cloud.place import Url
from virchow_st.cloud.whole import get_whole, is_there, is_whole, list_of, put_whole
from virchow_st.errors import ConfigError, StorageError

FIELD = Url("s3://bucket/out/P1.zarr")
FILES = {
    "images/he/s0/c/0/0/0": bytes(range(256)) * 40,
    "images/he/zarr.json": b"{}",
    "labels/tissue/c/0/0": b"\7" * 999,
    "tables/empty": b"",
    "zarr.json": b'{"zarr_format": 3}',
}


@pytest.fixture
def field(tmp_path: Path) -> Path:
    return written(tmp_path / "P1.zarr", FILES)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".lock").write_text("left out")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_folder_goes_there_and_back(s3: S3, field: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    put_whole(field, FIELD, beside={"P1_tissue.png": tmp_path / "a.png"})
    assert s3.below("out/P1.zarr") == FILES
    assert s3.objects["out/P1_tissue.png"] == b"picture"
    assert is_whole(FIELD)
    assert is_there(FIELD)
    wrote = [r.key for r in s3.requests if r.writes]
    assert wrote[0] == "out/P1.zarr.files.json"
    assert wrote[-1] == "out/P1.zarr/zarr.json", "the root comes last"
    get_whole(FIELD, tmp_path / "back.zarr")
    assert content(tmp_path / "back.zarr") == FILES
    n = len([r for r in s3.requests if r.writes])
    put_whole(field, FIELD)
    assert len([r for r in s3.requests if r.writes]) == n, "what is whole is left as it is"


def test_a_file_goes_there_and_back(s3: S3, tmp_path: Path) -> None:
    url = Url("s3://bucket/P1.h5ad")
    assert not is_there(url)
    assert not is_whole(url)
    (tmp_path / "P1.h5ad").write_bytes(b"rates" * 1000)
    put_whole(tmp_path / "P1.h5ad", url)
    assert is_whole(url)
    get_whole(url, tmp_path / "back.h5ad")
    assert (tmp_path / "back.h5ad").read_bytes() == b"rates" * 1000


@pytest.mark.parametrize(("last", "plain_tags"), [("reset", True), ("lost", False), ("torn", True)])
def test_a_stop_at_any_request_leaves_no_result_and_is_gone_on_with(
    s3: S3,
    field: Path,
    tmp_path: Path,
    last: str,
    plain_tags: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that is sent after the stop arrives; of what was under way, half or all of it."""
    monkeypatch.setattr(client, "TRIES", 1)
    monkeypatch.setattr(storage, "N_AT_ONCE", 1)
    s3.plain_tags = plain_tags
    put_whole(field, FIELD)
    n_writes = sum(r.writes for r in s3.requests)
    assert n_writes == len(FILES) + 1
    for stop in range(n_writes):
        s3.objects.clear()
        s3.requests.clear()
        wrote = [0]

        def fault(request: Request, stop: int = stop, wrote: list[int] = wrote) -> str:
            wrote[0] += request.writes
            if wrote[0] <= stop:
                return ""
            return last if request.writes and wrote[0] == stop + 1 else "reset"

        s3.fault = fault
        with pytest.raises(StorageError):
            put_whole(field, FIELD)
        s3.fault = lambda _: ""
        arrived = s3.below("out/P1.zarr")
        if arrived.get("zarr.json") == FILES["zarr.json"]:  # a reader of Zarr takes it
            assert arrived == FILES
            assert (last, stop) == ("lost", n_writes - 1)
            assert is_whole(FIELD)
        else:
            assert not is_whole(FIELD)
            with pytest.raises(StorageError, match="expected a result that vst has uploaded"):
                get_whole(FIELD, tmp_path / "back.zarr")
            assert not (tmp_path / "back.zarr").exists()
        s3.requests.clear()
        put_whole(field, FIELD)
        assert is_whole(FIELD)
        assert s3.below("out/P1.zarr") == FILES
        if last == "reset":  # what had arrived was not sent again
            assert sum(r.writes for r in s3.requests) == n_writes - stop


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost", "slow", "cut"])
def test_faults_that_pass_are_tried_again(
    s3: S3, field: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "slow":
        monkeypatch.setattr(client, "READ_S", 1)
        monkeypatch.setattr(client, "TRIES", 6)
        s3.slow_s = 1.5
    failed: set[tuple[str, str, str]] = set()

    def once(request: Request) -> str:
        place = (request.method, request.key, request.range)
        some = "tissue" in request.key if fault == "slow" else "P1.zarr" in request.key
        is_new = place not in failed and some
        failed.add(place)
        return fault if is_new else ""

    s3.fault = once
    put_whole(field, FIELD)
    assert s3.below("out/P1.zarr") == FILES
    get_whole(FIELD, tmp_path / "back.zarr")
    assert content(tmp_path / "back.zarr") == FILES


@pytest.mark.parametrize("fault", ["torn", "flip"])
@pytest.mark.parametrize("plain_tags", [True, False])
def test_what_arrives_damaged_is_noticed(
    s3: S3, field: Path, fault: str, plain_tags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "N_AT_ONCE", 2)
    s3.plain_tags = plain_tags
    for name in FILES:
        if not FILES[name]:
            continue
        s3.objects.clear()
        at = f"out/P1.zarr/{name}"
        s3.fault = lambda r, at=at: fault if r.method == "PUT" and r.key == at else ""
        with pytest.raises(StorageError, match=rf"{name}: arrived with other bytes.*run the same"):
            put_whole(field, FIELD)
        assert "out/P1.zarr/zarr.json" not in s3.objects
        assert not is_whole(FIELD)
        s3.fault = lambda _: ""
        put_whole(field, FIELD)
        assert s3.below("out/P1.zarr") == FILES


def test_a_result_that_was_damaged_later_is_refused(s3: S3, field: Path, tmp_path: Path) -> None:
    put_whole(field, FIELD)
    kept = dict(s3.objects)
    for name, damage in (
        ("labels/tissue/c/0/0", b"\7" * 998 + b"\6"),
        ("labels/tissue/c/0/0", b"\7" * 998),
        ("labels/tissue/c/0/0", None),
        ("zarr.json", b'{"zarr_format": 2}'),
    ):
        s3.objects = dict(kept)
        at = f"out/P1.zarr/{name}"
        s3.objects[at] = damage or b""
        if damage is None:
            del s3.objects[at]
        with pytest.raises(StorageError, match="upload it again"):
            get_whole(FIELD, tmp_path / "back.zarr")
        assert {p.name for p in tmp_path.iterdir()} == {"P1.zarr", "scratch"}


def test_nothing_of_others_is_overwritten_or_deleted(s3: S3, field: Path, tmp_path: Path) -> None:
    s3.objects["out/P1.zarr/precious"] = b"1"
    with pytest.raises(ConfigError, match="expected no objects there; found precious"):
        put_whole(field, FIELD)
    assert list(s3.objects) == ["out/P1.zarr/precious"]
    s3.objects = {"out/P1.zarr/zarr.json": b"{}"}
    with pytest.raises(ConfigError, match="is already there; delete it"):
        put_whole(field, FIELD)
    # An upload of other content that was stopped: its files go, and nothing else does.
    s3.objects = {"out/P1.zarr.other": b"1", "out/P2.zarr/zarr.json": b"2"}
    other = written(tmp_path / "other", {"old": b"1", "zarr.json": b"3"})
    s3.fault = lambda r: "reset" if r.method == "PUT" and r.key.endswith("/zarr.json") else ""
    with pytest.raises(StorageError):
        put_whole(other, FIELD)
    s3.fault = lambda _: ""
    put_whole(field, FIELD)
    assert s3.below("out/P1.zarr") == FILES
    assert {"out/P1.zarr.other", "out/P2.zarr/zarr.json"} < s3.objects.keys()
    with pytest.raises(ConfigError, match="is already there"):
        put_whole(other, FIELD)


def test_large_files_are_sent_in_parts(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(storage, "_FETCHED_BYTES", 3 << 20)
    path, url = tmp_path / "P1.npz", Url("s3://bucket/P1.npz")
    path.write_bytes(bytes(range(251)) * 50_000)
    failed: list[str] = []

    def once(request: Request) -> str:
        if "partNumber" in request.query and not failed:
            failed.append(request.key)
            return "500"
        return ""

    s3.fault = once
    put_whole(path, url)
    assert failed
    assert not s3.uploads, "parts of the first attempt are left"
    assert s3.tag("P1.npz").endswith("-3")
    n = s3.n_sent
    put_whole(path, url)
    assert s3.n_sent - n < 1000, "the digests of the parts prove it without reading it"
    get_whole(url, tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == path.read_bytes()


def test_refusals_say_what_to_do(s3: S3, field: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TRIES", 2)
    for url, fault, refusal in (
        (FIELD, "403", r"s3://bucket/.*cannot be .* \(.*\); get the rights to it, or set the cred"),
        (FIELD, "500", r"s3://bucket/.*, tried 2 times \(.*\); see that its storage can be reach"),
        (Url("s3://nothing/P1.zarr"), "", "s3://nothing/.*cannot be written.*make its bucket"),
        (Url("https://x.y/P1.zarr"), "", r"https://x.y/P1.zarr.*cannot be (written|read)"),
    ):
        s3.fault = lambda r, fault=fault: fault if r.writes else ""
        with pytest.raises(StorageError, match=refusal) as raised:
            put_whole(field, url)
        assert "\n" not in str(raised.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StorageError, match="tried 2 times .*see that its storage can be reached"):
        is_whole(FIELD)
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_missing_package_is_named(field: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def filesystem(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")  # as fsspec says it

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    with pytest.raises(StorageError, match=r"Install s3fs.*pip install 'virchow_st\[cloud\]'"):
        put_whole(field, FIELD)
    with pytest.raises(StorageError, match="pip install gcsfs"):
        put_whole(field, Url("gs://bucket/P1.zarr"))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StorageError, match=r"pip install 'virchow_st\[cloud\]'"):
        put_whole(field, FIELD)


def test_lists_of_files_cannot_lead_elsewhere(s3: S3, field: Path, tmp_path: Path) -> None:
    put_whole(field, FIELD)
    place = str(list_of(FIELD)).removeprefix("s3://bucket/")
    listed = s3.objects[place].decode()
    for name in ("../../x", "/x"):
        s3.objects[place] = listed.replace("tables/empty", name).encode()
        with pytest.raises(StorageError, match="expected a result that vst has uploaded"):
            get_whole(FIELD, tmp_path / "a" / "back.zarr")
