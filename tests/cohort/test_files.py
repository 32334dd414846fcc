"""Claims in object storage: one holder at a time, whatever answers are lost, and no return."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from claim_race import claimed_by_one
from s3_double import S3, Request

from virchow_st.cloud.place import Url
from virchow_st.cohort.files import FilesInStorage
from virchow_st.cohort.lease import Lease, Leases
from virchow_st.errors import StorageError

CLAIMS = Url("s3://bucket/lists/slides.cohort/claims")
AT = "lists/slides.cohort/claims"


def first_time(kind: str, of: Callable[[Request], bool]) -> Callable[[Request], str]:
    """A fault of the first request of each method and key of the given requests."""
    seen: set[tuple[str, str]] = set()

    def fault(request: Request) -> str:
        place = request.method, request.key
        is_new = of(request) and place not in seen
        seen.add(place)
        return kind if is_new else ""

    return fault


def claimed(leases: Leases, file: str, latest: int) -> Lease:
    lease = leases.claim(file, latest)
    assert lease is not None
    return lease


@pytest.mark.parametrize("kind", ["", "500", "503", "reset", "lost"])
def test_one_of_many_gets_an_item(s3: S3, kind: str) -> None:
    """Also where the answer to the write that succeeded is lost, and trying again is refused."""
    s3.fault = first_time(kind, lambda r: r.creates)
    all_leases = [Leases(CLAIMS, 60) for _ in range(4)]
    held = claimed_by_one(all_leases, "a")
    other = next(leases for leases in all_leases if leases.latest() == {"a": 1})
    assert not other.is_free("a", 1)
    assert held.renew()
    assert other.latest() == {"a": 1}
    assert not other.is_free("a", 1)
    held.begin()
    held.release()
    assert other.is_free("a", 1)
    second = claimed(other, "a", 1)
    assert (second.attempt, second.lost) == (2, 0)  # it was given back
    assert held.renew() is False
    second.remove()
    assert s3.objects == {}
    assert second.renew() is False  # it is settled
    assert s3.objects == {}


def elsewhere(s3: S3) -> None:
    """Let claims be those of processes on another machine, of which nothing can be known."""
    for key, content in list(s3.objects.items()):
        own = f"process {os.getpid()} on ".encode()
        s3.objects[key] = content.replace(own, b"process 1 on not-")


def test_a_holder_that_stood_still_brings_nothing_back(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim lapsed, and the item was settled and begun anew under the same names since."""
    now = [0.0]
    monkeypatch.setattr("virchow_st.cohort.lease.time.monotonic", lambda: now[0])
    still, other = Leases(CLAIMS, 60), Leases(CLAIMS, 60)
    lease = claimed(still, "a", 0)
    lease.begin()
    elsewhere(s3)
    assert not other.is_free("a", 1)
    now[0] = 59.0
    assert lease.renew()
    elsewhere(s3)
    now[0] = 61.0
    assert not other.is_free("a", 1)  # it was renewed since it was seen
    now[0] = 122.0
    assert other.is_free("a", 1)
    assert other.was_lost("a", 1)
    taken = claimed(other, "a", 1)
    assert (taken.attempt, taken.lost, taken.deaths) == (2, 1, 1)
    taken.remove()
    again = claimed(other, "a", 0)
    before = dict(s3.objects)
    assert lease.renew() is False
    lease.release()
    assert s3.objects == before
    assert not Leases(CLAIMS, 60).is_free("a", 1)
    assert again.renew()


def test_a_write_that_came_too_late_holds_for_a_lease_only(s3: S3) -> None:
    """All answers are lost: the worker gave up, and its claim is there."""
    s3.fault = lambda r: "lost" if r.creates else "500" if r.key.endswith("@1") else ""
    with pytest.raises(StorageError, match="a@1: cannot be "):
        Leases(CLAIMS, 60).claim("a", 0)
    s3.fault = lambda _: ""
    assert Leases(CLAIMS, 60).claim("a", 0) is None
    elsewhere(s3)
    other = Leases(CLAIMS, 0)
    s3.objects[f"{AT}/a@1"] = s3.objects[f"{AT}/a@1"].replace(b'"seconds": 60', b'"seconds": 0')
    assert not other.is_free("a", 1)
    assert other.is_free("a", 1)
    taken = claimed(other, "a", 1)
    assert (taken.lost, taken.deaths) == (1, 0)


def test_storage_that_is_away_for_a_moment_loses_no_claim(s3: S3) -> None:
    lease = claimed(Leases(CLAIMS, 60), "a", 0)
    s3.fault = lambda _: "503"
    assert lease.renew()
    assert not lease.is_lost
    s3.fault = lambda _: ""
    assert lease.renew()


def test_storage_that_writes_over_what_is_there_is_refused(s3: S3) -> None:
    files = FilesInStorage(Url("s3://bucket/lists/slides.cohort"))
    files.make("claims", "marks")
    assert s3.objects == {}
    s3.creates_once = False
    with pytest.raises(StorageError, match=r"slides.cohort: expected storage that creates an obj"):
        files.make("claims", "marks")
    assert s3.objects == {}
    with pytest.raises(StorageError, match="cannot be written; give s3://, gs:// or az://"):
        FilesInStorage(Url("https://host/slides.cohort")).make("claims")
