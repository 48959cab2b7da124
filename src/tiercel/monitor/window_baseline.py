"""What was counted up to the last record, by who counted it: the next window is the difference to it.

Counters are cumulative, so a window is a difference of totals. Totals alone would not do: a counter file that cannot be read
for a moment makes them smaller and then larger again, and a state directory whose counters were deleted starts from zero.
Differences are therefore taken per source (a worker start, or all that were folded into one):

- a source that counted on adds what it has more;
- a new one adds everything;
- one that is gone was folded, if the folded counts grew by at least as much: what was known of it is not counted again;
- one that cannot be read, or only in part, keeps its baseline: its counts come when it can be read;
- folded counts that went backwards are others than before, and count from zero.

No difference is ever negative, and the sum of all windows is everything that was counted and could be read.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack

from tiercel.monitor.totals import GONE
from tiercel.monitor.window_files import UNREADABLE, pack_cells, unpack_cells, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tiercel.monitor.totals import Totals

    #: sha256 of a description -> cells.
    ByWhat = dict[str, NDArray[np.uint64]]

BASELINE_FILE = "baseline.msgpack"
_HEAD = struct.Struct("<8sQq")  # magic, number of the last record, when
_MAGIC = b"tiercelB"


@dataclass(frozen=True, eq=False)
class Baseline:
    """Everything counted up to a record.

    Attributes:
        number: of the last record that made a window; 0 before the first.
        end_us: when it was taken.
        sources: who counted -> description -> cells.
        problems: of records since the last window, which the next one is to tell.
    """

    number: int
    end_us: int
    sources: dict[str, ByWhat]
    problems: tuple[str, ...] = ()


@dataclass(eq=False)
class Difference:
    """What was counted since a baseline.

    Attributes:
        counts: description -> cells, only of what was counted.
        sources: the next baseline's.
        problems: what is uncertain about it, in words.
    """

    counts: ByWhat = field(default_factory=dict)
    sources: dict[str, ByWhat] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def difference(before: dict[str, ByWhat], now: dict[str, Totals], descriptions: dict[str, str]) -> Difference:
    """What `now` holds beyond `before`.

    Args:
        before: of the baseline.
        now: from `read_sources`.
        descriptions: gains sha256 -> text of every description in `now`.
    """
    made = Difference()
    for name, totals in now.items():
        made.sources[name] = cells = {}
        for text, counts in totals.plans.items():
            what = hashlib.sha256(text.encode()).hexdigest()
            descriptions[what] = text
            cells[what] = counts.cells
        made.problems += totals.problems
        if totals.problems:  # what was not read, or only in part, keeps its baseline
            kept = {what: known for what, known in before.get(name, {}).items() if _is_less(cells.get(what), known)}
            cells.update(kept)
    workers = [name for name in made.sources if name != GONE]
    for name in workers:
        for what, counted in made.sources[name].items():
            _add(made.counts, what, _grown(before.get(name, {}).get(what), counted))
    vanished = [name for name in before if name not in made.sources and name != GONE]
    _add_folded(made, before, vanished, is_readable=not now[GONE].problems)
    made.counts = {what: cells for what, cells in made.counts.items() if cells.any()}
    return made


def _add_folded(made: Difference, before: dict[str, ByWhat], vanished: list[str], *, is_readable: bool) -> None:
    """The growth of what was folded, less what was counted of its parts while they were on their own."""
    if not is_readable:
        made.sources.update({name: before[name] for name in vanished})
        return
    known, folded = before.get(GONE, {}), made.sources[GONE]
    is_other = any(_is_less(folded.get(what), cells) for what, cells in known.items())
    if is_other:
        made.problems.append("the counts of workers that are gone went backwards: counters were removed or restored")
    gained = {what: (cells if is_other else _grown(known.get(what), cells)).copy() for what, cells in folded.items()}
    for name in sorted(vanished):
        if all(what in gained and not _is_less(gained[what], cells) for what, cells in before[name].items()):
            for what, cells in before[name].items():
                gained[what] -= cells
        else:
            made.problems.append(
                f"the counters of worker start {name} are gone; nothing after the last window is known"
            )
    for what, cells in gained.items():
        _add(made.counts, what, cells)


def _grown(before: NDArray[np.uint64] | None, now: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What was counted since; everything where the cells are others than before."""
    return now if before is None or _is_less(now, before) else now - before


def _is_less(now: NDArray[np.uint64] | None, before: NDArray[np.uint64]) -> bool:
    return now is None or now.shape != before.shape or bool((now < before).any())


def _add(counts: ByWhat, what: str, cells: NDArray[np.uint64]) -> None:
    counts[what] = counts[what] + cells if what in counts else cells


def write_baseline(directory: Path, baseline: Baseline) -> None:
    """Make a baseline durable. With this its window is valid.

    Raises:
        OSError: the disk refuses; the one before still is in force.
    """
    sources = {
        name: {what: [len(cells), pack_cells(cells)] for what, cells in by_what.items()}
        for name, by_what in baseline.sources.items()
    }
    head = _HEAD.pack(_MAGIC, baseline.number, baseline.end_us)
    write_durably(directory / BASELINE_FILE, head + msgpack.packb([sources, list(baseline.problems)]))


def read_baseline(directory: Path) -> Baseline | None:
    """The baseline in force; None before the first.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        data = (directory / BASELINE_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        magic, number, end_us = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError(magic)
        found: dict[str, Any]
        found, problems = msgpack.unpackb(data[_HEAD.size :])
        sources = {
            name: {what: unpack_cells(packed, n_cells) for what, (n_cells, packed) in by_what.items()}
            for name, by_what in found.items()
        }
    except UNREADABLE as error:
        raise ValueError(f"{directory / BASELINE_FILE}: expected a baseline of windows, got: {error!r}") from error
    return Baseline(number, end_us, sources, tuple(map(str, problems)))


def last_number(directory: Path) -> int:
    """Up to which number files of windows are valid: quick, reads no cells. 0 where that cannot be said."""
    try:
        with (directory / BASELINE_FILE).open("rb", buffering=0) as stream:
            magic, number, _ = _HEAD.unpack(stream.read(_HEAD.size))
    except (OSError, struct.error):
        return 0
    return int(number) if magic == _MAGIC else 0
