"""Records with the request as it came: what is kept, what is not and why, and segments of the format before."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.monitor.recorders import PREFIX, SCHEMA, SIGNATURE, SMALL, key_bytes, make_recorder, rows_of
from tiercel._hot.journal import REQUEST_BYTES_MANY, REQUEST_BYTES_ONE, Journal
from tiercel._hot.recorder import PlanRecorder

from tiercel.errors import JournalError
from tiercel.monitor.counting import PlanCounters, WorkerCounters
from tiercel.monitor.journal import read_journal, read_segment, scan_segment, segment_paths
from tiercel.monitor.prediction_columns import SegmentColumns
from tiercel.monitor.prediction_record import HEADS, RECORD_HEAD_BYTES, PlanDeclaration, parse_whole_record
from tiercel.monitor.recording import Recorder

JSON, MSGPACK, TENSORS, QUESTION = 1, 2, 3, 4
BINDINGS = {"model_digest": "ab" * 32, "ledger_seq": 7, "default_score": 0.25, "reference_digest": None}


def recorded(state_dir, n_rows, request, kind, header=-1, *, keeps_requests=True):
    """The records of one request, read back."""
    recorder = Recorder(state_dir, 0, PREFIX, SMALL, keeps_requests=keeps_requests)
    rows, scores = rows_of(n_rows)
    recorder.for_plan("late", 3, SIGNATURE, SCHEMA, "base-7", bindings=BINDINGS).add(
        rows, scores, keys=key_bytes(1, "x") * n_rows, request=request, request_kind=kind, request_header=header
    )
    recorder.close()
    return list(read_journal(state_dir / "journal"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_rows=st.integers(1, 4),
    request=st.binary(min_size=1, max_size=300),
    kind=st.sampled_from([(JSON, "json"), (MSGPACK, "msgpack"), (TENSORS, "tensors"), (QUESTION, "question")]),
    header=st.integers(-1, 1 << 40),
)
def test_a_request_comes_back_as_it_came(tmp_path_factory, n_rows, request, kind, header):
    """Kind, bytes and header length of a small request are in its record, beside rows, scores and keys that are unchanged."""
    (record,) = recorded(tmp_path_factory.mktemp("state"), n_rows, request, kind[0], header)
    assert record.request is not None
    assert (record.request.kind, record.request.body, record.request.header_length) == (kind[1], request, header)
    rows, scores = rows_of(n_rows)
    np.testing.assert_array_equal(record.rows, rows)
    np.testing.assert_array_equal(record.scores, scores)
    assert record.keys == ((1, "x"),) * n_rows


@pytest.mark.parametrize(
    ("n_rows", "n_bytes", "keeps", "absent"),
    [
        pytest.param(1, REQUEST_BYTES_ONE, True, None, id="the largest of one row"),
        pytest.param(1, REQUEST_BYTES_ONE + 1, True, "too_large", id="too large for one row"),
        pytest.param(2, REQUEST_BYTES_MANY, True, None, id="the largest of many"),
        pytest.param(2, REQUEST_BYTES_MANY + 1, True, "too_large", id="too large"),
        pytest.param(1, 10, False, "withheld", id="withheld"),
    ],
)
def test_what_is_not_kept_says_why(tmp_path, n_rows, n_bytes, keeps, absent):
    """A request beyond the bounds, or withheld by the settings, is left out whole, and its record says which."""
    (record,) = recorded(tmp_path, n_rows, b"x" * n_bytes, JSON, keeps_requests=keeps)
    assert (record.request.kind, record.request.absent) == ("json", absent)
    assert (record.request.body is None) == (absent is not None)


@pytest.mark.parametrize(
    ("request_body", "kind", "expected"),
    [
        pytest.param(b'{"entities": {}, "explain": "full"}', JSON, True, id="json"),
        pytest.param(b'{"entities": {"explain": "full"}}', JSON, False, id="json without"),
        pytest.param(msgpack.packb({"entities": {}, "explain": "reasons"}), MSGPACK, True, id="msgpack"),
        pytest.param(msgpack.packb({"entities": {}}), MSGPACK, False, id="msgpack without"),
        pytest.param(b"[1]", JSON, None, id="no object"),
        pytest.param(b"{", JSON, None, id="cut"),
        pytest.param(b"\xc1", MSGPACK, None, id="no msgpack"),
        pytest.param(b"{}", TENSORS, None, id="tensors"),
        pytest.param(msgpack.packb({"entities": {}, "features": {}}), QUESTION, None, id="question"),
    ],
)
def test_whether_an_explanation_was_asked_for(tmp_path, request_body, kind, expected):
    """The request's own word; where there is none it is unknown, and not no."""
    (record,) = recorded(tmp_path, 1, request_body, kind)
    assert record.is_explained is expected


def test_of_several_records_the_first_has_the_request(tmp_path):
    """A request that is split by rows is kept once."""
    records = recorded(tmp_path, 40_000, b"{}", JSON)
    assert len(records) > 1
    assert [record.request.body for record in records] == [b"{}", *[None] * (len(records) - 1)]
    assert {record.request.absent for record in records[1:]} == {"first_record"}
    assert records[0].request.absent is None


def test_what_an_answer_was_bound_to_is_declared(tmp_path):
    """Bindings come back with their types, another binding is another declaration, and JSON keeps them."""
    (record,) = recorded(tmp_path, 1, b"", 0)
    assert dict(record.plan.bindings) == BINDINGS
    assert record.plan.bound("ledger_seq") == 7
    assert record.plan.bound("unknown") is None
    assert PlanDeclaration.from_json(record.plan.to_json()) == record.plan
    recorder = make_recorder(tmp_path / "other")
    one, two = (recorder.for_plan("late", 3, SIGNATURE, bindings={"ledger_seq": seq}) for seq in (1, 2))
    assert one is recorder.for_plan("late", 3, SIGNATURE, bindings={"ledger_seq": 1})
    assert one is not two
    recorder.close()


def test_a_row_that_just_fits_a_record_loses_its_request_not_itself():
    """Where row and request together are too large for a record, the row is recorded without it."""
    n_features = (1 << 18) - 60  # 1 MiB less the head, a score and a little
    journal, worker = Journal(), WorkerCounters()
    edges = np.full((n_features, 24), np.inf, np.float32)
    counters = PlanCounters(n_features, 1, edges, np.full((1, 24), np.inf))
    recorder = PlanRecorder(counters, worker, journal, 1, b"{}")
    journal.offer(memoryview(np.zeros(1 << 18, np.uint64)), 1)
    row = np.zeros((1, n_features), np.float32)
    recorder.add(row, np.zeros((1, 1)), request=b"x" * 4000, request_kind=JSON)
    assert recorder.is_recorded
    assert (worker.get("journal_records"), worker.get("journal_too_large")) == (1, 0)


def as_format_1(path):
    """Rewrite a segment as the format before has it: no request fields, so that every record is shorter."""
    import tests.reference.checksum as reference

    data = path.read_bytes()
    out = bytearray(data[:256])
    struct.pack_into("=I", out, 8, 1)
    at = 256
    while at < len(data):
        size, kind = struct.unpack_from("=II", data, at)
        body = data[at + 16 : at + size]
        if kind == 0x44455250:
            body = body[: HEADS[1].size] + body[HEADS[2].size :]
        commit = len(body) + 16 | kind << 32
        out += struct.pack("=QQ", commit, reference.checksum(np.frombuffer(body, np.uint64), commit)) + body
        at += size
    path.write_bytes(out)


def test_segments_of_the_format_before_are_read(tmp_path):
    """A segment without requests gives the same records and the same columns as one with them, and no request."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA, "base-7")
    for number in range(5):
        plan.add(*rows_of(1 + number % 2, seed=number), number=number, keys=key_bytes(number, "x") * (1 + number % 2))
    recorder.close()
    (path,) = segment_paths(tmp_path / "journal")
    before = list(read_segment(path))
    columns = SegmentColumns(scan_segment(path))
    table = next(columns.tables(np.arange(5)))
    as_format_1(path)
    after = list(read_segment(path))
    assert [(r.id, r.rows.tobytes(), r.scores.tobytes(), r.keys) for r in after] == [
        (r.id, r.rows.tobytes(), r.scores.tobytes(), r.keys) for r in before
    ]
    assert {record.request for record in after} == {None}
    again = SegmentColumns(scan_segment(path))
    assert again.damage is None
    assert next(again.tables(np.arange(5))).equals(table)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 1 << 16), cut=st.integers(0, 400))
def test_a_record_apart_from_its_segment_shows_any_change(tmp_path, bit, cut):
    """A record's own bytes give the same record; with any bit changed, or cut anywhere, they give an error."""
    if not (tmp_path / "journal").exists():
        recorded(tmp_path, 2, b'{"a": 1}', JSON)
    (path,) = segment_paths(tmp_path / "journal")
    scan = scan_segment(path)
    (start,) = scan.offsets.tolist()
    (size,) = struct.unpack_from("=I", scan.data, start)
    data = scan.data[start : start + size].tobytes()
    plan = next(iter(scan.plans.values()))
    same = {"worker": 0, "prefix": PREFIX, "segment_format": 2}
    record = parse_whole_record(data, plan, **same)
    assert (record.id, record.request.body) == (PREFIX + "0", b'{"a": 1}')
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    for wrong in (bytes(changed), data[: min(cut, len(data) - 1)]):
        with pytest.raises(JournalError, match="Expected"):
            parse_whole_record(wrong, plan, **same)
    assert len(data) > RECORD_HEAD_BYTES
