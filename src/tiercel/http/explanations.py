"""`GET /predictions/{id}/explanation` on the data port, and under /api on the admin port: why an earlier prediction came out so.

    ?explain=reasons    without every feature's contribution (default: full)
    &locale=de&k=3      as in a prediction's request

The reply is {"id", "model", "version", "score" or "scores", "reasons", "explanation"}.

Ids count up, so whoever knows one can guess those beside it. A data port that others than this machine reach therefore gives
explanations of what was asked before only where `server.explanations` says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response
from starlette.routing import Route

from tiercel.errors import ExplanationsClosedError, RequestError, TiercelError
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.serving.explain_request import EXPLAIN_FIELDS, FULL, ExplainRequest, parse_explain

if TYPE_CHECKING:
    from starlette.requests import Request

    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.recorded import RecordedExplanations

log = logging.getLogger("tiercel.http")


class ExplanationEndpoint:
    """The endpoint.

    Args:
        recorded: finds and explains.
        counters: of the worker, where replies are counted; None: nowhere.
        is_open: whether whoever reaches the port may ask; otherwise all are refused.
    """

    def __init__(
        self, recorded: RecordedExplanations, counters: WorkerCounters | None = None, *, is_open: bool = True
    ) -> None:
        self._recorded, self._counters, self._is_open = recorded, counters, is_open

    def routes(self, prefix: str = "") -> list[Route]:
        """Its one route."""
        return [Route(f"{prefix}/predictions/{{id}}/explanation", self._answer, methods=["GET"])]

    def close(self) -> None:
        """Begin nothing more."""
        self._recorded.close()

    async def _answer(self, request: Request) -> Response:
        status, code, headers = 200, None, {}
        try:
            self._require_open(request.url.path)
            body: Any = await self._recorded.find(request.path_params["id"], _asked(request))
        except TiercelError as error:
            request_id = request_id_of(request.scope["headers"])
            status, code, body = status_of(error), error.code, body_of(error, request_id)
            headers = {name.decode(): value.decode() for name, value in headers_of(error, request_id)}
            if status == 500:
                log.exception("%s failed", request.url.path)
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("%s failed unexpectedly", request.url.path)
            body = {"error": "The server failed; its log has the reason", "code": "internal_error"}
            status, code = 500, "internal_error"
        if self._counters is not None:
            self._counters.count_reply(status, code)
        return Response(orjson.dumps(body), status, headers, media_type="application/json")

    def _require_open(self, path: str) -> None:
        if not self._is_open:  # a reply that put its explanation off leads here too: this says where that can be had
            raise ExplanationsClosedError(
                f"Expected to be asked on the admin port, for /api{path[:90]}: earlier predictions are not explained on a port "
                f"that other machines reach, since their ids can be guessed, unless server.explanations = true in tiercel.toml. "
                f"With the prediction it is explained here: ask with a longer deadline_ms where there was no time"
            )


def _asked(request: Request) -> ExplainRequest:
    fields: dict[str, Any] = {"explain": FULL}
    for name, text in request.query_params.multi_items():
        if name not in EXPLAIN_FIELDS:
            raise RequestError(
                f"Expected the parameters {', '.join(sorted(EXPLAIN_FIELDS))}, got {name[:60]!r}", code="unknown_field"
            )
        fields[name] = int(text) if name == "k" and text.isascii() and text.isdigit() and len(text) < 4 else text
    asked = parse_explain(fields, "the query's ")
    return ExplainRequest() if asked is None else asked
