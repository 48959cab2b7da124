"""Counter files: what each worker counts, readable by other processes while it counts and after it was killed.

    <state>/counters/<start>-<worker>-<pid>/worker.counters        one per worker start
                                            plan-000001.counters   one per model version it served
    <state>/counters/totals.msgpack                                sums of workers that are gone

A counter file is 64 bytes of header, JSON that says what every cell is, and uint64 cells. The worker's event loop is the
only writer and only adds, so totals are sums over files, windows are differences of totals, and no lock is needed. A
version's cells are its own: a promotion cannot mix two models' counts. A worker's few gauges are set instead; they are
summed over workers that live and end with them.

Cells have names in the file, so files of a tiercel that counted less, or more, are read like any other.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel._hot.counters import (
    ERROR_NAME_SIZE,
    PLAN_CELLS,
    STAGES,
    WORKER_CELLS,
    WORKER_GAUGES,
    PlanCounters,
    WorkerCounters,
    magnitude_bounds,
    plan_sections,
    worker_sections,
)
from tiercel.errors import CounterFileError
from tiercel.monitor.allocation import map_new_file
from tiercel.types import Tier

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Sections = Mapping[str, tuple[int, tuple[int, ...]]]

__all__ = [
    "MAGNITUDE_BOUNDS",
    "PLAN_CELLS",
    "STAGES",
    "WORKER_CELLS",
    "WORKER_GAUGES",
    "Counts",
    "PlanCounters",
    "WorkerCounters",
    "check_description",
    "make_plan_counters",
    "make_worker_counters",
    "read_counter_file",
]

#: Lowest value of each cell of a duration (ns) or age (ms) histogram, and of the overflow.
MAGNITUDE_BOUNDS: NDArray[np.int64] = magnitude_bounds()
_MAGIC = b"tiercelC"
_FORMAT = 1
_HEAD = struct.Struct("=8sIIQQ32x")  # magic, format, bytes of JSON, first byte of the cells, number of cells
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Counts:
    """Cells and what they mean. Counts of equal `what` may be added.

    Attributes:
        what: JSON values: "kind" ("plan" or "worker"), "sections", and for a plan "model", "version", "features",
            "n_outputs", "tier" (absent in files before there were tiers: realtime), "reference" (digest or None),
            "feature_edges" and "score_edges" (finite edges only).
        cells: uint64, one-dimensional.
    """

    what: dict[str, Any]
    cells: NDArray[np.uint64]

    def section(self, name: str) -> NDArray[np.uint64]:
        """The cells of one section, in its shape."""
        first, shape = self.what["sections"][name]
        n = int(np.prod(shape))
        return self.cells[first : first + n].reshape(shape)

    @property
    def tier(self) -> Tier:
        """The tier a plan answers in."""
        return Tier(self.what.get("tier", Tier.REALTIME))

    @property
    def key(self) -> str:
        """Equal for counts that may be added."""
        return json.dumps(self.what, sort_keys=True, separators=(",", ":"))

    def errors(self) -> dict[str, int]:
        """A worker's errors by stable code."""
        found: dict[str, int] = {}
        for name, n in zip(self.section("error_names"), self.section("errors"), strict=True):
            text = name.tobytes()
            if text[0] and n:
                code = text[1 : 1 + min(text[0], ERROR_NAME_SIZE - 1)].decode("ascii", "replace")
                found[code] = found.get(code, 0) + int(n)
        return found


def make_worker_counters(directory: Path, who: Mapping[str, Any]) -> WorkerCounters:
    """A worker's counters in a new file.

    Args:
        directory: of the worker start.
        who: JSON values that say which worker start this is.

    Raises:
        OSError: the file cannot be made.
    """
    sections = worker_sections()
    what = {"kind": "worker", "cells": list(WORKER_CELLS), "gauges": list(WORKER_GAUGES), "sections": sections}
    mapped, first, size = _make_file(directory / "worker.counters", who, what, sections)
    return WorkerCounters(memoryview(mapped)[first : first + size])


def make_plan_counters(
    path: Path,
    who: Mapping[str, Any],
    what: Mapping[str, Any],
    feature_edges: NDArray[np.float32],
    score_edges: NDArray[np.float64],
) -> PlanCounters:
    """Counters of one model version in a new file.

    Args:
        path: the file; must not exist.
        who: JSON values that say which worker start this is.
        what: JSON values that say which version this is, and in which tier.
        feature_edges: see `tiercel.monitor.reference`.
        score_edges: likewise.

    Raises:
        OSError: the file cannot be made.
    """
    sections = plan_sections(len(feature_edges), len(score_edges))
    described = {
        "kind": "plan",
        **what,
        "cells": list(PLAN_CELLS),
        "stages": list(STAGES),
        "feature_edges": _finite(feature_edges),
        "score_edges": _finite(score_edges),
        "sections": sections,
    }
    mapped, first, size = _make_file(path, who, described, sections)
    return PlanCounters(
        len(feature_edges), len(score_edges), feature_edges, score_edges, memoryview(mapped)[first : first + size]
    )


def read_counter_file(path: Path) -> Counts:
    """The counts in a file, whether its worker counts on, ended or was killed.

    Raises:
        CounterFileError: it is not a counter file, was cut short, or has a format this version does not know.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        size = os.fstat(descriptor).st_size
        # Read, not mapped: a file that shrinks under a map kills the process.
        data = stream.read(min(size, _MAX_FILE_BYTES)) if size else b""
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise CounterFileError(f"{path}: expected a counter file of tiercel, got something else")
    _, file_format, json_bytes, first, n_cells = _HEAD.unpack_from(data)
    if file_format != _FORMAT:
        raise CounterFileError(
            f"{path}: expected counter format {_FORMAT}, got {file_format}. Read it with the tiercel that wrote it, "
            f"or remove it"
        )
    if _HEAD.size + json_bytes > first or first % 8 or first + 8 * n_cells > len(data):
        raise CounterFileError(f"{path}: expected {first + 8 * n_cells} bytes, got {len(data)}: it was cut short")
    try:
        what = json.loads(data[_HEAD.size : _HEAD.size + json_bytes])["what"]
        check_description(what, n_cells)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CounterFileError(f"{path}: expected a description of its cells, got: {error!r}") from error
    return Counts(what, np.frombuffer(data, np.uint64, n_cells, first).copy())


def check_description(what: Any, n_cells: int) -> None:
    """Refuse a description that is not of this layout, or of other cells than there are.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not.
    """
    if what["kind"] == "worker":
        names, gauges = what["cells"], what.get("gauges", [])
        if not all(type(name) is str for name in (*names, *gauges)) or len(set(names)) < len(names):
            raise ValueError("no names of cells")
        _, (n_worker_cells,) = what["sections"]["worker"]  # another version may have counted less, or more
        if type(n_worker_cells) is not int or not len(names) <= n_worker_cells <= n_cells:
            raise ValueError(f"{len(names)} names for {n_worker_cells!r} cells")
        expected: Sections = worker_sections(n_worker_cells)
    elif what["kind"] == "plan":
        features, n_outputs = what["features"], what["n_outputs"]
        if not all(type(name) is str for name in (what["model"], *features)) or type(what["version"]) is not int:
            raise ValueError("no model version")
        Tier(what.get("tier", Tier.REALTIME))
        expected = plan_sections(len(features), n_outputs)
    else:
        raise ValueError(what["kind"])
    found, due = (json.dumps(each, sort_keys=True) for each in (what["sections"], expected))
    if found != due:  # as text: 32.0 is equal to 32, and is no place of a cell
        raise ValueError("sections of another version of tiercel")
    if n_cells != _size(expected):
        raise ValueError(f"{n_cells} cells")


def _size(sections: Sections) -> int:
    return max(first + int(np.prod(shape)) for first, shape in sections.values())


def _make_file(
    path: Path, who: Mapping[str, Any], what: Mapping[str, Any], sections: Sections
) -> tuple[mmap.mmap, int, int]:
    """A new mapped file, the first byte of its cells and their bytes."""
    text = json.dumps({"who": who, "what": what}, separators=(",", ":"), allow_nan=False).encode()
    n_cells = _size(sections)
    first_byte = -(-(_HEAD.size + len(text)) // 4096) * 4096  # cells on pages of their own
    head = _HEAD.pack(_MAGIC, _FORMAT, len(text), first_byte, n_cells) + text
    return map_new_file(path, first_byte + 8 * n_cells, head), first_byte, 8 * n_cells


def _finite(edges: NDArray[Any]) -> list[list[float]]:
    return [[float(edge) for edge in row[np.isfinite(row)]] for row in edges]
