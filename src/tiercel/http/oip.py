"""Open Inference Protocol V2 over HTTP, with Triton's binary tensors, configuration, statistics and repository index.

How a model looks:

- Inputs by name, each a tensor of shape [n] or [n, 1]: the join keys of its feature service (INT64 or BYTES) and its
  request features (FP32, FP64, INT64, BOOL or BYTES by their dtype). Stored features may be sent too and win over what
  is stored. Floats and integers of any width are taken for a float, integers of any width for an integer. NaN is a
  missing value.
- Or one input "features", FP32 or FP64 of shape [n, n_features]: the whole vector, in the order of the signature (which
  `GET .../config` says). NaN is a missing value, a text its category's code, a truth 0 or 1. A model without a service
  takes both; a model with an input of its own called "features" only the first form. On-demand features cannot be sent.
- One output "score", FP64 of shape [n]; [n, n_classes] for a multiclass model. A binary classifier's is the probability
  of its second class.

A model may be named "fraud" (its champion), "fraud@challenger", or "fraud" with a registered version in the path.
`parameters.timeout` (microseconds, as in Triton) joins the request's budget; 0 or null means none. `parameters.priority` is
accepted and has no effect. Sequences, shared memory and compressed bodies are refused, and so is loading and unloading:
the registry decides what is served. Statistics are those of the worker that is asked, over this protocol.

Infer requests that are plainly right, of models scored where requests wait for nothing, are answered by the compiled path
(`tiercel._hot.tensors`) with the same bytes but for ids and times. What it hands on ends here: errors, FP16, escaped ids,
fields it does not know, and every model with a queue, a rollout or a ladder.

The reply's `parameters`: "tier", "prediction_id", "timing_us" (stage -> microseconds), "oldest_age_ms" where something
timed was read, and for a degraded answer "degraded" (who answered: "fallback", "last_score" or "default"),
"degraded_instead_of", "degraded_reason" and, of a last score, "degraded_age_ms"; "arm" where the challenger answered;
"budget_us" and "budget_from" where the request named a deadline.

A request with the parameter "explain" ("reasons" or "full"; with it "locale" and "k") gets a second tensor behind the
scores: "explanation", BYTES, one JSON object per row with what our own protocol's reply says of it.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from starlette.routing import Route

from tiercel.errors import ModelUnavailableError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.exchange import (
    Endpoint,
    Reply,
    UnsupportedOperationError,
    as_object,
    error_reply,
    json_reply,
    optional_object,
    reference_of,
    refuse_unknown,
)
from tiercel.http.oip_model import EXPLANATION, SCORE, configuration, metadata, question_of, raw_tensor
from tiercel.http.oip_statistics import Statistics
from tiercel.http.request import show
from tiercel.http.tensors import HEADER_LENGTH, Tensor, encode_reply, read_tensors, split_body
from tiercel.serving.deadline import TIER_DEFAULT
from tiercel.serving.explain_request import EXPLAIN_FIELDS, FULL, REASONS, by_row, parse_explain
from tiercel.serving.rollout import CHAMPION_ARM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tiercel.http.exchange import Exchange, Host
    from tiercel.http.inputs import Plan
    from tiercel.serving.deadline import Budget
    from tiercel.serving.router import Answer

OCTETS: Final = "application/octet-stream"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
_REQUEST_FIELDS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
_OUTPUT_FIELDS = ("name", "parameters")


def oip_routes(host: Host, statistics: Statistics | None = None) -> list[Route]:
    """The endpoints under /v2; `statistics` have what the compiled path answered of them."""
    statistics = Statistics() if statistics is None else statistics
    infer = Infer(statistics)
    model = "/v2/models/{model}"
    routes: list[tuple[str, str, Callable[[Exchange], Awaitable[Reply]]]] = [
        ("GET", "/v2", _server),
        ("GET", "/v2/health/live", _live),
        ("GET", "/v2/health/ready", _ready),
        ("GET", "/v2/models/stats", partial(_all_statistics, statistics)),
        ("POST", "/v2/repository/index", _index),
        ("POST", "/v2/repository/models/{model}/{verb:path}", _refuse_control),
    ]
    for place in (model, model + "/versions/{version}"):
        routes += [
            ("GET", place, _metadata),
            ("GET", place + "/ready", _model_ready),
            ("GET", place + "/config", _configuration),
            ("GET", place + "/stats", partial(_statistics, statistics)),
            ("POST", place + "/infer", infer),
        ]
    return [Route(path, Endpoint(host, answer), methods=[method]) for method, path, answer in routes]


class Infer:
    """`POST .../infer`."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    async def __call__(self, exchange: Exchange) -> Reply:
        """Answer one inference request."""
        _check_media(exchange)
        reference = _reference(exchange)
        with exchange.enter(reference):
            return await self._answer(exchange, reference)

    async def _answer(self, exchange: Exchange, reference: str) -> Reply:
        body = await exchange.body()
        plan = await exchange.host.router.find(reference)
        try:
            return await self._infer(exchange, body, reference, plan)
        except TiercelError:
            self._statistics.failed(plan.model, plan.version, _since_us(exchange.begin_ns))
            raise

    async def _infer(self, exchange: Exchange, body: bytes, reference: str, plan: Plan) -> Reply:
        host = exchange.host
        inputs = host.inputs.of(plan)
        header_length = _header_length(exchange)
        text, rest = split_body(body, header_length)
        if header_length is not None and not text:
            request: dict[str, Any] = {}
            tensors, binary = [raw_tensor(rest, plan, inputs)], {SCORE: True}
        else:
            request = as_object(payload.decode_json(bytes(text)), "$")
            refuse_unknown(request, _REQUEST_FIELDS, "$")
            require_model(request, exchange.path("model"), plan)
            tensors, binary = read_tensors(request.get("inputs"), rest), requested_outputs(request)
        explain = parse_explain(_explain_parameters(request), "$.parameters")
        if explain is None and EXPLANATION in binary:
            raise RequestError(
                f"Expected $.parameters.explain ({REASONS} or {FULL}) beside output '{EXPLANATION}', got none",
                code="invalid_explain",
            )
        if explain is not None:
            binary.setdefault(
                EXPLANATION, _flag(_parameters(request), "binary_data_output", "$.parameters", default=False)
            )
        request_id = request.get("id")
        if request_id is not None and type(request_id) is not str:
            raise RequestError(f"Expected $.id to be text, got {show(request_id)}", code="wrong_type")
        budget = budget_with(exchange.budget(), request)
        question = question_of(tensors, plan, inputs, host.settings.max_rows)
        parse_us = _since_us(exchange.begin_ns)
        answer = await exchange.answer(reference, question, budget, explain)
        answered_us = _since_us(exchange.begin_ns)
        timing_us = {"parse": parse_us, **answer.stage_us}
        reply = encode_answer(answer, request_id, binary, {**timing_us, "total": answered_us})
        total_us = _since_us(exchange.begin_ns)
        timing_us.setdefault("reply", total_us - answered_us)
        self._statistics.succeeded(answer.model, answer.version, len(answer.scores), total_us, timing_us)
        return reply


def require_model(request: dict[str, Any], asked: str, plan: Plan) -> None:
    """That a body that names a model, as KServe's clients do beside the path, names the one that is asked.

    Args:
        request: its JSON.
        asked: the model in the path, as it is spelled there.
        plan: that the path means.

    Raises:
        RequestError: `model_mismatch`: the body means another one, and scoring either would be a guess; or no text.
    """
    told = {"model_name": (plan.model, asked), "model_version": (str(plan.version),)}
    for field, known in told.items():
        value = request.get(field)
        if value is None or value == "":  # what protobuf makes of a field that is not set
            continue
        if type(value) is not str:
            raise RequestError(f"Expected $.{field} to be text or null, got {show(value)}", code="wrong_type")
        if value not in known:
            raise RequestError(
                f"Expected $.{field} to be that of the path, model '{plan.model}' version {plan.version}, got "
                f"{show(value)}. Send the request to /v2/models/NAME/versions/VERSION/infer of the one you mean, or leave "
                f"the field out",
                code="model_mismatch",
            )


def budget_with(budget: Budget, request: dict[str, Any]) -> Budget:
    """The budget with what `parameters` say of it.

    Raises:
        RequestError: `invalid_deadline`, a priority that is none, or a sequence.
    """
    parameters = _parameters(request)
    for name in parameters:
        if name.startswith("sequence_"):
            raise RequestError(
                f"Expected a request on its own, got $.parameters.{name}: no model here keeps a state between requests",
                code="invalid_request",
            )
    priority = parameters.get("priority")
    if priority is not None and (type(priority) is not int or priority < 0):
        raise RequestError(f"Expected $.parameters.priority to be 0 or more, got {show(priority)}", code="wrong_type")
    timeout = parameters.get("timeout")
    if timeout is None or (type(timeout) is int and timeout == 0):
        return budget
    return budget.with_us(timeout, 1, "timeout", "$.parameters.timeout")


def _explain_parameters(request: dict[str, Any]) -> dict[str, Any]:
    """What a request's parameters say of an explanation; others' parameters may have such names with null."""
    parameters = _parameters(request)
    return {name: parameters[name] for name in EXPLAIN_FIELDS if parameters.get(name) is not None}


def requested_outputs(request: dict[str, Any]) -> dict[str, bool]:
    """The outputs that a request wants, all by default, and whether each is to be binary.

    Raises:
        RequestError: `unknown_output`, an output named twice, or an extension that is not here.
    """
    default = _flag(_parameters(request), "binary_data_output", "$.parameters", default=False)
    outputs = request.get("outputs")
    if outputs is None or outputs == []:
        return {SCORE: default}
    if type(outputs) is not list:
        raise RequestError(f"Expected $.outputs to be a list, got {show(outputs)}", code="wrong_type")
    wanted: dict[str, bool] = {}
    for index, each in enumerate(outputs):
        where = f"$.outputs[{index}]"
        output = as_object(each, where)
        refuse_unknown(output, _OUTPUT_FIELDS, where)
        name = output.get("name")
        if name not in {SCORE, EXPLANATION}:
            raise RequestError(
                f"Expected outputs that the model has ({SCORE}, {EXPLANATION}), got {show(name)} at {where}",
                code="unknown_output",
            )
        if name in wanted:
            raise RequestError(f"Expected output '{name}' once, got it again at {where}", code="invalid_request")
        parameters = optional_object(output, "parameters", where)
        for refused in ("classification", "shared_memory_region"):
            if parameters.get(refused):
                raise RequestError(
                    f"Expected the scores themselves, got {where}.parameters.{refused}, which this server does not have",
                    code="invalid_request",
                )
        wanted[name] = _flag(parameters, "binary_data", f"{where}.parameters", default=default)
    return wanted


def encode_answer(
    answer: Answer, request_id: str | None, binary: dict[str, bool], timing_us: dict[str, float]
) -> Reply:
    """The reply: its JSON, and the scores after it where they are binary."""
    parameters: dict[str, Any] = {"tier": answer.tier.value, "prediction_id": answer.id}
    if answer.degraded is not None:
        parameters["degraded"] = answer.degraded.by
        parameters["degraded_instead_of"] = answer.degraded.instead_of
        parameters["degraded_reason"] = answer.degraded.reason
        if answer.degraded.age_us is not None:
            parameters["degraded_age_ms"] = answer.degraded.age_us / 1000
    if answer.arm != CHAMPION_ARM:
        parameters["arm"] = answer.arm
    deadline = answer.deadline
    if deadline is not None and deadline.source != TIER_DEFAULT:
        parameters["budget_us"], parameters["budget_from"] = deadline.budget_us, deadline.source
    if answer.oldest_age_ms is not None:
        parameters["oldest_age_ms"] = answer.oldest_age_ms
    parameters["timing_us"] = {name: round(us, 1) for name, us in timing_us.items()}
    head = {
        "model_name": answer.model,
        "model_version": str(answer.version),
        "id": answer.id if request_id is None else request_id,
        "parameters": parameters,
    }
    scores = np.asarray(answer.scores, np.float64)
    tensors = [(Tensor(SCORE, "FP64", scores.shape, scores.reshape(-1)), binary[SCORE])] if SCORE in binary else []
    if answer.explanation is not None:
        texts = [orjson.dumps(told) for told in by_row(answer.explanation, len(answer.scores))]
        tensors.append((Tensor(EXPLANATION, "BYTES", (len(texts),), texts), binary[EXPLANATION]))
    body, json_bytes = encode_reply(head, tensors)
    if json_bytes is None:
        return Reply(body)
    return Reply(body, kind=OCTETS, headers=[(HEADER_LENGTH, str(json_bytes).encode())])


async def _server(_exchange: Exchange) -> Reply:
    return json_reply({"name": "tiercel", "version": version("tiercel"), "extensions": list(EXTENSIONS)})


async def _live(_exchange: Exchange) -> Reply:
    return json_reply({"live": True})


async def _ready(exchange: Exchange) -> Reply:
    routes = exchange.host.engine.routes
    if routes.is_ready:
        return json_reply({"ready": True})
    # 400, not 503: what Triton answers, and what its clients' health checks were written against.
    why = "; ".join(routes.problems) or "there is nothing to serve yet"
    return error_reply(ModelUnavailableError(f"Not ready: {why}"), exchange.scope["headers"], 400)


async def _metadata(exchange: Exchange) -> Reply:
    host = exchange.host
    plan = await host.router.find(_reference(exchange))
    versions = sorted({plan.version, *host.engine.routes.models[plan.model].plans})
    return json_reply(metadata(plan, host.inputs.of(plan), host.engine.kernel_of(plan), versions))


async def _model_ready(exchange: Exchange) -> Reply:
    try:
        plan = await exchange.host.router.find(_reference(exchange))
    except ModelUnavailableError as error:
        return error_reply(error, exchange.scope["headers"], 400)  # as for the whole server
    return json_reply({"name": plan.model, "ready": True})


async def _configuration(exchange: Exchange) -> Reply:
    host = exchange.host
    plan = await host.router.find(_reference(exchange))
    return json_reply(configuration(plan, host.inputs.of(plan), host.engine.kernel_of(plan), host.settings.max_rows))


async def _statistics(statistics: Statistics, exchange: Exchange) -> Reply:
    plan = await exchange.host.router.find(_reference(exchange))
    return json_reply({"model_stats": [statistics.of(plan.model, plan.version)]})


async def _all_statistics(statistics: Statistics, exchange: Exchange) -> Reply:
    models = exchange.host.engine.routes.models
    listed = [(name, number) for name in sorted(models) for number in sorted(models[name].plans)]
    return json_reply({"model_stats": [statistics.of(name, number) for name, number in listed]})


async def _index(exchange: Exchange) -> Reply:
    """What is loaded, and the aliases that could not be. A registered version that nobody asked for is not listed."""
    body = await exchange.body()
    request = as_object(payload.decode_json(body), "$") if body.strip() else {}
    refuse_unknown(request, ("repository_name", "ready"), "$")
    only_ready = _flag(request, "ready", "$", default=False)
    listed: list[dict[str, str]] = []
    for name, routes in sorted(exchange.host.engine.routes.models.items()):
        listed += [{"name": name, "version": str(number), "state": "READY"} for number in sorted(routes.plans)]
        if not only_ready:
            listed += [
                {"name": f"{name}@{alias}", "version": "", "state": "UNAVAILABLE", "reason": reason}
                for alias, reason in sorted(routes.unavailable.items())
            ]
    return Reply(payload.encode(listed, payload.JSON))


async def _refuse_control(exchange: Exchange) -> Reply:
    raise UnsupportedOperationError(
        f"Expected the registry to decide what is served, got a request to {exchange.path('verb')[:40]} "
        f"{show(exchange.path('model'))}. Run `tiercel promote` or `tiercel rollback`; servers follow by themselves."
    )


def _reference(exchange: Exchange) -> str:
    return reference_of(exchange.path("model"), exchange.path("version"))


def _check_media(exchange: Exchange) -> None:
    """Clients of Triton send no Content-Type, JSON's, or that of octets, whatever the body is."""
    media = exchange.header(b"content-type").partition(";")[0].strip().lower()
    if media not in {"", payload.JSON, OCTETS}:
        raise RequestError(
            f"Expected Content-Type {payload.JSON} or {OCTETS}, got {media[:100]!r}", code="unsupported_media_type"
        )


def _header_length(exchange: Exchange) -> str | None:
    values = [value.decode("latin-1").strip() for name, value in exchange.scope["headers"] if name == HEADER_LENGTH]
    if len(values) > 1:
        raise RequestError(
            f"Expected header Inference-Header-Content-Length once, got it {len(values)} times", code="invalid_tensor"
        )
    return values[0] if values else None


def _parameters(request: dict[str, Any]) -> dict[str, Any]:
    return optional_object(request, "parameters", "$")


def _flag(parameters: dict[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise RequestError(f"Expected {where}.{name} to be true or false, got {show(value)}", code="wrong_type")
    return value


def _since_us(begin_ns: int) -> float:
    return (time.monotonic_ns() - begin_ns) / 1000
