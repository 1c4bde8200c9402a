"""Writes TensorBoard event files in the calling thread, so that a failure is raised there."""

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
"""The largest float32: TensorBoard's points have this type."""


class EventFile:
    """A new event file in a folder.

    torch's SummaryWriter writes in a thread of its own, which prints a failure as a traceback and raises nothing.
    All methods raise OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Create the file. TensorBoard then hides the points of older files in the folder from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        host = name_of(socket.gethostname(), FILE, 100)
        name = f"events.out.tfevents.{time.time_ns()}.{host}.{os.getpid()}"  # TensorBoard sorts by name
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each tag, as float32; values beyond its range are clamped."""
        values = [
            Summary.Value(tag=tag, simple_value=min(max(value, -LARGEST), LARGEST)) for tag, value in scalars.items()
        ]
        self._add(Event(step=step, summary=Summary(value=values)))

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Add a text to TensorBoard's page of texts."""
        of_texts = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode(errors="replace")])
        value = Summary.Value(tag=tag, metadata=of_texts, tensor=tensor)
        self._add(Event(step=step, summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file. It may be closed twice."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()
