"""Request smuggling: every class of it is refused or handed on, never answered by the fast path, however it is split.

Each row is one request. Another, ordinary one stands behind it, so a parser that finds another end than the right one
answers too often or too seldom.
"""

from __future__ import annotations

import contextlib
import re

import pytest
from tests.fuzz.server import serve
from tests.fuzz.world import BODY
from tests.http.test_protocol import GOOD as PLAIN
from tests.http.test_protocol import REFUSED as ON_THE_WIRE
from tests.http.test_protocol import engine, peer, running  # noqa: F401 - two are fixtures

HEAD = b"POST /predict/m HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Odd:\t \r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def lengths(*headers, body=BODY):
    """The ordinary request with these in the place of its Content-Length."""
    return HEAD + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def coded(*headers):
    return CHUNKED.replace(b"Transfer-Encoding: chunked", b"\r\n".join(headers))


def header(line):
    return GOOD.replace(b"Host: x\r\n", b"Host: x\r\n" + line + b"\r\n")


REFUSED = {
    # Content-Length together with Transfer-Encoding.
    "length, then chunked": coded(LENGTH[:-2], b"Transfer-Encoding: chunked"),
    "chunked, then length": coded(b"Transfer-Encoding: chunked", LENGTH[:-2]),
    "length and CHUNKED": coded(LENGTH[:-2], b"TRANSFER-ENCODING: CHUNKED"),
    "length 0 and chunked": coded(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "length and identity": coded(LENGTH[:-2], b"Transfer-Encoding: identity"),
    # Several lengths, and what is not one.
    "length twice": lengths(LENGTH[:-2], LENGTH[:-2]),
    "length twice, another": lengths(LENGTH[:-2], b"Content-Length: 3"),
    "length twice, 0 first": lengths(b"Content-Length: 0", LENGTH[:-2]),
    "length list": lengths(b"Content-Length: 34, 34"),
    **{
        f"length {value!r}": lengths(b"Content-Length: " + value)
        for value in (b"+34", b"-34", b"3_4", b"0x22", b"", b"34a", b"3 4", b"34.0", b"3e1", b"\xb234", b"34\x0b",
                      b"18446744073709551650", b"9" * 40)
    },
    # Transfer codings other than one final "chunked".
    "coding unknown": coded(b"Transfer-Encoding: xchunked"),
    "coding not last": coded(b"Transfer-Encoding: chunked, identity"),
    "coding quoted": coded(b'Transfer-Encoding: "chunked"'),
    "coding with vertical tab": coded(b"Transfer-Encoding: \x0bchunked"),
    "coding, space before colon": coded(b"Transfer-Encoding : chunked"),
    "coding folded": coded(b"Transfer-Encoding:\r\n chunked"),
    "coding with HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"),
    # Chunks.
    **{
        f"chunk size {value!r}": CHUNKED.replace(b"\r\n22\r\n", b"\r\n" + value + b"\r\n")
        for value in (b"-22", b"+22", b"0x22", b"", b"22x", b"2 2", b"2_2", b"f" * 17, b"1" + b"0" * 16 + b"22")
    },
    "chunk size ended by LF": CHUNKED.replace(b"\r\n22\r\n", b"\r\n22\n"),
    "chunk data ended by others": CHUNKED.replace(b"}\r\n0", b"}xx0"),
    "chunk data ended by LF": CHUNKED.replace(b"}\r\n0", b"}\n0"),
    "chunk data ended by CR": CHUNKED.replace(b"}\r\n0", b"}\r\r0"),
    "chunk data longer": CHUNKED.replace(b"}\r\n0", b"}}\r\n0"),
    "length as a trailer": CHUNKED.replace(b"0\r\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n"),
    "trailer malformed": CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX Y: 1\r\n\r\n"),
    # Line ends.
    "bare LF everywhere": GOOD.replace(b"\r\n", b"\n"),
    "bare LF in one line": GOOD.replace(b"Host: x\r\n", b"Host: x\n"),
    "bare CR in one line": GOOD.replace(b"Host: x\r\n", b"Host: x\r"),
    "bare LF at the end": GOOD.replace(b"\r\n\r\n", b"\r\n\n"),
    "CR CR LF": GOOD.replace(b"Host: x\r\n", b"Host: x\r\r\n"),
    "obs-fold": header(b"X: 1\r\n 2"),
    "obs-fold by tab": header(b"X: 1\r\n\t2"),
    "obs-fold of the length": lengths(b"Content-Length:\r\n 34"),
    "header before the first": GOOD.replace(b"Host", b" Host"),
    # Names and values.
    "space before colon": header(b"X : 1"),
    "tab before colon": header(b"X\t: 1"),
    "length, space before colon": lengths(b"Content-Length : 34"),
    "no colon": header(b"X"),
    "no name": header(b": 1"),
    "NUL in a name": header(b"X\0: 1"),
    "length with NUL in its name": lengths(b"Content-Length\0: 34"),
    "high byte in a name": header(b"X\xff: 1"),
    "bracket in a name": header(b"X[1]: 1"),
    "NUL in a value": header(b"X: a\0b"),
    "CR in a value": header(b"X: a\rb"),
    "LF in a value": header(b"X: a\nY: b"),
    "DEL in a value": header(b"X: a\x7f"),
    # Request lines and hosts.
    "no Host": GOOD.replace(b"Host: x\r\n", b""),
    "two Hosts": header(b"Host: y"),
    "two Hosts, the same": header(b"Host: x"),
    "no version": GOOD.replace(b" HTTP/1.1", b""),
    "version prefix": GOOD.replace(b"HTTP/1.1", b"HTTP/1.1x"),
    "version 1.10": GOOD.replace(b"HTTP/1.1", b"HTTP/1.10"),
    "version 1.": GOOD.replace(b"HTTP/1.1", b"HTTP/1."),
    "version 0.9": GOOD.replace(b"HTTP/1.1", b"HTTP/0.9"),
    "version 2.0": GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"),
    "target of CONNECT": GOOD.replace(b"POST /predict/m", b"CONNECT x:80"),
    "absolute target without a path": GOOD.replace(b"/predict/m", b"http://y"),
    "version in lower case": GOOD.replace(b"HTTP/1.1", b"http/1.1"),
    "method prefix": GOOD.replace(b"POST", b"POS"),
    "method longer": GOOD.replace(b"POST", b"POSTX"),
    "method in lower case": GOOD.replace(b"POST", b"post"),
    "tab for a space": GOOD.replace(b"POST ", b"POST\t"),
    "NUL before": b"\0" + GOOD,
    "LF LF before": b"\n\n \n" + GOOD,
}  # fmt: skip
HANDED_ON = {
    "chunked": (CHUNKED, [200]),
    "chunk extension": (CHUNKED.replace(b"\r\n22\r\n", b"\r\n22;a=b\r\n"), [200]),
    "trailer": (CHUNKED.replace(b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n"), [200]),
    "two spaces": (GOOD.replace(b"POST ", b"POST  "), [200]),
    "length with a tab": (lengths(b"Content-Length:\t34"), [200]),
    "value of high bytes": (header(b"X: \xff\xfe"), [200]),
    "Expect": (header(b"Expect: 100-continue"), [200]),
    "close": (header(b"Connection: close"), [200]),
    "HTTP/1.0": (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
    "GET with a body": (GOOD.replace(b"POST", b"GET"), [405]),
    "no length": (lengths(body=b""), [400]),
    "compressed": (header(b"Content-Encoding: gzip"), [415]),
    "absolute target": (GOOD.replace(b"/predict", b"http://y/predict"), [200]),
    "a dot segment": (GOOD.replace(b"/predict/m", b"/predict/../predict/m"), [404]),
    "a percent": (GOOD.replace(b"/m", b"/%6d"), [200]),
}
UPGRADE = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
# What is wrong with a body is as wrong in a request that offers another protocol, whose body llhttp does not read itself.
REFUSED |= {
    f"{name}, Upgrade": REFUSED[name].replace(b"Host: x\r\n", UPGRADE)
    for name in (
        "length, then chunked", "length twice, another", "length list", "coding not last", "coding unknown", "coding quoted",
        "chunk size b'-22'", "chunk data ended by LF", "chunk data longer", "length as a trailer",
        "trailer malformed",
    )
}  # fmt: skip
# Answered as HTTP/1.1, and the connection is closed: what follows may be in the other protocol to who stands in between.
IGNORED_UPGRADE = {
    "h2c": (GOOD.replace(b"Host: x\r\n", UPGRADE), 200),
    "h2c, chunked": (CHUNKED.replace(b"Host: x\r\n", UPGRADE), 200),
    "h2c, trailer": (CHUNKED.replace(b"Host: x\r\n", UPGRADE).replace(b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n"), 200),
    "h2c, HTTP/1.0": (GOOD.replace(b"Host: x\r\n", UPGRADE).replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "h2c without a body": (LIVEZ.replace(b"Host: x\r\n", UPGRADE), 200),
    "websocket": (header(b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket"), 200),
    "TLS": (header(b"Upgrade: TLS/1.0\r\nConnection: upgrade"), 200),
    "unknown model": (GOOD.replace(b"Host: x\r\n", UPGRADE).replace(b"/m ", b"/other "), 404),
    "malformed body": (GOOD.replace(b"Host: x\r\n", UPGRADE).replace(b"{", b"}"), 400),
}


def statuses(replies):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", replies) if status != b"100"]


@pytest.mark.parametrize("before", [[], [GOOD], [GOOD, LIVEZ], [GOOD, LIVEZ, GOOD]], ids=len)
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, before):
    """A 4xx or 5xx and the end of the connection: the request behind it is not answered, nor one hidden in its body."""
    replies, closed, answered = serve([*before, REFUSED[name] + GOOD])
    *first, last = statuses(replies)
    assert (first, answered, closed) == ([200] * len(before), before.count(GOOD), True)
    assert last in {400, 413, 431, 501, 505}
    assert re.search(rb"connection: close\r\n", replies)


@pytest.mark.parametrize("name", HANDED_ON)
def test_handed_on(name):
    """What is legal but not plain is answered once, by the general path."""
    data, expected = HANDED_ON[name]
    replies, _, answered = serve([GOOD + data])
    assert statuses(replies) == [200, *expected]
    assert answered == 1


@pytest.mark.parametrize("name", [*REFUSED, *HANDED_ON])
def test_split_at_every_byte(name):
    """The same bytes come back however the request is cut in two, and when each byte comes alone."""
    data = REFUSED[name] if name in REFUSED else HANDED_ON[name][0]
    whole = serve([data + GOOD])
    for cut in range(1, len(data)):
        assert serve([data[:cut], data[cut:] + GOOD]) == whole, cut
    assert serve([bytes([byte]) for byte in data + GOOD])[:2] == whole[:2]


@pytest.mark.parametrize("name", IGNORED_UPGRADE)
def test_upgrade_is_ignored(name):
    """A request that offers another protocol is answered with its body, wherever it is cut; the one behind it never is."""
    data, expected = IGNORED_UPGRADE[name]
    before, closed, answered = serve([GOOD, data])
    assert (statuses(before), closed, answered) == ([200, expected], True, 1)
    assert serve([GOOD + data + GOOD]) == (before, True, 1)
    alone = serve([data])
    for cut in range(1, len(data)):
        assert serve([data[:cut], data[cut:] + GOOD]) == alone, cut
    assert serve([bytes([byte]) for byte in data + GOOD]) == alone


def test_upgrade_is_answered_in_its_turn():
    """Behind a request that the general path answers, in the same segment."""
    data, _ = IGNORED_UPGRADE["h2c"]
    replies, closed, _ = serve([LIVEZ + CHUNKED + data + GOOD])
    assert (statuses(replies), closed) == ([200, 200, 200], True)


@pytest.mark.parametrize("whole", [GOOD, CHUNKED, LIVEZ, GOOD.replace(b"m HTTP", b"other HTTP")])
@pytest.mark.parametrize("before", [[], [GOOD], [LIVEZ]], ids=len)
def test_nothing_is_said_to_a_part(whole, before):
    """A request cut at any byte draws no reply and no close, on a new connection and after either path's reply."""
    # A request whose path or type is enough to answer it is answered at the end of its head.
    until = whole.index(b"\r\n\r\n") + 4 if b"other" in whole else len(whole)
    expected = serve(before)[:2]
    for cut in range(1, until):
        assert serve([*before, whole[:cut]])[:2] == expected, cut


@pytest.mark.parametrize("name", [name for name, (data, _) in ON_THE_WIRE.items() if len(data) < 1000])
def test_refused_byte_by_byte(running, name):  # noqa: F811 - the fixture
    """Over a socket, every byte in a segment of its own, the refusals of test_protocol.py are the same."""
    data, expected = ON_THE_WIRE[name]
    with peer(running) as one:
        one.send(PLAIN)
        assert one.reply()[0] == 200
        with contextlib.suppress(ConnectionError):
            for at in range(len(data)):
                one.send(data[at : at + 1])
        assert one.reply()[0] in expected
        assert one.reply() is None
