"""Several workers that claim one item at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from virchow_st.cohort.lease import Lease, Leases


def claimed_by_one(all_leases: Sequence[Leases], file: str) -> Lease:
    """The first claim on an item, for which all race in threads of their own; one gets it."""
    barrier, got = threading.Barrier(len(all_leases)), []

    def claim(leases: Leases) -> None:
        barrier.wait()
        got.append(leases.claim(file, 0))

    threads = [threading.Thread(target=claim, args=(leases,)) for leases in all_leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(all_leases)
    (held,) = [lease for lease in got if lease is not None]
    assert (held.attempt, held.lost, held.deaths) == (1, 0, 0)
    return held
