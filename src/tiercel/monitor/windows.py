"""Windows: what a model version answered between two moments, as histograms that can be added up.

`WindowStore.record` writes the difference of the workers' totals since the record before. Windows of a minute become hours
after a day and days after a month: only resolution is lost, never a count. A record is one rename: what was written before it
and not renamed does not count, and what was counted comes with the next record, so windows survive whatever ends the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tiercel.errors import WindowError
from tiercel.monitor.directories import worker_directories
from tiercel.monitor.recording import COUNTERS
from tiercel.monitor.totals import read_sources
from tiercel.monitor.window import Description, Window, empty_window, requests_in
from tiercel.monitor.window_baseline import Baseline, difference, last_number, read_baseline, write_baseline
from tiercel.monitor.window_files import (
    UNREADABLE,
    WindowFile,
    numbers_of,
    read_window_file,
    write_durably,
    write_window_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["DAY_US", "HOUR_US", "WINDOWS", "Window", "WindowStore", "empty_window"]

#: Where below the state directory.
WINDOWS = "windows"
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
#: A clock that cannot be set and the one that can may differ by this much before it is called a jump.
_JUMP_US = 2_000_000
_LOCK = "lock"
_MAX_TRIES = 8
_MAX_PROBLEMS = 8
_MAX_STEPS = 100_000

T = TypeVar("T")


class WindowStore:
    """The windows of a state directory.

    Args:
        state_dir: the project's state directory; made when first recorded to.
        hours_after_us: windows this old are merged to hours.
        days_after_us: ... and to days.
        keep_days: so many days are kept. They are counted, not reckoned from the clock: one that was set to another
            century for a moment deletes nothing.

    Attributes:
        problems: of the last record, in words.

    Threads: safe. Processes: any number may read and record; records take turns.
    """

    def __init__(
        self, state_dir: Path, *, hours_after_us: int = DAY_US, days_after_us: int = 30 * DAY_US, keep_days: int = 400
    ) -> None:
        self._state_dir = state_dir
        self._directory = state_dir / WINDOWS
        self._hours_after_us, self._days_after_us, self._keep_days = hours_after_us, days_after_us, keep_days
        self._files: dict[str, WindowFile] = {}
        self._unreadable: dict[str, str] = {}
        self._descriptions: dict[str, Description] = {}
        self._compacted_hour: int | None = None
        self.problems: tuple[str, ...] = ()

    def record(self, now_us: int, *, elapsed_us: int | None = None) -> int:
        """Write a window of everything counted since the last record; nothing is written where nothing was counted.

        Args:
            now_us: the wall clock's time.
            elapsed_us: since the caller's last record, by a clock that cannot be set, where the caller knows: then a wall
                clock that was put forward is noticed too.

        Returns:
            How many requests it holds.

        Raises:
            WindowError: the disk refuses. Nothing is lost: the next record that can be written has it all.
        """
        try:
            with self._locked():
                return self._record(now_us, elapsed_us)
        except OSError as error:
            raise WindowError(
                f"{self._directory}: expected to write a window, got: {error.strerror or error}. Nothing is lost; the "
                f"next window that can be written holds these counts too"
            ) from error

    def merged(self, model: str, version: int, begin_us: int, end_us: int) -> Window | None:
        """Everything a version answered in a stretch of time; None where it answered nothing.

        A stored window belongs to the stretch if its middle does; begin and end of what comes back say what was found.
        """
        return self._read(lambda: self._merged(model, version, begin_us, end_us))

    def series(self, model: str, version: int, begin_us: int, end_us: int, step_us: int) -> list[Window]:
        """A stretch of time in steps, from `begin_us` on. A step without answers is a window without counts.

        Empty where the version answered nothing in the whole stretch.

        Raises:
            ValueError: a step that is not positive, or more than 100,000 of them.
        """
        if step_us <= 0 or (end_us - begin_us) / step_us > _MAX_STEPS:
            raise ValueError(f"Expected at most {_MAX_STEPS:,} steps of at least 1 us, got {step_us} us")
        return self._read(lambda: self._series(model, version, begin_us, end_us, step_us))

    def latest(self, model: str, version: int) -> Window | None:
        """The newest stored window in which a version answered anything."""

        def find() -> Window | None:
            for file in reversed(self._valid_files()):
                found = self._assemble([file], model, version)
                if found is not None:
                    return found
            return None

        return self._read(find)

    def versions(self) -> list[tuple[str, int]]:
        """Every model version that has a window, sorted."""
        return self._read(lambda: sorted(self._owners()))

    def span_us(self) -> tuple[int, int] | None:
        """Begin of the oldest window and end of the newest; None without any."""
        files = self._read(self._valid_files)
        return (min(file.begin_us for file in files), max(file.end_us for file in files)) if files else None

    # -- recording

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _record(self, now_us: int, elapsed_us: int | None) -> int:
        counters = self._state_dir / COUNTERS
        begin_us = _first_start_us(counters, now_us)
        sources = read_sources(counters)
        descriptions: dict[str, str] = {}
        try:
            before = read_baseline(self._directory)
            # One window and no baseline is what a first record leaves that did not come to its end.
            if before is None and self._last_written() > 1:
                raise ValueError(f"{self._directory}: the baseline of its windows is gone")  # noqa: TRY301 - handled like a damaged one
        except ValueError as error:
            # What was counted meanwhile cannot be told from what was recorded: better no window than one too many.
            made = difference({}, sources, descriptions)
            made.counts.clear()
            before = Baseline(self._last_written(), now_us, {})
            made.problems.append(f"{error}. What was counted since is in no window")
        else:
            before = before or Baseline(0, begin_us, {})
            made = difference(before.sources, sources, descriptions)
        begin_us, end_us, n_jumps = _span(before.end_us, now_us, elapsed_us)
        self.problems = tuple(made.problems)
        problems = tuple(dict.fromkeys((*before.problems, *made.problems)))
        number = before.number
        n_requests = 0
        if made.counts:
            for what in made.counts:
                self._keep_description(what, descriptions[what])
                n_requests += requests_in(made.counts[what])
            number += 1
            write_window_file(
                self._directory, number, number, (begin_us, end_us), made.counts, n_clock_jumps=n_jumps,
                problems=problems,
            )  # fmt: skip
            problems = ()
        write_baseline(self._directory, Baseline(number, end_us, made.sources, problems[:_MAX_PROBLEMS]))
        if end_us // HOUR_US != self._compacted_hour:
            self._compact(now_us)
            self._compacted_hour = end_us // HOUR_US
        return n_requests

    def _keep_description(self, what: str, text: str) -> None:
        try:
            self._describe(what)
        except (OSError, ValueError):  # not there yet, or damaged
            write_durably(self._description_path(what), text.encode())

    def _description_path(self, what: str) -> Path:
        return self._directory / f"what-{what}.json"

    def _last_written(self) -> int:
        numbers = (numbers_of(path.name) for path in self._directory.iterdir())
        return max((last for found in numbers if found for last in found), default=0)

    # -- merging

    def _compact(self, now_us: int) -> None:
        """Merge what is old, and remove what is older than is kept. Whatever of it fails is tried again later."""
        hours_before_us = (now_us - self._hours_after_us) // HOUR_US * HOUR_US
        days_before_us = (now_us - self._days_after_us) // DAY_US * DAY_US
        try:
            for before_us, unit_us in ((hours_before_us, HOUR_US), (days_before_us, DAY_US)):
                for group in _groups(self._valid_files(), before_us, unit_us):
                    self._merge_files(group)
            days = [file for file in self._valid_files() if file.end_us < days_before_us]
            for file in days[: max(0, len(days) - self._keep_days)]:
                file.path.unlink(missing_ok=True)
            self._remove_covered()
        except UNREADABLE as error:
            self.problems = (*self.problems, f"windows stay in smaller pieces: {error}")

    def _merge_files(self, files: Sequence[WindowFile]) -> None:
        counts: dict[str, NDArray[np.uint64]] = {}
        for file in files:
            for what in file.entries:
                cells = file.cells(what)
                counts[what] = counts[what] + cells if what in counts else cells
        write_window_file(
            self._directory,
            files[0].first,
            files[-1].last,
            (min(file.begin_us for file in files), max(file.end_us for file in files)),
            counts,
            n_clock_jumps=sum(file.n_clock_jumps for file in files),
            problems=[problem for file in files for problem in file.problems],
        )
        for file in files:
            file.path.unlink(missing_ok=True)

    def _remove_covered(self) -> None:
        """Pieces of merged files that a process which died had no time to remove."""
        ranges = [(file.first, file.last) for file in self._valid_files()]
        for path in list(self._directory.iterdir()):
            numbers = numbers_of(path.name)
            if numbers and any(
                first <= numbers[0] and numbers[1] <= last for first, last in ranges if (first, last) != numbers
            ):
                path.unlink(missing_ok=True)

    # -- reading

    def _read(self, action: Callable[[], T]) -> T:
        """Run a reading action again where a merge took a file away under it."""
        for attempt in range(_MAX_TRIES):
            try:
                return action()
            except FileNotFoundError:
                if attempt == _MAX_TRIES - 1:
                    raise
        raise AssertionError

    def _valid_files(self) -> list[WindowFile]:
        """Files that count, in the order they were recorded. Damaged ones are left out, and every window says so."""
        files: list[WindowFile] = []
        for _ in range(2):  # a directory that is read while files are merged may show neither the pieces nor the whole
            files = self._listed_files()
            if all(one.last + 1 == other.first for one, other in pairwise(files)):
                break
        return files

    def _listed_files(self) -> list[WindowFile]:
        last = last_number(self._directory)
        try:
            names = {path.name for path in self._directory.iterdir()}
        except OSError:
            return []
        if len(self._files) > 2 * len(names):  # many were merged since
            self._files = {name: file for name, file in self._files.items() if name in names}
        self._unreadable = {name: text for name, text in self._unreadable.items() if name in names}
        numbered = sorted(
            (numbers[0], -numbers[1], name) for name in names if (numbers := numbers_of(name)) and numbers[1] <= last
        )
        files: list[WindowFile] = []
        covered = 0
        for first, _, name in numbered:
            if first <= covered:  # a piece of a merged file
                continue
            file = self._open(name)
            if file is not None:
                files.append(file)
                covered = file.last
        return files

    def _open(self, name: str) -> WindowFile | None:
        file = self._files.get(name)
        if file is None:
            try:
                file = read_window_file(self._directory / name)
            except FileNotFoundError:
                raise
            except UNREADABLE as error:
                self._unreadable[name] = f"a window cannot be read, and whatever was counted in it is absent: {error}"
                return None
            self._files[name] = file
        return file

    def _describe(self, what: str) -> Description:
        found = self._descriptions.get(what)
        if found is None:
            try:
                text = self._description_path(what).read_text()
            except FileNotFoundError as error:  # written before the windows that name it, and never removed
                raise ValueError(f"{self._description_path(what)}: it is gone") from error
            if hashlib.sha256(text.encode()).hexdigest() != what:
                raise ValueError(f"{self._description_path(what)}: its bytes are not those that were written")
            found = self._descriptions[what] = Description(text)
        return found

    def _owners(self) -> set[tuple[str, int]]:
        owners = set()
        for what in {what for file in self._valid_files() for what in file.entries}:
            with contextlib.suppress(*UNREADABLE):  # a window that needs it says so
                owners.add(self._describe(what).owner)
        return owners

    def _merged(self, model: str, version: int, begin_us: int, end_us: int) -> Window | None:
        files = [file for file in self._valid_files() if begin_us < file.middle_us <= end_us]
        return self._assemble(files, model, version)

    def _series(self, model: str, version: int, begin_us: int, end_us: int, step_us: int) -> list[Window]:
        n_steps = -(-(end_us - begin_us) // step_us)
        steps: list[list[WindowFile]] = [[] for _ in range(n_steps)]
        for file in self._valid_files():
            if begin_us < file.middle_us <= end_us:
                steps[(file.middle_us - begin_us - 1) // step_us].append(file)
        everything = self._assemble([file for files in steps for file in files], model, version)
        if everything is None:
            return []
        windows = []
        for i, files in enumerate(steps):
            window = self._assemble(files, model, version)
            if window is None or not window.has_edges_of(everything):
                span = begin_us + i * step_us, min(begin_us + (i + 1) * step_us, end_us)
                elsewhere = 0 if window is None else window.n_requests
                window = _emptied(everything, *span, n_elsewhere=elsewhere)
            windows.append(window)
        return windows

    def _assemble(self, files: Iterable[WindowFile], model: str, version: int) -> Window | None:
        """The counts of one version in some files: on the edges it was last counted on."""
        sums: dict[str, NDArray[np.uint64]] = {}
        spans: list[WindowFile] = []
        problems: list[str] = []
        for file in files:
            found = False
            for what in file.entries:
                try:
                    is_asked = self._describe(what).owner == (model, version)
                    cells = file.cells(what) if is_asked else None
                except FileNotFoundError:
                    raise
                except UNREADABLE as error:
                    problems.append(str(error))
                    continue
                if cells is None:
                    continue
                found = True
                total = sums.pop(what, None)
                sums[what] = cells if total is None else np.add(total, cells, out=total)
            if found:
                spans.append(file)
        if not sums:
            return None
        begin_us, end_us = min(file.begin_us for file in spans), max(file.end_us for file in spans)
        edges_key = self._describe(next(reversed(sums))).edges_key  # what was added last stands last
        parts = [
            (self._describe(what), self._describe(what).window(cells, begin_us, end_us)) for what, cells in sums.items()
        ]
        same = [window for description, window in parts if description.edges_key == edges_key]
        whole = same[0]
        for window in same[1:]:
            whole += window
        problems += [problem for file in spans for problem in file.problems]
        problems += self._unreadable.values()  # of whichever time
        return replace(
            whole,
            n_clock_jumps=sum(file.n_clock_jumps for file in spans),
            n_elsewhere=sum(w.n_requests for description, w in parts if description.edges_key != edges_key),
            problems=tuple(dict.fromkeys(problems)),
        )


def _emptied(like: Window, begin_us: int, end_us: int, *, n_elsewhere: int) -> Window:
    empty = empty_window(like.model, like.version, like, begin_us, end_us)
    return replace(empty, reference=like.reference, n_elsewhere=n_elsewhere)


def _span(before_us: int, now_us: int, elapsed_us: int | None) -> tuple[int, int, int]:
    """Begin and end of a window, and how often the clock was found to have been set (0 or 1)."""
    if now_us < before_us:  # set back: how long it was is known to the caller or to nobody
        return now_us - max(0, elapsed_us or 0), now_us, 1
    if elapsed_us is not None and now_us - before_us > elapsed_us + _JUMP_US + elapsed_us // 100:
        # The caller may not have been the last to record: then less time has passed than it knows of, not more.
        return now_us - max(0, elapsed_us), now_us, 1
    return before_us, now_us, 0


def _first_start_us(counters: Path, now_us: int) -> int:
    """When the oldest worker start that is known began: then the first window begins."""
    for directory in worker_directories(counters):
        text = directory.name.partition("-")[0]
        if text.isdecimal():
            return min(int(text), now_us)
    return now_us


def _groups(files: Sequence[WindowFile], before_us: int, unit_us: int) -> list[list[WindowFile]]:
    """Runs of two files or more that end in the same hour or day, all before `before_us`."""
    groups: list[list[WindowFile]] = []
    for file in files:
        if file.end_us >= before_us:
            continue
        last = groups[-1] if groups else None
        if last and last[-1].last + 1 == file.first and last[-1].end_us // unit_us == file.end_us // unit_us:
            last.append(file)
        else:
            groups.append([file])
    return [group for group in groups if len(group) > 1]
