"""Target `connection`: the compiled protocol alone; how bytes are split and when the peer reads changes no reply.

The first byte seeds the splits; 0 to 3 modulo 8 also make the transport say stop now and then. The rest is what the
client sends. Requests are answered in order, as the plan answers each body alone, up to the first that is not for this
path; from there every byte is handed on, untouched. The same once more with plans whose requests wait in a queue, which
answers them now or later, as the seed says.
"""

from __future__ import annotations

import json
import random
import re
import time
from types import SimpleNamespace

from tests.fuzz.world import SETTINGS, new_ids, settled, world
from tests.reference import http_head
from tiercel._hot.fast_path import FastPath
from tiercel._hot.lines import Lines
from tiercel._hot.protocol import HotProtocol

DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"
TYPES = (b"application/json", b"application/msgpack")
TENSORS = 2
_LOOP = SimpleNamespace(call_later=lambda _seconds, _call: SimpleNamespace(cancel=lambda: None))


class Transport:
    """Keeps what is written; with `full_at`, says stop when so many bytes wait and go on at `drain()`."""

    def __init__(self, full_at=None):
        self.protocol = None
        self.written, self.closed, self.reading = b"", False, True
        self._full_at, self._waiting = full_at, 0

    def write(self, data):
        assert not self.closed
        assert data
        self.written += data
        self._waiting += len(data)
        if self._full_at is not None and self._waiting > self._full_at >= self._waiting - len(data):
            self.protocol.pause_writing()

    def drain(self):
        was_full = self._full_at is not None and self._waiting > self._full_at
        self._waiting = 0
        if was_full:
            self.protocol.resume_writing()

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def write_eof(self):
        pass

    def get_write_buffer_size(self):
        return self._waiting

    def get_extra_info(self, name, default=None):
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


def pieces(stream, seed):
    """The stream cut in up to 12 places, or into single bytes."""
    if seed % 8 == 7:
        return [stream[at : at + 1] for at in range(len(stream))]
    chance = random.Random(seed)
    cuts = sorted(chance.randint(0, len(stream)) for _ in range(seed % 13))
    return [part for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if (part := stream[a:b])]


def full_at(seed):
    """When the transport says stop, or None."""
    return (0, 300, 1000, 5000)[seed % 4] if seed % 8 < 4 else None


class Queue:
    """Holds questions until `answer` is called; nobody is refused. Half of them come in by the compiled door."""

    def __init__(self, seed):
        self._entered, self._chance = [], random.Random(seed)
        self._lines = Lines([], [], [])
        self._lines.set_pace([1.0] * 513, 1.0, 0, 512, 1000, 100_000)
        self._lines.is_open, self._lines.wake, self._lines.cancelled = True, lambda: None, self._lines.small.remove

    @property
    def waiting(self):
        return [*self._entered, *self._lines.small]

    def lines(self, _plan):
        return self._lines

    def enter(self, asked, hot, _close, _can_leave):
        entry = [asked, hot]
        self._entered.append(entry)
        return SimpleNamespace(cancel=lambda: self._entered.remove(entry))

    def late(self, *_):
        return None

    def poll(self, _loop):
        """As often as not, somebody is answered between two reads."""
        self._lines.is_open = self._chance.random() < 0.5
        if self._chance.random() < 0.5:
            self.answer()

    def answer(self):
        for asked, hot in [self._entered.pop(0) for _ in self._entered]:
            hot.complete(asked, asked.plan.scorer.score(asked.rows()), None)
        now_ns = time.monotonic_ns()
        for part in self._lines.cut(now_ns):
            plan = part[0].prepared.plan
            scores = plan.scorer.score(self._lines.gather([part], plan.n_features))
            assert self._lines.answer([part], scores, now_ns) == []


def feed(transport, parts, queue=None):
    """Every piece in turn, as a peer that reads its replies lets it through."""

    def let_through():
        transport.drain()
        if queue is not None:
            queue.answer()

    for part in parts:
        while not transport.reading:
            let_through()
        if transport.closed:
            return
        transport.protocol.data_received(part)
        transport.drain()
        if queue is not None:
            queue.poll(_LOOP)
    while not transport.closed and (
        transport.get_write_buffer_size() or not transport.reading or (queue is not None and queue.waiting)
    ):
        let_through()


def _serve(parts, full_at=None, engine=None, queue=None):
    """(replies, bytes handed on or None) of one connection."""
    ids, prefix = new_ids()
    handed = []

    def hand_on(_hot, transport, data, _deadline_s, _write_paused, _draining):
        assert data
        handed.append(data)
        transport.set_protocol(SimpleNamespace(data_received=handed.append, resume_writing=lambda: None))
        transport.resume_reading()

    path = FastPath(
        engine or world().engine,
        header_timeout_s=10,
        body_timeout_s=10,
        idle_timeout_s=10,
        max_body_bytes=SETTINGS.max_body_bytes,
        max_connections=10,
        ids=ids,
        hand_on=hand_on,
        refuse=lambda *_: None,
    )
    path.queue = queue
    state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0, default_headers=[(b"date", DATE)])
    hot = HotProtocol(path, None, state, {}, _LOOP)
    transport = Transport(full_at)
    transport.protocol = hot
    hot.connection_made(transport)
    feed(transport, parts, queue)
    hot.connection_lost(None)
    assert not state.connections
    assert queue is None or not queue.waiting
    return _unsourced(settled(transport.written, prefix)), b"".join(handed) if handed else None, path.answered


def _expected(stream, engine):
    """(replies, what follows them, how many) by the oracles of head and body."""
    ids, prefix = new_ids()
    written, at, n = b"", 0, 0
    routes = engine.routes
    while (head := http_head.read_head(stream[at:], SETTINGS.max_body_bytes)) is not None:
        start, length, size, content, kind, budget_us, _, json_bytes = head
        body = stream[at + size : at + size + content]
        plan = routes.by_reference.get(stream[at + start : at + start + length].decode().replace("/versions/", ":"))
        if plan is None or not body or len(body) < content or (kind == TENSORS and engine is world().queued_oracle):
            break
        # An infer request cannot say what time it is.
        now_us = time.time_ns() // 1000 if kind == TENSORS else 1_700_000_000_000_000
        reply = plan.answer(body, kind, now_us, ids, budget_us=budget_us, header_length=json_bytes)
        if reply is None:
            break
        written += b"HTTP/1.1 200 OK\r\ndate: %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n" % (
            DATE,
            *_described(reply, kind),
        )
        written += reply
        at, n = at + size + content, n + 1
    return _unsourced(settled(written, prefix)), stream[at:], n


def _unsourced(replies):
    """Infer replies without a budget that a header set: a plan asked directly tells none."""
    return re.sub(rb',"budget_us":\d+,"budget_from":"x-[a-z-]+"', b"", replies)


def _described(reply, kind):
    """(content type, length, more headers) of a reply."""
    if kind != TENSORS:
        return TYPES[kind], len(reply), b""
    # Scores behind the JSON may look like anything, but not like more of an object that has ended.
    json_bytes = json.JSONDecoder().raw_decode(reply.decode("latin-1"))[1]
    if json_bytes == len(reply):
        return TYPES[0], len(reply), b""
    return b"application/octet-stream", len(reply), b"inference-header-content-length: %d\r\n" % json_bytes


def check(data: bytes) -> None:
    """One input: a seed, then what the client sends.

    Raises:
        AssertionError: replies, their number or the bytes handed on depend on the splits, or are not the oracles'.
    """
    if len(data) < 2:
        return
    stream, seed = data[1:], data[0]
    written, handed, n = _serve(pieces(stream, seed), full_at(seed))
    assert (written, handed, n) == _serve([stream])
    expected, rest, n_expected = _expected(stream, world().engine)
    assert (written, n) == (expected, n_expected)
    assert handed is None or handed == rest
    if b"deadline_ms" not in stream and b"timeout" not in stream.lower():  # how long it takes decides about those
        _check_queued(stream, seed)


def _check_queued(stream, seed):
    expected, rest, n_expected = _expected(stream, world().queued_oracle)
    for _ in range(5):
        began_s = time.monotonic()
        written, handed, n = _serve(pieces(stream, seed), full_at(seed), world().queued, Queue(seed))
        if time.monotonic() - began_s < 0.05:  # a stalled machine may make anybody late
            break
    assert (written, n) == (expected, n_expected)
    assert handed is None or handed == rest
