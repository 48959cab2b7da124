"""`POST /feedback`: what became of predictions. Accepted means that it is on disk.

    {"id": "0123456789abcdef2f", "label": 1}                             one event
    {"events": [{"id": ..., "row": 3, "label": "late", "value": 12.5, "time": "2026-01-05T12:00:00Z"}, ...]}

Each event is accepted or refused by itself; the reply says how many of each, and describes the first that were refused. Only when
none is accepted, the reply is an error: that of the first. Whether the id is of a prediction is found out when labels are joined.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tiercel.errors import RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body
from tiercel.http.predict import respond
from tiercel.http.request import show
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.monitor.counting import WorkerCounters
from tiercel.monitor.feedback_writer import FeedbackWriter
from tiercel.monitor.labels import LabelStore

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tiercel.monitor.feedback_events import Checked
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

EVENTS = "events"


class FeedbackEndpoint:
    """Takes feedback into the labels of a state directory.

    Args:
        settings: the project.
        counters: of the worker.
        worker: its number.
    """

    def __init__(self, settings: Settings, counters: WorkerCounters | None = None, *, worker: int = 0) -> None:
        self._limits = settings.server
        self._counters = WorkerCounters() if counters is None else counters
        self._writer = FeedbackWriter(LabelStore(settings.state_dir, worker=worker))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        kind, code = payload.JSON, None
        limits = self._limits
        headers: list[tuple[bytes, bytes]] = []
        try:
            kind = payload.media_type(header(scope, b"content-type"))
            body = await read_body(scope, receive, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
            written = self._writer.submit(lambda: parse_feedback(body, kind, limits.max_rows), len(body))
            status, reply, code = describe(await asyncio.wrap_future(written))
        except TiercelError as error:
            request_id = request_id_of(scope["headers"])
            status, reply, code, headers = (
                status_of(error),
                body_of(error, request_id),
                error.code,
                headers_of(error, request_id),
            )
            if status == 500:
                log.exception("Feedback failed")
        except Exception:  # the client gets an answer, the log the reason
            log.exception("Feedback failed unexpectedly")
            code = "internal_error"
            status, reply = 500, {"error": "The server failed; its log has the reason", "code": code}
        self._counters.count_reply(status, code)
        await respond(send, status, reply, kind, headers)

    def close(self) -> None:
        """Write what was handed over; the event loop must have handed over its last."""
        self._writer.close()


def parse_feedback(body: bytes, kind: str, max_events: int) -> list[Any]:
    """The events of a body, as they were sent.

    Raises:
        RequestError: not JSON or msgpack, not an object, no events, or too many.
    """
    data = payload.decode(body, kind, max_events)
    if type(data) is not dict:
        raise RequestError(f"Expected an object with id and label, or with events, got {show(data)}", code="wrong_type")
    if EVENTS not in data:
        return [data]
    events = data[EVENTS]
    if len(data) > 1:
        other = next(name for name in data if name != EVENTS)
        raise RequestError(f"Expected the field {EVENTS} alone, got {show(other)} beside it", code="unknown_field")
    if type(events) is not list:
        raise RequestError(f"Expected a list at $.{EVENTS}, got {show(events)}", code="wrong_type")
    if not events:
        raise RequestError(f"Expected at least one event, got an empty list at $.{EVENTS}")
    if len(events) > max_events:
        raise RequestError(
            f"Expected at most {max_events} events, got {len(events)}. Send several requests", code="too_many_rows"
        )
    return events


def describe(checked: Checked) -> tuple[int, dict[str, Any], str | None]:
    """Status, body and code of the reply."""
    n_refused = sum(checked.refused.values())
    reply: dict[str, Any] = {"accepted": len(checked.events), "refused": n_refused}
    if checked.described:
        # A message may quote half a surrogate pair, which no reply can carry.
        reply["problems"] = [
            {**each, "error": each["error"].encode("utf-8", "backslashreplace").decode()} for each in checked.described
        ]
    if checked.notes:
        reply["notes"] = checked.notes
    if checked.events or not checked.described:
        return 200, reply, None
    first = reply["problems"][0]
    return 400, {"error": first["error"], "code": first["code"], **reply}, str(first["code"])
