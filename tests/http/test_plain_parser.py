"""The parser that ignores offers of other protocols: what it tells, at every cut."""

from __future__ import annotations

import pytest
from httptools import HttpParserError, HttpParserUpgrade

from tiercel.http.plain_parser import PlainParser

OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
LENGTH = b"POST /x HTTP/1.1\r\nHost: x\r\n%bContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n"
EMPTY = b"GET /x HTTP/1.1\r\nHost: x\r\n%b\r\n"


class _Noted:
    """What a parser told."""

    def __init__(self):
        self.headers, self.url, self.body, self.n_heads, self.n_messages = [], b"", b"", 0, 0
        self.parser = PlainParser(self)

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_headers_complete(self):
        self.n_heads += 1

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.n_messages += not self.parser.skipped_body

    def told(self):
        plain = [each for each in self.headers if each[0] not in {b"connection", b"upgrade"}]
        return self.url, plain, self.body, self.n_heads, self.n_messages


def read(*pieces):
    noted = _Noted()
    for piece in pieces:
        noted.parser.feed_data(piece)
    return noted


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED, EMPTY])
def test_an_offer_changes_nothing(whole):
    """The same target, headers, trailers, body and one end, with the offer and without, wherever it is cut."""
    plain, offering = read(whole % b"").told(), whole % OFFER
    assert plain[3:] == (1, 1)
    for cut in range(len(offering) + 1):
        assert read(offering[:cut], offering[cut:]).told() == plain, cut


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED, EMPTY])
def test_nothing_may_follow(whole):
    """Neither in the same piece nor in the next one."""
    with pytest.raises(HttpParserError):
        read(whole % OFFER + EMPTY % b"")
    with pytest.raises(HttpParserError):
        read(whole % OFFER, EMPTY % b"")
    assert read(whole % b"" + EMPTY % b"").n_messages == 2


@pytest.mark.parametrize(
    "framing", [b"Transfer-Encoding: chunked, x\r\n", b"Transfer-Encoding: x\r\nContent-Length: 5\r\n"]
)
def test_framing_is_judged_as_ever(framing):
    """What llhttp refuses, once it sees that there is a body, is refused."""
    with pytest.raises(HttpParserError):
        read(EMPTY.replace(b"GET", b"POST") % (OFFER + framing))


def test_connect_is_left_alone():
    """A tunnel is no offer."""
    with pytest.raises(HttpParserUpgrade):
        read(b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n")
