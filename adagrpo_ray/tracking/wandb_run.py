"""Records a run in Weights & Biases."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event, Timer
from typing import Any

import psutil

from adagrpo_ray.errors import TrackingError
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.storage import places as storage
from adagrpo_ray.tracking.sample_tables import COLUMNS, rows
from adagrpo_ray.tracking.tracker import State, TrackedRun

EXIT_CODES = {"finished": 0, "failed": 1, "killed": 255}
"""Exit codes from which W&B derives the state of a run."""

FINISH_S = 20.0
"""Seconds for the uploads at the end of a run. The rest stays on disk, and `wandb sync` uploads it later."""

GRACE_S, ABANDON_S = 0.5, 10.0
"""Seconds for wandb's process to end after it was abandoned, and for the thread that waits for it to notice."""


class WandbRun:
    """A run in `project`, or "entity/project".

    Key, mode and server come from wandb's environment variables and settings.
    """

    title = "Weights & Biases"

    def __init__(self, project: str) -> None:
        self._project = project
        self._run: Any = None
        self._abandoned = Event()
        self._started = Event()  # wandb's process has started
        self._busy = Event()  # a thread waits for that process
        self._newest = -1  # the newest step that an earlier program logged

    @staticmethod
    def load() -> None:
        """Import the package. Raises ImportError if it is not installed."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import, or wandb sends its errors home
        import_module("wandb")

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        """Begin a run, or continue the one that `run.note` names.

        Offline a run cannot be continued: it is written again from its first step, and replaces the old one.
        """
        with self._waiting():
            return self._open(run)

    def _open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        import wandb

        settings = wandb.Settings(
            silent=True,
            root_dir=str(run.folder),
            symlink=False,  # the folder may be copied to an object store, which has no links
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            # Upload nothing else: terminal output, code, git state, packages, the machine and its load.
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_save_requirements=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        mode = wandb.setup(settings=settings).settings
        self._started.set()
        # Without prompt=False it would ask for a key on the terminal.
        if not (mode._offline or mode._noop) and not wandb.login(prompt=False):
            raise TrackingError("it has no key; set WANDB_API_KEY, or WANDB_MODE=offline")
        if self._abandoned.is_set():
            raise TrackingError("it was abandoned while it started")
        entity, _, project = self._project.rpartition("/")
        before = run.note if run.note is not None and run.note.get("project") == self._project else None
        old = sorted((run.folder / "wandb").glob(f"offline-run-*-{before['id']}")) if before else []
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            name=run.name,
            id=before["id"] if before else None,
            resume="must" if before and not mode._offline else None,
            tags=list(run.config.tracking.tags) or None,
            config=run.config.model_dump(mode="json"),
            allow_val_change=True,
            reinit="create_new",  # leaves a run that the user's code has begun alone
            settings=settings,
        )
        for folder in old if mode._offline else ():
            shutil.rmtree(folder, ignore_errors=True)
        if before and not mode._offline:
            self._newest = self._run.step - 1
        place = self._run.url or f"offline: wandb sync {Path(self._run.dir).parent}"
        return str(place), {"id": self._run.id, "project": self._project}

    def has(self, tag: str, step: int) -> bool:
        """Whether the run has a row of the step."""
        return step <= self._newest

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add to the row of the step."""
        self._run.log(dict(values), step=step)

    def samples(self, groups: Sequence[GroupSample], step: int) -> None:
        """Add a table to the row of the step."""
        import wandb

        self._run.log({"samples": wandb.Table(columns=list(COLUMNS), data=rows(groups))}, step=step)

    def summary(self, summary: Summary, adapter: str | None) -> None:
        """Add the summary to the last values of the curves, and upload the adapter as an artifact."""
        self._run.summary.update({"summary": summary.to_dict()})
        if adapter is not None:
            import wandb

            artifact = wandb.Artifact(f"{self._run.id}-adapter", type="model")
            if storage.is_url(adapter):
                artifact.add_reference(adapter)
            else:
                artifact.add_dir(adapter)
            self._run.log_artifact(artifact)

    def close(self, state: State) -> None:
        """Upload the remaining records. Raises TimeoutError if that takes longer than FINISH_S."""
        import wandb

        with self._waiting():
            self._run.finish(exit_code=EXIT_CODES[state])
            if wandb.run is None:  # no other code in this program has a run
                wandb.teardown()  # flushes all files, before a run folder at a URL is copied

    def abandon(self) -> None:
        """End wandb's process, which would keep trying and delay the end of this program."""
        import wandb

        deadline = time.monotonic() + ABANDON_S
        self._abandoned.set()
        if not self._started.wait(ABANDON_S):
            return  # a process killed during its start would leave wandb's lock locked
        while True:
            killing = Timer(GRACE_S, _kill_core)
            killing.start()
            with suppress(Exception, SystemExit):  # teardown fails if the process was killed
                wandb.teardown()
            killing.cancel()
            if not self._busy.is_set() or time.monotonic() > deadline:
                return
            time.sleep(0.1)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Mark a block that waits for wandb's process."""
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()


def _kill_core() -> None:
    for child in psutil.Process().children():
        if child.name() == "wandb-core":
            child.kill()
