"""Bodies are read strictly: what two readers could understand differently is refused."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import RequestError
from tiercel.http import payload

SUITE = Path(__file__).parents[3] / "shared" / "data" / "json-test-suite" / "test_parsing"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_back(value):
    """Any JSON value survives the standard library's writer and our reader."""
    assert payload.decode_json(json.dumps(value).encode()) == value


@given(VALUES)
def test_what_msgpack_writes_is_read_back(value):
    """Any such value survives msgpack's writer and our reader."""
    assert payload.decode_msgpack(msgpack.packb(value), 1000) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_replies_round_trip_floats(value):
    """A score read back from either format is the score that was written."""
    assert payload.decode_json(payload.encode({"score": value}, payload.JSON))["score"] == value
    assert payload.decode_msgpack(payload.encode({"score": value}, payload.MSGPACK), 10)["score"] == value


@given(st.binary(max_size=60))
def test_garbage_is_a_request_error(body):
    """No bytes whatever raise anything but a RequestError."""
    for kind in (payload.JSON, payload.MSGPACK):
        with contextlib.suppress(RequestError):
            payload.decode(body, kind, 100)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"a": 1} {"b": 2}', "malformed_json"),
        (b'{"a": NaN}', "malformed_json"),
        (b'{"a": -Infinity}', "malformed_json"),
        (b'{"a": 1e999}', "malformed_json"),
        (b'{"a": "\xff"}', "malformed_json"),
        (b"\xef\xbb\xbf{}", "malformed_json"),
        (b'{"a": 1, "a": 1}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "malformed_json"),
    ],
)
def test_json_refusals(body, code):
    """Each kind of bad JSON has its stable code."""
    with pytest.raises(RequestError) as caught:
        payload.decode_json(body)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_msgpack"),
        (b"\x81", "malformed_msgpack"),
        (b"\x81\xa1a\x01\x00", "malformed_msgpack"),
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate_key"),
        (b"\x81\x01\x02", "malformed_msgpack"),
        (b"\x81\xa1\xff\x02", "malformed_msgpack"),
        (b"\x91" * 100_000, "malformed_msgpack"),
        (b"\xdd" + struct.pack(">I", 5000) + b"\x01" * 5000, "too_many_rows"),
        (b"\xdd\xff\xff\xff\xff", "too_many_rows"),
    ],
)
def test_msgpack_refusals(body, code):
    """Each kind of bad msgpack has its stable code; a declared length is not believed."""
    with pytest.raises(RequestError) as caught:
        payload.decode_msgpack(body, 1000)
    assert caught.value.code == code


@pytest.mark.skipif(not SUITE.is_dir(), reason="the JSON parsing corpus is not beside this checkout")
def test_json_parsing_corpus():
    """Of the public corpus, y_ files are read, n_ files are refused, and i_ files do either without a crash."""
    wrong = []
    for path in sorted(SUITE.glob("*.json")):
        try:
            payload.decode_json(path.read_bytes())
            read = True
        except RequestError as error:
            # RFC 8259 leaves duplicate names to the reader; ours refuses them.
            read = error.code == "duplicate_key"
        if (path.name.startswith("y_") and not read) or (path.name.startswith("n_") and read):
            wrong.append(path.name)
    assert wrong == []


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", payload.JSON),
        ("application/json; charset=utf-8", payload.JSON),
        ("", payload.JSON),
        ("Application/MsgPack", payload.MSGPACK),
        ("application/x-msgpack", payload.MSGPACK),
    ],
)
def test_media_types(content_type, kind):
    """Both formats go by their usual names, whatever the case and parameters."""
    assert payload.media_type(content_type) == kind


def test_other_media_types_are_refused():
    """A form or a text is answered with what is accepted."""
    with pytest.raises(RequestError, match="application/json or application/msgpack") as caught:
        payload.media_type("text/plain")
    assert caught.value.code == "unsupported_media_type"
