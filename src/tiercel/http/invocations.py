"""`/invocations` of MLflow and SageMaker, `/ping` and `/version` beside it, and the routes that Vertex AI names.

These protocols name no model: a container serves one. Here the header `x-tiercel-model` (or SageMaker's
`x-amzn-sagemaker-target-model`) names it, as "fraud", "fraud@challenger" or "fraud:3"; without one the only model that
has a champion answers.

A JSON body has exactly one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`; its `params` may hold
`deadline_ms`. The token NaN is read as null, because MLflow's own client writes a missing number so. CSV has a header
line. The reply is `{"predictions": [...]}`, one score per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from tiercel.errors import DefinitionError, ModelUnavailableError, RequestError
from tiercel.http import payload
from tiercel.http.exchange import (
    Endpoint,
    Reply,
    answer_headers,
    as_object,
    error_reply,
    exactly_one,
    json_reply,
    optional_object,
    refuse_unknown,
)
from tiercel.http.request import show
from tiercel.http.rows import (
    check_rows,
    columns_of_csv,
    columns_of_inputs,
    columns_of_lists,
    columns_of_rows,
    question_of_columns,
)
from tiercel.serving.routes import CHAMPION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.http.exchange import Exchange, Host
    from tiercel.http.inputs import Plan
    from tiercel.serving.deadline import Budget

CSV: Final = "text/csv"
MODEL_HEADERS: Final = (b"x-tiercel-model", b"x-amzn-sagemaker-target-model")
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(frozen=True, slots=True)
class VertexRoutes:
    """What Vertex AI tells a container by its environment; None: it did not."""

    port: int | None = None
    health: str | None = None
    predict: str | None = None


def vertex_routes(environ: Mapping[str, str]) -> VertexRoutes:
    """AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE.

    Raises:
        DefinitionError: a port that is none, or a route that is no plain path.
    """
    port = environ.get("AIP_HTTP_PORT") or None
    if port is not None and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise DefinitionError(f"Expected the environment variable AIP_HTTP_PORT to be a port, got {show(port)}")
    paths: dict[str, str | None] = {}
    for name in ("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"):
        path = environ.get(name) or None
        # Braces would be a pattern to the router, and what is under /predict/ never reaches it.
        if path is not None and (
            path[0] != "/" or path.startswith("/predict/") or any(character in path for character in "{}?# ")
        ):
            raise DefinitionError(
                f"Expected the environment variable {name} to be a path such as /v1/x, got {show(path)}"
            )
        paths[name] = path
    return VertexRoutes(None if port is None else int(port), paths["AIP_HEALTH_ROUTE"], paths["AIP_PREDICT_ROUTE"])


def invocation_routes(host: Host, environ: Mapping[str, str]) -> list[Route]:
    """MLflow's and SageMaker's endpoints, and Vertex AI's where the environment names them."""
    routes: list[Route] = []
    vertex = vertex_routes(environ)  # first: what it says may be any path, /invocations too
    if vertex.predict is not None:
        routes.append(Route(vertex.predict, Endpoint(host, _vertex), methods=["POST"]))
    if vertex.health is not None:
        routes.append(Route(vertex.health, Endpoint(host, _ping), methods=["GET"]))
    return [
        *routes,
        Route("/invocations", Endpoint(host, _invoke), methods=["POST"]),
        Route("/ping", Endpoint(host, _ping), methods=["GET"]),
        Route("/health", Endpoint(host, _ping), methods=["GET"]),
        Route("/version", Endpoint(host, _version), methods=["GET"]),
    ]


async def _invoke(exchange: Exchange) -> Reply:
    kind = _media(exchange)
    reference = _which_model(exchange)
    with exchange.enter(reference):
        return await _answer(exchange, reference, kind)


async def _answer(exchange: Exchange, reference: str, kind: str) -> Reply:
    body = await exchange.body()
    host = exchange.host
    budget = exchange.budget()
    if kind == CSV:
        plan = await host.router.find(reference)
        columns = columns_of_csv(body, host.inputs.of(plan), plan, host.settings.max_rows)
    else:
        request = as_object(payload.decode_json(body, nan_is_null=True), "$")
        refuse_unknown(request, (*_FORMS, "params"), "$")
        form = exactly_one(request, _FORMS)
        budget = _budget_of(request, "params", budget)
        plan = await host.router.find(reference)
        columns = _columns(form, request[form], plan, host.settings.max_rows)
    answer = await exchange.answer(reference, question_of_columns(columns, plan), budget)
    return json_reply({"predictions": answer.scores}, answer_headers(answer))


async def _vertex(exchange: Exchange) -> Reply:
    reference = _which_model(exchange)
    with exchange.enter(reference):
        return await _answer_vertex(exchange, reference)


async def _answer_vertex(exchange: Exchange, reference: str) -> Reply:
    request = await exchange.json(nan_is_null=True)
    refuse_unknown(request, ("instances", "parameters"), "$")
    host = exchange.host
    budget = _budget_of(request, "parameters", exchange.budget())
    plan = await host.router.find(reference)
    columns = columns_of_rows(request.get("instances"), plan, "$.instances", host.settings.max_rows)
    answer = await exchange.answer(reference, question_of_columns(columns, plan), budget)
    return json_reply({"predictions": answer.scores}, answer_headers(answer))


async def _ping(exchange: Exchange) -> Reply:
    """200 with an empty body when something can be served: SageMaker and MLflow read nothing but the status."""
    routes = exchange.host.engine.routes
    if routes.is_ready:
        return Reply(b"")
    why = "; ".join(routes.problems) or "there is nothing to serve yet"
    return error_reply(ModelUnavailableError(f"Not ready: {why}"), exchange.scope["headers"])


async def _version(_exchange: Exchange) -> Reply:
    return Reply(version("tiercel").encode(), kind="text/plain")


def _media(exchange: Exchange) -> str:
    """JSON or CSV.

    Raises:
        RequestError: another type, another charset than UTF-8, or CSV that says it has no header line.
    """
    value = exchange.header(b"content-type")
    name, *parameters = [part.strip().lower() for part in value.split(";")]
    known = {"charset=utf-8", 'charset="utf-8"', *(("header=present",) if name == CSV else ())}
    if name in {"", payload.JSON, CSV} and known.issuperset(filter(None, parameters)):
        return name or payload.JSON
    raise RequestError(
        f"Expected Content-Type {payload.JSON} or {CSV} (UTF-8, with a header line), got {value[:100]!r}",
        code="unsupported_media_type",
    )


def _which_model(exchange: Exchange) -> str:
    """The reference that a header names, or the only model with a champion.

    Raises:
        RequestError: several models have one, or none has.
    """
    for name in MODEL_HEADERS:
        reference = exchange.header(name)
        if reference:
            return reference
    models = exchange.host.engine.routes.models
    champions = sorted(name for name, routes in models.items() if CHAMPION in {*routes.aliases, *routes.unavailable})
    if len(champions) == 1:
        return champions[0]
    listed = ", ".join(champions) or f"none; registered: {', '.join(sorted(models)) or 'none'}"
    raise RequestError(
        f"Expected header x-tiercel-model to name a model, got none, and there is not exactly one model with a champion "
        f"({listed})",
        code="invalid_request",
    )


def _budget_of(request: dict[str, Any], name: str, budget: Budget) -> Budget:
    parameters = optional_object(request, name, "$")
    refuse_unknown(parameters, ("deadline_ms",), f"$.{name}")
    if parameters.get("deadline_ms") is None:
        return budget
    return budget.with_us(parameters["deadline_ms"], 1000, "deadline_ms", f"$.{name}.deadline_ms")


def _columns(form: str, value: Any, plan: Plan, max_rows: int) -> dict[str, list[Any]]:
    where = f"$.{form}"
    if form == "inputs":
        return columns_of_inputs(value, plan, where, max_rows)
    if form == "instances":
        return columns_of_rows(value, plan, where, max_rows)
    if form == "dataframe_records":
        check_rows(value, where, max_rows)
        if type(value[0]) is not dict:
            raise RequestError(f"Expected a list of objects at {where}, got {show(value)}", code="wrong_type")
        return columns_of_rows(value, plan, where, max_rows)
    split = as_object(value, where)
    refuse_unknown(split, ("columns", "data", "index"), where)
    rows, names = check_rows(split.get("data"), f"{where}.data", max_rows), split.get("columns")
    if names is None or names == list(range(plan.n_features)):  # a frame that was made of an array
        return columns_of_lists(rows, plan.signature.features, f"{where}.data", "the signature of the model")
    if type(names) is not list or not names or not all(type(name) is str for name in names):
        raise RequestError(f"Expected a list of names at {where}.columns, got {show(names)}", code="wrong_type")
    if len(set(names)) < len(names):
        raise RequestError(f"Expected each name once at {where}.columns, got {show(names)}", code="duplicate_key")
    return columns_of_lists(rows, names, f"{where}.data", f"{where}.columns")
