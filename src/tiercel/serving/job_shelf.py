"""What lies in the directories of batch jobs: reading only, while others write, move and remove.

Jobs move one way, from the open to the finished ones, and a record is only ever made or replaced whole. So whoever looks in
that order sees every job that is there, and what it sees was true at some moment of the look.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

from tiercel.errors import JobNotFoundError, JobStorageError
from tiercel.serving.job_files import ATTEMPT_FILE, CLAIM_FILE, JOB_FILE, OUTCOME_FILE, is_locked, read_record
from tiercel.serving.job_records import Attempt, Job, JobError, JobState, JobStatus, Outcome, Pace, is_id, unseal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("tiercel.batch")

PACE_FILE = "pace.json"
_Record = TypeVar("_Record", Job, Attempt, Outcome, Pace)


class JobShelf:
    """The open and the finished jobs.

    Args:
        path: of the store.
        keep_s: how long finished jobs are kept; for messages.

    Threads: safe.
    """

    def __init__(self, path: Path, keep_s: float) -> None:
        self.path = path
        self.open, self.finished = path / "open", path / "finished"
        self._keep_s = keep_s
        self._known: dict[str, Job] = {}  # records of open jobs never change
        self._reported: set[str] = set()

    def names(self, parent: Path) -> list[str]:
        """Ids of the job directories in `parent`, sorted; what else is there is reported."""
        try:
            with os.scandir(parent) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return []
        for name, is_directory in found:
            if not (is_directory and is_id(name)):
                self.report(name, f"{parent / name}: expected the directory of a job")
        return sorted(name for name, is_directory in found if is_directory and is_id(name))

    def find(self, job_id: str) -> tuple[Path, JobStatus]:
        """A job's directory and status. Jobs move one way only, so one that is in neither place in this order is gone."""
        for parent in (self.open, self.finished):
            directory = parent / job_id
            try:
                return directory, self._read_status(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise unreadable(directory, error) from error
        raise JobNotFoundError(
            f"Expected the id of a batch job, got {job_id}, which is none, or was finished more than "
            f"{self._keep_s / 86_400:g} days ago or removed to make room"
        )

    def _read_status(self, directory: Path) -> JobStatus:
        job = self._read_job(directory)
        outcome = self.read_outcome(directory)
        attempt = self.attempt(directory)
        if outcome is not None:
            rows_done = job.n_rows if outcome.state is JobState.DONE else attempt.rows_done
            return JobStatus(
                job, outcome.state, rows_done, outcome.started_us, outcome.finished_us, outcome.error, outcome.results
            )
        is_running = attempt.started_us is not None and is_locked(directory / CLAIM_FILE)
        if not (directory / JOB_FILE).exists() or self.read_outcome(directory) is not None:
            # It got its outcome, or was moved, between the looks.
            return self._read_status(directory)
        if is_running:
            return JobStatus(job, JobState.RUNNING, attempt.rows_done, attempt.started_us)
        error = None if attempt.delay is None else JobError(*attempt.delay)
        return JobStatus(job, JobState.WAITING, 0, error=error)

    def _read_job(self, directory: Path) -> Job:
        job = self._read(directory / JOB_FILE, Job.from_json)
        if job.id != directory.name:
            raise JobStorageError(f"{directory}: expected the job of that name, got {job.id}")
        return job

    def read_outcome(self, directory: Path) -> Outcome | None:
        """How a job ended; None if it has not.

        Raises:
            JobStorageError, OSError: the file is damaged, or cannot be read.
        """
        try:
            return self._read(directory / OUTCOME_FILE, Outcome.from_json)
        except FileNotFoundError:
            return None

    def attempt(self, directory: Path) -> Attempt:
        """What the job's last runner noted."""
        try:
            return self._read(directory / ATTEMPT_FILE, Attempt.from_json)
        except (JobStorageError, OSError):  # it is not synced: a power cut may leave anything
            return Attempt()

    def pace(self) -> Pace:
        """How quick jobs were lately."""
        try:
            return self._read(self.path / PACE_FILE, Pace.from_json)
        except (JobStorageError, OSError):
            return Pace()

    @staticmethod
    def _read(path: Path, make: Callable[[dict[str, Any]], _Record]) -> _Record:
        try:
            return make(unseal(read_record(path), str(path)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JobStorageError(f"{path} was not written by this version of tiercel: {error!r}") from None

    def list_jobs(self, limit: int = 100) -> list[JobStatus]:
        """The newest jobs, newest first."""
        names = {name for parent in (self.open, self.finished) for name in self.names(parent)}
        found: list[JobStatus] = []
        for name in sorted(names, reverse=True):
            if len(found) == limit:
                break
            with contextlib.suppress(JobNotFoundError):  # removed meanwhile
                try:
                    found.append(self.find(name)[1])
                except JobStorageError as error:
                    self.report(name, str(error))
        return found

    def open_jobs(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        known: dict[str, Job] = {}
        found: list[Job] = []
        for name in self.names(self.open):
            try:
                job = self._known.get(name) or self._read_job(self.open / name)
            except FileNotFoundError:
                continue
            except (JobStorageError, OSError) as error:
                self.report(name, str(error))
                continue
            known[name] = job
            if not (self.open / name / OUTCOME_FILE).exists() and (self.open / name).exists():
                found.append(job)
        self._known = known
        return found

    def report(self, name: str, text: str) -> None:
        """Log what is in the way of nothing but should not be there, once."""
        if name not in self._reported:
            self._reported.add(name)
            log.warning("Skipped in the batch jobs: %s", text)


def unreadable(path: Path, error: OSError) -> JobStorageError:
    """What to raise for a file that should be there."""
    return JobStorageError(f"{path} cannot be read: {error.strerror or error}")
