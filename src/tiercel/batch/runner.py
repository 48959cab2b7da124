"""`python -m tiercel.batch.runner`: runs batch jobs, one after the other. For the control process, not for people.

Its settings come as one JSON line on standard input, which stays open for as long as whoever started it lives. It ends when
told to (SIGTERM), when that process is gone, or when there has been nothing to do for a minute. A job that it has begun is
given back then, and starts again from its first row: a job is short, and half of its answers from one base of features and
half from the next would be wrong.

It gives way to every process that somebody waits for, and is the first to go when memory is short.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from typing import TYPE_CHECKING, Protocol

from tiercel.errors import RegistryUnavailableError, ScoringFailedError, TiercelError
from tiercel.registry import Registry
from tiercel.serving.engine import Engine
from tiercel.serving.job_records import JobError
from tiercel.serving.jobs import JobStore
from tiercel.serving.life_line import begin_child
from tiercel.serving.score_check import predict

if TYPE_CHECKING:
    from tiercel._hot.plan import ServingPlan
    from tiercel.serving.job_question import Chunk
    from tiercel.serving.jobs import Claim, Job
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.batch")

#: How often it looks for jobs. A look is a listing of a directory that holds open jobs only.
POLL_S = 0.25
#: Without work for this long, it ends: it holds models and bases in memory.
IDLE_S = 60.0
NOTE_INTERVAL_S = 0.5
#: A job that cannot run at the moment (a full disk, a database that is away) is tried again after these.
FIRST_DELAY_S, MAX_DELAY_S = 1.0, 60.0
#: Added to what the kernel weighs when it must kill something for want of memory; 1000 is the most.
OOM_SCORE = 500


class Stop(Protocol):
    """Whether to end."""

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until told to end; whether that is so."""


class Runner:
    """Runs the jobs of a store.

    Args:
        settings: the project.
        store: of its jobs.
        registry: of its models; stays the caller's.

    Threads: one.
    """

    def __init__(self, settings: Settings, store: JobStore, registry: Registry) -> None:
        self._store = store
        self._engine = Engine(settings, registry)
        self._is_loaded = False
        self._delayed: dict[str, tuple[int, float]] = {}  # job -> (how often, until when)

    def run(self, stop: Stop, *, idle_s: float = IDLE_S) -> None:
        """Run what is there and what comes, until told to end or idle for so long."""
        try:
            self._store.tidy()  # a runner that was killed may have left a job with an outcome among the open ones
        except OSError as error:
            log.warning("Jobs cannot be tidied: %s", error)
        idle_since_s = time.monotonic()
        pause_s = 0.0
        while not stop.wait(pause_s):
            now_s = time.monotonic()
            if self._delayed:
                open_ids = {job.id for job in self._store.open_jobs()}
                self._delayed = {job_id: delay for job_id, delay in self._delayed.items() if job_id in open_ids}
            skipped = {job_id for job_id, (_, until_s) in self._delayed.items() if until_s > now_s}
            try:
                claim = self._store.claim_next(skipped)
            except OSError as error:
                pause_s = min(MAX_DELAY_S, max(FIRST_DELAY_S, 2 * pause_s))
                log.warning("No job can be begun, next try in %g s: %s", pause_s, error)
                continue
            pause_s = 0.0
            if claim is not None:
                with claim:
                    self._run_claimed(claim, stop)
                idle_since_s = time.monotonic()
                continue
            if self._store.open_jobs():
                idle_since_s = now_s
            elif now_s - idle_since_s >= idle_s:
                return
            pause_s = POLL_S

    def _run_claimed(self, claim: Claim, stop: Stop) -> None:
        """See one job to its outcome, or give it back."""
        job = claim.job
        place: list[Chunk] = []  # where it is
        try:
            if self._score(claim, stop, place):
                log.info("job %s: done, %d rows of %s:%d", job.id, job.n_rows, job.model, job.version)
                self._delayed.pop(job.id, None)
        except (OSError, RegistryUnavailableError) as error:
            if claim.has_outcome():  # removed, or decided, under our hands
                return
            times = self._delayed.get(job.id, (0, 0.0))[0]
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**times)
            self._delayed[job.id] = times + 1, time.monotonic() + delay_s
            text = str(error) if isinstance(error, TiercelError) else f"{error.strerror or error}"
            log.warning("job %s: cannot run now, next try in %g s: %s", job.id, delay_s, text)
            claim.release((error.code if isinstance(error, TiercelError) else "job_storage", text))
        except TiercelError as error:
            is_models = isinstance(error, ScoringFailedError)  # not the question's fault: the log has all of it
            log.log(
                logging.ERROR if is_models else logging.INFO, "job %s: failed: %s", job.id, error, exc_info=is_models
            )
            self._fail(claim, job_error(error, place[-1] if place else None))
        except Exception:  # whoever asked gets an answer and the log the reason
            log.exception("job %s: failed unexpectedly", job.id)
            self._fail(claim, JobError("internal_error", "The server failed; its log has the reason"))

    @staticmethod
    def _fail(claim: Claim, error: JobError) -> None:
        try:
            claim.fail(error)
        except OSError as problem:  # it is run again, and fails again where there is room to say so
            log.warning("job %s: its failure cannot be written: %s", claim.job.id, problem)

    def _score(self, claim: Claim, stop: Stop, place: list[Chunk]) -> bool:
        """Score a job chunk by chunk; whether it is done. Otherwise it was given back, or cancelled.

        One plan, so one version and one base of features, answers all of it.
        """
        job, begun_ns, scoring_ns = claim.job, time.perf_counter_ns(), 0
        job.require_time(_now_us())
        plan = self._plan(job)
        oldest_age_us: int | None = None
        missing: dict[str, int] = {}
        noted_s = time.monotonic()
        with claim.results() as results:
            for chunk in claim.chunks():
                if claim.has_outcome():
                    log.info("job %s: cancelled", job.id)
                    return False
                if stop.wait(0):
                    claim.release()
                    log.info("job %s: given back, to start again", job.id)
                    return False
                job.require_time(_now_us())
                place[:] = [chunk]
                now_ns = time.perf_counter_ns()
                is_single, scores, age_us, absent = predict(plan, chunk.entities, chunk.features, job.now_us)
                scoring_ns += time.perf_counter_ns() - now_ns
                results.write([scores] if is_single else scores)
                if age_us is not None:
                    oldest_age_us = age_us if oldest_age_us is None else max(oldest_age_us, age_us)
                for name, n_rows in absent:
                    missing[name] = missing.get(name, 0) + n_rows
                if time.monotonic() - noted_s > NOTE_INTERVAL_S:
                    noted_s = time.monotonic()
                    claim.note(chunk.first_row + chunk.n_rows)
            place.clear()
            job.require_time(_now_us())
            is_first = claim.finish(results, oldest_age_us, missing)
        total_ns = time.perf_counter_ns() - begun_ns
        self._store.note_pace(job.n_rows, scoring_ns / 1000, (total_ns - scoring_ns) / 1000)
        return is_first

    def _plan(self, job: Job) -> ServingPlan:
        """The plan of the version that was promised.

        Raises:
            TiercelError, OSError: it cannot be loaded.
        """
        if not self._is_loaded or self._engine.stale():
            self._engine.refresh()
            self._is_loaded = True
        reference = f"{job.model}:{job.version}"
        plan = self._engine.find_plan(reference)
        return asyncio.run(self._engine.load_plan(reference)) if plan is None else plan


def _now_us() -> int:
    """Since the epoch, as a job's deadline is."""
    return time.time_ns() // 1000


def job_error(error: TiercelError, chunk: Chunk | None) -> JobError:
    """What the synchronous path says of the same error: its row counts from the start of the job, not of the chunk."""
    # What was sent may hold half a surrogate pair, which no reply can carry.
    text = str(error).encode("utf-8", "backslashreplace").decode()
    row: int | None = getattr(error, "row", None)
    if isinstance(error, ScoringFailedError) and row is None and chunk is not None:  # which of them it was is not known
        text += f" (rows {chunk.first_row} to {chunk.first_row + chunk.n_rows - 1} were asked at once)"
    if row is None or chunk is None:
        return JobError(error.code, text, row)
    in_job = row + chunk.first_row
    text = re.sub(rf"(\$\.(?:entities|features)\..*?)\[{row}\]", rf"\g<1>[{in_job}]", text, count=1, flags=re.DOTALL)
    text = re.sub(rf"\(row {row}\)", f"(row {in_job})", text, count=1)
    return JobError(error.code, text, in_job)


def main(life_line: int = 0) -> int:
    """Take the settings from the descriptor and run jobs; returns the exit status."""
    begun = begin_child(life_line, "batch", OOM_SCORE)
    if begun is None:
        return 0
    settings, stop = begun
    registry = Registry.for_state(settings.state_dir, url=settings.registry_url)
    try:
        Runner(settings, JobStore(settings.state_dir), registry).run(stop)
    except (TiercelError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the text says it all
        return 1
    finally:
        registry.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
