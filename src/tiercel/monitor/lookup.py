"""One prediction's record, found by the id that its reply had.

An id is 16 hexadecimal digits that only one worker start has, then the reply's number there. Every segment names its worker
start in its header, so only those segments are read, beginning with the one the number should be in. What a live worker
answered is found at once: its segments are memory that the reader's kernel shows too, synced or not.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from tiercel.errors import JournalError, NotFoundError, RequestError
from tiercel.monitor.directories import is_live
from tiercel.monitor.journal import first_number, read_header, read_segment, segment_paths

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.monitor.journal import Record

_ID = re.compile(r"([0-9a-f]{16})(0|[1-9a-f][0-9a-f]{0,15})")


def find_record(directory: Path, prediction_id: str) -> Record:
    """The record of an answered request; of a large one, which has several, the first. One that was sent before a shadow's.

    Args:
        directory: a state's `journal` directory.
        prediction_id: the reply's `id`.

    Raises:
        RequestError: it cannot be the id of a reply.
        NotFoundError: the journal does not hold it; the message says why that may be.
        JournalError: nor can all of the segments be read that it may be in.
    """
    prefix, number = split_id(prediction_id)
    damages: list[JournalError] = []
    segments = _segments_of(directory, prefix, damages)
    shadow: Record | None = None
    for _, path in _by_distance(segments, number):
        try:
            for record in read_segment(path, number=number):
                if not record.is_shadow:
                    return record
                shadow = shadow or record
        except FileNotFoundError:  # retention was faster
            continue
        except JournalError as error:
            damages.append(error)
    if shadow is not None:
        return shadow
    if damages:
        raise JournalError(
            f"Expected prediction {prediction_id} under {directory}. It is not in what can be read, but not all can: "
            f"{damages[0]}"
        )
    raise NotFoundError(
        f"Expected prediction {prediction_id} under {directory}. {_absence(directory, segments, number)}"
    )


def find_records(directory: Path, prediction_id: str) -> list[Record]:
    """All records of an answered request, in order of their rows. Arguments and errors as `find_record`.

    Raises:
        JournalError: some of them cannot be read.
    """
    first = find_record(directory, prediction_id)
    if first.first_row == 0 and len(first.rows) == first.request_rows:
        return [first]
    prefix, number = split_id(prediction_id)
    damages: list[JournalError] = []
    found: dict[int, Record] = {}
    n_rows = 0
    for _, path in _by_distance(_segments_of(directory, prefix, damages), number):
        try:
            for record in read_segment(path, number=number):
                if record.is_shadow == first.is_shadow:
                    found[record.first_row] = record
        except FileNotFoundError:
            continue
        except JournalError as error:
            damages.append(error)
        n_rows = sum(len(record.rows) for record in found.values())
        if n_rows == first.request_rows:
            return [found[row] for row in sorted(found)]
    why = f"; {damages[0]}" if damages else ". The others were dropped, or gave way"
    raise JournalError(
        f"Expected {first.request_rows} rows of prediction {prediction_id} under {directory}, got {n_rows}{why}"
    )


def split_id(prediction_id: str) -> tuple[str, int]:
    """What tells the worker start of a reply's id, and its number there.

    Raises:
        RequestError: it cannot be the id of a reply.
    """
    match = _ID.fullmatch(prediction_id)
    if match is None:
        raise RequestError(
            f'Expected the id of a reply, 17 to 32 hexadecimal digits as in its "id", got {prediction_id[:60]!r}'
        )
    return match[1], int(match[2], 16)


def _segments_of(directory: Path, prefix: str, damages: list[JournalError]) -> list[tuple[int | None, Path]]:
    """(number of its first record, path) of each segment of the worker start, in order. None: no record, or unknown."""
    found: list[tuple[int | None, Path]] = []
    for path in segment_paths(directory):
        try:
            if read_header(path)[1] == prefix:
                found.append((first_number(path), path))
        except FileNotFoundError:
            continue
        except JournalError as error:
            damages.append(error)
    return found


def _by_distance(segments: list[tuple[int | None, Path]], number: int) -> list[tuple[int | None, Path]]:
    """The segments, those first that the number is likely in. Numbers ascend but for what waited in a queue."""
    known = [(first, place) for place, (first, _) in enumerate(segments) if first is not None]
    after = bisect_right([first for first, _ in known], number)
    likely = known[max(0, after - 1)][1] if known else 0
    places = sorted(range(len(segments)), key=lambda place: abs(place - likely))
    return [segments[place] for place in places]


def _absence(directory: Path, segments: list[tuple[int | None, Path]], number: int) -> str:
    """Why a record that may have been there is not."""
    if not segments:
        return (
            "No segment there is of the worker that answers with this id: its records were the oldest and gave way "
            "(journal.max_bytes), the journal was off (journal.enabled), or a server of another state directory answered"
        )
    firsts = [first for first, _ in segments if first is not None]
    if firsts and number < min(firsts):
        return "Older records of its worker were removed to make room. Keep more with journal.max_bytes"
    if not firsts or number >= firsts[-1]:
        worker = segments[-1][1].parent
        if worker != directory and is_live(worker):
            return (
                "Its worker runs and has not recorded such a reply (yet): the id is of no reply of its, the reply is "
                "just being made, or its record was dropped; tiercel_journal_records_total in /metrics counts those"
            )
        return "Its worker ended without a record of it: the id is of no reply of its, or the record was dropped"
    return (
        "Records of its worker before and after it are there: it was dropped, because the disk was full or slow or a row too "
        "large. tiercel_journal_records_total in /metrics counts those"
    )
