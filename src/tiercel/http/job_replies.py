"""A job's results as the body of a reply, in the shape of a synchronous one, a slice of rows at a time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import msgpack
import orjson

from tiercel.http import payload
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.serving.job_results import ResultsReader
    from tiercel.serving.jobs import JobStatus

#: An Arrow IPC stream: one column "score" (a list of one number per class for a multiclass model).
ARROW = "application/vnd.apache.arrow.stream"


def encode_results(status: JobStatus, lines: ResultsReader, kind: str) -> Iterator[bytes]:
    """The body of a reply, in parts.

    Args:
        status: of a job that is done.
        lines: its results.
        kind: JSON, MSGPACK or ARROW.

    Raises:
        JobStorageError: after the last score, when the file is not what the job wrote: the body has no end then.
    """
    if kind == ARROW:
        return _arrow(status, lines)
    return _json(status, lines) if kind == payload.JSON else _msgpack(status, lines)


def results_length(status: JobStatus, kind: str) -> int | None:
    """Bytes of the whole body, where that is known before it is made."""
    if kind != payload.JSON or status.results is None:
        return None
    begin, end = _json_frame(status)
    # Each line loses its brackets and its newline, and all but the first get a comma.
    return len(begin) + status.results.n_bytes - 2 * status.results.n_lines - 1 + len(end)


def _head(status: JobStatus) -> dict[str, Any]:
    """Everything but the scores."""
    job, facts = status.job, status.results
    missing: dict[str, int] = {} if facts is None else facts.missing
    age_us = None if facts is None else facts.oldest_age_us
    return {
        "id": job.id,
        "model": job.model,
        "version": job.version,
        "tier": Tier.BATCH.value,
        "features": {
            "oldest_age_ms": None if age_us is None else age_us / 1000,
            "missing": list(missing) if job.is_single else missing,
        },
    }


def _json_frame(status: JobStatus) -> tuple[bytes, bytes]:
    head = orjson.dumps(_head(status))[:-1]
    return (head + b',"score":', b"}") if status.job.is_single else (head + b',"scores":[', b"]}")


def _json(status: JobStatus, lines: ResultsReader) -> Iterator[bytes]:
    begin, end = _json_frame(status)
    yield begin
    comma = b""
    for line in lines:
        yield comma + line[1:-1]  # the array's own brackets; a score's, of a multiclass model, stay
        comma = b","
    yield end


def _msgpack(status: JobStatus, lines: ResultsReader) -> Iterator[bytes]:
    packer, head, job = msgpack.Packer(), _head(status), status.job
    yield packer.pack_map_header(len(head) + 1) + b"".join(
        packer.pack(name) + packer.pack(value) for name, value in head.items()
    )
    yield packer.pack("score") if job.is_single else packer.pack("scores") + packer.pack_array_header(job.n_rows)
    for line in lines:
        yield b"".join(map(packer.pack, orjson.loads(line)))


def _arrow(status: JobStatus, lines: ResultsReader) -> Iterator[bytes]:
    import pyarrow as pa

    classes = status.job.classes
    kind = pa.list_(pa.float64(), len(classes)) if classes else pa.float64()
    head = {f"tiercel.{name}": orjson.dumps(value).decode() for name, value in _head(status).items()}
    if classes:
        head["tiercel.classes"] = orjson.dumps(classes).decode()
    schema = pa.schema([pa.field("score", kind)], metadata=head)
    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
        for line in lines:
            writer.write_batch(pa.record_batch([pa.array(orjson.loads(line), kind)], schema=schema))
            yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Keep a copy."""
        part = bytes(data)
        self._parts.append(part)
        return len(part)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken
