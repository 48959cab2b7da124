"""One runner's hold on one batch job, from its claim to its outcome.

The hold is a lock on a file in the job's directory: the kernel lets go of it when the runner ends, however it ends, so a dead
runner's claim is void. The outcome is a file that is only ever made, never replaced: of a runner that finishes and a caller
who cancels, the first decides, and nobody runs the job again. A runner that is killed before that leaves a job that starts
again from its first row; what it had written is overwritten.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Self

from tiercel.serving.job_files import (
    ATTEMPT_FILE,
    OUTCOME_FILE,
    QUESTION_FILE,
    RESULTS_FILE,
    read_record,
    replace,
    write_once,
)
from tiercel.serving.job_question import read_chunks
from tiercel.serving.job_records import Attempt, JobState, Outcome, ResultFacts, seal
from tiercel.serving.job_results import ResultsWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tiercel.serving.job_question import Chunk
    from tiercel.serving.job_records import Job, JobError

log = logging.getLogger("tiercel.batch")


class Claim:
    """Made by `JobStore.claim_next`; held until the end of its `with` block.

    Args:
        directory: of the job.
        job: what was accepted.
        descriptor: has the lock; closed in the end.
        attempt: this one.
        settle: called in the end, with the lock held, if the job has an outcome.
    """

    def __init__(
        self, directory: Path, job: Job, descriptor: int, attempt: Attempt, settle: Callable[[str], None]
    ) -> None:
        self.job = job
        self._directory = directory
        self._descriptor = descriptor
        self._attempt = attempt
        self._settle = settle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.has_outcome():
                self._settle(self.job.id)
        finally:
            os.close(self._descriptor)

    def chunks(self) -> Iterator[Chunk]:
        """The question, some rows at a time.

        Raises:
            JobStorageError: it is not what was accepted.
            OSError: it cannot be read.
        """
        return read_chunks(self._directory / QUESTION_FILE, self.job)

    def results(self) -> ResultsWriter:
        """An empty results file.

        Raises:
            OSError: it cannot be made.
        """
        return ResultsWriter(self._directory / f".{RESULTS_FILE}")

    def has_outcome(self) -> bool:
        """Whether somebody decided: the job was cancelled, or this runner is done with it."""
        return (self._directory / OUTCOME_FILE).exists() or not self._directory.exists()

    def note(self, rows_done: int) -> None:
        """Say how far the job is, for those who look."""
        self._write_attempt(replaced(self._attempt, rows_done=rows_done))

    def finish(self, results: ResultsWriter, oldest_age_us: int | None, missing: dict[str, int]) -> bool:
        """Publish the results; False if the job was cancelled before.

        Raises:
            OSError: the disk is full; the job has no outcome.
        """
        path = self._directory / RESULTS_FILE
        sha256 = results.publish(path)
        facts = ResultFacts(results.n_bytes, results.n_lines, sha256, oldest_age_us, missing)
        # The outcome's own sync of the directory makes the results' name durable too, before anybody can know of them.
        is_ours = False
        try:
            is_ours = self._decide(JobState.DONE, results=facts)
        finally:
            if not is_ours and not self._is_done(facts):
                path.unlink(missing_ok=True)
        return is_ours

    def fail(self, error: JobError) -> bool:
        """Say why there will be no results; False if the job was cancelled before.

        Raises:
            OSError: the disk is full; the job has no outcome.
        """
        return self._decide(JobState.FAILED, error=error)

    def release(self, delay: tuple[str, str] | None = None) -> None:
        """Give the job back unfinished, to be run from its first row; `delay` is the code and text of what is in the way."""
        self._write_attempt(Attempt(n_begun=self._attempt.n_begun - 1, delay=delay))

    def _is_done(self, facts: ResultFacts) -> bool:
        """Whether the outcome is these results: it may be in its place although making it durable failed."""
        try:
            content = read_record(self._directory / OUTCOME_FILE)
        except OSError:
            return False
        return facts.sha256.encode() in content

    def _decide(self, state: JobState, *, error: JobError | None = None, results: ResultFacts | None = None) -> bool:
        outcome = Outcome(state, time.time_ns() // 1000, self._attempt.started_us, error, results)
        return write_once(self._directory / OUTCOME_FILE, seal(outcome.to_json()))

    def _write_attempt(self, attempt: Attempt) -> None:
        try:
            replace(self._directory / ATTEMPT_FILE, seal(attempt.to_json()), durable=False)
        except OSError as error:  # nobody's score depends on it
            log.debug("job %s: %s", self.job.id, error)
