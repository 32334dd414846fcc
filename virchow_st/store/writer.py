"""Writes stores: appends patches, can be killed and resumed, and writes the manifest at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import xxhash

from virchow_st.errors import ConfigError, StoreError
from virchow_st.runtime.atomic import remove_leftovers as remove_leftover_parts
from virchow_st.runtime.atomic import sync_folder, write_json
from virchow_st.runtime.lock import BusyError, Lock
from virchow_st.schema import read_json
from virchow_st.store import format as fmt
from virchow_st.store.datafile import DataFile
from virchow_st.store.format import Kind, PatchInfo
from virchow_st.store.manifest import DATA, JOB, LOCK, MANIFEST, is_finished, read_manifest
from virchow_st.store.pages import check_for_writing, clear_unused
from virchow_st.store.tokens import pack_tokens
from virchow_st.types import Array, BoolArray, UInt8Array

_MAP_STEP = 1 << 30  # bytes by which the map grows; the file grows only by what is written


@dataclass(frozen=True)
class PatchRecord:
    """The content of all records of one patch.

    Attributes:
        info: position of the patch, its corners on the image and its totals.
        tissue_mask, validity_mask: (128, 128) bool.
        gene, position, count: (N,) the non-zero counts, sorted by (gene, position).
        image: (256, 256, 3) uint8 RGB, 1 µm/px.
        class_token: (D,) of any float dtype; stored as float16.
        tokens: (T, T, D) of any float dtype; stored as the writer's ``token_dtype``.
    """

    info: PatchInfo
    tissue_mask: BoolArray
    validity_mask: BoolArray
    gene: Array
    position: Array
    count: Array
    image: UInt8Array
    class_token: Array
    tokens: Array

    def payloads(self, token_dtype: str, n_genes: int) -> list[tuple[Kind, bytes]]:
        """Kind and payload of every record, in key order, for a store of ``n_genes`` genes."""
        return [
            (Kind.PATCH, fmt.pack_patch(self.info)),
            (Kind.TISSUE_MASK, fmt.pack_mask(self.tissue_mask)),
            (Kind.VALIDITY_MASK, fmt.pack_mask(self.validity_mask)),
            (Kind.COUNTS, fmt.pack_counts(self.gene, self.position, self.count, n_genes)),
            (Kind.IMAGE, fmt.pack_image(self.image)),
            (Kind.CLASS_TOKEN, pack_tokens(self.class_token)),
            (Kind.TOKENS, pack_tokens(self.tokens, token_dtype)),
        ]


def finished_job(path: Path) -> dict[str, Any] | None:
    """The job of a finished store; None if the store is not finished."""
    return read_manifest(path).get("job") if is_finished(path) else None


def begun_job(path: Path) -> dict[str, Any] | None:
    """The job of an unfinished store; None if there is none or it cannot be read."""
    if is_finished(path):
        return None
    try:
        job: dict[str, Any] = read_json(path / JOB, dict[str, Any], "delete it", error=StoreError)
    except StoreError:  # `StoreWriter` reports what is wrong
        return None
    return job


def remove_leftovers(path: Path) -> None:
    """Remove the writer's own files from a finished store, where a killed writer may leave them."""
    with contextlib.suppress(OSError):  # they are harmless if they cannot be removed
        for name in (JOB, LOCK):
            (path / name).unlink(missing_ok=True)
        remove_leftover_parts(path)


class StoreWriter:
    """The only writer of a store; a context manager.

    Args:
        path: folder of the store, created if it does not exist.
        job: description of what is extracted (inputs, options, encoder). An unfinished store is
            resumed only for an equal job.
        token_dtype: ``float16`` or ``int8``; part of the job's options.
        n_genes: number of genes that the manifest will list; above 65,535 the store is written
            in format 2.

    Attributes:
        next_index: number of patches that have been committed.

    Raises:
        StoreError: the folder holds other files, belongs to another job, or cannot be written.
        BusyError: another process is writing it.

    Example:
        >>> with StoreWriter(Path("P1.vst"), job) as writer:  # doctest: +SKIP
        ...     writer.append(records)
        ...     writer.finish(manifest)
    """

    def __init__(
        self,
        path: Path,
        job: dict[str, Any],
        token_dtype: str = "float16",
        n_genes: int = fmt.MAX_NARROW_GENES,
    ) -> None:
        self.path = path
        self.job = job
        self.token_dtype = token_dtype
        self.n_genes = n_genes
        is_new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(path, path / LOCK)
        except OSError as e:
            raise StoreError(
                f"{path}: cannot be written ({e.strerror}); give a --store that can be"
            ) from None
        except BusyError:
            raise
        except ConfigError as e:
            raise StoreError(str(e)) from None
        try:
            self._claim()
            self._env = _open_environment(path)
            self.next_index = self._count_committed()
        except (lmdb.Error, OSError, StoreError) as e:
            self._lock.release()
            if is_new:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if isinstance(e, StoreError):
                raise
            raise StoreError(
                f"{path}: cannot be opened for writing ({e}); free disk space or give another "
                f"--store"
            ) from None

    def _claim(self) -> None:
        """Write the job into a new folder, or check that an unfinished store has the same job."""
        job_file = self.path / JOB
        if is_finished(self.path):
            raise StoreError(f"{self.path}: is finished and never written again; delete it first")
        if job_file.is_file():
            begun = read_json(job_file, dict[str, Any], "delete it", error=StoreError)
            if begun != self.job:
                raise StoreError(
                    f"{self.path}: was begun with other inputs or options; "
                    f"delete it or give another --store"
                )
        elif any(not p.name.startswith((LOCK, ".")) for p in self.path.iterdir()):
            raise StoreError(
                f"{self.path}: expected a new folder or an unfinished store, found other files; "
                f"give another --store"
            )
        else:
            write_json(job_file, self.job)

    def _count_committed(self) -> int:
        with self._env.begin() as txn, txn.cursor() as cursor:
            return fmt.unpack_key(cursor.key())[0] + 1 if cursor.last() else 0

    def append(self, records: Sequence[PatchRecord]) -> None:
        """Commit patches ``next_index``, ``next_index + 1``, … in one transaction.

        Raises:
            StoreError: the records cannot be written.
        """
        sealed = []
        for index, record in enumerate(records, self.next_index):
            for kind, payload in record.payloads(self.token_dtype, self.n_genes):
                key = fmt.key(index, kind)
                sealed.append((key, fmt.seal(key, payload)))
        try:
            self._make_room(sum(len(value) + 8192 for _, value in sealed))
            with self._env.begin(write=True) as txn:
                for key, value in sealed:
                    txn.put(key, value, append=True)
        except lmdb.Error as e:
            raise StoreError(
                f"{self.path}: writing failed ({e}); free disk space and run the same command "
                f"again, the first {self.next_index} patches are safe"
            ) from None
        self.next_index += len(records)

    def amend(self, job: dict[str, Any]) -> None:
        """Replace the job, for records appended from now on.

        The new job has to describe the records appended so far as well.

        Raises:
            StoreError: the job cannot be written.
        """
        try:
            write_json(self.path / JOB, job)
        except OSError as e:
            raise StoreError(
                f"{self.path}: writing failed ({e.strerror}); free disk space and run the same "
                f"command again, the first {self.next_index} patches are safe"
            ) from None
        self.job = job

    def read(self, index: int, kind: Kind) -> memoryview:
        """Payload of a committed record, after comparing its checksum.

        Raises:
            StoreError: the record is missing or damaged.
        """
        key = fmt.key(index, kind)
        with self._env.begin() as txn:
            if (value := txn.get(key)) is None:
                raise StoreError(f"{self.path}: patch {index} has no {kind.name} record yet")
            return fmt.unseal(key, memoryview(value))

    def _make_room(self, n_bytes: int) -> None:
        info, stat = self._env.info(), self._env.stat()
        used = (info["last_pgno"] + 1) * stat["psize"]
        if info["map_size"] < (wanted := used + n_bytes + (1 << 20)):
            self._env.set_mapsize(_map_size(wanted))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Sync the records to disk, then write the manifest, which makes the store finished.

        Args:
            manifest: the entries about the slide; format, patches, token type, job and hash of the
                records are added.

        Raises:
            StoreError: the manifest cannot be written, or the file does not hold the records that
                were written to it.
            ValueError: the number of genes in the manifest needs another format than the records.
        """
        store_format = fmt.format_for(self.n_genes)
        if fmt.format_for(len(manifest["genes"]["id"])) != store_format:
            raise ValueError(
                f"n_genes: the records were written for {self.n_genes} genes; the manifest lists "
                f"{len(manifest['genes']['id'])}"
            )
        try:
            self._env.sync(True)
            self._env.close()
            clear_unused(self.path / DATA)
            write_json(
                self.path / MANIFEST,
                {
                    "format": store_format,
                    "n_patches": self.next_index,
                    **manifest,
                    "token_dtype": self.token_dtype,
                    "job": self.job,
                    "records_xxh64": self._total_hash(),
                },
            )
        except (lmdb.Error, OSError) as e:
            raise StoreError(
                f"{self.path}: writing failed ({e}); free disk space and run the same command "
                f"again, all {self.next_index} patches are safe"
            ) from None
        remove_leftovers(self.path)

    def _total_hash(self) -> str:
        """XXH64 over the checksums of all records, read back as readers read them."""
        file = DataFile(self.path / DATA)
        expected = [fmt.key(index, kind) for index in range(self.next_index) for kind in Kind]
        if list(file.places) != expected:
            raise StoreError(
                f"{file.path}: expected {len(expected)} records; found {len(file.places)}, or "
                f"others; delete the folder and extract again"
            )
        hasher = xxhash.xxh64()
        for place in file.places.values():
            hasher.update(file.read(place._replace(size=8)))
        return hasher.hexdigest()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._env.close()
        self._lock.release()


def _map_size(n_bytes: int) -> int:
    """Size of the map in whole steps; the file records it, so resuming must not change it."""
    return -(-n_bytes // _MAP_STEP) * _MAP_STEP


def _open_environment(path: Path) -> lmdb.Environment:
    """Open the environment of an unfinished store, after checking its pages.

    LMDB's own locks are not used: `Lock` excludes other writers, readers need the manifest, and
    LMDB's mapped lock file would end the process with SIGBUS on a full disk. LMDB zeroes the pages
    that it allocates, so that no other content of memory is written to the file.
    """
    data = path / DATA
    is_new = not data.exists() or data.stat().st_size == 0  # empty: killed before the first write
    if not is_new:
        check_for_writing(data)
    try:
        size = _MAP_STEP if is_new else _map_size(data.stat().st_size)
        environment = lmdb.open(str(path), map_size=size, max_dbs=0, lock=False)
    except lmdb.Error:
        if is_new:  # an incomplete header, for lack of disk space
            data.unlink(missing_ok=True)
        raise
    sync_folder(path)
    return environment
