"""What a batch job is asked, on disk: JSON lines, in slices of rows, so that neither end ever holds more than one.

The first line holds what is the same for every row and the time of the read; each other line up to CHUNK_ROWS values of
every list. JSON, because its integers have any size and its floats come back as they went, so that a job answers, and
refuses, exactly what the synchronous path would. What JSON cannot hold is refused when the job is submitted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import JobStorageError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tiercel.serving.job_records import Job
    from tiercel.serving.router import Question

#: Rows of one line of a question and of its results. PERF: a millisecond of encoding holds the GIL for no longer than that.
CHUNK_ROWS = 1000
_SCALARS = {type(None), bool, int, float, str}
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a question; scalars and lists as `ServingPlan.predict` takes them. `first_row` is its first one's index."""

    first_row: int
    n_rows: int
    entities: dict[str, Any]
    features: dict[str, Any]


def measure(question: Question) -> tuple[int, bool]:
    """Number of rows, and whether it is one row of scalars. Refuses what could not be stored faithfully.

    Raises:
        RequestError: `wrong_length`, `wrong_type`, `not_finite` (with the row), or nothing to score.
    """
    n_rows, first = None, ""
    for part, columns in (("entities", question.entities), ("features", question.features)):
        for name, column in columns.items():
            where = f"$.{part}.{name}"
            _check_values(column, where)
            if type(column) is not list:
                continue
            if n_rows is None:
                n_rows, first = len(column), where
            elif len(column) != n_rows:
                raise RequestError(
                    f"Expected lists of equal length, got {n_rows} at {first} and {len(column)} at {where}",
                    code="wrong_length",
                )
    if n_rows == 0 or not (question.entities or question.features):
        raise RequestError("Expected at least one row to score, got none")
    return (1, True) if n_rows is None else (n_rows, False)


def first_row(question: Question) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entities and features of the first row alone, lists of one where there were lists."""
    return _slice(question.entities, 0, 1), _slice(question.features, 0, 1)


def encode(question: Question, n_rows: int) -> Iterator[bytes]:
    """The lines of a question that `measure` let through.

    Raises:
        RequestError: an integer of thousands of digits.
    """
    scalars = [
        {name: v for name, v in columns.items() if type(v) is not list}
        for columns in (question.entities, question.features)
    ]
    lists = [
        {name: v for name, v in columns.items() if type(v) is list}
        for columns in (question.entities, question.features)
    ]
    yield _line({"entities": scalars[0], "features": scalars[1], "now_us": question.now_us})
    if lists[0] or lists[1]:
        for at in range(0, n_rows, CHUNK_ROWS):
            rows = [_slice(columns, at, at + CHUNK_ROWS) for columns in lists]
            yield _line({"entities": rows[0], "features": rows[1]})


def read_chunks(path: Path, job: Job) -> Iterator[Chunk]:
    """The question in slices, once all of it was found to be what was accepted.

    Raises:
        JobStorageError: the file is not what was accepted.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        digest, n_bytes = hashlib.sha256(), 0
        while block := stream.read(_READ_BYTES):
            digest.update(block)
            n_bytes += len(block)
        if n_bytes != job.question_bytes or digest.hexdigest() != job.question_sha256:
            raise JobStorageError(
                f"{path}: expected {job.question_bytes} bytes with sha256 {job.question_sha256[:12]}, got {n_bytes} with "
                f"{digest.hexdigest()[:12]}: it was altered after the job was accepted. Submit the job again"
            )
        stream.seek(0)
        head = json.loads(stream.readline())
        at = 0
        if job.is_single:
            yield Chunk(0, 1, head["entities"], head["features"])
            return
        for line in stream:
            rows = json.loads(line)
            n_rows = len(next(column for part in ("entities", "features") for column in rows[part].values()))
            yield Chunk(at, n_rows, {**head["entities"], **rows["entities"]}, {**head["features"], **rows["features"]})
            at += n_rows


def _check_values(column: Any, where: str) -> None:
    values = column if type(column) is list else [column]
    kinds: set[type] = set()
    for start in range(0, len(values), CHUNK_ROWS):  # in one go a million values would keep the GIL
        kinds.update(map(type, values[start : start + CHUNK_ROWS]))
    if kinds <= _SCALARS and (float not in kinds or all(math.isfinite(v) for v in values if type(v) is float)):
        return
    for row, value in enumerate(values):
        place = f"{where}[{row}]" if type(column) is list else where
        at = row if type(column) is list else None
        if type(value) not in _SCALARS:
            raise RequestError(
                f"Expected a number, a text, true, false or null at {place}, got {reprlib.repr(value)}",
                code="wrong_type",
                row=at,
            )
        if type(value) is float and not math.isfinite(value):
            raise RequestError(
                f"Expected a finite number at {place}, got {value}. Send null for a missing value",
                code="not_finite",
                row=at,
            )


def _slice(columns: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: v[start:stop] if type(v) is list else v for name, v in columns.items()}


def _line(value: dict[str, Any]) -> bytes:
    try:
        # ASCII: half a surrogate pair, which a JSON body may hold, has no UTF-8 and must reach the plan to be refused.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    except ValueError as error:  # Python writes no integer of more than 4300 digits
        raise RequestError(
            f"Expected numbers that fit a feature, got one that does not: {error}", code="not_finite"
        ) from None
