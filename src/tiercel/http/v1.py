"""The V1 protocol of TensorFlow Serving and KServe: `:predict` by rows (`instances`) or by columns (`inputs`).

`GET /v1/models/{model}` answers both families of clients: KServe reads "name" and "ready", TensorFlow Serving
"model_version_status". A label in the path is an alias. The token NaN is read as null: clients of this protocol are
mostly Python's json module over arrays, which writes a missing number so. Infinity is refused, as no input may be
infinite. `:explain` takes what `:predict` takes, and "explain", "locale" and "k" as our own protocol has them; it answers
{"predictions": [...], "explanations": [...]}, one object per row, with "outputs" in place of the first where the request had
"inputs". `:classify` and `:regress` are not here and say so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from tiercel.errors import RequestError
from tiercel.http.exchange import (
    Endpoint,
    Reply,
    UnsupportedOperationError,
    answer_headers,
    exactly_one,
    json_reply,
    reference_of,
    refuse_unknown,
)
from tiercel.http.request import show
from tiercel.http.rows import columns_of_inputs, columns_of_rows, question_of_columns
from tiercel.serving.explain_request import EXPLAIN_FIELDS, FULL, by_row, parse_explain

if TYPE_CHECKING:
    from tiercel.http.exchange import Exchange, Host

_TARGET = re.compile(
    r"(?P<model>[^/:]+)(?:/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?(?::(?P<verb>[^/:]+))?"
)
_FIELDS = ("instances", "inputs", "signature_name")
_EXPLAIN_FIELDS = (*_FIELDS, *sorted(EXPLAIN_FIELDS))
_SIGNATURE = "serving_default"


def v1_routes(host: Host) -> list[Route]:
    """The endpoints under /v1."""
    return [
        Route("/v1/models", Endpoint(host, _models), methods=["GET"]),
        Route("/v1/models/{target:path}", Endpoint(host, _status), methods=["GET"]),
        Route("/v1/models/{target:path}", Endpoint(host, _verb), methods=["POST"]),
    ]


async def _models(exchange: Exchange) -> Reply:
    return json_reply({"models": sorted(exchange.host.engine.routes.models)})


async def _status(exchange: Exchange) -> Reply:
    reference, verb = _target(exchange)
    if verb:
        raise RequestError(f"Expected POST for :{verb[:40]}, got GET", code="invalid_request")
    plan = await exchange.host.router.find(reference)
    status = {"version": str(plan.version), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return json_reply({"name": plan.model, "ready": True, "model_version_status": [status]})


async def _verb(exchange: Exchange) -> Reply:
    reference, verb = _target(exchange)
    if verb not in {"predict", "explain"}:
        raise UnsupportedOperationError(
            f"Expected :predict or :explain, got {show(':' + verb if verb else exchange.path('target'))}: classifying and "
            f"regressing are not part of this server's V1 protocol. A classifier's probability is what :predict answers."
        )
    with exchange.enter(reference):
        return await _predict(exchange, reference, explains=verb == "explain")


async def _predict(exchange: Exchange, reference: str, *, explains: bool) -> Reply:
    body = await exchange.json(nan_is_null=True)
    refuse_unknown(body, _EXPLAIN_FIELDS if explains else _FIELDS, "$")
    explain = parse_explain({"explain": FULL} | body, "$") if explains else None
    signature = body.get("signature_name")
    if signature is not None and signature not in ("", _SIGNATURE):
        raise RequestError(f"Expected signature_name '{_SIGNATURE}' or none, got {show(signature)}")
    which = exactly_one(body, ("instances", "inputs"))
    host = exchange.host
    budget = exchange.budget()
    plan = await host.router.find(reference)
    read = columns_of_rows if which == "instances" else columns_of_inputs
    columns = read(body[which], plan, f"$.{which}", host.settings.max_rows)
    answer = await exchange.answer(reference, question_of_columns(columns, plan), budget, explain)
    reply: dict[str, Any] = {"predictions" if which == "instances" else "outputs": answer.scores}
    if answer.explanation is not None:
        reply["explanations"] = by_row(answer.explanation, len(answer.scores))
    return json_reply(reply, answer_headers(answer))


def _target(exchange: Exchange) -> tuple[str, str]:
    """The model's reference and the verb of a path."""
    path = exchange.path("target")
    found = _TARGET.fullmatch(path)
    if found is None:
        raise UnsupportedOperationError(
            f"Expected /v1/models/MODEL, with /versions/NUMBER or /labels/ALIAS, and :predict; got {show(path)} after "
            f"/v1/models/"
        )
    return reference_of(found["model"], found["version"] or "", found["label"] or ""), found["verb"] or ""
