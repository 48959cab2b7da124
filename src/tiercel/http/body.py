"""Reading a request body within its limits. uvicorn sets none, so every endpoint reads through here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tiercel.errors import RequestError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope


def header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name, or an empty string."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


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
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body: bytes = message.get("body", b"")
                if len(body) > max_bytes:
                    raise _too_large(max_bytes, f"{len(body)}")
                return body
            return await _collect(message, receive, max_bytes)
    except TimeoutError:
        raise RequestError(
            f"Expected the whole body within {timeout_s:g} s, got part of it or nothing", code="body_timeout"
        ) from None


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
