"""Totals over all workers, those that are gone included: counts never go backwards while a reader follows the rules here.

`fold` moves the counts of dead workers into one file. The file names the directories it holds; they are removed after it is
in place, and readers skip them while they are still there, so a crash between the two counts nothing twice. Gauges are left
out of it: what a worker said of its present ends with the worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from tiercel.errors import CounterFileError
from tiercel.monitor.counting import WORKER_CELLS, WORKER_GAUGES, Counts, check_description, read_counter_file
from tiercel.monitor.directories import is_live, worker_directories

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_TOTALS, _LOCK = "totals.msgpack", "fold.lock"
_FORMAT = "tiercel-totals-1"
_MAX_TRIES = 8
#: Among the sources: workers that are gone and were folded.
GONE = ""
#: Of a plan, in `Totals.by_version`.
_SECTIONS = ("plan", "features", "scores", "durations_ns")


@dataclass
class Totals:
    """Sums over workers.

    Attributes:
        plans: counts per version and tier (and per reference, should a version have had two).
        worker: cells of `WORKER_CELLS` by name; gauges of workers that run now.
        errors: responses by stable error code.
        n_live: workers that run now.
        problems: files that could not be read, in words.
    """

    plans: dict[str, Counts] = field(default_factory=dict)
    worker: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORKER_CELLS, 0))
    errors: dict[str, int] = field(default_factory=dict)
    n_live: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, counts: Counts, *, is_live: bool = True) -> None:
        """Add what one counter file holds; is_live: whether its worker runs, or else its gauges do not count."""
        if counts.what["kind"] == "plan":
            key = counts.key
            known = self.plans.get(key)
            self.plans[key] = counts if known is None else Counts(known.what, known.cells + counts.cells)
            return
        gone = set() if is_live else {*WORKER_GAUGES, *counts.what.get("gauges", ())}
        for name, n in zip(counts.what["cells"], counts.section("worker"), strict=False):
            if name not in gone:
                self.worker[name] = self.worker.get(name, 0) + int(n)
        for code, n in counts.errors().items():
            self.errors[code] = self.errors.get(code, 0) + n

    def by_version(self) -> dict[tuple[str, int, str], VersionCounts]:
        """Counts per (model, version, tier).

        A version whose reference changed has two sets of counts. What does not depend on edges is added up; of histograms
        of scores and features only the cells of what is not finite mean the same in both, and only those may be read.
        """
        versions: dict[tuple[str, int, str], VersionCounts] = {}
        for counts in self.plans.values():
            key = str(counts.what["model"]), int(counts.what["version"]), counts.tier.value
            sections = {name: counts.section(name) for name in _SECTIONS}
            known = versions.get(key)
            if known is None:
                versions[key] = VersionCounts(counts.what, sections)
            elif all(known.sections[name].shape == cells.shape for name, cells in sections.items()):
                versions[key] = VersionCounts(counts.what, {n: known.sections[n] + c for n, c in sections.items()})
        return versions


@dataclass(frozen=True, eq=False)
class VersionCounts:
    """What was counted of one model version in one tier. Attributes: as of `Counts`, the cells by section."""

    what: dict[str, Any]
    sections: dict[str, NDArray[np.uint64]]


def read_totals(directory: Path) -> Totals:
    """Everything counted under a state's `counters` directory. Safe beside workers that count and a process that folds.

    Unreadable files are left out and named in `problems`.
    """
    for _ in range(_MAX_TRIES):
        before = _identity(directory / _TOTALS)
        totals, folded = _read_file(directory / _TOTALS)
        for worker in worker_directories(directory):
            if worker.name not in folded:
                lives = is_live(worker)
                totals.n_live += lives
                _add_directory(totals, worker, lives=lives)
        if _identity(directory / _TOTALS) == before:  # nobody folded meanwhile
            break
    return totals


def read_sources(directory: Path) -> dict[str, Totals]:
    """As `read_totals`, but by who counted: the name of a worker start's directory, or `GONE` for those folded into one.

    Who takes differences must know whether a count is absent because nobody has it or because a file cannot be read.
    """
    sources: dict[str, Totals] = {}
    for _ in range(_MAX_TRIES):
        before = _identity(directory / _TOTALS)
        gone, folded = _read_file(directory / _TOTALS)
        sources = {GONE: gone}
        for worker in worker_directories(directory):
            if worker.name not in folded:
                sources[worker.name] = Totals()
                _add_directory(sources[worker.name], worker, lives=False)
        if _identity(directory / _TOTALS) == before:
            break
    return sources


def fold(directory: Path) -> int:
    """Add the counts of dead workers to the totals' file and remove their directories.

    Returns:
        How many workers were folded; 0 also when another process is at it.

    Raises:
        OSError: the disk refuses; nothing was lost.
        CounterFileError: the totals' file is damaged; it is left as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        totals, folded = _read_file(directory / _TOTALS)
        if totals.problems:
            raise CounterFileError(totals.problems[0])
        dead = [worker for worker in worker_directories(directory) if not is_live(worker)]
        new = [worker for worker in dead if worker.name not in folded]
        if new:
            for worker in new:
                _add_directory(totals, worker, lives=False)
            _write_file(directory / _TOTALS, totals, [worker.name for worker in dead])
        for worker in dead:
            shutil.rmtree(worker, ignore_errors=True)
        return len(new)
    finally:
        os.close(lock)


def _add_directory(totals: Totals, directory: Path, *, lives: bool) -> None:
    for path in sorted(directory.glob("*.counters")):
        if path.name.startswith("."):
            continue
        try:
            totals.add(read_counter_file(path), is_live=lives)
        except FileNotFoundError:
            continue
        except (CounterFileError, OSError, ValueError, KeyError, TypeError) as error:
            totals.problems.append(str(error))


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _read_file(path: Path) -> tuple[Totals, set[str]]:
    totals = Totals()
    try:
        found: dict[str, Any] = msgpack.unpackb(path.read_bytes())
        if found["format"] != _FORMAT:
            raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
        for text, cells in found["plans"]:
            counts = Counts(json.loads(text), np.frombuffer(cells, "<u8").astype(np.uint64))
            check_description(counts.what, len(counts.cells))
            totals.add(counts)
        counted = {str(name): int(n) for name, n in found["worker"].items()}
        totals.worker.update({name: n for name, n in counted.items() if name not in WORKER_GAUGES})
        totals.errors.update({str(code): int(n) for code, n in found["errors"].items()})
        return totals, set(map(str, found["folded"]))
    except FileNotFoundError:
        return totals, set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        return Totals(problems=[f"{path}: expected totals of workers that are gone, got: {error!r}"]), set()


def _write_file(path: Path, totals: Totals, folded: Iterable[str]) -> None:
    data = msgpack.packb(
        {
            "format": _FORMAT,
            "folded": list(folded),
            "plans": [[key, counts.cells.astype("<u8").tobytes()] for key, counts in totals.plans.items()],
            "worker": {name: n for name, n in totals.worker.items() if name not in WORKER_GAUGES},
            "errors": totals.errors,
        }
    )
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)
