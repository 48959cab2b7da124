"""Records made durable before anybody hears of them: one sync of the journal for all that wait.

The event loop appends a record to memory, as always, and asks to be called when it is on the disk. A thread of its own syncs
the segment that is written to and calls back for all who asked before the sync began; who asks meanwhile waits for the next
one. So the more wait, the fewer syncs each costs, and the event loop never waits for the disk.

A record counts as durable when a sync of its file, and of the directories that name it, has returned without an error that
began after it was written, and the file has its name after that: the kernel syncs a removed file without an error, and
nobody will ever read it. When a sync fails, the kernel may forget what it could not write and report the next sync as a
success (see fsync(2), "errors are reported once"); so nothing in that segment is believed from then on: it is sealed, and
only records of the segments that follow can become durable. Who waits is therefore known by the segment that its records
begin in: the journal may have gone on to the next one while the sync failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

from tiercel.errors import AuditUnavailableError
from tiercel.monitor.durable import FILE_MODE, check_named, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tiercel.monitor.segments import Journal, SegmentKeeper

    Done = Callable[[AuditUnavailableError | None], object]

log = logging.getLogger("tiercel.monitor")

#: How often the disk is tried after a sync failed, so that recovery is noticed though nobody asks.
TRY_S = 0.5
#: The file that it is tried with; readers of segments pass it over.
_TRIED = ".sync~"


class GroupCommit:
    """Makes the records of one worker's journal durable.

    Args:
        journal: of the worker.
        keeper: of its segments; knows where they are.

    Attributes:
        problem: why records could not be made durable lately, in words; empty: they can, as far as is known.
        n_syncs, n_committed: so far, for tests and benchmarks.

    Threads: `attach`, `submit`, `wait` and `close` on the event loop's; `abandon` and `problem` in any.
    """

    def __init__(self, journal: Journal, keeper: SegmentKeeper) -> None:
        self._journal, self._keeper = journal, keeper
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, Done]] = []  # with a segment's sequence: its records begin there or later
        self._last = 0  # sequence of the segment that has the newest record of those who wait
        self._left = 0  # ... of the newest one that failed, and that nothing is appended to any more
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The committing thread's own.
        self._files: dict[int, int] = {}
        self._done = 0  # sequence of the newest segment that is full and synced, like those before it
        self._failed = 0  # ... that a sync failed for
        self._named: Path | None = None  # the directory whose own name is durable
        self.problem = ""
        self.n_syncs = self.n_committed = 0

    def attach(self) -> None:
        """Note the running event loop as the one that appends to the journal."""
        self._loop = asyncio.get_running_loop()

    def abandon(self, sequence: int) -> None:
        """Have nothing more appended to a segment, and those before it: its file is gone."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._abandon, sequence)

    def _abandon(self, sequence: int) -> None:
        at = self._journal.progress()
        if at is not None and at[0] <= sequence:
            self._journal.seal()
        self._left = max(self._left, sequence)

    def submit(self, done: Done) -> None:
        """Call `done` on this event loop when everything recorded by now is durable, or with why it cannot be.

        It is called once, not before this returns.
        """
        at = self._journal.progress()
        with self._changed:
            began = self._last
            if at is not None and at[0] > self._last:
                # The first in a segment may be a large request, whose records begin in the one that was there before.
                began, self._last = max(self._last, self._left + 1), at[0]
            self._waiting.append((began, done))
            if self._thread is None:
                self._start()
            elif len(self._waiting) == 1:
                self._changed.notify()

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._run, name="tiercel-commit", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had; the next one who asks tries again
            lost, self._waiting = [done for _, done in self._waiting], []
            self._loop.call_soon(self._finish, lost, _refusal(str(error)))
            return
        self._thread = thread

    async def wait(self) -> None:
        """Return when everything recorded by now is durable.

        Raises:
            AuditUnavailableError: it cannot be made so.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: AuditUnavailableError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.submit(done)
        await future

    def close(self) -> None:
        """End the thread, after what waits is durable. Nobody hears of that any more: the loop is about to end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    if not self._changed.wait(TRY_S if self.problem else None):
                        break
                if not self._waiting and self._is_closed:
                    return
                group, self._waiting = self._waiting, []
                last = self._last
            if not group:
                self._try_disk()
                continue
            lost = [done for began, done in group if began <= self._failed]
            kept = [done for began, done in group if began > self._failed]
            try:
                if lost:
                    self._tell(lost, _refusal(f"an earlier sync of segment {self._failed:06d} failed"))
                if kept:
                    self._tell(kept, self._commit(min(began for began, _ in group if began > self._failed), last))
            except RuntimeError:  # the loop has ended, and with it whoever waited
                return

    def _tell(self, group: list[Done], error: AuditUnavailableError | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._finish, group, error)

    def _finish(self, group: list[Done], error: AuditUnavailableError | None) -> None:
        """On the event loop: tell those who waited."""
        at, failed = self._journal.progress(), self._failed
        if error is not None:
            if at is not None and at[0] <= failed:
                self._journal.seal()  # what comes next goes into a segment that a sync can be believed of
            self._left = max(self._left, failed)
        for done in group:
            try:
                done(error)
            except Exception:
                log.exception("A reply that waited for its record could not be sent")

    def _commit(self, first: int, last: int) -> AuditUnavailableError | None:
        """Sync every segment from `first` up to `last` that may hold what is not durable yet."""
        for sequence in [each for each in self._files if each < first]:
            os.close(self._files.pop(sequence))
        try:
            # A large request's records may begin in an earlier segment. Those before `last` are full: synced once more,
            # they are done with.
            for sequence in range(max(self._done + 1, first), last + 1):
                self._sync(sequence, is_full=sequence < last)
            self._done = last - 1
        except Exception as error:  # noqa: BLE001 - whatever it is: without this thread everybody would wait for ever
            self.problem = f"journal: records cannot be made durable, strict models refuse: {error}"
            log.error("%s", self.problem)  # noqa: TRY400
            self._failed = last
            for sequence in [each for each in self._files if each <= last]:
                os.close(self._files.pop(sequence))
            return _refusal(str(error))
        self.n_committed += 1
        self.problem = ""
        return None

    def _try_disk(self) -> None:
        """See whether a file can be made and synced where segments are: the problem is over then."""
        path = self._keeper.directory / _TRIED
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.write(descriptor, bytes(4096))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError:
            return
        self.problem = ""
        log.warning("journal: records can be made durable again")

    def _sync(self, sequence: int, *, is_full: bool) -> None:
        path = self._keeper.place_of(sequence)
        try:
            descriptor = self._files.get(sequence)
            if descriptor is None:
                descriptor = self._files[sequence] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                os.fsync(descriptor)
                if self._named != path.parent:
                    sync_directory(path.parent.parent.parent)
                    sync_directory(path.parent.parent)
                    self._named = path.parent
                sync_directory(path.parent)
            else:
                _sync_data(descriptor)
            check_named(path, descriptor)
        except FileNotFoundError:
            if not (is_full and self._keeper.gave_way(sequence)):
                raise
        self.n_syncs += 1
        if is_full and sequence in self._files:
            os.close(self._files.pop(sequence))


def _refusal(why: str) -> AuditUnavailableError:
    return AuditUnavailableError(
        f"Expected the record of this answer on the disk before it is given, got: {why}. Nothing was answered; "
        f'free disk space or check the disk, or set audit = "default" for the model'
    )


def _sync_data(descriptor: int) -> None:
    """What was stored through a map counts too: the kernel knows which pages are dirty."""
    getattr(os, "fdatasync", os.fsync)(descriptor)
