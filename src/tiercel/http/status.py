"""The one place that knows both domain errors and HTTP."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from tiercel.errors import (
    AlertStateError,
    AuditUnavailableError,
    CapacityError,
    DeadlineError,
    ExplanationsClosedError,
    InvalidNameError,
    JobsDisabledError,
    JobStateError,
    JobStorageError,
    ModelUnavailableError,
    MonitorStorageError,
    NotFoundError,
    NotMaterializedError,
    PromotionRefusedError,
    RegistryUnavailableError,
    RequestError,
    SchemaMismatchError,
    TiercelError,
    TierDeniedError,
)
from tiercel.serving.limits import retry_after_ms, retry_after_s

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUEST_STATUS = {
    "body_too_large": 413,
    "too_many_rows": 413,
    "explanation_too_large": 413,
    "unsupported_media_type": 415,
    "body_timeout": 408,
}
STATUS: dict[type[TiercelError], int] = {
    RequestError: 400,
    InvalidNameError: 400,
    NotFoundError: 404,
    NotMaterializedError: 503,
    SchemaMismatchError: 503,
    RegistryUnavailableError: 503,
    ModelUnavailableError: 503,
    CapacityError: 503,
    TierDeniedError: 400,
    ExplanationsClosedError: 403,
    DeadlineError: 504,
    JobStateError: 409,
    AlertStateError: 409,
    PromotionRefusedError: 409,
    JobStorageError: 503,
    MonitorStorageError: 503,
    AuditUnavailableError: 503,
    JobsDisabledError: 501,  # asking again changes nothing: a setting has to
}
#: As proxies and clients name a request.
REQUEST_ID = b"x-request-id"
_numbers = itertools.count()


def status_of(error: TiercelError) -> int:
    """HTTP status of a domain error; 500 for what is not the caller's doing."""
    if isinstance(error, RequestError):
        return REQUEST_STATUS.get(error.code, 400)
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What tells a refused request from the others that are refused in the same instant.

    The id that the client or its proxy gave it, so that the same request always gets the same; else one that no other
    request of this host has. Without any of the two, all would be told to come back at once.

    Args:
        headers: of the request, names in lower case.
    """
    for name, value in headers:
        if name == REQUEST_ID and value:
            return value.decode("latin-1")
    # The process is asked each time: a worker may be a fork of another one, with the same numbers ahead of it.
    return f"{os.getpid()}.{next(_numbers)}"


def headers_of(error: TiercelError, request_id: str) -> list[tuple[bytes, bytes]]:
    """Headers that belong to an error's reply: when to come back, where that is known.

    Args:
        error: the failure.
        request_id: of `request_id_of`; spreads those who are refused together.
    """
    if isinstance(error, CapacityError):
        return [(b"retry-after", str(retry_after_s(error.predicted_wait_us, request_id)).encode())]
    return []


def body_of(error: TiercelError, request_id: str) -> dict[str, object]:
    """The error body every endpoint answers with. Arguments as `headers_of`, which belongs to the same reply."""
    # A message may quote what was sent, and what was sent may hold half a surrogate pair, which no reply can carry.
    text = str(error).encode("utf-8", "backslashreplace").decode()
    body: dict[str, object] = {"error": text, "code": error.code}
    row = getattr(error, "row", None)
    if row is not None:
        body["row"] = row
    if isinstance(error, CapacityError):
        body["retry_after_ms"] = retry_after_ms(error.predicted_wait_us, request_id)
    if isinstance(error, DeadlineError):
        body["budget_ms"], body["needed_ms"] = error.budget_us / 1000, error.needed_us / 1000
    return body
