"""What is known of a batch job, as plain records: their ids, states and times, and how they stand in files."""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tiercel.errors import DeadlineError, JobNotFoundError, JobStorageError

#: Microseconds since the epoch in hexadecimal, so that ids sort by time, and 64 random bits, so that none can be guessed.
_ID = re.compile(r"[0-9a-f]{14}-[0-9a-f]{16}", re.ASCII)
FORMAT = 1


class JobState(enum.StrEnum):
    """Of a job. The last three are final: a job reaches one of them, once."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing will happen to it any more."""
        return self not in {JobState.WAITING, JobState.RUNNING}


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What a store holds: of waiting and running jobs together, and of finished ones."""

    max_open: int = 1000
    max_open_bytes: int = 1 << 30  # of their questions
    keep_s: float = 7 * 86_400.0
    keep_bytes: int = 4 << 30  # of finished jobs; the newest one stays whatever its size


@dataclass(frozen=True, slots=True)
class Job:
    """What was accepted. Never changes.

    `version` is what the reference in the request meant then: a promotion while the job waits does not change who answers.
    """

    id: str
    model: str
    version: int
    classes: tuple[str, ...]  # of a multiclass model: a row's score is one number for each; else empty
    n_rows: int
    is_single: bool  # one row of scalars, not lists
    now_us: int  # the time of the read
    created_us: int
    question_bytes: int
    question_sha256: str
    due_us: int | None = None  # since the epoch: nobody wants results that are not there by then

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal job."""
        data = {**asdict(self), "classes": list(self.classes)}
        if self.due_us is None:
            del data["due_us"]  # as it was written before there was such a thing
        return data

    def require_time(self, now_us: int) -> None:
        """Refuse to go on with a job that is not wanted any more.

        Raises:
            DeadlineError: it is past its deadline.
        """
        if self.due_us is not None and now_us > self.due_us:
            raise DeadlineError(
                f"Expected the job's results by {to_iso(self.due_us)}, as its deadline_ms said, they are not complete at "
                f"{to_iso(now_us)}. Send it again with more time, or without a deadline",
                budget_us=self.due_us - self.created_us,
                needed_us=now_us - self.created_us,
            )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        job = cls(**{**data, "classes": tuple(data["classes"])})
        if not is_id(job.id) or job.n_rows < 1:
            raise ValueError(f"no job: id {job.id!r}, {job.n_rows!r} rows")
        return job


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a runner notes while it works on a job. Not synced: after a power cut the job simply starts again.

    `n_begun` counts the runs that began and neither finished nor gave the job back, this one included: runners that were
    killed. `delay` says why the job cannot run at the moment, if so.
    """

    n_begun: int = 0
    started_us: int | None = None
    rows_done: int = 0
    delay: tuple[str, str] | None = None  # code, text

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal attempt."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Attempt:
        """Inverse of `to_json`."""
        delay = data["delay"]
        return cls(**{**data, "delay": None if delay is None else (str(delay[0]), str(delay[1]))})


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: what the synchronous path would have answered."""

    code: str
    error: str
    row: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As in an error reply."""
        body: dict[str, Any] = {"code": self.code, "error": self.error}
        return body if self.row is None else {**body, "row": self.row}


@dataclass(frozen=True, slots=True)
class ResultFacts:
    """Of the results file of a job that is done."""

    n_bytes: int
    n_lines: int
    sha256: str
    oldest_age_us: int | None  # of the oldest stored value that was read
    missing: dict[str, int]  # feature -> in how many rows it had no value


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. Written once."""

    state: JobState
    finished_us: int
    started_us: int | None = None
    error: JobError | None = None
    results: ResultFacts | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal outcome."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        outcome = cls(
            JobState(data["state"]),
            data["finished_us"],
            data["started_us"],
            None if data["error"] is None else JobError(**data["error"]),
            None if data["results"] is None else ResultFacts(**data["results"]),
        )
        if not outcome.state.is_final or (outcome.state is JobState.DONE) != (outcome.results is not None):
            raise ValueError(f"no outcome: {data['state']}")
        return outcome


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and how far it is."""

    job: Job
    state: JobState
    rows_done: int
    started_us: int | None = None
    finished_us: int | None = None
    error: JobError | None = None  # why it failed; of one that waits: why it cannot run at the moment
    results: ResultFacts | None = None

    def to_json(self) -> dict[str, Any]:
        """As programs see it; times are ISO 8601, UTC."""
        return {
            "id": self.job.id,
            "state": self.state.value,
            "model": self.job.model,
            "version": self.job.version,
            "rows": self.job.n_rows,
            "rows_done": self.rows_done,
            "created": to_iso(self.job.created_us),
            "due": None if self.job.due_us is None else to_iso(self.job.due_us),
            "started": None if self.started_us is None else to_iso(self.started_us),
            "finished": None if self.finished_us is None else to_iso(self.finished_us),
            "error": None if self.error is None else self.error.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """How quick jobs were lately, and so how long others will take.

    Sums that fade: `n_jobs` and `job_us` of the time a job takes beside scoring, `n_rows` and `row_us` of scoring.
    """

    n_jobs: float = 1.0
    job_us: float = 200_000.0  # a guess until the first job has been measured
    n_rows: float = 1.0
    row_us: float = 20.0

    def wait_us(self, n_jobs: int, n_rows: int) -> int:
        """Microseconds that so much work takes."""
        return int(n_jobs * self.job_us / self.n_jobs + n_rows * self.row_us / self.n_rows)

    def with_job(self, n_rows: int, row_us: float, job_us: float, *, fade: float = 0.8) -> Pace:
        """With one more job measured: its rows, the time they took, and the time everything else took."""
        # A job of few rows says little of a row, so it makes little be forgotten.
        rows_fade = fade ** min(1.0, n_rows / 1000)
        return Pace(
            fade * self.n_jobs + 1,
            fade * self.job_us + job_us,
            rows_fade * self.n_rows + n_rows,
            rows_fade * self.row_us + row_us,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal pace."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Pace:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        pace = cls(**{name: float(value) for name, value in data.items()})
        if not (pace.n_jobs > 0 and pace.n_rows > 0 and math.isfinite(pace.job_us) and math.isfinite(pace.row_us)):
            raise ValueError(f"no pace: {data}")
        return pace


def new_id() -> str:
    """An id that no other job has; later ones sort behind earlier ones."""
    return f"{time.time_ns() // 1000:014x}-{secrets.token_hex(8)}"


def is_id(text: object) -> bool:
    """Whether a text can be the id of a job, and so is safe as a file name."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def check_id(text: object) -> str:
    """Return `text` if it can be the id of a job. Everything that comes from outside passes here before a path is made of it.

    Raises:
        JobNotFoundError: it cannot, so there is no such job.
    """
    if not isinstance(text, str) or _ID.fullmatch(text) is None:
        shown = repr(text)
        raise JobNotFoundError(
            f"Expected the id of a batch job (14 and 16 hexadecimal digits, as the reply to its request said), got "
            f"{shown if len(shown) <= 60 else shown[:57] + '...'}"
        )
    return text


def seal(record: dict[str, Any]) -> bytes:
    """A record as the content of a file that says by itself whether it is whole."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"format":{FORMAT},"sha256":"{checksum}","record":{text}}}\n'.encode()


def unseal(content: bytes, where: str) -> dict[str, Any]:
    """Inverse of `seal`.

    Raises:
        JobStorageError: the content is foreign, damaged, or of another format; `where` is named.
    """
    try:
        data = json.loads(content)
        if data["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {data['format']!r}")  # noqa: TRY301 - one message for all
        record: dict[str, Any] = data["record"]
        if seal(record) != content:
            raise ValueError("its checksum does not match its content")  # noqa: TRY301
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise JobStorageError(f"{where} is damaged or not ours: {str(error)[:200]}") from None
    return record


def to_iso(moment_us: int) -> str:
    """ISO 8601, UTC, from microseconds since the epoch."""
    return datetime.fromtimestamp(moment_us // 1_000_000, UTC).replace(microsecond=moment_us % 1_000_000).isoformat()
