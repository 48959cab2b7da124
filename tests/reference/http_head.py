"""The strict head parser as a page of Python: the oracle of tests/ext/test_http.py."""

from __future__ import annotations

import re

MAX_HEAD_BYTES, MAX_HEADERS = 8192, 64
LINE = re.compile(
    rb"POST (?:/predict/(?P<predict>[A-Za-z0-9._:@-]+)"
    rb"|/v2/models/(?P<infer>[A-Za-z0-9._:@-]+(?:/versions/[1-9][0-9]{0,8})?)/infer) HTTP/1\.1"
)
HEADER = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+): *([ -~]*)")
ONCE = {
    b"host", b"content-length", b"content-type", b"connection",
    b"x-request-timeout-seconds", b"x-envoy-expected-rq-timeout-ms",
}  # fmt: skip
HEADER_LENGTH = b"inference-header-content-length"
FORBIDDEN = {b"transfer-encoding", b"content-encoding", b"proxy-connection", b"expect", b"upgrade", b"trailer", b"te"}
KINDS = {
    b"application/json": 0,
    b"application/msgpack": 1,
    b"application/x-msgpack": 1,
    b"application/vnd.msgpack": 1,
}


#: Content-Type of an infer request -> kind; none at all is fine too.
INFER_KINDS = {b"application/json": 2, b"application/octet-stream": 2}
#: Header with a deadline -> microseconds of one of its units.
DEADLINES = {b"x-request-timeout-seconds": 1e6, b"x-envoy-expected-rq-timeout-ms": 1e3}
MAX_BUDGET_US = 3_600_000_000


def budget_of(text: bytes, unit_us: float) -> int | None:
    """Microseconds of a plain decimal number of at most 15 digits, in range, else None."""
    if not re.fullmatch(rb"[0-9]+\.?[0-9]*", text) or len(text.replace(b".", b"")) > 15:
        return None
    us = float(text) * unit_us
    return int(us) if 1 <= us <= MAX_BUDGET_US else None


def read_head(data: bytes, max_body_bytes: int) -> tuple[int, int, int, int, int, int, bool, int] | None:
    """What a complete head of the shape says, else None.

    (reference start, its length, head length, content length, kind, smallest deadline in us or -1, has a traceparent,
    length of the JSON of an infer request or -1)
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or end + 4 > MAX_HEAD_BYTES:
        return None
    line, *headers = data[:end].split(b"\r\n")
    matched = LINE.fullmatch(line)
    if matched is None or len(headers) > MAX_HEADERS:
        return None
    is_infer = matched["infer"] is not None
    once, kinds = (ONCE | {HEADER_LENGTH}, INFER_KINDS) if is_infer else (ONCE, KINDS)
    seen: dict[bytes, bytes] = {b"content-type": b"application/json"} if is_infer else {}
    named: set[bytes] = set()
    for header in headers:
        parts = HEADER.fullmatch(header)
        if parts is None:
            return None
        name = parts[1].lower()
        if name in FORBIDDEN or (name in named and name in once):
            return None
        named.add(name)
        seen[name] = parts[2]
    length, kind = seen.get(b"content-length", b""), seen.get(b"content-type", b"").partition(b";")[0].rstrip(b" ")
    if (
        not re.fullmatch(rb"[A-Za-z0-9._:\[\]-]+", seen.get(b"host", b""))
        or not re.fullmatch(rb"[0-9]{1,15}", length)
        or int(length) > max_body_bytes
        or kind.lower() not in kinds
        or (is_infer and not re.fullmatch(rb"[0-9]{1,15}", seen.get(HEADER_LENGTH, b"0")))
        or seen.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    ):
        return None
    budgets = [budget_of(seen[name], unit_us) for name, unit_us in DEADLINES.items() if name in seen]
    if None in budgets:
        return None
    group = "infer" if is_infer else "predict"
    found = matched.start(group), len(matched[group]), end + 4, int(length), kinds[kind.lower()]
    header_length = int(seen.get(HEADER_LENGTH, b"-1")) if is_infer else -1
    return *found, min(budgets, default=-1), b"traceparent" in seen, header_length
