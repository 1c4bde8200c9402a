"""A TensorBoard event file, written by the one who asks for it, so that a failure is raised there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from adagrpo_ray.runs.names import FILE, name_of

LARGEST = (2 - 2**-23) * 2.0**127
"""Of float32, which TensorBoard's points are."""


class EventFile:
    """A new event file in a folder. torch's SummaryWriter has a thread instead, which prints a failure as a traceback.

    OSError where the disk does not take it.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Make it; TensorBoard hides what older files of the folder hold from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        host = name_of(socket.gethostname(), FILE, 100)
        name = f"events.out.tfevents.{time.time_ns()}.{host}.{os.getpid()}"  # read in order of names
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag, in float32: what is larger becomes the largest there is."""
        values = [
            Summary.Value(tag=tag, simple_value=min(max(value, -LARGEST), LARGEST)) for tag, value in scalars.items()
        ]
        self._add(Event(step=step, summary=Summary(value=values)))

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text to the page of texts."""
        of_texts = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode(errors="replace")])
        value = Summary.Value(tag=tag, metadata=of_texts, tensor=tensor)
        self._add(Event(step=step, summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()
