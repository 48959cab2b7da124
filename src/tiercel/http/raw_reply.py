"""Errors as whole replies, for the compiled path: the same that the general path would give, head and all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tiercel.errors import TiercelError
from tiercel.http import payload
from tiercel.http.status import body_of, headers_of, request_id_of, status_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.monitor.counting import WorkerCounters

log = logging.getLogger("tiercel.http")

#: By the kind of a question's body: an error is in the request's own format, of tensors in JSON.
_MEDIA = (payload.JSON, payload.MSGPACK, payload.JSON)


def error_bytes(
    error: Exception, kind: int, counters: WorkerCounters, headers: Sequence[tuple[bytes, bytes]], *, close: bool
) -> bytes:
    """The reply that an error is, counted.

    Args:
        error: what happened.
        kind: of the request's body: 0 JSON, 1 msgpack, 2 tensors.
        counters: of the worker.
        headers: that every reply has.
        close: the connection is closed after it.
    """
    media, more = _MEDIA[kind], []
    if isinstance(error, TiercelError):
        request_id = request_id_of(())  # its head is gone
        status, code = status_of(error), error.code
        body, more = body_of(error, request_id), headers_of(error, request_id)
    else:
        status, code = 500, "internal_error"
        body = {"error": "The server failed; its log has the reason", "code": code}
    if status == 500:
        log.error("Prediction failed", exc_info=error)
    counters.count_reply(status, code)
    content = payload.encode(body, media)
    told = [
        *headers,
        (b"content-type", media.encode()),
        (b"content-length", str(len(content)).encode()),
        *more,
    ]
    if close:
        told.append((b"connection", b"close"))
    return b"".join([STATUS_LINE[status], *(b"%b: %b\r\n" % each for each in told), b"\r\n", content])
