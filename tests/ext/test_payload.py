"""Bodies answered in the compiled plan: what it accepts it answers as the general path does, the rest is handed on."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import struct
import threading
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support import stores
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.errors import TiercelError
from tiercel.features.online import OnlineBase
from tiercel.http import payload
from tiercel.http.request import parse_predict
from tiercel.serving.explaining import explain_here
from tiercel.types import Signature, Task

JSON, MSGPACK = 0, 1
KINDS = (payload.JSON, payload.MSGPACK)
MAX_ROWS = 40
CORPUS = Path(__file__).parents[3] / "shared" / "data" / "json-test-suite" / "test_parsing"
BODY = {
    "entities": {"tailnum": "N1", "origin": "EWR", "gate": 3},
    "features": {"rain": 0.25, "hour": 7, "night": True, "cabin": "coach"},
    "now": stores.NOW_US,
}


class RowScorer:
    """Scores that tell the rows apart, missing values included."""

    def __init__(self, n_features, n_outputs):
        self.n_features, self.n_outputs = n_features, n_outputs

    def score(self, rows):
        weights = np.arange(1, self.n_features + 1, dtype=np.float64)
        base = np.where(np.isnan(rows), -1e-3, rows.astype(np.float64)) @ weights
        return base[:, None] * np.arange(1, self.n_outputs + 1)


def make_plan(path, service="svc", task=Task.BINARY, features=None, accepts_missing=True):
    base = OnlineBase.open(path / service)
    features = tuple(features or base.schema.features)
    classes = ("a", 'b"\n', "é") if task is Task.MULTICLASS else ("0", "1")
    signature = Signature(features, task, classes, accepts_missing)
    return ServingPlan('l"até', 3, signature, RowScorer(len(features), signature.n_outputs), base.schema, base)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    stores.publish(path)
    stores.publish(path, stores.schema("error", name="strict"))
    numbers = Signature(("a", "b"), Task.REGRESSION)
    return {
        "lenient": make_plan(path),
        "strict": make_plan(path, "strict", Task.MULTICLASS),
        "part": make_plan(path, features=["rain", "miles"], accepts_missing=False),
        "numbers": ServingPlan("numbers", 1, numbers, RowScorer(2, 1)),
    }


def general(plan, body, kind):
    """What the general path answers, or None when it refuses."""
    try:
        request = parse_predict(payload.decode(body, KINDS[kind], MAX_ROWS), MAX_ROWS)
        prepared = plan.prepare(request.entities, request.features, request.now_us)
        prepared.score()
        if request.explain is not None:
            explain_here(prepared, request.explain)
        return prepared.reply(kind, ReplyIds(MAX_ROWS))
    except TiercelError:
        return None


def without_id(reply, kind):
    """A first reply's bytes with its 17-character id blanked."""
    at = 7 if kind == JSON else 5
    return None if reply is None else reply[:at] + reply[at + 17 :]


def check(plan, body, kind):
    """Answered means answered as the general path does; returns the reply or None."""
    reply = plan.answer(body, kind, stores.NOW_US, ReplyIds(MAX_ROWS))
    if reply is not None:
        expected = general(plan, body, kind)
        # Without a `now` of its own the general path takes the clock, so only its ages may differ; bodies here have one.
        assert without_id(reply, kind) == without_id(expected, kind)
        assert (orjson.loads if kind == JSON else msgpack.unpackb)(reply)["tier"] == "realtime"
    return reply


def encode(value, kind):
    return json.dumps(value).encode() if kind == JSON else msgpack.packb(value)


SCALARS = {
    "tailnum": st.sampled_from([row[0] for row in stores.AIRCRAFT] + ["N9"]) | st.none() | st.text(max_size=3),
    "origin": st.sampled_from(["EWR", "JFK"]) | st.none(),
    "gate": st.sampled_from([3, -4, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1) | st.none(),
    "rain": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(2**62), 2**62),
    "hour": st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([1e300, 7.0, 7.5, -0.0, 1e19]),
    "night": st.none() | st.booleans() | st.integers(0, 1),
    "cabin": st.none() | st.sampled_from(["first", "coach", "cargo"]),
    "seats": st.none() | st.integers(-9, 9),
    "engine": st.none() | st.sampled_from(stores.ENGINES),
}


@st.composite
def bodies(draw):
    """Mostly right bodies, of one row or many."""
    n_rows = draw(st.none() | st.integers(1, 35))

    def column(name):
        if n_rows is None or draw(st.booleans()):
            return draw(SCALARS[name])
        return draw(st.lists(SCALARS[name], min_size=n_rows, max_size=n_rows))

    entities = {name: column(name) for name in draw(st.permutations(["tailnum", "origin", "gate"]))}
    optional = draw(st.lists(st.sampled_from(["seats", "engine"]), unique=True))
    features = {name: column(name) for name in [*draw(st.permutations(["rain", "hour", "night", "cabin"])), *optional]}
    body = {"entities": entities, "features": features, "now": draw(st.integers(0, 2**62 - 1))}
    if draw(st.booleans()):
        body["explain"] = draw(st.sampled_from(["reasons", "full", "no", 1, None]))
    return {name: body[name] for name in draw(st.permutations(list(body)))}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(body=bodies(), kind=st.sampled_from([JSON, MSGPACK]), name=st.sampled_from(["lenient", "strict", "part"]))
@example(body=BODY, kind=JSON, name="lenient")
@example(body=BODY, kind=MSGPACK, name="strict")
def test_accepted_bodies_are_answered_as_the_general_path_does(plans, body, kind, name):
    """Keys, lists, nulls and categories give byte for byte the general path's reply, or are handed on."""
    check(plans[name], encode(body, kind), kind)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from([JSON, MSGPACK]))
def test_mutated_bodies(plans, data, kind):
    """A body with bytes changed, removed, doubled or inserted is read as the general path reads it, or handed on."""
    raw = bytearray(encode(BODY if data.draw(st.booleans()) else data.draw(bodies()), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at, width = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 6))
        new = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"\\u0041", b"1e400", b" ", b",", b"\xc0\x80", raw[:9]])
        )
        raw[at : at + width] = new
    check(plans["lenient"], bytes(raw), kind)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=60), kind=st.sampled_from([JSON, MSGPACK]))
def test_random_bytes(plans, raw, kind):
    """Noise is handed on, whatever it looks like."""
    assert plans["lenient"].answer(raw, kind, 0, ReplyIds(MAX_ROWS)) is None


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_ordinary_bodies_are_answered_here(plans, kind):
    """The fast path does not pass its tests by handing everything on."""
    assert check(plans["lenient"], encode(BODY, kind), kind)
    lists = {**BODY, "entities": {"tailnum": ["N1", None], "origin": "EWR", "gate": [3, 9]}}
    assert check(plans["lenient"], encode(lists, kind), kind)
    assert check(plans["strict"], encode(BODY, kind), kind)
    assert check(plans["part"], encode(BODY, kind), kind)
    assert check(plans["numbers"], encode({"features": {"a": [1, True], "b": 2.5}, "now": 1}, kind), kind)
    assert plans["lenient"].answer(encode({**BODY, "now": stores.NOW_US}, kind), kind, 0, ReplyIds(MAX_ROWS))


NUMBERS = [
    "0", "-0", "-0.0", "0.0", "0e999", "1", "1.0", "1E5", "1e+5", "1e-5", "0.1", "0.10000000000000001", "3.4028235e38",
    "3.4028234663852886e38", "3.40282346638528859e38", "1e38", "5e-324", "4.9e-324", "2e-324", "1e-400", "2.2250738585072014e-308",
    "1.4e-45", "7e-46", "9007199254740992", "9007199254740993", "9007199254740993.0", "9223372036854775807",
    "-9223372036854775807", "123456789012345678901.5", "0.000000000000000000000000000012345678901234567890123",
    "1.00000005960464477539", "16777217", "1.000000059604644775390625", "1e22", "1e23", "8.5e22", "1" + "0" * 30 + ".5",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_number_spellings(plans, text):
    """Every accepted spelling gives Python's float32 of it; what Python refuses is never answered."""
    check(plans["numbers"], f'{{"features":{{"a":{text},"b":0}},"now":1}}'.encode(), JSON)


@settings(max_examples=400, deadline=None)
@given(
    text=st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
)
def test_numbers_round_as_python_rounds(plans, text):
    """Decimal to float32 equals float32(float(text)), digit for digit of the score."""
    check(plans["numbers"], f'{{"features":{{"a":{text},"b":0}},"now":1}}'.encode(), JSON)


@pytest.mark.parametrize(
    "value",
    ["1e400", "-1e400", "1e39", "NaN", "Infinity", "-Infinity", "01", "1.", ".5", "-", "+1", "1e", "0x1", "1_0", '"1"', "tru",
     "1e40", "[]", "[[1]]", "[1,]", "{}", '"\\u0041"', '"\t"', '"\xff"', "nul"],
)  # fmt: skip
def test_values_that_are_handed_on(plans, value):
    """Wrong types, literals that are not JSON, and numbers that do not fit are left to the path that explains."""
    body = f'{{"features":{{"a":{value},"b":0}},"now":1}}'.encode("latin-1")
    assert plans["numbers"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)) is None


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", "null", '{"features":{}}', '{"entities":{},"features":{}}', '{"features":{"a":1,"b":2},"x":1}',
     '{"features":{"a":1,"a":1,"b":2}}', '{"features":{"a":1,"b":2},"features":{"a":1,"b":2}}', '{"features":{"a":1}}',
     '{"features":{"a":1,"b":2}}{}', '{"features":{"a":1,"b":2}} x', '{"features":{"\\u0063":1,"b":2}}',
     '{"features":{"a":1,"b":2},"now":"2026-01-01"}', '{"features":{"a":1,"b":2},"now":-1}', '\ufeff{"features":{"a":1,"b":2}}',
     '{"features":{"a":1,"b":2},"now":4611686018427387904}', '{"features":{"a":1,"b":2},"now":true}', '{"features":{"a":1,"b":2},}',
     '{"features":{"a":1,"b":2,"c":3}}', '{"features":{"a":[1],"b":[1,2]}}', '{"entities":{"id":1},"features":{"a":1,"b":2}}',
     '{"features":{"a":[' + ",".join("1" * (MAX_ROWS + 1)) + '],"b":2}}'],
)  # fmt: skip
def test_bodies_that_are_handed_on(plans, body):
    """Unknown and repeated names, absent values, a second value, too many rows."""
    assert plans["numbers"].answer(body.encode(), JSON, 0, ReplyIds(MAX_ROWS)) is None


@pytest.mark.parametrize(
    "raw",
    [b"\xdf\xff\xff\xff\xff", b"\x81\xa8features\xdf\xff\xff\xff\xff", b"\x81\xa8features\x82\xa1a\xdd\xff\xff\xff\xff\x01",
     b"\x81\xa8features\x82\xa1a\x01\xa1b\xc4\x01a",
     b"\x81\xa8features\x82\xa1a\x01\xa1b\xcb\x7f\xf8\0\0\0\0\0\0", b"\x81\xa8features\x82\xa1a\x01\xa1b\x01\xc0",
     b"\x81\xa8features\x82\xa1a\x01\xa1a\x01", b"\x81\xa8features\x82\x01\x01\xa1b\x01", b"\xc1", b"\x91\x01"],
)  # fmt: skip
def test_msgpack_that_is_handed_on(plans, raw):
    """Declared lengths are never believed; extension types, NaN, foreign keys and a second object are not read."""
    assert plans["numbers"].answer(raw, MSGPACK, 0, ReplyIds(MAX_ROWS)) is None


@pytest.mark.parametrize("width", ["<b", ">h", ">i", ">q", ">B", ">H", ">I", ">Q", ">f", ">d"])
def test_msgpack_numbers_of_every_width(plans, width):
    """An integer or float is the same value in any of its encodings."""
    tags = {
        "b": 0xD0,
        "h": 0xD1,
        "i": 0xD2,
        "q": 0xD3,
        "B": 0xCC,
        "H": 0xCD,
        "I": 0xCE,
        "Q": 0xCF,
        "f": 0xCA,
        "d": 0xCB,
    }
    for value in (-3, 3, 100):
        if value < 0 and width[1] in "BHIQ":
            continue
        raw = (
            b"\x82\xa8features\x82\xa1a" + bytes([tags[width[1]]]) + struct.pack(width, value) + b"\xa1b\x01\xa3now\x01"
        )
        assert check(plans["numbers"], raw, MSGPACK) is not None


@pytest.mark.parametrize("value", [2**63, -(2**63), 2**64 - 1, 2**63 + 2**39, 2**63 + 2**39 + 1])
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_integers_past_64_bits_are_floats(plans, kind, value):
    """A float feature takes an integer of any size that fits, rounded as the general path rounds it; answered here."""
    assert check(plans["numbers"], encode({"features": {"a": value, "b": 0}, "now": 1}, kind), kind) is not None
    hour = {**BODY, "features": {**BODY["features"], "hour": value}}
    assert (check(plans["lenient"], encode(hour, kind), kind) is None) == (value >= 2**63)


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_every_truncation_is_handed_on_without_reading_past_the_end(plans, kind):
    """A body cut at any byte, placed flush against an unreadable page, is handed on; the whole one is answered."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    lists = {"entities": {"tailnum": ["N1", "é\U0001f6eb"], "origin": "EWR", "gate": [3, -4]}}
    lists |= {
        "features": {"rain": [1.5e-7, -12.0], "hour": 70_000, "night": [True, None], "cabin": "coach"},
        "now": 2**40,
    }
    try:
        for whole in (encode(BODY, kind), encode(lists, kind), json.dumps(lists, ensure_ascii=False).encode()):
            if kind == MSGPACK and whole[:1] == b"{":
                continue
            for size in range(1, len(whole) + 1):
                ctypes.memmove(start + page - size, whole, size)
                body = (ctypes.c_ubyte * size).from_address(start + page - size)
                reply = plans["lenient"].answer(memoryview(body).cast("B"), kind, 0, ReplyIds(MAX_ROWS))
                assert (reply is not None) == (size == len(whole))
    finally:
        libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 3)


@pytest.mark.skipif(not CORPUS.exists(), reason="the JSON parsing corpus is not here")
def test_json_parsing_corpus(plans):
    """Nothing of the corpus is answered, alone or as a value; what must not parse is never accepted as one either."""
    files = sorted(CORPUS.glob("*.json"))
    assert len(files) > 250
    for path in files:
        raw = path.read_bytes()
        assert plans["numbers"].answer(raw, JSON, 0, ReplyIds(MAX_ROWS)) is None, path.name
        # One value as a feature; a file of several tokens could close the object early, which `check` judges.
        check(plans["numbers"], b'{"now":1,"features":{"b":0,"a":' + raw + b"}}", JSON)


def test_ids_count_on(plans):
    """Ids share a prefix of 64 random bits and count in hexadecimal."""
    ids = ReplyIds(MAX_ROWS)
    seen = [orjson.loads(plans["lenient"].answer(encode(BODY, JSON), JSON, 0, ids))["id"] for _ in range(300)]
    assert len({text[:16] for text in seen}) == 1
    assert [int(text[16:], 16) for text in seen] == list(range(1, 301))
    assert ReplyIds(1).max_rows == 1


def test_threads_answer_alike(plans):
    """Concurrent answers, long enough to release the GIL, equal the one given alone."""
    body = encode({**BODY, "features": {**BODY["features"], "rain": [float(i) for i in range(40)]}}, JSON)
    expected = without_id(plans["lenient"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)), JSON)
    wrong = []

    def work():
        replies = [without_id(plans["lenient"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)), JSON) for _ in range(200)]
        wrong.extend(reply for reply in replies if reply != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected is not None
    assert not wrong


def test_answers_do_not_leak(plans):
    """Answered and handed-on bodies leave no memory behind."""
    ids, whole = ReplyIds(MAX_ROWS), encode(BODY, JSON)

    def work(n):
        for _ in range(n):
            plans["lenient"].answer(whole, JSON, 0, ids)
            plans["lenient"].answer(whole[:-1], JSON, 0, ids)
        gc.collect()

    tracemalloc.start()
    try:
        work(100)
        before = tracemalloc.get_traced_memory()[0]
        work(2000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2000 * 8
