"""The journal's memory: what is appended is found again, whole, or was counted as dropped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiercel._hot.counters import PlanCounters, WorkerCounters
from tiercel._hot.journal import (
    END,
    PLAN,
    PREDICTION,
    PREDICTION_HEAD,
    RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    Journal,
    next_record,
)
from tiercel._hot.recorder import PlanRecorder

N_FEATURES, N_OUTPUTS = 3, 2
KEY = np.uint16(4).tobytes() + b"abcd"


def make(n_keys=1, declaration=b'{"a":1}'):
    """A recorder with a journal that has no segment yet."""
    edges = np.full((N_FEATURES, 24), np.inf, np.float32)
    counters = PlanCounters(N_FEATURES, N_OUTPUTS, edges, edges[:N_OUTPUTS].astype(np.float64))
    worker, journal = WorkerCounters(), Journal()
    return PlanRecorder(counters, worker, journal, 7, declaration, n_keys), worker, journal


def segment(n_bytes):
    return np.zeros(n_bytes // 8, np.uint64).view(np.uint8)


def records(data):
    """(kind, body) of each record."""
    at, found = SEGMENT_HEADER_BYTES, []
    while True:
        kind, size = next_record(data, at)
        if kind <= 0:
            assert kind == 0
            return found
        found.append((kind, data[at + 16 : at + size].tobytes()))
        at += size
        if kind == END:
            return found


def rows_of(n):
    return np.arange(n * N_FEATURES, dtype=np.float32).reshape(n, -1), np.arange(n * N_OUTPUTS, dtype=float).reshape(
        n, -1
    )


def test_records_follow_their_declaration():
    """The declaration stands once before a plan's records, which hold exactly what was appended; sealing ends them."""
    recorder, worker, journal = make()
    data = segment(1 << 14)
    journal.offer(data, 1)
    rows, scores = rows_of(2)
    for number in (5, 6):
        recorder.add(
            rows, scores, number=number, received_us=11, now_us=12, oldest_age_us=13, total_ns=14, stage_ns=range(5), flags=3, keys=KEY * 2
        )  # fmt: skip
    journal.seal()
    assert journal.take_retired() == [(1, sum(len(b) + 16 for _, b in records(data)) + SEGMENT_HEADER_BYTES, 2)]
    (plan, declared), *predictions, (end, count) = records(data)
    assert (plan, end) == (PLAN, END)
    assert declared[:4] == np.uint32(7).tobytes()
    assert declared[8 : 8 + 7] == b'{"a":1}'
    assert int.from_bytes(count, "little") == 2
    for number, (kind, body) in zip((5, 6), predictions, strict=True):
        assert kind == PREDICTION
        assert PREDICTION_HEAD.unpack_from(body) == (number, 11, 12, 13, 14, 0, 1, 2, 3, 4, 7, 3, 0, 2, 2, 12, 0, 0, -1)
        rest = body[PREDICTION_HEAD.size :]
        assert rest == scores.tobytes() + rows.tobytes() + KEY * 2 + bytes(4)
    assert worker.get("journal_records") == 2


def test_without_a_segment_records_are_dropped_and_counted():
    """No segment: nothing is written, every request is counted as dropped; with the next segment it goes on."""
    recorder, worker, journal = make()
    rows, scores = rows_of(1)
    recorder.add(rows, scores, repeat=3)
    assert (worker.get("journal_dropped"), worker.get("journal_records")) == (3, 0)
    data = segment(1 << 12)
    journal.offer(data, 1)
    recorder.add(rows, scores)
    assert (worker.get("journal_dropped"), worker.get("journal_records")) == (3, 1)
    assert [kind for kind, _ in records(data)] == [PLAN, PREDICTION]


def test_a_full_segment_gives_way_to_the_next():
    """Segments fill one after the other; every record is in one of them, and each begins with the declaration."""
    recorder, worker, journal = make()
    rows, scores = rows_of(1)
    found = []
    for sequence in range(1, 6):
        data = segment(1 << 12)
        journal.offer(data, sequence)
        before = worker.get("journal_records")
        while journal.wants_segment is False:
            recorder.add(rows, scores, number=worker.get("journal_records"))
        while worker.get("journal_dropped") == 0 and worker.get("journal_records") - before < 500 and sequence == 5:
            recorder.add(rows, scores, number=worker.get("journal_records"))
        found.append(data)
    kinds = [[kind for kind, _ in records(data)] for data in found]
    assert all(k[0] == PLAN and k[-1] == END for k in kinds)
    numbers = [PREDICTION_HEAD.unpack_from(b)[0] for data in found for kind, b in records(data) if kind == PREDICTION]
    assert numbers == list(range(worker.get("journal_records")))
    assert [entry[0] for entry in journal.take_retired()] == [1, 2, 3, 4, 5]


@settings(max_examples=15, deadline=None)
@given(n_rows=st.integers(1, 90_000), with_keys=st.booleans())
def test_large_requests_are_split_by_rows(n_rows, with_keys):
    """A request of any number of rows becomes records of bounded size that hold all rows and keys, in order."""
    recorder, worker, journal = make()
    data = segment(1 << 23)
    journal.offer(data, 1)
    rows, scores = rows_of(n_rows)
    recorder.add(rows, scores, keys=KEY * n_rows if with_keys else b"")
    at = 0
    for kind, body in records(data):
        if kind == PREDICTION:
            head = PREDICTION_HEAD.unpack_from(body)
            first, n, total, key_bytes = head[12:16]
            assert (first, total, key_bytes) == (at, n_rows, n * len(KEY) * with_keys)
            assert len(body) + 16 <= RECORD_BYTES
            part = np.frombuffer(body, np.float64, n * N_OUTPUTS, PREDICTION_HEAD.size)
            np.testing.assert_array_equal(part, scores[at : at + n].ravel())
            at += n
    assert at == n_rows
    assert worker.get("journal_records") == 1


def test_a_row_that_fits_no_record_is_counted():
    """A row whose keys alone are larger than a record is not journaled and is counted as too large."""
    recorder, worker, journal = make(n_keys=20)
    journal.offer(segment(1 << 22), 1)
    rows, scores = rows_of(1)
    recorder.add(rows, scores, keys=(np.uint16(0xFFFE).tobytes() + bytes(0xFFFE)) * 20)
    assert (worker.get("journal_too_large"), worker.get("journal_records")) == (1, 0)


def test_a_declaration_that_fits_no_segment_drops_records():
    """A plan that cannot be declared is dropped and counted, and does not use up segments."""
    recorder, worker, journal = make(declaration=b"x" * 9000)
    journal.offer(segment(1 << 13), 1)
    rows, scores = rows_of(1)
    recorder.add(rows, scores, repeat=4)
    assert worker.get("journal_dropped") == 4
    journal.offer(segment(1 << 13), 2)
    recorder.add(rows, scores, repeat=4)
    assert worker.get("journal_dropped") == 8
    assert not journal.wants_segment


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 25))
def test_any_bytes_are_a_record_or_are_not(data, at):
    """Looking for a record in arbitrary bytes never reads outside them and never finds one."""
    buffer = np.zeros(-(-len(data) // 8) or 1, np.uint64).view(np.uint8)[: len(data)]
    buffer[:] = np.frombuffer(data, np.uint8)
    if 8 * at <= len(data) and len(data):
        assert next_record(buffer, 8 * at)[0] in (0, -1)


def test_one_changed_bit_is_always_noticed():
    """Whichever bit of a record changes, the record is no longer accepted."""
    recorder, _, journal = make()
    data = segment(1 << 12)
    journal.offer(data, 1)
    rows, scores = rows_of(1)
    recorder.add(rows, scores, number=9, keys=KEY)
    _, declared = next_record(data, SEGMENT_HEADER_BYTES)
    at = SEGMENT_HEADER_BYTES + declared
    _, size = next_record(data, at)
    for bit in range(8 * size):
        data[at + bit // 8] ^= 1 << bit % 8
        assert next_record(data, at)[0] <= 0, bit
        data[at + bit // 8] ^= 1 << bit % 8
    assert next_record(data, at) == (PREDICTION, size)


def test_a_segment_is_offered_once_and_must_have_room():
    """Segments that are too small, out of turn or offered twice are refused."""
    journal = Journal()
    with pytest.raises(ValueError):
        journal.offer(segment(64), 1)
    with pytest.raises(ValueError):
        journal.offer(segment(4096), 0)
    journal.offer(segment(4096), 1)
    with pytest.raises(ValueError):
        journal.offer(segment(4096), 2)
    assert journal.withdraw() == 1
    assert journal.withdraw() is None
