"""Target `server`: both HTTP paths together; neither splits nor the fast path itself change a reply.

The input is that of `connection`. It is served three times: split, whole, and whole by a server whose fast path knows
no model, so that llhttp and the general path read everything.
"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import cache
from struct import unpack

import uvicorn
from tests.fuzz.connection import DATE, Transport, feed, full_at, pieces
from tests.fuzz.world import BODY, JSON, NEEDS_US, SETTINGS, settled, world
from uvicorn.server import ServerState

from tiercel.http.app import DataPlane
from tiercel.http.native import NativeHttp

BUDGET = re.compile(rb'budget_ms(?:":(\d+(?:\.\d+)?)|\xcb(.{8}))', re.DOTALL)
CLOSE_US = 5_000_000  # more than any build takes for an input
REPLY = re.compile(rb"HTTP/1\.1 (?=\d{3} )")
logging.getLogger("uvicorn.error").disabled = True  # a line for each malformed request


@cache
def _loop():
    return asyncio.new_event_loop()


def _run_ready():
    """Run callbacks until only timers are left."""
    loop = _loop()
    for _ in range(200):
        if not loop._ready:
            return
        loop.call_soon(loop.stop)
        loop.run_forever()
    raise AssertionError("callbacks without end")


class _SettlingTransport(Transport):
    """Lets the server's tasks run between two pieces."""

    def drain(self):
        _run_ready()
        super().drain()
        _run_ready()


def serve(parts, *, full_at=None, fast=True):
    """(replies, whether the connection was closed, requests the fast path answered) of one connection.

    Args:
        parts: what the client sends, read by read.
        full_at: when so many bytes wait to be sent the transport says stop.
        fast: whether the fast path knows the models.
    """
    native = NativeHttp(world().engine if fast else world().no_routes, SETTINGS)
    reply = world().plans[0].answer(BODY, JSON, 0, native.ids)
    prefix = re.search(rb'"id":"([0-9a-f]{16})', reply)[1]
    config = uvicorn.Config(
        DataPlane(world().engine, SETTINGS, native), http=native.protocol, ws="none", interface="asgi3", lifespan="off",
        access_log=False, log_config=None, server_header=False,
    )  # fmt: skip
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", DATE)]
    hot = native.protocol(config=config, server_state=state, app_state={}, _loop=_loop())
    transport = _SettlingTransport(full_at)
    transport.protocol = hot
    hot.connection_made(transport)
    feed(transport, parts)
    closed = transport.closed or type(transport.protocol).__name__ == "_Lingering"
    transport.protocol.connection_lost(None)
    transport.closed = True
    native.close()
    _run_ready()
    assert not state.connections
    assert not state.tasks
    assert not asyncio.all_tasks(_loop())
    return settled(transport.written, prefix), closed, native.counts["answered"]


def _is_early(split, whole):
    """Whether they differ only in what the last request was told: that it is wrong, or that its body is.

    A request for an unknown path, say, is answered when its head is there. Whether the server has seen by then that the
    body is malformed does depend on the splits. One reply is due in either case, and the end of the connection.
    """
    if not (split[1] and whole[1]):
        return False
    (*split_before, split_last), (*whole_before, whole_last) = (REPLY.split(each[0])[1:] for each in (split, whole))
    return split_before == whole_before and split_last[:1] == b"4" == whole_last[:1]


def _still_waits(fast, general):
    """Whether llhttp refuses the begun last head, which the fast path judges line by line and has no whole line of.

    Of one connection either may read it: what comes with a request for the general path stays there, what comes after its
    answer does not.
    """
    written, closed, _ = fast
    rest = general[0].removeprefix(written)
    refused = REPLY.split(rest)[1:]
    return not closed and general[1] and general[0].startswith(written) and len(refused) == 1 and refused[0][:1] == b"4"


def _is_close(served):
    """Whether a deadline was refused that is hardly longer than the plan's need: the milliseconds before it is read decide."""
    budgets_ms = [float(text) if text else unpack(">d", packed)[0] for text, packed in BUDGET.findall(served[0])]
    return any(budget_ms * 1000 < NEEDS_US[0] + CLOSE_US for budget_ms in budgets_ms)


def check(data: bytes) -> None:
    """One input: a seed, then what the client sends.

    Raises:
        AssertionError: replies or the fate of the connection depend on the splits, or on which path answers.
    """
    if len(data) < 2:
        return
    stream, seed = data[1:], data[0]
    split = serve(pieces(stream, seed), full_at=full_at(seed))
    whole = serve([stream])
    general = serve([stream], fast=False)
    served = (split, whole, general)
    if any(b"deadline_exceeded" in each[0] for each in served):
        # A refusal tells what time is left, in as many digits as that takes; that all refuse is what can be compared.
        assert all(b"deadline_exceeded" in each[0] for each in served) or any(map(_is_close, served)), served
        return
    assert whole[:2] == general[:2] or _still_waits(whole, general), (whole, general)
    assert general[2] == 0
    assert split[:2] == whole[:2] or _is_early(split, whole) or _still_waits(split, whole), (split, whole)
