"""The scalars of a run as TensorBoard reads them. Imported late: with PyTorch installed tensorboardX imports it too."""

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
    """A new event file in ``folder``, which is made; what earlier ones say of later steps than this is forgotten.

    tensorboardX's usual writer has a thread of its own, which a full disk ends; the run would then wait for it.
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
        """Returns when all is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes; nothing can be written afterwards."""
        self._writer.close()

    def _write(self, **event: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
