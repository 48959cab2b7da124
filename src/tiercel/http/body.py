"""Reading a request body within its limits. uvicorn sets none, so every endpoint reads through here."""

from __future__ import annotations

import asyncio
import time
import types
from typing import TYPE_CHECKING, Any

from tiercel.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.types import Receive, Scope


#: Key of a scope: when the request's first byte was read, in nanoseconds of the monotonic clock.
READ_NS = "tiercel.read_ns"


def read_ns_of(scope: Scope) -> int:
    """When the request was read; now, under a server that does not say."""
    found: int = scope.get(READ_NS, 0)
    return found or time.monotonic_ns()


def header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name, or an empty string."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


def announced_bytes(scope: Scope) -> int | None:
    """How long the body says it is; None: it does not say."""
    text = header(scope, b"content-length")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises:
        RequestError: `body_too_large` (as soon as that is known), `body_timeout`, `client_disconnected`, or
            `unsupported_media_type` for a compressed body.
    """
    for key, value in scope["headers"]:
        if key == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes, f"{int(value)} announced")
        if key == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise RequestError(
                f"Expected an uncompressed body, got Content-Encoding {value.decode('latin-1')[:60]!r}",
                code="unsupported_media_type",
            )
    # PERF: a timer costs a request 10 to 15 us (bench_http), and the body has nearly always come with the head. So the
    #   first look is taken without one; only what really waits, waits under the deadline.
    steps = receive().__await__()
    try:
        pending = steps.send(None)
    except StopIteration as done:
        message = done.value
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if len(body) > max_bytes:
                raise _too_large(max_bytes, f"{len(body)}") from None
            return body
        pending = None
    try:
        async with asyncio.timeout(timeout_s):
            if pending is not None:
                message = await resume(steps, pending)
            return await _collect(message, receive, max_bytes)
    except TimeoutError:
        raise RequestError(
            f"Expected the whole body within {timeout_s:g} s, got part of it or nothing", code="body_timeout"
        ) from None


@types.coroutine
def resume(steps: Any, pending: Any) -> Generator[Any, Any, Any]:
    """Go on awaiting what was already started and waits for `pending`."""
    while True:
        try:
            try:
                value = yield pending
            except BaseException as error:  # noqa: BLE001 - cancellation too must reach what is waiting
                pending = steps.throw(error)
            else:
                pending = steps.send(value)
        except StopIteration as done:
            return done.value


async def _collect(message: Any, receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise RequestError("The client went away before its body was complete", code="client_disconnected")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes, "more")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def _too_large(max_bytes: int, got: str) -> RequestError:
    return RequestError(f"Expected a body of at most {max_bytes} bytes, got {got}", code="body_too_large")
