"""The run folder at a URL: written on this machine, and copied there as it grows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.runs.history import SAMPLES, Mark
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.runs.writer import RunWriter, taken
from adagrpo_ray.storage import places as storage

LARGE = 16 * 2**20
"""Bytes from which on samples are copied only where a tenth has come to them: a URL takes whole files alone."""


def open_run(home: str, config: str, tell: Callable[[str], None]) -> RunWriter:
    """The writer of a new run in `home`, a path or a URL, which has to be empty and is found to be writable."""
    if not storage.is_url(home):
        return RunWriter(Path(storage.plain(home)), config, tell=tell)
    if storage.files(home):
        raise taken(home)
    return MirroredWriter(storage.fresh(home), config, home, tell)


class MirroredWriter(RunWriter):
    """Copies every file that changed to `home` after each step; the local folder is gone when all is there.

    Where that fails the run goes on and the next step tries again; the last copy has to succeed. Samples that are
    `LARGE` come late; a machine that is lost takes the last of them with it, and nothing that a run goes on from.
    """

    def __init__(
        self, folder: Path, config: str, home: str, tell: Callable[[str], None], mark: Mark | None = None
    ) -> None:
        """Begin in the empty local `folder`, or go on at `mark`; ConfigError where `home` cannot be written."""
        storage.probe(home)
        super().__init__(folder, config, mark, tell)
        self.home = home
        self._pushed: dict[str, tuple[int, int]] = {}  # as they were when they were copied last
        self._push()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None and not self._holds_something:
            with suppress(ResourceError):
                storage.remove(self.home)
            return
        if error is not None:
            self._try_to_push(everything=True)  # that error is what has to be heard
            return
        self._push()
        shutil.rmtree(self.folder, ignore_errors=True)

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Keep the groups, and the step, which was told just before."""
        super().samples(groups)
        self._try_to_push()

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Keep the evaluation."""
        super().evaluation(label, record)
        self._try_to_push()

    def summary(self, summary: Summary) -> None:
        """Keep the summary; ResourceError unless all records are in place then."""
        super().summary(summary)
        self._push()

    def _try_to_push(self, *, everything: bool = False) -> None:
        try:
            self._push(everything=everything)
        except ResourceError as error:
            self._tell(str(error))

    def _push(self, *, everything: bool = True) -> None:
        for name, stamp in storage.stamps(self.folder).items():
            pushed = self._pushed.get(name)
            may_wait = name == SAMPLES and pushed is not None and LARGE < stamp[0] < 1.1 * pushed[0]
            if pushed != stamp and (everything or not may_wait):
                try:
                    storage.push(self.folder, self.home, [name])
                except ResourceError as error:
                    raise ResourceError(f"{error}; what was written so far is in {self.folder}") from error
                self._pushed[name] = stamp
