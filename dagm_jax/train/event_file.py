"""TensorBoard event files. Imported late: tensorboardX imports PyTorch where that is installed."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar


class EventFile:
    """A new event file in ``folder``, which is made; TensorBoard ignores what earlier files have of later steps.

    Not tensorboardX's usual writer: a full disk ends its thread, for which the run would then wait.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One point of each curve ``kind/name``."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(f"{kind}/{name}", value))

    def flush(self) -> None:
        """Returns when all points are in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes; nothing can be written afterwards."""
        self._writer.close()

    def _write(self, **event: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
