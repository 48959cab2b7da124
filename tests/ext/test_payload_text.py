"""Escapes, times and odd spellings: bodies that few clients send are read as the general path reads them, to the byte."""

from __future__ import annotations

import ctypes
import json
import mmap
import struct

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.ext.test_payload import BODY, JSON, MAX_ROWS, MSGPACK, RowScorer, check, encode, general, make_plan
from tests.support import stores
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.types import Signature, Task

NAMES = ("a", "é\U0001f6eb", 'q"\\/\n', "n" * 300)
ROOM = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    stores.publish(path)
    stores.publish(path, stores.schema("error", name="strict"))
    named = Signature(NAMES, Task.REGRESSION)
    return {
        "lenient": make_plan(path),
        "strict": make_plan(path, "strict", Task.MULTICLASS),
        "named": ServingPlan("named", 1, named, RowScorer(len(NAMES), 1)),
        "numbers": ServingPlan("numbers", 1, Signature(("a", "b"), Task.REGRESSION), RowScorer(2, 1)),
    }


# ---- escapes ----


@st.composite
def spelt(draw, text):
    """A JSON string of `text`, each character in one of the ways JSON has for it."""
    parts = []
    for character in text:
        units = struct.unpack(f">{len(character.encode('utf-16-be')) // 2}H", character.encode("utf-16-be"))
        form = draw(st.sampled_from(["plain", "\\u%04x", "\\u%04X"]))
        short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        if form != "plain":
            parts.append("".join(form % unit for unit in units))
        elif character in short:
            parts.append(short[character])
        else:
            parts.append(character if character >= " " else "".join(f"\\u{unit:04x}" for unit in units))
    return '"' + "".join(parts) + '"'


space = st.sampled_from(["", "", " ", "\n", "\t\r ", "   "])


@st.composite
def odd_json(draw, value):
    """Another spelling of `value`: whitespace everywhere and strings with escapes."""
    before, after = draw(space), draw(space)
    if isinstance(value, dict):
        inside = ",".join(f"{draw(space)}{draw(spelt(k))}{draw(space)}:{draw(odd_json(v))}" for k, v in value.items())
        text = "{" + inside + draw(space) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join(draw(odd_json(item)) for item in value) + "]"
    else:
        text = draw(spelt(value)) if isinstance(value, str) else json.dumps(value)
    return before + text + after


@settings(max_examples=150, deadline=None, suppress_health_check=ROOM)
@given(data=st.data(), name=st.sampled_from(["lenient", "strict"]))
def test_odd_spellings_are_answered_here(plans, data, name):
    """Whitespace everywhere and every character escaped in some way change nothing: such bodies are answered."""
    body = {**BODY, "entities": {**BODY["entities"], "tailnum": data.draw(st.sampled_from(["N1", ["N1", "N1"]]))}}
    raw = data.draw(odd_json(body)).encode()
    assert check(plans[name], raw, JSON) is not None


@settings(max_examples=200, deadline=None, suppress_health_check=ROOM)
@given(
    data=st.data(), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["N1", "é"])
)
def test_keys_of_any_text(plans, data, text):
    """A key of any text, however escaped, finds the row that the same key without escapes finds."""
    body = {**BODY, "entities": {**BODY["entities"], "tailnum": "KEY"}}
    raw = json.dumps(body).replace('"KEY"', data.draw(spelt(text))).encode()
    plain = json.dumps({**BODY, "entities": {**BODY["entities"], "tailnum": text}}, ensure_ascii=False).encode()
    assert (check(plans["lenient"], raw, JSON) is None) == (check(plans["lenient"], plain, JSON) is None)
    assert (reply := check(plans["lenient"], raw, JSON)) is None or reply[24:] == check(plans["lenient"], plain, JSON)[
        24:
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_member_names_with_escapes(plans, data):
    """Escaped names are found; one of more than 256 bytes is found without escapes and handed on with them."""
    features = ",".join(f"{data.draw(spelt(name))}:{i}" for i, name in enumerate(NAMES[:3]))
    rest = f'"{NAMES[3]}":3'
    assert check(plans["named"], f'{{"now":1,"features":{{{features},{rest}}}}}'.encode(), JSON) is not None
    long = f'"\\u006e{NAMES[3][1:]}":3'
    assert check(plans["named"], f'{{"now":1,"features":{{{features},{long}}}}}'.encode(), JSON) is None


@pytest.mark.parametrize("size", [250, 253, 254, 255, 256, 257, 505, 506, 507, 508, 509, 510, 511, 600])
@pytest.mark.parametrize("character", ["a", "é", "€", "\U0001f6eb"])
def test_escaped_keys_of_every_length(plans, size, character):
    """An escaped key is as long as its UTF-8, not as its escapes: too long at the same byte as without them."""
    text = character * (size // len(character.encode())) + "x" * (size % len(character.encode()))
    entities = {**BODY["entities"], "tailnum": text}
    escaped = "".join(
        f"\\u{unit:04x}" for unit in struct.unpack(f">{len(text.encode('utf-16-be')) // 2}H", text.encode("utf-16-be"))
    )
    raw = json.dumps({**BODY, "entities": {**entities, "tailnum": "KEY"}}).replace("KEY", escaped).encode()
    plain = json.dumps({**BODY, "entities": entities}, ensure_ascii=False).encode()
    answered = check(plans["lenient"], raw, JSON) is not None
    assert (
        answered
        == (check(plans["lenient"], plain, JSON) is not None)
        == (general(plans["lenient"], raw, JSON) is not None)
    )


@pytest.mark.parametrize(
    "text",
    [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\n", r"\ud800A", r"\udc00\ud800", r"\ud800\ud800", r"\u", r"\u1", r"\u12",
     r"\u123", r"\u123g", r"\u 123", r"\u+123", r"\u0x1", r"\x41", r"\a", r"\v", r"\0", r"\'", r"\U00000041", "\\\n", "\\", "\\\\\\",
     r"\ud83d\ude0", r"\ud83d\ud", r"\ud83d\u", r"\uD83D\UDE00", "\\u00e9\n", "\x00", "\x1f"],
)  # fmt: skip
def test_escapes_that_are_handed_on(plans, text):
    """Lone surrogates and what is no escape are left to the path that explains, in keys, categories, names and `now`."""
    for place in ("N1", "coach", "rain", "entities"):
        raw = json.dumps(BODY).replace(f'"{place}"', f'"{text}"').encode("utf-8", "surrogatepass")
        assert plans["lenient"].answer(raw, JSON, stores.NOW_US, ReplyIds(MAX_ROWS)) is None


def test_an_escaped_body_is_never_read_past_its_end(plans):
    """Escapes cut at any byte, flush against an unreadable page, are handed on; the whole body is answered."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    whole = json.dumps({**BODY, "now": "2026-01-01T00:00:00.25+01:30"}).replace("N1", r"\ud83d\ude00\u00e9\n")
    whole = whole.replace("coach", r"c\u006fach").replace("rain", r"r\u0061in").encode()
    try:
        for size in range(1, len(whole) + 1):
            ctypes.memmove(start + page - size, whole, size)
            view = memoryview((ctypes.c_ubyte * size).from_address(start + page - size)).cast("B")
            reply = plans["lenient"].answer(view, JSON, 0, ReplyIds(MAX_ROWS))
            assert (reply is not None) == (size == len(whole))
    finally:
        libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 3)


# ---- times ----


def timed(now, kind):
    return encode({**BODY, "now": now}, kind)


number = st.integers(0, 99)
TIMES = st.builds(
    "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}{}{}".format,
    st.integers(1965, 2105) | st.sampled_from([0, 1, 1600, 1969, 1970, 1971, 1972, 2000, 2100, 2400, 9999]),
    st.integers(1, 12) | st.integers(0, 14),
    st.integers(1, 28) | st.integers(0, 33),
    st.integers(0, 25),
    st.integers(0, 61),
    st.integers(0, 61),
    st.sampled_from(["", ""]) | st.from_regex(r"[.,][0-9]{0,9}", fullmatch=True),
    st.sampled_from(["", "Z", "z", "+00:00", "-00:00", "+23:59", "-23:59", "+24:00", "+01:60", "+0130", "+01", "+01:30:15", " "])
    | st.builds("{}{:02d}:{:02d}".format, st.sampled_from("+-"), st.integers(0, 25), st.integers(0, 61)),
)  # fmt: skip


@settings(max_examples=800, deadline=None)
@given(text=TIMES, kind=st.sampled_from([JSON, MSGPACK]))
@example(text="1970-01-01T00:00:00Z", kind=JSON)
@example(text="1969-12-31T23:59:59.999999Z", kind=JSON)
@example(text="1969-12-31T23:59:59-00:01", kind=JSON)
@example(text="9999-12-31T23:59:59.999999-23:59", kind=MSGPACK)
@example(text="2000-02-29T00:00:00Z", kind=JSON)
@example(text="2100-02-29T00:00:00Z", kind=JSON)
@example(text="2026-01-01T24:00:00Z", kind=JSON)
def test_times_are_the_general_paths(plans, text, kind):
    """A time as text is the same microsecond on both paths: ages and values that depend on it are equal."""
    check(plans["lenient"], timed(text, kind), kind)


MONTHS = [(year, month) for year in (1970, 1972, 2000, 2023, 2024, 2100, 9999) for month in range(1, 13)]


@pytest.mark.parametrize(("year", "month"), MONTHS)
def test_month_lengths(plans, year, month):
    """The last days of every month are known, in leap years and others: answered exactly where the calendar has them."""
    for day in (1, 28, 29, 30, 31, 32):
        raw = timed(f"{year}-{month:02d}-{day:02d}T12:34:56.789Z", JSON)
        assert (check(plans["lenient"], raw, JSON) is None) == (general(plans["lenient"], raw, JSON) is None)


@pytest.mark.parametrize(
    "text",
    ["1970-01-01T00:00:00", "1970-01-01T00:00:00Z", "2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.123456+05:30",
     "2026-01-01T00:00:00.1234567-11:00", "1970-01-01T00:00:00-00:00", "9999-12-31T23:59:59.999999-23:59"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_ordinary_times_are_answered_here(plans, text, kind):
    """The usual spellings of a time do not leave the fast path."""
    assert check(plans["lenient"], timed(text, kind), kind) is not None


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-01-01", "20260101T000000Z", "2026-W01-1T00:00:00", "2026-01-01 00:00:00", "2026-01-01T00:00Z",
     "2026-01-01T00:00:00,5Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00z", "2026-01-01T00:00:60Z", "2026-02-30T00:00:00Z",
     "0001-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-01-01T00:00:00Z ", "2026-01-01T00:00:00+24:00",
     "2026-01-01T00:00:00+1:00", "+2026-01-01T00:00:00", "2026-01-01T00:00:00ZZ", "2026-01-01T0\u0660:00:00Z"],
)  # fmt: skip
def test_times_that_are_handed_on(plans, text):
    """Other spellings, times before 1970 and what is no time are left to the general path."""
    for kind in (JSON, MSGPACK):
        assert plans["lenient"].answer(timed(text, kind), kind, 0, ReplyIds(MAX_ROWS)) is None


# ---- a table of JSON values: what each reader makes of them ----

ACCEPT = [
    "0", "-0", "1e1", "1E+1", "1e-1", "0.5", "-0.0e0", "123.456e-7", "1" + "0" * 30, "0." + "0" * 40 + "1", " 1", "1\n", "\t1\r",
    "true", "false", "null", "[1]", "[ 1 ]", "[null]", "[\n1\t]", "[1.5]", "[true]",
]  # fmt: skip
EITHER = [
    "1e400", "-1e400", "1e-400", "1" * 400, "[1e999]", "100000000000000000000", "-9223372036854775809", "0e99999999999999999999",
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\x7f"', '"\ufdd0"', '"\\uffff"', '["a"]', '"a\\/b"',
    "[" * 90 + "]" * 90, "[[1]]", "[{}]", "{}", '{"a":1}', '{"a":1,"a":2}', "[]", "[ ]", "[1,null]",
]  # fmt: skip
REJECT = [
    "", " ", ",", ":", "]", "}", "[", "{", "[1", "[1,", "[1,]", "[,1]", "[1,,2]", "[1 2]", "[1;2]", "1,", "1 2", "01", "-01", "00", "+1", "--1",
    "-", "1.", ".1", "-.1", "1.e1", "1e", "1e+", "1e1.5", "1.2.3", "0x10", "0b1", "1_000", "1f", "1a", "0e+-1", "- 1", "1 .5",
    "\uff11", "NaN", "nan", "-NaN", "Infinity", "-Infinity", "inf", "True", "FALSE", "nul", "nulll", "tru", "truee", "fals", "undefined",
    "'a'", '"a', 'a"', '"a"b"', '"\n"', '"\t"', '"\x00"', '"\\"', '"\\x"', '"\\u12"', '"\\u12G4"', "\x00", "1\x00", "1\x0c", "1\xa0", "\x0b1",
    "1//c", "/**/1", "1#c", "<a>", "[1}", "{1}", '{"a"}', '{"a":}', '{"a":1,}', "{a:1}", "{'a':1}", '{"a" 1}', '{"a":1 "b":2}', "\ufeff1",
]  # fmt: skip
RAW = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf8\x88\x80\x80\x80"']  # fmt: skip


@pytest.mark.parametrize("value", ACCEPT)
def test_json_values_that_parse(plans, value):
    """Each is answered here, as the general path answers it."""
    assert check(plans["numbers"], f'{{"now":1,"features":{{"b":0,"a":{value}}}}}'.encode(), JSON) is not None


@pytest.mark.parametrize("value", [*EITHER, *(f'"{name}"' for name in ("a", "\\u0061"))])
def test_json_values_of_the_readers_choice(plans, value):
    """What a parser may take or leave, and what is no number, is answered as the general path does or handed on."""
    for name, body in (
        ("numbers", f'{{"now":1,"features":{{"b":0,"a":{value}}}}}'),
        ("lenient", json.dumps(BODY).replace('"N1"', value)),
        ("lenient", json.dumps(BODY).replace('"coach"', value)),
        ("lenient", json.dumps(BODY).replace(str(stores.NOW_US), value)),
    ):
        if name == "numbers" or "now" in body:
            check(plans[name], body.encode("utf-8", "surrogatepass"), JSON)


@pytest.mark.parametrize("value", [*(text.encode() for text in REJECT), *RAW])
def test_json_values_that_do_not_parse(plans, value):
    """Each is refused by both paths, wherever a value may stand, and as the whole body."""
    for body in (b'{"now":1,"features":{"b":0,"a":%b}}' % value, b'{"now":%b,"features":{"b":0,"a":1}}' % value, value):
        assert plans["numbers"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)) is None
        assert general(plans["numbers"], body, JSON) is None


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("byte", [b"\x00", b"\x0b", b"\x0c", b"\xa0", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"#", b","])
def test_what_is_no_whitespace(plans, place, byte):
    """Nothing but JSON's four characters stands between tokens, a byte order mark included."""
    parts = [b"", b"{", b'"features"', b":", b'{"a":1,"b":2}', b"}", b""]
    parts.insert(place, byte)
    body = b"".join(parts)
    assert plans["numbers"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)) is None
    assert general(plans["numbers"], body, JSON) is None


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("a", "\\u0061"), ("\\u0061", "a"), ("\\u0061", "\\u0061")])
def test_a_name_sent_twice_is_one_name(plans, first, second):
    """A name and its escaped spelling are the same name, so both paths refuse the body."""
    body = f'{{"now":1,"features":{{"{first}":1,"{second}":1,"b":2}}}}'.encode()
    assert plans["numbers"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)) is None
    assert general(plans["numbers"], body, JSON) is None
    body = f'{{"fe{first}tures":{{"a":1,"b":2}},"fe{second}tures":{{"a":1,"b":2}}}}'.encode()
    assert plans["numbers"].answer(body, JSON, 0, ReplyIds(MAX_ROWS)) is None
    assert general(plans["numbers"], body, JSON) is None


@pytest.mark.parametrize("depth", [2, 50, 900, 5000])
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_deep_nesting_is_handed_on(plans, depth, kind):
    """Depth is fixed: any nesting is handed on at its first byte."""
    if kind == JSON:
        raw = b'{"features":{"b":0,"a":' + b"[" * depth + b"1" + b"]" * depth + b"}}"
    else:
        raw = b"\x81\xa8features\x82\xa1b\x00\xa1a" + b"\x91" * depth + b"\x01"
    assert plans["numbers"].answer(raw, kind, 0, ReplyIds(MAX_ROWS)) is None


# ---- msgpack in its other widths ----


@st.composite
def wide_msgpack(draw, value):
    """`value` in some of the widths msgpack has for it, not only the shortest."""
    if isinstance(value, bool) or value is None:
        return msgpack.packb(value)
    if isinstance(value, int):
        forms = {"b": 0xD0, "h": 0xD1, "i": 0xD2, "q": 0xD3, "B": 0xCC, "H": 0xCD, "I": 0xCE, "Q": 0xCF}
        fits = [msgpack.packb(value)]
        for form, tag in forms.items():
            bits = 8 * struct.calcsize(form)
            least = 0 if form.isupper() else -(1 << (bits - 1))
            if least <= value < least + (1 << bits):
                fits.append(bytes([tag]) + struct.pack(">" + form, value))
        return draw(st.sampled_from(fits))
    if isinstance(value, float):
        return draw(st.sampled_from([struct.pack(">Bd", 0xCB, value), struct.pack(">Bf", 0xCA, value)]))
    if isinstance(value, str):
        raw, fix, tags = value.encode(), 0xA0, [(0xD9, "B"), (0xDA, "H"), (0xDB, "I")]
        n, items = len(raw), [raw]
    elif isinstance(value, list):
        n, fix, tags = len(value), 0x90, [(0xDC, "H"), (0xDD, "I")]
        items = [draw(wide_msgpack(item)) for item in value]
    else:
        n, fix, tags = len(value), 0x80, [(0xDE, "H"), (0xDF, "I")]
        items = [draw(wide_msgpack(part)) for pair in value.items() for part in pair]
    heads = [struct.pack(">B" + form, tag, n) for tag, form in tags]
    if n < (32 if fix == 0xA0 else 16):
        heads.append(bytes([fix | n]))
    return draw(st.sampled_from(heads)) + b"".join(items)


@settings(max_examples=200, deadline=None, suppress_health_check=ROOM)
@given(data=st.data(), name=st.sampled_from(["lenient", "strict"]), gate=st.integers(-(2**63), 2**63 - 1) | st.just(3))
def test_msgpack_of_every_width(plans, data, name, gate):
    """A body is the same in any width of its numbers, texts, lists and maps; rows that exist are answered here."""
    body = {**BODY, "entities": {"tailnum": ["N1", None], "origin": "EWR", "gate": gate}}
    reply = check(plans[name], data.draw(wide_msgpack(body)), MSGPACK)
    assert reply is not None or name == "strict"
