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

import logging
import os
import shutil
import time
from typing import TYPE_CHECKING

from tiercel.errors import CapacityError, DeadlineError, JobStateError, JobStorageError, RequestError
from tiercel.serving.job_claim import Claim
from tiercel.serving.job_files import (
    ATTEMPT_FILE,
    CLAIM_FILE,
    DIRECTORY_MODE,
    JOB_FILE,
    LOCK_FILE,
    OUTCOME_FILE,
    QUESTION_FILE,
    RESULTS_FILE,
    held,
    make_directory,
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
    check_id,
    new_id,
    seal,
)
from tiercel.serving.job_results import ResultsReader
from tiercel.serving.job_retention import NEW, Removed, Retention
from tiercel.serving.job_shelf import PACE_FILE, JobShelf, unreadable

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tiercel.serving.router import Question

__all__ = ["Claim", "Job", "JobLimits", "JobState", "JobStatus", "JobStore", "Removed"]

log = logging.getLogger("tiercel.batch")

JOBS = "jobs"
#: A job during which so many runners were killed is what kills them.
MAX_ATTEMPTS = 10


class JobStore:
    """The batch jobs of a state directory. Making one touches nothing; directories are made by the first job.

    Args:
        state_dir: of the project.
        limits: how much it holds.

    Threads: safe, and safe with any number of other processes on the same directory.
    """

    def __init__(self, state_dir: Path, limits: JobLimits | None = None) -> None:
        self.path = state_dir / JOBS
        self._limits = JobLimits() if limits is None else limits
        self._shelf = JobShelf(self.path, self._limits.keep_s)
        self._retention = Retention(self._shelf, self._limits)
        self._open, self._finished = self._shelf.open, self._shelf.finished

    # -- for those who ask --------------------------------------------------------------------------------------------

    def submit(
        self,
        question: Question,
        *,
        model: str,
        version: int,
        classes: tuple[str, ...] = (),
        due_us: int | None = None,
    ) -> Job:
        """Accept a job. On return it is on disk and will be run.

        Args:
            question: what to score; finite numbers, texts, booleans and None, or lists of them.
            model: who will answer.
            version: likewise.
            classes: of a multiclass model.
            due_us: since the epoch; by then it is finished, or fails. None: it takes as long as it takes.

        Raises:
            RequestError: the question cannot be stored faithfully, or is larger than the store.
            DeadlineError: it will not be finished by `due_us`, as measured.
            CapacityError: too much waits already.
            JobStorageError: the disk is full, or not ours to write. Nothing was accepted and nothing is left of it.
        """
        n_rows, is_single = measure(question)
        try:
            self._make_directories()
            self._require_room(0)  # before anything is written for nothing
            self._require_time(n_rows, due_us)
            return self._write(question, model, version, classes, n_rows, is_single, due_us)
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
        return self._shelf.find(job_id)[1]

    def results(self, job_id: str) -> tuple[JobStatus, ResultsReader]:
        """A job's results; the reader is the caller's to close.

        Raises:
            JobNotFoundError, JobStorageError: as `status`.
            JobStateError: it is not finished, or failed, or was cancelled; `code` says which.
        """
        check_id(job_id)
        directory, status = self._shelf.find(job_id)
        if status.results is None:
            raise self._no_results(status)
        try:
            return status, ResultsReader(directory / RESULTS_FILE, status.results)
        except FileNotFoundError:
            # Between the two looks it was moved, or removed. Once it is in its last place only the second is left.
            directory, status = self._shelf.find(job_id)
            if status.results is None:  # pragma: no cover - an outcome does not change
                raise self._no_results(status) from None
            try:
                return status, ResultsReader(directory / RESULTS_FILE, status.results)
            except OSError as error:
                raise unreadable(directory / RESULTS_FILE, error) from error
        except OSError as error:
            raise unreadable(directory / RESULTS_FILE, error) from error

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
        return self._shelf.list_jobs(limit)

    def open_jobs(self) -> list[Job]:
        """Jobs that wait or run, oldest first."""
        return self._shelf.open_jobs()

    def removed(self) -> Removed:
        """How many finished jobs were removed."""
        return self._retention.removed()

    def wait_us(self, status: JobStatus) -> int:
        """When a job is expected to be finished, in microseconds from now, as measured; 0 when it is."""
        if status.state.is_final:
            return 0
        ahead = [job for job in self.open_jobs() if job.id < status.job.id]
        n_rows = sum(job.n_rows for job in ahead) + status.job.n_rows - status.rows_done
        return self._shelf.pace().wait_us(len(ahead) + 1, n_rows)

    # -- for runners --------------------------------------------------------------------------------------------------

    def claim_next(self, skip: Collection[str] = ()) -> Claim | None:
        """The next job that nobody runs; None if there is none.

        The oldest first, but those during which a runner was killed after all others.

        Args:
            skip: ids to leave alone.

        Raises:
            OSError: the disk is full.
        """
        waiting = [(self._shelf.attempt(self._open / job.id), job) for job in self.open_jobs() if job.id not in skip]
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
            content = seal(self._shelf.pace().with_job(n_rows, row_us, job_us).to_json())
            replace(self.path / PACE_FILE, content, durable=False)
        except OSError as error:  # only predictions depend on it
            log.debug("pace: %s", error)

    def tidy(self) -> Removed:
        """Remove finished jobs that are too old or too large together, oldest first, and what killed processes left.

        Returns:
            What was removed now.

        Raises:
            OSError: the directories cannot be read or written.
        """
        for name in self._shelf.names(self._open):
            if (self._open / name / OUTCOME_FILE).exists():
                self.settle(name)
        return self._retention.apply()

    # -- letting in ---------------------------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        make_directory(self._open)
        make_directory(self._finished)

    def _write(
        self,
        question: Question,
        model: str,
        version: int,
        classes: tuple[str, ...],
        n_rows: int,
        is_single: bool,
        due_us: int | None,
    ) -> Job:
        job_id = new_id()
        unfinished = self.path / f"{NEW}{job_id}"
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
                due_us=due_us,
            )
            write_new(unfinished / JOB_FILE, [seal(job.to_json())])
            sync_directory(unfinished)
            with held(self.path / LOCK_FILE):  # workers that submit at once must not overfill it together
                self._require_room(n_bytes)
                unfinished.rename(self._open / job_id)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        try:
            sync_directory(self._open)
        except BaseException:
            self._retention.remove(self._open / job_id)  # nobody will be told its id
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
            wait_us = self._shelf.pace().wait_us(n_ahead, rows_ahead)
            raise CapacityError(
                f"The batch tier holds {len(jobs)} jobs of {sum(job.question_bytes for job in jobs)} bytes that wait or run, "
                f"of at most {limits.max_open} jobs and {limits.max_open_bytes} bytes. There should be room in "
                f"{wait_us / 1e6:.1f} s",
                predicted_wait_us=wait_us,
            )

    def _require_time(self, n_rows: int, due_us: int | None) -> None:
        """Refuse what would be finished too late.

        Raises:
            DeadlineError: see `submit`.
        """
        if due_us is None:
            return
        ahead = self.open_jobs()
        wait_us = self._shelf.pace().wait_us(len(ahead) + 1, sum(job.n_rows for job in ahead) + n_rows)
        left_us = due_us - time.time_ns() // 1000
        if wait_us > left_us:
            raise DeadlineError(
                f"Expected {wait_us / 1000:.3f} ms for a batch job of {n_rows} rows behind {len(ahead)} others, as measured, "
                f"got {max(left_us, 0) / 1000:.3f} ms of its deadline_ms. Nothing was accepted. Allow more time, or leave "
                f"the deadline out and ask for the results later",
                budget_us=max(left_us, 0),
                needed_us=wait_us,
            )

    # -- looking ------------------------------------------------------------------------------------------------------

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
            before = self._shelf.attempt(directory)
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
