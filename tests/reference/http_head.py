"""The strict head parser as a page of Python: the oracle of tests/ext/test_http.py."""

from __future__ import annotations

import re

MAX_HEAD_BYTES, MAX_HEADERS = 8192, 64
LINE = re.compile(rb"POST /predict/([A-Za-z0-9._:@-]+) HTTP/1\.1")
HEADER = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+): *([ -~]*)")
FORBIDDEN = {b"transfer-encoding", b"content-encoding", b"proxy-connection", b"expect", b"upgrade", b"trailer", b"te"}
KINDS = {
    b"application/json": 0,
    b"application/msgpack": 1,
    b"application/x-msgpack": 1,
    b"application/vnd.msgpack": 1,
}


def read_head(data: bytes, max_body_bytes: int) -> tuple[int, int, int, int, int] | None:
    """(reference start, its length, head length, content length, kind) of a complete head of the shape, else None."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or end + 4 > MAX_HEAD_BYTES:
        return None
    line, *headers = data[:end].split(b"\r\n")
    matched = LINE.fullmatch(line)
    if matched is None or len(headers) > MAX_HEADERS:
        return None
    seen: dict[bytes, bytes] = {}
    for header in headers:
        parts = HEADER.fullmatch(header)
        if parts is None:
            return None
        name = parts[1].lower()
        if name in FORBIDDEN or (name in seen and name in {b"host", b"content-length", b"content-type", b"connection"}):
            return None
        seen[name] = parts[2]
    length, kind = seen.get(b"content-length", b""), seen.get(b"content-type", b"").partition(b";")[0].rstrip(b" ")
    if (
        not re.fullmatch(rb"[A-Za-z0-9._:\[\]-]+", seen.get(b"host", b""))
        or not re.fullmatch(rb"[0-9]{1,15}", length)
        or int(length) > max_body_bytes
        or kind.lower() not in KINDS
        or seen.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    ):
        return None
    return matched.start(1), len(matched[1]), end + 4, int(length), KINDS[kind.lower()]
