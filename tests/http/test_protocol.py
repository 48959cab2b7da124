"""The compiled protocol and the bounded general one behind it, over real sockets: what is answered, refused, awaited."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time

import msgpack
import pytest
import uvicorn
from tests.http.test_app import BODY, FixedEngine

from tiercel.http.app import DataPlane
from tiercel.http.native import NativeHttp
from tiercel.http.server import bind
from tiercel.settings import ServerSettings

LIMITS = ServerSettings(
    max_rows=100,
    max_body_bytes=20_000,
    max_head_bytes=10_000,
    max_connections=50,
    header_timeout_s=0.4,
    body_timeout_s=0.4,
    idle_timeout_s=1.0,
)


class Running:
    """A data plane on a port of its own, in a thread of this process."""

    def __init__(
        self, engine, settings=LIMITS, ids=None, counters=None, declared=(), known=None, commit=None, **options
    ):
        # `known` is what the compiled path sees of the engine, in place of all of it.
        self.native = NativeHttp(engine if known is None else known, settings, ids, counters, **options)
        self.plane = DataPlane(engine, settings, self.native, declared=declared, commit=commit)
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(
            self.plane,
            loop="uvloop",
            http=self.native.protocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.005)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.native.close()
        self.listener.close()

    def connect(self, timeout=5):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    @property
    def n_connections(self):
        return len(self.server.server_state.connections)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return FixedEngine(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def running(engine):
    with Running(engine) as server:
        yield server


def request(body=BODY, *, target="/predict/late", headers=(), kind="application/json", host="Host: x\r\n"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{line}\r\n" for line in headers)
    head = f"POST {target} HTTP/1.1\r\n{host}Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n{lines}\r\n"
    return head.encode() + content


GOOD = request()
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Peer:
    """One client connection, read reply by reply."""

    def __init__(self, connection):
        self.connection, self.buffer = connection, b""

    def send(self, data):
        self.connection.sendall(data)

    def ask(self, data):
        self.send(data)
        return self.reply()[0]

    def more(self):
        data = self.connection.recv(65536)
        self.buffer += data
        return bool(data)

    def reply(self):
        """(status, headers, body) of the next reply; None when the connection ends instead."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                assert self.buffer == b""
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if line.startswith("HTTP/1.1 100"):
            return 100, headers, b""
        while len(self.buffer) < int(headers["content-length"]):
            assert self.more()
        body, self.buffer = (
            self.buffer[: int(headers["content-length"])],
            self.buffer[int(headers["content-length"]) :],
        )
        return int(line.split()[1]), headers, body

    def statuses(self):
        """Statuses of all replies until the server closes."""
        found = []
        while (reply := self.reply()) is not None:
            found.append(reply[0])
        return found

    def silent(self, seconds=0.1):
        """Whether the server says nothing for a while."""
        self.connection.settimeout(seconds)
        try:
            return self.more() and False
        except TimeoutError:
            return True
        finally:
            self.connection.settimeout(5)


@contextlib.contextmanager
def peer(running):
    with running.connect() as connection:
        yield Peer(connection)


def answer(reply):
    """A reply without what differs from one answer to the next."""
    status, headers, body = reply
    data = json.loads(body) if headers["content-type"] == "application/json" else msgpack.unpackb(body)
    assert re.fullmatch(r"[0-9a-f]{17,}", data.pop("id"))
    headers["server-timing"] = re.sub(r"\d+\.\d{3}", "#", headers["server-timing"])
    return status, {name: value for name, value in headers.items() if name not in {"date", "content-length"}}, data


@pytest.mark.parametrize(
    ("head", "extra", "source", "told"),
    [
        ("", {}, None, None),
        ("", {"deadline_ms": 5000.5}, "deadline_ms", "5000.500"),
        ("X-Request-Timeout-Seconds: 7.25\r\n", {}, "x-request-timeout-seconds", "7250.000"),
        ("x-envoy-expected-rq-timeout-ms: 60000\r\n", {}, "x-envoy-expected-rq-timeout-ms", "60000.000"),
        ("x-envoy-expected-rq-timeout-ms: 9000\r\nx-request-timeout-seconds: 8\r\n", {}, "x-request-timeout-seconds", "8000.000"),
        ("x-envoy-expected-rq-timeout-ms: 9000\r\n", {"deadline_ms": 9000}, "x-envoy-expected-rq-timeout-ms", "9000.000"),
        ("x-envoy-expected-rq-timeout-ms: 9000\r\n", {"deadline_ms": 8999}, "deadline_ms", "8999.000"),
    ],
)  # fmt: skip
def test_both_paths_echo_the_same_deadline(running, head, extra, source, told):
    """The deadline that counted, and who set it, stand in Server-Timing, whichever path answered."""
    content = json.dumps({**BODY, **extra}).encode()
    lines = f"POST /predict/late HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}"
    with peer(running) as one:
        before = running.native.counts
        one.send(f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        fast = one.reply()[1]["server-timing"]
        assert running.native.counts == {**before, "answered": before["answered"] + 1}
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        one.send(f"{lines}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked)
        general = one.reply()[1]["server-timing"]
    expected = [] if source is None else [(told, source)]
    for found in (fast, general):
        assert re.findall(r'budget;dur=([0-9.]+);desc="([^"]+)"', found) == expected


@pytest.mark.parametrize("end", ["", " ", "\t", " \t "])
@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("x-envoy-expected-rq-timeout-ms: 9000", 200, None),
        ("x-request-timeout-seconds:\t 9.5", 200, None),
        ("x-request-timeout-seconds: 9 5", 400, "invalid_deadline"),
        ("Connection: keep-alive", 200, None),
        ("Expect: none", 200, None),
        ("Content-Encoding: identity", 200, None),
    ],
)
def test_space_around_a_value_means_nothing(running, header, end, status, code):
    """Spaces and tabs behind a header's value are no part of it, on either path (RFC 9110, 5.5)."""
    content = json.dumps(BODY).encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    with peer(running) as one:
        for framing, body in ((f"Content-Length: {len(content)}", content), ("Transfer-Encoding: chunked", chunked)):
            lines = [framing, f"Content-Type: application/json{end}", f"{header}{end}"]
            one.send("\r\n".join(["POST /predict/late HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body)
            found, _, told = one.reply()
            assert (found, json.loads(told).get("code")) == (status, code)


@pytest.mark.parametrize("header", ["x-envoy-expected-rq-timeout-ms: 3600001", "x-request-timeout-seconds: 1e6"])
def test_a_proxy_that_waits_longer_than_an_hour(running, header):
    """Its header is no tighter than the longest deadline; one of a body that is longer is a mistake."""
    with peer(running) as one:
        one.send(request(headers=[header]))
        status, headers, _ = one.reply()
        assert status == 200
        assert f'budget;dur=3600000.000;desc="{header.partition(":")[0]}"' in headers["server-timing"]
        assert one.ask(request({**BODY, "deadline_ms": 3_600_001}, headers=[header])) == 400


@pytest.mark.parametrize("end", ["", " ", "\t"])
def test_space_behind_the_name_of_a_model(running, end):
    """`/invocations` looks for the model that a header names, and not for one with a space in its name."""
    lines = [f"x-tiercel-model: nobody{end}", "Content-Type: application/json", "Content-Length: 19"]
    with peer(running) as one:
        one.send(
            "\r\n".join(["POST /invocations HTTP/1.1", "Host: x", *lines, "", ""]).encode() + b'{"instances":[[1]]}'
        )
        status, _, told = one.reply()
    assert (status, "'nobody'" in json.loads(told)["error"]) == (404, True)


def test_both_paths_answer_alike(running):
    """A chunked request goes the general way: its answer, headers and order of fields included, is the fast one's."""
    for kind, content in (
        ("application/json", json.dumps(BODY).encode()),
        ("application/msgpack", msgpack.packb(BODY)),
    ):
        with peer(running) as one:
            before = running.native.counts
            one.send(request(content, kind=kind))
            fast = one.reply()
            assert running.native.counts == {**before, "answered": before["answered"] + 1}
            head = (
                f"POST /predict/late HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            one.send(head.encode() + b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n")
            general = one.reply()
            assert running.native.counts["handed_on"] == before["handed_on"] + 1
            assert answer(fast) == answer(general)
            assert list(fast[1]) == list(general[1])
            assert len(fast[2]) - len(general[2]) in range(-3, 4)  # the ids' counters


def test_a_connection_comes_back(running):
    """After a request that the general path answered, the next ordinary one is answered by the fast path again."""
    with peer(running) as one:
        before = running.native.counts
        for _ in range(3):
            one.send(GOOD)
            assert one.reply()[0] == 200
            one.send(request(b"{"))
            assert one.reply()[0] == 400
            one.send(LIVEZ)
            assert one.reply()[0] == 200
        assert running.native.counts == {"answered": before["answered"] + 3, "handed_on": before["handed_on"] + 6}


def test_split_at_any_byte(running):
    """A request cut in two anywhere is answered once its second part has come, by the fast path."""
    before = running.native.counts["answered"]
    with peer(running) as one:
        for cut in range(1, len(GOOD)):
            one.send(GOOD[:cut])
            time.sleep(0.0003)
            one.send(GOOD[cut:])
            assert one.reply()[0] == 200
    assert running.native.counts["answered"] - before == len(GOOD) - 1


@pytest.mark.parametrize("cut", [40, -5])
def test_a_deadline_counts_from_the_first_byte(running, cut):
    """What a request waits for its own bytes is part of its budget on either path; the next request begins anew."""
    tight, ample = (request({**BODY, "deadline_ms": budget_ms}) for budget_ms in (40, 5000))
    before = running.native.counts["answered"]
    with peer(running) as one:
        for sent, status in ((tight, 504), (ample, 200)):
            one.send(sent[:cut])
            time.sleep(0.05)
            assert one.ask(sent[cut:]) == status
        assert one.ask(tight) == 200
    assert running.native.counts["answered"] == before + 2


@pytest.mark.parametrize(("size", "expected"), [(LIMITS.max_head_bytes - 200, 200), (LIMITS.max_head_bytes, 431)])
def test_a_large_head_is_judged_alike_however_it_is_split(running, size, expected):
    """A head near the limit gets the same answer in one read and in many: no byte is counted twice."""
    data = request(headers=["X-Large: " + "a" * size])
    for step in (len(data), 700, 97):
        with peer(running) as one:
            for at in range(0, len(data), step):
                with contextlib.suppress(ConnectionError):
                    one.send(data[at : at + step])
                time.sleep(0.0003)
            assert one.reply()[0] == expected


def test_byte_by_byte(running):
    """One byte at a time, two requests back to back."""
    with peer(running) as one:
        for at in range(2 * len(GOOD)):
            one.send((GOOD * 2)[at : at + 1])
        assert [one.reply()[0] for _ in range(2)] == [200, 200]


def test_pipelined_in_order(running):
    """Requests in one segment are answered in order, fast and general ones mixed."""
    with peer(running) as one:
        one.send(GOOD * 3 + request(b"[]") + LIVEZ + GOOD + request(target="/predict/kind") + LIVEZ)
        replies = [one.reply() for _ in range(8)]
    assert [status for status, _, _ in replies] == [200, 200, 200, 400, 200, 200, 200, 200]
    names = [json.loads(body).get("model") for _, _, body in replies]
    assert names == ["late", "late", "late", None, None, "late", "kind", None]


BAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n"


@pytest.mark.parametrize("first", [GOOD, LIVEZ, request(b"{")], ids=["fast", "general", "refused"])
@pytest.mark.parametrize("bad", [BAD, b"\x00", request(headers=["Content-Length: 1"])], ids=["name", "nul", "length"])
def test_what_came_before_an_error_is_answered(running, first, bad):
    """Of four pipelined requests with the last malformed, three are answered; after the error nothing is."""
    with peer(running) as one:
        one.send(first * 3 + bad + GOOD)
        expected = 400 if first == request(b"{") else 200
        assert one.statuses() == [expected] * 3 + [400]


CHUNKED = (
    b"POST /predict/late HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunked(*, size=None, end=b"\r\n", last=b"0\r\n\r\n"):
    content = json.dumps(BODY).encode()
    return CHUNKED + (b"%x" % len(content) if size is None else size) + b"\r\n" + content + end + last


def with_length(value):
    return GOOD.replace(b"Content-Length: %d" % len(json.dumps(BODY)), b"Content-Length: " + value)


REFUSED = {
    "no version": (GOOD.replace(b" HTTP/1.1", b""), {400, 505}),
    "no version, simple": (b"GET /livez\r\n\r\n", {400, 505}),
    "version 1.2": (GOOD.replace(b"HTTP/1.1", b"HTTP/1.2"), {400, 505}),
    "version 2.0": (GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), {400, 505}),
    "version junk": (GOOD.replace(b"HTTP/1.1", b"HTP/1.1"), {400}),
    "method prefix": (GOOD.replace(b"POST", b"POS"), {400}),
    "method suffix": (GOOD.replace(b"POST", b"POSTS"), {400}),
    "bare LF": (GOOD.replace(b"\r\n", b"\n"), {400}),
    "bare CR": (GOOD.replace(b"x\r\n", b"x\r"), {400}),
    "no Host": (request(host=""), {400}),
    "two Hosts": (request(host="Host: x\r\nHost: x\r\n"), {400}),
    "two Hosts apart": (request(headers=["hOST: y"]), {400}),
    "space before colon": (request(headers=["X : 1"]), {400}),
    "space in a name": (request(headers=["X Y: 1"]), {400}),
    "control in a name": (request(headers=["X\x01: 1"]), {400}),
    "empty name": (request(headers=[": 1"]), {400}),
    "NUL in a value": (request(headers=["X: a\x00b"]), {400}),
    "control in a value": (request(headers=["X: a\x01b"]), {400}),
    "DEL in a value": (request(headers=["X: a\x7fb"]), {400}),
    "obs-fold": (request(headers=["X: 1", " 2"]), {400}),
    "obs-fold first": (GOOD.replace(b"Host", b" X: 1\r\nHost"), {400}),
    "length twice": (request(headers=["Content-Length: 3"]), {400}),
    "length and chunked": (request(headers=["Transfer-Encoding: chunked"]), {400}),
    "length and CHUNKED": (request(headers=["transfer-encoding: CHUNKED"]), {400}),
    "chunked and length": (chunked().replace(b"Host", b"Content-Length: 5\r\nHost"), {400}),
    "chunk size not hex": (chunked(size=b"xyz"), {400}),
    "chunk size signed": (chunked(size=b"-5"), {400}),
    "chunk size 0x": (chunked(size=b"0x5"), {400}),
    "chunk size empty": (chunked(size=b""), {400}),
    "chunk size overflow": (chunked(size=b"f" * 20), {400, 413}),
    "chunk not ended": (chunked(end=b"xx"), {400}),
    "chunk ended by LF": (chunked(end=b"\n"), {400}),
    "bad trailer": (chunked(last=b"0\r\nbad trailer\r\n\r\n"), {400}),
    "unknown coding": (CHUNKED.replace(b"chunked", b"gzip") + b"5\r\n", {400}),
    "chunked not last": (CHUNKED.replace(b"chunked", b"chunked, gzip") + b"5\r\n", {400}),
    "100 KB of header": (request(headers=["X: " + "a" * 100_000]), {431}),
    "10,000 headers": (request(headers=["X: 1"] * 10_000), {431}),
    "long target": (request(target="/predict/" + "a" * 9000), {414}),
    "10 GB": (with_length(b"10000000000"), {413}),
    "over the cap": (with_length(b"20001"), {413}),
    **{
        f"length {value!r}": (with_length(value), {400, 413})
        for value in (b"-5", b"+5", b"0x5", b"5,5", b"5 5", b"five", b"", b"1e1", b"9" * 30)
    },
}  # fmt: skip


@pytest.mark.parametrize("before", [b"", GOOD, LIVEZ], ids=["first", "after fast", "after general"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(running, name, before):
    """What a strict server refuses is refused with an error body and a close, wherever it stands on a connection."""
    data, expected = REFUSED[name]
    with peer(running) as one:
        if before:
            one.send(before)
            assert one.reply()[0] == 200
        with contextlib.suppress(ConnectionError):
            one.send(data)
        status, headers, body = one.reply()
        assert status in expected
        assert headers["connection"] == "close"
        assert set(json.loads(body)) == {"error", "code"}
        assert one.reply() is None


ACCEPTED = {
    "empty value": request(headers=["X:"]),
    "tabs and spaces": request(headers=["X: \t a \t b \t "]),
    "bytes above 127": request(headers=["X: "]).replace(b"X: ", b"X: \xe9"),
    "names in capitals": GOOD.replace(b"Content-Length", b"CONTENT-LENGTH"),
    "empty line before": b"\r\n" + GOOD,
    "chunked": chunked(),
    "chunk extension": chunked(size=b"%x;a=b" % len(json.dumps(BODY))),
    "trailer": chunked(last=b"0\r\nX: 1\r\n\r\n"),
    "absolute target": GOOD.replace(b"/predict", b"http://x/predict"),
    "query": GOOD.replace(b"/late", b"/late?x=1"),
    "escaped": GOOD.replace(b"/late", b"/%6cate"),
    "no type": GOOD.replace(b"Content-Type: application/json\r\n", b""),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(running, name):
    """What is odd but legal is answered, and the connection stays."""
    with peer(running) as one:
        for _ in range(2):
            one.send(ACCEPTED[name])
            assert one.reply()[0] == 200


def test_http_1_0(running):
    """An HTTP/1.0 request is answered and its connection closed."""
    with peer(running) as one:
        one.send(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert one.statuses() == [200]


def test_connection_close(running):
    """A client that says close gets its answer and the close."""
    with peer(running) as one:
        one.send(request(headers=["Connection: close"]))
        assert one.statuses() == [200]


def test_expect_continue(running):
    """100, then the answer; and the answer alone when the body is not wanted."""
    body = json.dumps(BODY).encode()
    data = request(headers=["Expect: 100-continue"])
    with peer(running) as one:
        one.send(data[: -len(body)])
        assert one.reply()[0] == 100
        one.send(body)
        assert one.reply()[0] == 200
    with peer(running) as one:
        one.send(with_length(b"90000").replace(b"Host", b"Expect: 100-continue\r\nHost")[: -len(body)])
        assert one.statuses() == [413]


def test_a_refused_body_is_not_asked_for(running, caplog):
    """A body that is malformed from its beginning, of a request that waits to be asked for it: one reply, nothing in the log."""
    head = request(headers=["Expect: 100-continue", "Transfer-Encoding: chunked"])
    head = b"\r\n".join(
        line for line in head.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith(b"Content-Length")
    )
    with peer(running) as one:
        one.send(head + b"\r\n\r\n2\r\n{}\r\nZZ\r\n")
        assert one.statuses() == [400]
    assert "unexpectedly" not in caplog.text


def test_answered_before_the_body(running):
    """A reply that did not wait for the body keeps the connection if the body follows, and ends it if not."""
    whole = request(kind="text/plain")
    with peer(running) as one:
        for _ in range(2):
            one.send(whole[:-10])
            assert one.reply()[0] == 415
            one.send(whole[-10:])
            one.send(GOOD)
            assert one.reply()[0] == 200
        one.send(whole[:-10])
        assert one.statuses() == [415]


def test_one_reply_to_a_request_answered_before_its_body_broke(running):
    """After a reply that did not wait for the body, a malformed body ends the connection without a second reply."""
    with peer(running) as one:
        one.send(CHUNKED.replace(b"application/json", b"text/plain"))
        assert one.reply()[0] == 415
        one.send(b"xyz\r\n" + GOOD)
        assert one.reply() is None


def test_a_body_without_end(running):
    """Chunks past the cap are answered 413, and the connection ends however much follows."""
    with peer(running) as one:
        one.send(CHUNKED)
        with pytest.raises(ConnectionError):
            one.send((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 10_000)


def test_upgrade_is_not_taken(running):
    """A request to change protocols is answered as HTTP, and nothing after it is read as HTTP."""
    with peer(running) as one:
        one.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GOOD)
        assert one.statuses() == [200]


@pytest.mark.parametrize("whole", [GOOD, LIVEZ, chunked()], ids=["fast", "general", "chunked"])
def test_nothing_is_answered_before_it_is_whole(running, whole):
    """A prefix of a request draws no reply."""
    for cut in (3, 20, whole.index(b"\r\n\r\n") + 2, len(whole) - 1):
        with peer(running) as one:
            one.send(whole[:cut])
            assert one.silent(0.02)
            one.send(whole[cut:])
            assert one.reply()[0] == 200


@pytest.mark.parametrize(
    ("whole", "cut", "code"),
    [
        (GOOD, 20, "head_timeout"),
        (GOOD, -30, "body_timeout"),
        (LIVEZ, 2, "head_timeout"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 1000, 25, "head_timeout"),
        (b"\r\n" * 100, 2, "head_timeout"),
        (chunked(), -40, "body_timeout"),
    ],
    ids=["fast head", "fast body", "general head", "general value", "empty lines", "general body"],
)
def test_a_trickle_has_a_deadline(running, whole, cut, code):
    """A byte now and then does not hold a connection: it is told 408 after the deadline, however it trickles."""
    with peer(running) as one:
        start = time.monotonic()
        one.send(whole[:cut])
        rest = iter(whole[cut:])
        while one.silent(0.05) and time.monotonic() - start < 3:
            one.send(bytes([next(rest)]))
        status, _, body = one.reply()
        assert (status, json.loads(body)["code"]) == (408, code)
        assert 0.3 < time.monotonic() - start < 2
        assert one.reply() is None


@pytest.mark.parametrize("first", [b"", GOOD, LIVEZ], ids=["new", "fast", "general"])
def test_idle_connections_are_closed(running, first):
    """A connection without a request ends, quietly, after the idle timeout."""
    with peer(running) as one:
        if first:
            one.send(first)
            assert one.reply()[0] == 200
        start = time.monotonic()
        assert one.reply() is None
        assert 0.8 < time.monotonic() - start < 4


def test_a_deadline_belongs_to_one_request(running):
    """Many requests on one connection, each split, together take longer than one deadline and are all answered."""
    with peer(running) as one:
        start = time.monotonic()
        while time.monotonic() - start < 1.0:
            one.send(GOOD[:50])
            time.sleep(0.03)
            one.send(GOOD[50:])
            assert one.reply()[0] == 200


def test_too_many_connections(engine):
    """Connections past the limit are told so; the others are served, and a freed place is given away."""
    with Running(engine, ServerSettings(max_connections=3)) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(server)) for _ in range(3)]
        for one in peers:
            one.send(GOOD)
            assert one.reply()[0] == 200
        with peer(server) as late:
            assert late.reply()[0] == 503
        peers[0].connection.close()
        while server.n_connections == 3:
            time.sleep(0.005)
        with peer(server) as late:
            late.send(GOOD)
            assert late.reply()[0] == 200


def test_a_peer_that_does_not_read(engine):
    """Replies nobody reads stop the reading of requests, cost bounded memory, and all come when reading resumes."""
    n = 30_000
    with Running(engine, ServerSettings(body_timeout_s=60, header_timeout_s=60)) as server, peer(server) as one:
        one.connection.settimeout(60)  # of the whole sendall, which waits for the replies to be read
        sender = threading.Thread(target=one.send, args=(GOOD * n,))
        sender.start()
        previous = -1
        while server.native.counts["answered"] != previous:
            previous = server.native.counts["answered"]
            time.sleep(0.3)
        assert previous < n
        replies = [one.reply()[0] for _ in range(n)]
        sender.join()
        assert replies == [200] * n


def test_a_peer_that_does_not_read_and_leaves_requests_half_sent(engine):
    """Reading stops just the same when every read event ends inside a request, and nothing is lost when it resumes."""
    half, n, most = len(GOOD) // 2, 1, 40_000_000
    with Running(engine, ServerSettings(body_timeout_s=60, header_timeout_s=60)) as server, peer(server) as one:
        one.send(GOOD)
        size = len(one.connection.recv(65536, socket.MSG_PEEK))
        one.send(GOOD[:half])
        while n * size < most:
            one.send(GOOD[half:] + GOOD * 99 + GOOD[:half])
            n += 100
            deadline = time.monotonic() + 1
            while server.native.counts["answered"] < n and time.monotonic() < deadline:
                time.sleep(0.0005)
            if server.native.counts["answered"] < n:
                break
        assert n * size < most
        one.send(GOOD[half:])
        assert [one.reply()[0] for _ in range(n + 1)] == [200] * (n + 1)


def test_a_peer_that_never_reads_is_dropped(engine):
    """Past the idle timeout its connection is aborted, not waited for."""
    with Running(engine, ServerSettings(idle_timeout_s=0.3)) as server, peer(server) as one:
        sender = threading.Thread(target=lambda: contextlib.suppress(OSError).__enter__() or _send(one, GOOD * 30_000))
        sender.start()
        deadline = time.monotonic() + 10
        while server.n_connections == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        while server.n_connections and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.n_connections == 0
        sender.join()


def _send(one, data):
    with contextlib.suppress(OSError):
        one.send(data)


def test_shutdown_answers_what_has_begun(engine):
    """A drain answers a half-sent request of either path with a close, and closes what is idle."""
    with contextlib.ExitStack() as stack:
        server = Running(engine, ServerSettings())
        with server:
            idle, fast, general, partial = (stack.enter_context(peer(server)) for _ in range(4))
            idle.send(GOOD)
            assert idle.reply()[0] == 200
            fast.send(GOOD[:-5])
            general.send(chunked()[:-5])
            partial.send(LIVEZ[:10])
            while server.n_connections < 4 or server.native.counts["handed_on"] < 2:
                time.sleep(0.005)
            time.sleep(0.05)
            server.server.should_exit = True
            assert idle.reply() is None
            fast.send(GOOD[-5:])
            general.send(chunked()[-5:])
            partial.send(LIVEZ[10:])
            for one in (fast, general, partial):
                status, headers, _ = one.reply()
                assert (status, headers["connection"]) == (200, "close")
                assert one.reply() is None


def test_nothing_is_left_of_closed_connections(running):
    """Whatever a client did before it went away, no connection object stays."""
    for data in (
        b"",
        GOOD,
        GOOD[:30],
        GOOD[:-4],
        LIVEZ,
        LIVEZ[:9],
        chunked()[:-9],
        BAD,
        GOOD * 50,
        with_length(b"1" * 30),
    ):
        with peer(running) as one:
            one.send(data)
            if data == GOOD:
                one.reply()
    deadline = time.monotonic() + 5
    while running.n_connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.n_connections == 0


def test_counts_are_shown(running):
    """/readyz says how many requests either path took."""
    with peer(running) as one:
        one.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        shown = json.loads(one.reply()[2])["fast_path"]
    assert shown == running.native.counts
    assert shown["answered"] > 0


def test_draining_closes_after_a_body_that_was_answered_early(engine):
    """A server told to stop while the rest of a refused request's body is awaited closes the connection once it has come."""
    with Running(engine) as server, peer(server) as one:
        one.send(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        assert one.reply()[0] == 404
        server.server.should_exit = True
        while server.server.servers[0].is_serving():
            time.sleep(0.005)
        time.sleep(0.02)
        one.send(b"cde")
        one.connection.settimeout(0.5)  # less than any deadline of an idle connection
        assert one.reply() is None
