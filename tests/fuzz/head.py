"""Target `head`: the strict head parser agrees with its oracle, with llhttp, and with itself on every prefix."""

from __future__ import annotations

import httptools
from tests.fuzz.world import exact
from tests.reference import http_head
from tiercel._hot import http

CAP = 10_000


class _Llhttp:
    """What uvicorn's parser makes of the same bytes."""

    def __init__(self, data):
        self.url, self.headers, self.body, self.n_complete = b"", [], b"", 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        # llhttp keeps the optional white space behind a value, which RFC 9110 says is not part of it.
        self.headers.append((name.lower(), value.rstrip(b" ")))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.n_complete += 1


def check(data: bytes) -> None:
    """One input: bytes that may be a head and more.

    Raises:
        AssertionError: another verdict than the oracle's or llhttp's, or one that changes as bytes arrive.
    """
    found = http.read_head(exact(data), CAP)
    expected = http_head.read_head(data, CAP)
    assert (found[0] == http.FAST) == (expected is not None)
    for size in {len(data) // 2, len(data) - 1, data.rfind(b"\r"), data.find(b"\n")}:
        if 0 <= size < len(data):
            prefix = http.read_head(exact(data[:size]), CAP)
            assert prefix[0] == http.NEED_MORE or prefix == found
    if expected is None:
        return
    assert found[1:] == expected
    start, length, head, content, kind, *_ = expected
    other = _Llhttp(data[:head] + b"x" * content)
    parser = other.parser
    assert (parser.get_method(), parser.get_http_version(), other.n_complete) == (b"POST", "1.1", 1)
    assert (parser.should_keep_alive(), parser.should_upgrade()) == (True, False)
    before, after = (b"/v2/models/", b"/infer") if kind == 2 else (b"/predict/", b"")
    assert other.url == before + data[start : start + length] + after
    assert other.body == b"x" * content
    lines = [line.partition(b":") for line in data[: head - 4].split(b"\r\n")[1:]]
    assert other.headers == [(name.lower(), value.strip(b" ")) for name, _, value in lines]
    names = [name for name, _ in other.headers]
    assert (names.count(b"host"), names.count(b"content-length")) == (1, 1)
    assert names.count(b"content-type") == 1 or (kind == 2 and b"content-type" not in names)
    named = dict(other.headers).get(b"content-type", b"").lower().partition(b";")[0]
    assert (b"msgpack" in named) == (kind == 1)
