"""The admin port as it reads sockets: what offers another protocol is a request like any other."""

from __future__ import annotations

import asyncio
import re

import pytest
import uvicorn

from tiercel.http.control import server_config

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
LENGTH = b"POST /x HTTP/1.1\r\nHost: x\r\n%bContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
EMPTY = b"GET /x HTTP/1.1\r\nHost: x\r\n%b\r\n"
CLOSE = b"Connection: close\r\n"


async def echo(scope, receive, send):
    """Answers with the body it read."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def answers(*pieces):
    """All that one connection gets back for `pieces`, a moment apart, until it is closed."""

    async def ask():
        config = server_config(echo)
        config.port = 0
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn's server has no event for it
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)
        got = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.should_exit = True
        await serving
        return got

    return asyncio.run(ask())


@pytest.mark.parametrize(("whole", "body"), [(LENGTH, b"hello"), (CHUNKED, b"hello"), (EMPTY, b"")])
def test_an_offer_keeps_its_body(whole, body):
    """The body arrives in one piece and cut anywhere, and the connection ends with the reply."""
    offering = whole % OFFER
    for cut in (len(offering), len(offering) - 8, 30):
        got = answers(offering[:cut], offering[cut:])
        assert got.startswith(b"HTTP/1.1 200 "), cut
        assert got.endswith(b"\r\n\r\n" + body), cut
        assert b"connection: close" in got.lower()


def test_plain_requests_are_read_as_ever():
    """Several on one connection; what follows a `close` is not read, and its reply not lost."""
    got = answers(LENGTH % b"" + CHUNKED % b"", EMPTY % CLOSE + LENGTH % b"")
    assert [len(each) for each in re.findall(rb"(?:\r\n\r\n)(hello)", got)] == [5, 5]
    assert got.count(b"HTTP/1.1 200 ") == 3
