"""Batch jobs on disk: accepted by any worker, run by whoever claims them, kept until they are old.

    <state>/jobs/open/<id>/      waits or runs: job.json, question.jsonl, and of a runner: claim, attempt.json
    <state>/jobs/finished/<id>/  has an outcome: outcome.json and, if it is done, results.jsonl
    <state>/jobs/lock            held while a job is let in
    <state>/jobs/pace.json       how quick jobs were lately
    <state>/jobs/removed.json    how many finished jobs were removed

A job is written and synced under a name that nobody looks at, and renamed into `open`, before anybody is told its id; from
then on it ends in exactly one outcome, whoever is killed when. What is in these directories and is not a job is left alone
and named in the log, once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tiercel.errors import CapacityError, JobNotFoundError, JobStateError, JobStorageError, RequestError
from tiercel.serving.job_claim import Claim
from tiercel.serving.job_files import (
    ATTEMPT_FILE,
    CLAIM_FILE,
    DIRECTORY_MODE,
    JOB_FILE,
    OUTCOME_FILE,
    QUESTION_FILE,
    RESULTS_FILE,
    held,
    is_locked,
    make_directory,
    read_record,
    replace,
    sync_directory,
    try_lock,
    write_new,
    write_once,
)
from tiercel.serving.job_question import encode, measure
from tiercel.serving.job_records import (
    Attempt,
    Job,
    JobError,
    JobLimits,
    JobState,
    JobStatus,
    Outcome,
    Pace,
    check_id,
    is_id,
    new_id,
    seal,
    unseal,
)
from tiercel.serving.job_results import ResultsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tiercel.serving.router import Question

__all__ = ["Claim", "Job", "JobLimits", "JobState", "JobStatus", "JobStore", "Removed"]

log = logging.getLogger("tiercel.batch")

JOBS = "jobs"
#: A job during which so many runners were killed is what kills them.
MAX_ATTEMPTS = 10
_NEW, _GONE = ".new-", ".gone-"
_STALE_AFTER_S = 3600.0
_Record = TypeVar("_Record", Job, Attempt, Outcome, Pace)


@dataclass(frozen=True, slots=True)
class Removed:
    """Finished jobs that are no more, since the store was made."""

    n_old: int = 0
    n_for_room: int = 0
    n_bytes: int = 0


class JobStore:
    """The batch jobs of a state directory. Making one touches nothing; directories are made by the first job.

    Args:
        state_dir: of the project.
        limits: how much it holds.

    Threads: safe, and safe with any number of other processes on the same directory.
    """

    def __init__(self, state_dir: Path, limits: JobLimits | None = None) -> None:
        self.path = state_dir / JOBS
        self._open, self._finished = self.path / "open", self.path / "finished"
        self._limits = JobLimits() if limits is None else limits
        self._known: dict[str, Job] = {}  # records of open jobs never change
        self._sizes: dict[str, tuple[int, int]] = {}  # finished job -> (finished_us, bytes)
        self._reported: set[str] = set()

    # -- for those who ask --------------------------------------------------------------------------------------------

    def submit(self, question: Question, *, model: str, version: int, classes: tuple[str, ...] = ()) -> Job:
        """Accept a job. On return it is on disk and will be run.

        Args:
            question: what to score; finite numbers, texts, booleans and None, or lists of them.
            model: who will answer.
            version: likewise.
            classes: of a multiclass model.

        Raises:
            RequestError: the question cannot be stored faithfully, or is larger than the store.
            CapacityError: too much waits already.
            JobStorageError: the disk is full, or not ours to write. Nothing was accepted and nothing is left of it.
        """
        n_rows, is_single = measure(question)
        try:
            self._make_directories()
            self._require_room(0)  # before anything is written for nothing
            return self._write(question, model, version, classes, n_rows, is_single)
        except OSError as error:
            raise JobStorageError(
                f"The job cannot be stored in {self.path}: {error.strerror or error}. Nothing was accepted. Free space or "
                f"mend the directory, then send the request again"
            ) from error

    def status(self, job_id: str) -> JobStatus:
        """How far a job is.

        Raises:
            JobNotFoundError: no such job, or its time was over.
            JobStorageError: its files are damaged.
        """
        check_id(job_id)
        return self._find(job_id)[1]

    def results(self, job_id: str) -> tuple[JobStatus, ResultsReader]:
        """A job's results; the reader is the caller's to close.

        Raises:
            JobNotFoundError, JobStorageError: as `status`.
            JobStateError: it is not finished, or failed, or was cancelled; `code` says which.
        """
        check_id(job_id)
        directory, status = self._find(job_id)
        if status.results is None:
            raise self._no_results(status)
        try:
            return status, ResultsReader(directory / RESULTS_FILE, status.results)
        except FileNotFoundError:
            # Between the two looks it was moved, or removed. Once it is in its last place only the second is left.
            directory, status = self._find(job_id)
            if status.results is None:  # pragma: no cover - an outcome does not change
                raise self._no_results(status) from None
            try:
                return status, ResultsReader(directory / RESULTS_FILE, status.results)
            except OSError as error:
                raise _unreadable(directory / RESULTS_FILE, error) from error
        except OSError as error:
            raise _unreadable(directory / RESULTS_FILE, error) from error

    def cancel(self, job_id: str) -> JobStatus:
        """See to it that a job never has results; one that runs stops within a moment. Again is no error.

        Raises:
            JobNotFoundError, JobStorageError: as `status`; or the disk is full.
            JobStateError: `job_finished`: it is done or has failed.
        """
        status = self.status(job_id)
        if not status.state.is_final:
            outcome = Outcome(JobState.CANCELLED, time.time_ns() // 1000, status.started_us)
            try:
                if write_once(self._open / job_id / OUTCOME_FILE, seal(outcome.to_json())):
                    self.settle(job_id)
            except FileNotFoundError:
                pass  # it finished, and was moved
            except OSError as error:
                raise JobStorageError(
                    f"Job {job_id} cannot be cancelled: {error.strerror or error}. Free space in {self.path}, then try again"
                ) from error
            status = self.status(job_id)
        if status.state is not JobState.CANCELLED:
            raise JobStateError(
                f"Expected a job that waits or runs, job {job_id} is {status.state} already: there is nothing to cancel",
                code="job_finished",
            )
        return status

    def list_jobs(self, limit: int = 100) -> list[JobStatus]:
        """The newest jobs, newest first."""
        names = {name for parent in (self._open, self._finished) for name in self._names(parent)}
        found: list[JobStatus] = []
        for name in sorted(names, reverse=True):
            if len(found) == limit:
                break
            with contextlib.suppress(JobNotFoundError):  # removed meanwhile
                try:
                    found.append(self._find(name)[1])
                except JobStorageError as error:
                    self._report(name, str(error))
        return found

    def open_jobs(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        known: dict[str, Job] = {}
        found: list[Job] = []
        for name in self._names(self._open):
            try:
                job = self._known.get(name) or self._read_job(self._open / name)
            except FileNotFoundError:
                continue
            except (JobStorageError, OSError) as error:
                self._report(name, str(error))
                continue
            known[name] = job
            if not (self._open / name / OUTCOME_FILE).exists() and (self._open / name).exists():
                found.append(job)
        self._known = known
        return found

    def wait_us(self, status: JobStatus) -> int:
        """When a job is expected to be finished, in microseconds from now, as measured; 0 when it is."""
        if status.state.is_final:
            return 0
        ahead = [job for job in self.open_jobs() if job.id < status.job.id]
        n_rows = sum(job.n_rows for job in ahead) + status.job.n_rows - status.rows_done
        return self._pace().wait_us(len(ahead) + 1, n_rows)

    def removed(self) -> Removed:
        """How many finished jobs were removed."""
        try:
            return Removed(**unseal(read_record(self.path / "removed.json"), "removed.json"))
        except (JobStorageError, OSError, TypeError):
            return Removed()

    # -- for runners --------------------------------------------------------------------------------------------------

    def claim_next(self, skip: Collection[str] = ()) -> Claim | None:
        """The next job that nobody runs; None if there is none.

        The oldest first, but those during which a runner was killed after all others.

        Args:
            skip: ids to leave alone.

        Raises:
            OSError: the disk is full.
        """
        waiting = [(self._attempt(self._open / job.id), job) for job in self.open_jobs() if job.id not in skip]
        for _, job in sorted(waiting, key=lambda pair: (pair[0].n_begun, pair[1].id)):
            claim = self._claim(job)
            if claim is not None:
                return claim
        return None

    def settle(self, job_id: str) -> None:
        """Move a job that has an outcome to the finished ones, unless a runner has it still: that will do it."""
        directory = self._open / job_id
        try:
            descriptor = try_lock(directory / CLAIM_FILE)
        except OSError as error:  # `tidy` tries again
            log.warning("job %s stays among the open ones for now: %s", job_id, error)
            return
        if descriptor is None:
            return
        try:
            self._settle_claimed(job_id)
        finally:
            os.close(descriptor)

    def note_pace(self, n_rows: int, row_us: float, job_us: float) -> None:
        """Remember how long a job took: `row_us` for scoring its rows, `job_us` for all the rest."""
        try:
            content = seal(self._pace().with_job(n_rows, row_us, job_us).to_json())
            replace(self.path / "pace.json", content, durable=False)
        except OSError as error:  # only predictions depend on it
            log.debug("pace: %s", error)

    def tidy(self) -> Removed:
        """Remove finished jobs that are too old or too large together, oldest first, and what killed processes left.

        Returns:
            What was removed now.

        Raises:
            OSError: the directories cannot be read or written.
        """
        if not self.path.is_dir():
            return Removed()
        self._remove_leftovers()
        for name in self._names(self._open):
            if (self._open / name / OUTCOME_FILE).exists():
                self.settle(name)
        now_us = time.time_ns() // 1000
        sizes = {
            name: self._sizes.get(name) or self._size(self._finished / name) for name in self._names(self._finished)
        }
        self._sizes = sizes
        oldest_first = sorted(sizes, key=lambda name: (sizes[name][0], name))
        n_bytes = sum(size for _, size in sizes.values())
        n_old = n_for_room = n_removed = 0
        for name in oldest_first:
            finished_us, size = sizes[name]
            is_old = now_us - finished_us > self._limits.keep_s * 1e6
            is_in_the_way = n_bytes > self._limits.keep_bytes and name != oldest_first[-1]
            if not (is_old or is_in_the_way) or not self._remove(self._finished / name):
                continue
            n_old, n_for_room = n_old + is_old, n_for_room + (not is_old)
            n_bytes, n_removed = n_bytes - size, n_removed + size
        removed = Removed(n_old, n_for_room, n_removed)
        if removed != Removed():
            self._count(removed)
        return removed

    # -- letting in ---------------------------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        make_directory(self._open)
        make_directory(self._finished)

    def _write(
        self, question: Question, model: str, version: int, classes: tuple[str, ...], n_rows: int, is_single: bool
    ) -> Job:
        job_id = new_id()
        unfinished = self.path / f"{_NEW}{job_id}"
        unfinished.mkdir(mode=DIRECTORY_MODE)
        try:
            n_bytes, sha256 = write_new(unfinished / QUESTION_FILE, encode(question, n_rows))
            job = Job(
                id=job_id,
                model=model,
                version=version,
                classes=classes,
                n_rows=n_rows,
                is_single=is_single,
                now_us=question.now_us,
                created_us=time.time_ns() // 1000,
                question_bytes=n_bytes,
                question_sha256=sha256,
            )
            write_new(unfinished / JOB_FILE, [seal(job.to_json())])
            sync_directory(unfinished)
            with held(self.path / "lock"):  # workers that submit at once must not overfill it together
                self._require_room(n_bytes)
                unfinished.rename(self._open / job_id)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        try:
            sync_directory(self._open)
        except BaseException:
            self._remove(self._open / job_id)  # nobody will be told its id
            raise
        return job

    def _require_room(self, n_bytes: int) -> None:
        """Refuse what is too much.

        Raises:
            CapacityError, RequestError: see `submit`.
        """
        limits = self._limits
        if n_bytes > limits.max_open_bytes:
            raise RequestError(
                f"Expected a batch job of at most {limits.max_open_bytes} bytes, got {n_bytes}. Send several smaller ones",
                code="body_too_large",
            )
        jobs = self.open_jobs()
        n_jobs, held_bytes = len(jobs), sum(job.question_bytes for job in jobs)
        n_ahead = rows_ahead = 0
        for job in jobs:
            if n_jobs < limits.max_open and held_bytes + n_bytes <= limits.max_open_bytes:
                break
            n_jobs, held_bytes = n_jobs - 1, held_bytes - job.question_bytes
            n_ahead, rows_ahead = n_ahead + 1, rows_ahead + job.n_rows
        if n_ahead:
            wait_us = self._pace().wait_us(n_ahead, rows_ahead)
            raise CapacityError(
                f"The batch tier holds {len(jobs)} jobs of {sum(job.question_bytes for job in jobs)} bytes that wait or run, "
                f"of at most {limits.max_open} jobs and {limits.max_open_bytes} bytes. There should be room in "
                f"{wait_us / 1e6:.1f} s",
                predicted_wait_us=wait_us,
            )

    # -- looking ------------------------------------------------------------------------------------------------------

    def _names(self, parent: Path) -> list[str]:
        """Ids of the job directories in `parent`, sorted; what else is there is reported."""
        try:
            with os.scandir(parent) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return []
        for name, is_directory in found:
            if not (is_directory and is_id(name)):
                self._report(name, f"{parent / name}: expected the directory of a job")
        return sorted(name for name, is_directory in found if is_directory and is_id(name))

    def _find(self, job_id: str) -> tuple[Path, JobStatus]:
        """A job's directory and status. Jobs move one way only, so one that is in neither place in this order is gone."""
        for parent in (self._open, self._finished):
            directory = parent / job_id
            try:
                return directory, self._read_status(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(directory, error) from error
        raise JobNotFoundError(
            f"Expected the id of a batch job, got {job_id}, which is none, or was finished more than "
            f"{self._limits.keep_s / 86_400:g} days ago or removed to make room"
        )

    def _read_status(self, directory: Path) -> JobStatus:
        job = self._read_job(directory)
        outcome = self._read_outcome(directory)
        attempt = self._attempt(directory)
        if outcome is not None:
            rows_done = job.n_rows if outcome.state is JobState.DONE else attempt.rows_done
            return JobStatus(
                job, outcome.state, rows_done, outcome.started_us, outcome.finished_us, outcome.error, outcome.results
            )
        is_running = attempt.started_us is not None and is_locked(directory / CLAIM_FILE)
        if not (directory / JOB_FILE).exists() or self._read_outcome(directory) is not None:
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

    def _read_outcome(self, directory: Path) -> Outcome | None:
        try:
            return self._read(directory / OUTCOME_FILE, Outcome.from_json)
        except FileNotFoundError:
            return None

    def _attempt(self, directory: Path) -> Attempt:
        try:
            return self._read(directory / ATTEMPT_FILE, Attempt.from_json)
        except (JobStorageError, OSError):  # it is not synced: a power cut may leave anything
            return Attempt()

    def _pace(self) -> Pace:
        try:
            return self._read(self.path / "pace.json", Pace.from_json)
        except (JobStorageError, OSError):
            return Pace()

    @staticmethod
    def _read(path: Path, make: Callable[[dict[str, Any]], _Record]) -> _Record:
        try:
            return make(unseal(read_record(path), str(path)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JobStorageError(f"{path} was not written by this version of tiercel: {error!r}") from None

    def _no_results(self, status: JobStatus) -> JobStateError:
        job_id, error = status.job.id, status.error
        if status.state is JobState.FAILED:
            why = "" if error is None else f": {error.error} ({error.code})"
            return JobStateError(f"Job {job_id} failed and has no results{why}", code="job_failed")
        if status.state is JobState.CANCELLED:
            return JobStateError(f"Job {job_id} was cancelled and has no results", code="job_cancelled")
        wait_us = self.wait_us(status)
        return JobStateError(
            f"Expected a finished job, job {job_id} is {status.state} with {status.rows_done} of {status.job.n_rows} rows "
            f"done. Ask again in {wait_us / 1e6:.1f} s",
            code="job_not_finished",
            wait_us=wait_us,
        )

    # -- running ------------------------------------------------------------------------------------------------------

    def _claim(self, job: Job) -> Claim | None:
        directory = self._open / job.id
        descriptor = try_lock(directory / CLAIM_FILE)
        if descriptor is None:
            return None
        try:
            # Under the lock and by its own name: the directory may have been moved just before.
            if (directory / OUTCOME_FILE).exists() or not (directory / JOB_FILE).exists():
                self._settle_claimed(job.id)
                os.close(descriptor)
                return None
            before = self._attempt(directory)
            attempt = Attempt(before.n_begun + 1, time.time_ns() // 1000)
            claim = Claim(directory, job, descriptor, attempt, self._settle_claimed)
            if before.n_begun < MAX_ATTEMPTS:
                replace(directory / ATTEMPT_FILE, seal(attempt.to_json()), durable=False)
                return claim
            log.error("job %s: given up after %d runners that were killed", job.id, before.n_begun)
            claim.fail(
                JobError(
                    "job_abandoned",
                    f"{before.n_begun} processes that ran this job were killed, perhaps for want of memory; the server's "
                    f"log may say more. Send fewer rows in one job",
                )
            )
            self._settle_claimed(job.id)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _settle_claimed(self, job_id: str) -> None:
        """Move a job with an outcome to the finished ones. The caller has its claim."""
        directory = self._open / job_id
        try:
            (directory / QUESTION_FILE).unlink(
                missing_ok=True
            )  # answered, or never will be: nobody needs what was asked
            directory.rename(self._finished / job_id)
            sync_directory(self._finished)
            sync_directory(self._open)
        except FileNotFoundError:
            pass  # somebody else did
        except OSError as error:  # `tidy` tries again
            log.warning("job %s stays among the open ones for now: %s", job_id, error)

    # -- removing -----------------------------------------------------------------------------------------------------

    def _size(self, directory: Path) -> tuple[int, int]:
        """When a finished job ended and how much it takes; of one that cannot be read, when its directory changed."""
        try:
            outcome = self._read_outcome(directory)
        except (JobStorageError, OSError) as error:
            self._report(directory.name, str(error))
            outcome = None
        try:
            with os.scandir(directory) as entries:
                n_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
            changed_us = directory.stat().st_mtime_ns // 1000
        except FileNotFoundError:
            return 0, 0
        return changed_us if outcome is None else outcome.finished_us, n_bytes

    def _remove(self, directory: Path) -> bool:
        """Remove a job; whether this one did. Whoever reads its results reads on."""
        gone = self.path / f"{_GONE}{directory.name}"
        try:
            directory.rename(gone)  # at once for those who look, whatever happens to its files
        except OSError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _remove_leftovers(self) -> None:
        for entry in list(os.scandir(self.path)):
            is_gone = entry.name.startswith(_GONE)
            with contextlib.suppress(OSError):
                if is_gone or (
                    entry.name.startswith(_NEW)
                    and time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER_S
                ):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def _count(self, removed: Removed) -> None:
        with held(self.path / "lock"):
            before = self.removed()
            total = {
                "n_old": before.n_old + removed.n_old,
                "n_for_room": before.n_for_room + removed.n_for_room,
                "n_bytes": before.n_bytes + removed.n_bytes,
            }
            replace(self.path / "removed.json", seal(total), durable=True)

    def _report(self, name: str, text: str) -> None:
        """Log what is in the way of nothing but should not be there, once."""
        if name not in self._reported:
            self._reported.add(name)
            log.warning("Skipped in the batch jobs: %s", text)


def _unreadable(path: Path, error: OSError) -> JobStorageError:
    return JobStorageError(f"{path} cannot be read: {error.strerror or error}")
