"""One request and its reply, as the protocol endpoints see them: limits, budget, errors and counts in one place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from tiercel.errors import NotFoundError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.body import announced_bytes, header, read_body, read_ns_of
from tiercel.http.inputs import InputCatalog
from tiercel.http.predict import send_body, timing_header
from tiercel.http.presence import while_connected
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.serving.deadline import budget_of
from tiercel.serving.explaining import require_tellable
from tiercel.serving.rollout import CHAMPION_ARM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.answers import Answer, Question
    from tiercel.serving.deadline import Budget
    from tiercel.serving.engine import Engine
    from tiercel.serving.explain_request import ExplainRequest
    from tiercel.serving.limits import Stay
    from tiercel.serving.router import Router
    from tiercel.settings import ServerSettings

log = logging.getLogger("tiercel.http")


class UnsupportedOperationError(NotFoundError):
    """A verb of a protocol that this server does not have; the message says what to use instead."""

    code = "unsupported_operation"


@dataclass(frozen=True, slots=True)
class Host:
    """What the endpoints of every protocol share in one worker."""

    engine: Engine
    router: Router
    settings: ServerSettings
    counters: WorkerCounters
    inputs: InputCatalog = field(default_factory=InputCatalog)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply. An error is raised, not made: `code` is for replies that are errors without one."""

    body: bytes
    status: int = 200
    kind: str = payload.JSON
    headers: Sequence[tuple[bytes, bytes]] = ()
    code: str | None = None


class Exchange:
    """One request on its way through an endpoint."""

    __slots__ = ("_receive", "begin_ns", "host", "scope")

    def __init__(self, host: Host, scope: Scope, receive: Receive) -> None:
        self.host = host
        self.scope = scope
        self._receive = receive
        self.begin_ns = read_ns_of(scope)

    def header(self, name: bytes) -> str:
        """The first header of this lower-case name, or an empty string."""
        return header(self.scope, name)

    def path(self, name: str) -> str:
        """A parameter of the path; an empty string where this route has none of that name."""
        value: str = self.scope.get("path_params", {}).get(name, "")
        return value

    def budget(self) -> Budget:
        """What the headers allow.

        Raises:
            RequestError: `invalid_deadline`.
        """
        return budget_of(self.scope["headers"], self.begin_ns)

    def enter(self, reference: str) -> AbstractContextManager[Stay | None]:
        """A place in the tier of the model that is asked, for as long as it takes; asked for before the body is read.

        Raises:
            CapacityError: there is none.
        """
        return self.host.router.enter(reference, announced_bytes(self.scope))

    async def body(self) -> bytes:
        """The whole body, within the server's limits. Raises as `read_body`."""
        limits = self.host.settings
        return await read_body(
            self.scope, self._receive, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s
        )

    async def answer(
        self, reference: str, question: Question, budget: Budget, explain: ExplainRequest | None = None
    ) -> Answer:
        """The router's answer, given up when the client goes away.

        Raises as `Router.answer`, `while_connected` and, where it is to be explained, `require_tellable`.
        """
        if explain is not None:
            require_tellable(await self.host.router.find(reference), question.n_rows, explain)
        return await while_connected(self.host.router.answer(reference, question, budget, explain), self._receive)

    async def json(self, *, nan_is_null: bool = False) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            RequestError: another Content-Type, not JSON, not an object; or see `body`.
        """
        media = self.header(b"content-type").partition(";")[0].strip().lower()
        if media not in {"", payload.JSON}:
            raise RequestError(
                f"Expected Content-Type {payload.JSON}, got {media[:100]!r}", code="unsupported_media_type"
            )
        return as_object(payload.decode_json(await self.body(), nan_is_null=nan_is_null), "$")


class Endpoint:
    """An ASGI application around one coroutine: whatever happens, one reply is sent and counted."""

    def __init__(self, host: Host, answer: Callable[[Exchange], Awaitable[Reply]]) -> None:
        self._host = host
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error body, none escapes to the server."""
        try:
            reply = await self._answer(Exchange(self._host, scope, receive))
        except TiercelError as error:
            reply = error_reply(error, scope["headers"])
            if reply.status == 500:
                log.exception("%s failed", scope["path"])
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("%s failed unexpectedly", scope["path"])
            failure = {"error": "The server failed; its log has the reason", "code": "internal_error"}
            reply = Reply(orjson.dumps(failure), 500, code="internal_error")
        self._host.counters.count_reply(reply.status, reply.code)
        await send_body(send, reply.status, reply.body, reply.kind, reply.headers)


def error_reply(error: TiercelError, headers: Iterable[tuple[bytes, bytes]], status: int | None = None) -> Reply:
    """The reply that an error is, to a request with these headers; `status` where a protocol wants another than usual."""
    request_id = request_id_of(headers)
    return Reply(
        orjson.dumps(body_of(error, request_id)),
        status_of(error) if status is None else status,
        headers=headers_of(error, request_id),
        code=error.code,
    )


def answer_headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    """What a protocol's body has no place for: stage times and budget, the prediction's id, and who answered.

    `x-tiercel-degraded` is there only when somebody else answered: "default; reason=deadline; instead-of=slow:1", of a
    last score with "; age-ms=12.5" behind it.
    """
    told = [timing_header(answer.stage_us, answer.deadline), (b"x-tiercel-prediction-id", answer.id.encode())]
    degraded = answer.degraded
    if degraded is not None:
        text = f"{degraded.by}; reason={degraded.reason}; instead-of={degraded.instead_of}"
        text += "" if degraded.age_us is None else f"; age-ms={degraded.age_us / 1000:g}"
        told.append((b"x-tiercel-degraded", text.encode("ascii", "replace")))
    if answer.arm != CHAMPION_ARM:
        told.append((b"x-tiercel-arm", answer.arm.encode()))
    return told


def json_reply(value: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> Reply:
    """A successful JSON reply; non-finite floats are null."""
    return Reply(orjson.dumps(value), headers=headers)


def reference_of(name: str, version: str = "", label: str = "") -> str:
    """The reference that a path's parts mean: "fraud", "fraud@challenger", "fraud:3".

    Raises:
        RequestError: a version that is no number, or a name that already picks a version (`invalid_name`).
    """
    if not version and not label:
        return name
    if "@" in name or ":" in name:
        raise RequestError(
            f"Expected a plain model name before a version or label, got {name[:80]!r}. Name one or the other.",
            code="invalid_name",
        )
    if label:
        return f"{name}@{label}"
    if not (version.isascii() and version.isdigit()) or version[0] == "0":
        raise RequestError(f"Expected a version number in the path, got {version[:80]!r}", code="invalid_name")
    return f"{name}:{version}"


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object.

    Raises:
        RequestError: it is not (`invalid_request`).
    """
    if type(value) is not dict:
        raise RequestError(f"Expected an object at {where}, got {type(value).__name__}", code="invalid_request")
    return value


def optional_object(body: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The object that a field holds; an empty one where it is null or absent. Raises as `as_object`."""
    value = body.get(name)
    return {} if value is None else as_object(value, f"{where}.{name}")


def refuse_unknown(body: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """A misspelled field that is silently ignored is worse than an error.

    Raises:
        RequestError: `unknown_field`.
    """
    for key in body:
        if key not in known:
            raise RequestError(
                f"Expected the fields {', '.join(known)} at {where}, got {key[:80]!r}", code="unknown_field"
            )


def exactly_one(body: Mapping[str, Any], names: Sequence[str]) -> str:
    """The one of `names` that a body has, null counting as absent.

    Raises:
        RequestError: none or several of them (`invalid_request`).
    """
    found = [name for name in names if body.get(name) is not None]
    if len(found) != 1:
        raise RequestError(
            f"Expected exactly one of {', '.join(names)}, got {' and '.join(found) or 'none of them'}",
            code="invalid_request",
        )
    return found[0]
