"""The results of a batch job: JSON lines, one array of scores for each slice of rows.

JSON lines and not a columnar file: most callers ask for JSON, and get the very bytes that lie here, so that a million rows
cost a worker a copy; every float is written shortest and comes back as it was; and a person can read it. Arrow and msgpack
are made of it a slice at a time for those who ask.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Self

import orjson

from tiercel.errors import JobStorageError
from tiercel.serving.job_files import FILE_MODE, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tiercel.serving.job_records import ResultFacts


class ResultsWriter:
    """Writes one attempt's scores; what an earlier attempt left at `path` is overwritten.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE
        )
        self._digest = hashlib.sha256()
        self.n_bytes = self.n_lines = 0

    def write(self, scores: list[Any]) -> None:
        """Add the scores of some rows, at least one.

        Raises:
            OSError: the disk is full.
        """
        line = orjson.dumps(scores) + b"\n"
        write_all(self._descriptor, line)
        self._digest.update(line)
        self.n_bytes += len(line)
        self.n_lines += 1

    def publish(self, path: Path) -> str:
        """Make what was written durable and give it its name; returns its sha256.

        Raises:
            OSError: the disk is full, or the job is gone.
        """
        os.fsync(self._descriptor)
        self._path.replace(path)
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


class ResultsReader:
    """The lines of a results file, in order; they stay readable while the job is removed.

    Args:
        path: the file.
        facts: what the job's outcome says of it.

    Raises:
        JobStorageError: it has another size.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, facts: ResultFacts) -> None:
        self._path, self._facts = path, facts
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._stream = os.fdopen(descriptor, "rb", buffering=1 << 18)
        n_bytes = os.fstat(descriptor).st_size
        if n_bytes != facts.n_bytes:
            self._stream.close()
            raise self._damaged(f"{facts.n_bytes} bytes", f"{n_bytes}")

    def __iter__(self) -> Iterator[bytes]:
        """Each line without its newline.

        Raises:
            JobStorageError: after the last line, when they are not what the job wrote.
        """
        digest = hashlib.sha256()
        for line in self._stream:
            digest.update(line)
            yield line[:-1]
        if digest.hexdigest() != self._facts.sha256:
            raise self._damaged(f"sha256 {self._facts.sha256[:12]}", digest.hexdigest()[:12])

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def _damaged(self, expected: str, got: str) -> JobStorageError:
        return JobStorageError(
            f"{self._path}: expected {expected}, got {got}: the results were altered. Submit the job again"
        )
