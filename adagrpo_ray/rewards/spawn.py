"""A spawn context whose processes do not run the parent's main script.

multiprocessing runs the parent's main script again in every spawned process. Scoring processes do not need it. It may
be Ray's worker script, which takes seconds to import, or a script of the user without a main guard.
"""

from __future__ import annotations

import threading
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess
from typing import Any

_patching = threading.Lock()


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802
        def prepare_without_main(name: str) -> dict[str, Any]:
            data = prepare(name)
            # Another thread may spawn a process at the same time, which keeps its main script.
            if name == process_obj.name:
                data.pop("init_main_from_name", None)
                data.pop("init_main_from_path", None)
            return data

        # The standard library has no option for this. Its function is restored at once.
        with _patching:
            prepare = spawn.get_preparation_data
            spawn.get_preparation_data = prepare_without_main
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                spawn.get_preparation_data = prepare


class MainlessSpawnContext(SpawnContext):
    """`multiprocessing.get_context("spawn")` without the parent's main script."""

    Process = _Process
