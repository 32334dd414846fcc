"""Writes training curves for TensorBoard, in files whose names do not contain the host name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class Events:
    """An event file of a run; TensorBoard reads all files of a folder in the order of their names.

    TensorBoard's own writer puts the host name into file names, and writes from a thread that ends
    in a traceback if the disk is full.

    Args:
        folder: of the run's event files, made if it is not there.
        epoch: epochs done before; what earlier files hold beyond them is not shown.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        number = 1 + sum(1 for _ in folder.iterdir())
        self._file = open(folder / f"events.out.tfevents.{time.time_ns()}.{number}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if epoch:  # from the step of this on, TensorBoard forgets what it has read
            self._write(step=epoch + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a chart."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def flush(self) -> None:
        """Write the points added so far."""
        self._file.flush()

    def close(self) -> None:
        """Write the remaining points and close the file."""
        self._file.close()
