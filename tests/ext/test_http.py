"""The strict head parser: the one shape, nothing else, no byte too far, and never another reading than llhttp's."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference import http_head
from tests.support.guarded import guarded
from tiercel._hot import http

CAP = 10_000
HEAD = (
    b"POST /predict/flights@challenger HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: test/1.0 (a; b)\r\n"
    b"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
)
LINE, HOST = b"POST /predict/m HTTP/1.1\r\n", b"Host: x\r\n"
TYPE, LENGTH = b"Content-Type: application/json\r\n", b"Content-Length: 2\r\n"
GOOD = LINE + HOST + TYPE + LENGTH + b"\r\n"
INFER = (
    b"POST /v2/models/m/versions/3/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n"
    b"Inference-Header-Content-Length: 70\r\n\r\n"
)
INFER_LINE, INFER_LENGTH = INFER[:45], b"Inference-Header-Content-Length: 70\r\n"


def status(data):
    return http.read_head(data, CAP)[0]


def test_fields_of_a_head():
    """Offsets and lengths point into the caller's bytes."""
    found, start, length, head, content, kind, budget_us, is_traced, json_bytes = http.read_head(
        HEAD + b'{"entities": {}}', CAP
    )
    assert found == http.FAST
    assert HEAD[start : start + length] == b"flights@challenger"
    assert (head, content, kind) == (len(HEAD), 17, 0)
    assert (budget_us, is_traced, json_bytes) == (-1, False, -1)


@pytest.mark.parametrize("reference", [b"flights", b"flights@challenger", b"flights:3", b"flights/versions/12"])
def test_fields_of_an_infer_head(reference):
    """An infer request names its model, maybe a version, and how long its JSON is."""
    head = INFER.replace(b"m/versions/3", reference)
    found = http.read_head(head, CAP)
    assert (found[0], head[found[1] : found[1] + found[2]]) == (http.FAST, reference)
    assert found[3:] == (len(head), 90, 2, -1, False, 70)


@pytest.mark.parametrize(
    ("headers", "budget_us"),
    [
        (b"x-request-timeout-seconds: 2\r\n", 2_000_000),
        (b"X-Request-Timeout-Seconds: 0.0125\r\n", 12_500),
        (b"x-envoy-expected-rq-timeout-ms: 15\r\n", 15_000),
        (b"x-envoy-expected-rq-timeout-ms: 15.\r\nx-request-timeout-seconds: 0.008\r\n", 8_000),
        (b"x-request-timeout-seconds: 0.000001\r\n", 1),
        (b"x-request-timeout-seconds: 3600\r\n", 3_600_000_000),
    ],
)
def test_the_smallest_deadline_of_the_headers_is_taken(headers, budget_us):
    """Both headers are understood in their units, and the tighter one counts."""
    found = http.read_head(LINE + headers + GOOD[len(LINE) :], CAP)
    assert (found[0], found[6]) == (http.FAST, budget_us)


@pytest.mark.parametrize(
    "value",
    [b"", b"0", b"-1", b"1e3", b".5", b"1_0", b"1.2.3", b"nan", b"inf", b"0x1", b"3601", b"1 ", b"1" * 16, b"1,2"],
)
def test_a_deadline_that_is_not_plain_is_handed_on(value):
    """What is not a decimal number in range is for the general path to judge."""
    assert status(LINE + b"x-request-timeout-seconds: " + value + b"\r\n" + GOOD[len(LINE) :]) == http.HAND_ON


def test_a_traceparent_is_noticed():
    """A request that belongs to a trace says so, in any case."""
    assert http.read_head(LINE + b"TraceParent: 00-x\r\n" + GOOD[len(LINE) :], CAP)[7] is True


def test_every_prefix_needs_more():
    """A head cut anywhere waits for the rest."""
    for head in (HEAD, INFER, INFER.replace(b"/versions/3", b"")):
        assert {status(head[:size]) for size in range(len(head))} == {http.NEED_MORE}
        assert status(head) == http.FAST


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"application/json", 0),
        (b"APPLICATION/Json", 0),
        (b"application/json; charset=utf-8", 0),
        (b"application/json ;x", 0),
        (b"application/msgpack", 1),
        (b"application/x-msgpack", 1),
        (b"application/vnd.msgpack;v=1", 1),
    ],
)
def test_content_types(header, kind):
    """The types both bodies go by, in any case, with or without parameters."""
    found = http.read_head(LINE + HOST + LENGTH + b"content-TYPE:" + header + b"\r\n\r\n", CAP)
    assert (found[0], found[5]) == (http.FAST, kind)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GOOD.replace(b"Content-", b"CONTENT-").replace(b"Host", b"hOsT"), id="names in any case"),
        pytest.param(LINE + b"X:\r\n" + GOOD[len(LINE) :], id="an empty value"),
        pytest.param(GOOD.replace(b": ", b":"), id="no space after the colon"),
        pytest.param(GOOD.replace(b": ", b":    "), id="spaces after the colon"),
        pytest.param(LINE + b"Connection: Keep-Alive\r\n" + GOOD[len(LINE) :], id="keep-alive"),
        pytest.param(LINE + b"X: 1\r\nX: 2\r\n" + GOOD[len(LINE) :], id="a repeated header that means nothing here"),
        pytest.param(GOOD.replace(b"h: 2", b"h: 007"), id="leading zeros"),
        pytest.param(GOOD.replace(b"h: 2", b"h: 10000"), id="length at the cap"),
        pytest.param(LINE + b"X: " + b"a" * (8192 - len(GOOD) - 5) + b"\r\n" + GOOD[len(LINE) :], id="8192 bytes"),
        pytest.param(LINE + b"X: 1\r\n" * 61 + GOOD[len(LINE) :], id="64 headers"),
        pytest.param(LINE + INFER_LENGTH * 2 + GOOD[len(LINE) :], id="a header of tensors on a prediction"),
        pytest.param(INFER, id="infer"),
        pytest.param(INFER.replace(INFER_LENGTH, b""), id="infer, all JSON"),
        pytest.param(INFER.replace(b": 70", b": 0"), id="infer, no JSON"),
        pytest.param(INFER.replace(b": 70", b": 000100"), id="infer, a length that the body does not have"),
        pytest.param(INFER.replace(b"/versions/3", b""), id="infer without a version"),
        pytest.param(INFER.replace(b"/3/", b"/999999999/"), id="infer with a high version"),
        pytest.param(INFER.replace(b"m/versions/3", b"versions"), id="infer of a model called versions"),
        *(
            pytest.param(INFER_LINE + b"Content-Type: " + kind + b"\r\n" + INFER[45:], id=f"infer as {kind.decode()}")
            for kind in (b"application/json", b"Application/Octet-Stream", b"application/json; charset=utf-8")
        ),
    ],
)
def test_accepted(data):
    """What varies among honest clients."""
    assert status(data) == http.FAST
    assert http.read_head(data, CAP)[1:] == http_head.read_head(data, CAP)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GOOD.replace(b"POST", b"GET"), id="method"),
        pytest.param(GOOD.replace(b"POST", b"post"), id="method in small letters"),
        pytest.param(b"\r\n" + GOOD, id="an empty line first"),
        pytest.param(GOOD.replace(b" HTTP/1.1", b""), id="no version"),
        pytest.param(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), id="HTTP/2.0"),
        pytest.param(GOOD.replace(b"/m ", b"/ "), id="no reference"),
        pytest.param(GOOD.replace(b"/m ", b"/m?x=1 "), id="a query"),
        pytest.param(GOOD.replace(b"/m ", b"/m%41 "), id="an escape"),
        pytest.param(GOOD.replace(b"/m ", b"/a/b "), id="a longer path"),
        pytest.param(GOOD.replace(b"/predict", b"http://x/predict"), id="absolute form"),
        pytest.param(GOOD.replace(b"/m ", b"/m  "), id="two spaces"),
        pytest.param(GOOD.replace(b"\r\n", b"\n"), id="bare LF"),
        pytest.param(GOOD.replace(b"x\r\n", b"x\r"), id="bare CR"),
        pytest.param(GOOD.replace(b"x\r\n", b"x\n"), id="one bare LF"),
        pytest.param(GOOD.replace(HOST, b""), id="no Host"),
        pytest.param(GOOD.replace(HOST, HOST * 2), id="two Hosts"),
        pytest.param(GOOD.replace(HOST, b"Host:\r\n"), id="empty Host"),
        pytest.param(GOOD.replace(HOST, b"Host: a b\r\n"), id="a space in Host"),
        pytest.param(GOOD.replace(LENGTH, b""), id="no Content-Length"),
        pytest.param(GOOD.replace(LENGTH, LENGTH * 2), id="Content-Length twice"),
        *(
            pytest.param(GOOD.replace(b"h: 2\r", b"h: " + value + b"\r"), id=f"Content-Length {value!r}")
            for value in (b"", b"-2", b"+2", b"0x2", b"2,2", b"2 ", b"2_0", b"1e1", b"10001", b"9" * 30, b"2;")
        ),
        pytest.param(GOOD.replace(TYPE, b""), id="no Content-Type"),
        pytest.param(GOOD.replace(TYPE, TYPE * 2), id="Content-Type twice"),
        pytest.param(GOOD.replace(b"json", b"xml"), id="another type"),
        pytest.param(GOOD.replace(b"json", b"jsonx"), id="a longer type"),
        *(
            pytest.param(LINE + header + b"\r\n" + GOOD[len(LINE) :], id=header.decode("latin-1"))
            for header in (
                b"Transfer-Encoding: chunked",
                b"tRANSFER-eNCODING: x",
                b"Content-Encoding: gzip",
                b"Expect: 100-continue",
                b"Upgrade: h2c",
                b"TE: trailers",
                b"Trailer: x",
                b"Connection: close",
                b"Connection: keep-alive, upgrade",
                b"Connection:",
                b"X : 1",
                b" X: 1",
                b"X: 1\r\n folded",
                b"X: \x00",
                b"X: \x7f",
                b"X: \x80",
                b"X: a\tb",
                b"X\x80: 1",
                b"X(: 1",
                b": 1",
                b"X",
            )
        ),
        pytest.param(LINE + b"X: " + b"a" * (8192 - len(GOOD) - 4) + b"\r\n" + GOOD[len(LINE) :], id="8193 bytes"),
        pytest.param(LINE + b"X: " + b"a" * 10_000, id="no end in 8192 bytes"),
        pytest.param(LINE + b"X: 1\r\n" * 62 + GOOD[len(LINE) :], id="65 headers"),
        *(
            pytest.param(INFER.replace(b"m/versions/3", path), id=f"infer of {path.decode()}")
            for path in (
                b"",
                b"/versions/3",
                b"m/versions/",
                b"m/versions/03",
                b"m/versions/x",
                b"m/versions/1234567890",
                b"m/versions/-1",
                b"m/versions/3/",
                b"m/versions",
                b"m/",
                b"m%41",
                b"m/versions/3/versions/3",
                b"m/x",
            )
        ),
        *(
            pytest.param(INFER.replace(b"infer", verb), id=f"the verb {verb.decode()}")
            for verb in (b"INFER", b"infer/", b"infer?x", b"ready", b"infe", b"inferx", b"infer ")
        ),
        *(
            pytest.param(INFER.replace(b": 70", b": " + value), id=f"JSON of {value.decode()}")
            for value in (b"", b"-1", b"+1", b"7 ", b"0x7", b"7,7", b"9" * 16, b"1.0")
        ),
        pytest.param(INFER.replace(INFER_LENGTH, INFER_LENGTH * 2), id="the length of the JSON twice"),
        *(
            pytest.param(INFER_LINE + b"Content-Type: " + kind + b"\r\n" + INFER[45:], id=f"infer as {kind.decode()}")
            for kind in (b"application/msgpack", b"text/plain", b"", b"application/octet-streams")
        ),
        pytest.param(INFER_LINE + TYPE * 2 + INFER[45:], id="infer as two types"),
        pytest.param(INFER.replace(b"POST /v2", b"GET /v2"), id="infer by GET"),
        pytest.param(INFER.replace(b"/v2/models", b"/v2/model"), id="no models"),
        pytest.param(INFER.replace(b"/v2/", b"/v1/"), id="another protocol"),
    ],
)
def test_handed_on(data):
    """Every smuggling class and every other oddity is for the general path, whatever follows."""
    assert status(data) == http.HAND_ON
    assert http_head.read_head(data, CAP) is None


class Llhttp:
    """What uvicorn's parser makes of the same bytes."""

    def __init__(self, data):
        self.url, self.headers, self.body, self.complete = b"", [], b"", 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method, self.version = parser.get_method(), parser.get_http_version()
        self.keeps_alive, self.upgrades = parser.should_keep_alive(), parser.should_upgrade()

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.complete += 1


def check(data):
    """The parser agrees with its oracle, and with llhttp on whatever it accepts."""
    found = http.read_head(data, CAP)
    expected = http_head.read_head(data, CAP)
    assert (found[0] == http.FAST) == (expected is not None)
    if expected is None:
        return
    assert found[1:] == expected
    start, length, head, content, *_ = expected
    # Exactly one request: the head, then as much body as it announces.
    other = Llhttp(data[:head] + b"x" * content)
    assert (other.method, other.version, other.complete) == (b"POST", "1.1", 1)
    before, after = (b"/v2/models/", b"/infer") if found[5] == 2 else (b"/predict/", b"")
    assert other.url == before + data[start : start + length] + after
    assert other.body == b"x" * content
    assert other.keeps_alive
    assert not other.upgrades
    lines = [line.partition(b":") for line in data[: head - 4].split(b"\r\n")[1:]]
    # llhttp keeps the optional white space behind a value, which RFC 9110 says is not part of it.
    read = [(name, value.strip(b" ")) for name, value in other.headers]
    assert read == [(name.lower(), value.strip(b" ")) for name, _, value in lines]


BYTES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\x00", b"\x80", b"0", b"9", b"+", b"-", b"x", b"\r\n\r\n"]
LINES = [HOST, TYPE, LENGTH, b"Content-Length: 3\r\n", b"Connection: keep-alive\r\n", b"X: y \r\n"]
WORDS = [b"/infer", b"/versions/", b"/v2/models/", b"/predict/", INFER_LENGTH]
PIECES = st.sampled_from([*BYTES, *LINES, *WORDS, b"Transfer-Encoding: chunked\r\n"])
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"Host", b"Content-Length", b"Content-Type", b"Connection", b"X", b"Accept", b"te", b"HOST"]),
        st.sampled_from([b": ", b":", b":  ", b" : ", b"\t: "]),
        st.sampled_from(
            [b"x", b"2", b"0", b"application/json", b"keep-alive", b"close", b"", b"a,b", b"application/msgpack;q=1"]
        ),
    ).map(b"".join),
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from([GOOD, INFER]),
    edits=st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 3), PIECES | st.binary(max_size=2)), max_size=3),
)
@example(data=GOOD, edits=[])
@example(data=INFER, edits=[])
def test_mutations_are_read_as_llhttp_reads_them(data, edits):
    """A valid head with bytes cut and put in anywhere."""
    for at, cut, piece in edits:
        data = data[:at] + piece + data[at + cut :]
    check(data)


@settings(max_examples=300, deadline=None)
@given(headers=HEADERS, extra=st.binary(max_size=4))
def test_assembled_heads_are_read_as_llhttp_reads_them(headers, extra):
    """Heads put together from the pieces that matter."""
    check(
        LINE
        + b"\r\n".join([*headers, b"Host: h", b"Content-Length: 1", b"Content-Type: application/json"])
        + b"\r\n\r\n"
        + extra
    )
    check(LINE + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + extra)


@settings(max_examples=300, deadline=None)
@given(head=st.sampled_from([HEAD, INFER]), data=st.binary(max_size=60), kept=st.integers(0, len(HEAD)))
def test_a_verdict_never_changes(head, data, kept):
    """HAND_ON and FAST of a prefix are what every longer text gets: a split read decides as a whole one."""
    whole = head[:kept] + data
    verdicts = [status(whole[:size]) for size in range(1, len(whole) + 1)]
    decided = [verdict for verdict in verdicts if verdict != http.NEED_MORE]
    assert len(set(decided)) <= 1
    assert verdicts == [http.NEED_MORE] * (len(verdicts) - len(decided)) + decided


@pytest.mark.parametrize(
    "text", [HEAD, INFER, LINE + b"X: " + b"a" * 9000, LINE + b"X: 1\r\n" * 70], ids=["good", "infer", "long", "many"]
)
def test_never_reads_past_the_end(text):
    """Every prefix, with an unreadable page right behind it, is judged as anywhere else."""
    with guarded() as place:
        for size in range(1, len(text) + 1):
            assert http.read_head(place(text[:size]), CAP) == http.read_head(text[:size], CAP)
