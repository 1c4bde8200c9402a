"""Keeps the run folder at a URL: writes it on this machine and copies it there as it grows."""

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
from adagrpo_ray.runs.writer import RunWriter, folder_not_empty
from adagrpo_ray.storage import places as storage

LARGE = 16 * 2**20
"""Size in bytes above which samples are copied only after growing by a tenth: a copy always sends the whole file."""


def open_run(home: str, config: str, notify: Callable[[str], None]) -> RunWriter:
    """Open the writer of a new run in `home`, a path or a URL.

    Raises ConfigError if `home` is not empty, or is a URL that cannot be written; ResourceError if a local `home`
    cannot be written.
    """
    if not storage.is_url(home):
        return RunWriter(Path(storage.plain(home)), config, notify=notify)
    if storage.files(home):
        raise folder_not_empty(home)
    return MirroredWriter(storage.fresh(home), config, home, notify)


class MirroredWriter(RunWriter):
    """Copies every changed file to `home` after each step, and removes the local folder at the end of the run.

    If a copy fails, the run continues and the next step tries again; the last copy has to succeed. Samples larger than
    `LARGE` are copied less often: if the machine is lost, so are the newest of them. A resumed run does not need them.
    """

    def __init__(
        self, folder: Path, config: str, home: str, notify: Callable[[str], None], mark: Mark | None = None
    ) -> None:
        """Begin in the empty local `folder`, or continue at `mark`. Raises ConfigError if `home` cannot be written."""
        storage.probe(home)
        super().__init__(folder, config, mark, notify)
        self.home = home
        self._pushed: dict[str, tuple[int, int]] = {}  # name -> stamp of the file at its last copy
        self._push()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None and not self._has_records:
            with suppress(ResourceError):
                storage.remove(self.home)
            return
        if error is not None:
            self._try_to_push(everything=True)  # a failed copy must not replace the first error
            return
        self._push()
        shutil.rmtree(self.folder, ignore_errors=True)

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Write the groups, and copy them together with the step, which was written just before."""
        super().samples(groups)
        self._try_to_push()

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Write and copy the evaluation."""
        super().evaluation(label, record)
        self._try_to_push()

    def summary(self, summary: Summary) -> None:
        """Write and copy the summary. Raises ResourceError unless all records are copied."""
        super().summary(summary)
        self._push()

    def _try_to_push(self, *, everything: bool = False) -> None:
        try:
            self._push(everything=everything)
        except ResourceError as error:
            self._notify(str(error))

    def _push(self, *, everything: bool = True) -> None:
        for name, stamp in storage.stamps(self.folder).items():
            pushed = self._pushed.get(name)
            may_wait = name == SAMPLES and pushed is not None and LARGE < stamp[0] < 1.1 * pushed[0]
            if pushed != stamp and (everything or not may_wait):
                try:
                    storage.push(self.folder, self.home, [name])
                except ResourceError as error:
                    raise ResourceError(f"{error}; the run folder so far is {self.folder}") from error
                self._pushed[name] = stamp
