"""What the admin port answers, as OpenAPI 3.1: for clients that are generated and for whoever explores it.

By hand, beside the routes: what parameters mean is in no type that could be read. A test compares both.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from tiercel.monitor.alert import AlertClass

_OBJECT: Final = {"type": "object"}
_ERROR: Final = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "What was expected, what came, where, and what to do"},
        "code": {"type": "string", "description": "Of this sort of error; stable"},
    },
}
_SAID: Final = {
    "by": {"type": "string", "description": "Who does it; kept with the alert"},
    "note": {"type": "string", "description": "Why; kept with the alert"},
}


def _operation(
    summary: str, *parameters: dict[str, Any], body: dict[str, Any] | None = None, media: str = "application/json"
) -> dict[str, Any]:
    schema = _OBJECT if media == "application/json" else {"type": "string"}
    error = {"description": "Refused, or failed", "content": {"application/json": {"schema": _ERROR}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": {"description": "Done", "content": {media: {"schema": schema}}}, "default": error},
    }
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return operation


def _path(name: str, kind: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}, "description": description}


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string", **schema}, "description": description}


def _change(**more: Any) -> dict[str, Any]:
    required = {"required": list(more)} if more else {}
    return {"type": "object", "properties": {**_SAID, **more}, "additionalProperties": False, **required}


_ALERT: Final = _path("id", "integer", "Of the alert")
_JOB: Final = _path("id", "string", "Of the job, as the 202 said")
#: From a path to a name.
_NO_WORD: Final = str.maketrans({"/": "_", "{": None, "}": None})
_SECONDS: Final = {"type": "number", "exclusiveMinimum": 0, "description": "For how many seconds nothing is sent"}

_OPERATIONS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "/livez": {"get": _operation("Whether the control process answers")},
    "/readyz": {"get": _operation("Whether every worker serves; 503 with those that do not")},
    "/metrics": {
        "get": _operation(
            "What all workers counted, in Prometheus' text format",
            _query("group", '"triton": Triton\'s names for it, too'),
            media="text/plain",
        )
    },
    "/api/workers": {"get": _operation("Every process: pid, state, since when, restarts, how it last ended")},
    "/api/jobs": {
        "get": _operation(
            "The newest batch jobs, how many are open and how many were removed",
            _query("limit", "How many", type="integer", minimum=1, default=100),
        )
    },
    "/api/jobs/{id}": {"get": _operation("One batch job: its state, progress and error", _JOB)},
    "/api/jobs/{id}/cancel": {"post": _operation("End a batch job that is not over", _JOB)},
    "/api/alerts": {
        "get": _operation(
            "Alerts, newest first, and what the watch did last",
            _query("class", "Only those of this class", enum=[each.value for each in AlertClass]),
            _query("all", "1: those that are over, too"),
            _query("limit", "How many", type="integer", minimum=1, default=200),
        )
    },
    "/api/alerts/{id}": {"get": _operation("One alert: what was found, and what became of it", _ALERT)},
    "/api/alerts/{id}/acknowledge": {"post": _operation("Somebody looks into it", _ALERT, body=_change())},
    "/api/alerts/{id}/silence": {
        "post": _operation("Send nothing of it for a while", _ALERT, body=_change(for_s=_SECONDS))
    },
    "/api/alerts/{id}/resolve": {"post": _operation("It is over", _ALERT, body=_change())},
    "/api/predictions/{id}/explanation": {
        "get": _operation(
            "What the features contributed to an earlier prediction, by its record",
            _path("id", "string", "Of the prediction, as its reply said"),
            _query("explain", "How much", enum=["full", "reasons"], default="full"),
            _query("locale", "Language of the reasons' texts"),
            _query("k", "How many reasons", type="integer", minimum=1),
        )
    },
}


def document() -> dict[str, Any]:
    """The document at `/api/openapi.json`, plain JSON values."""
    paths = {
        path: {
            method: {"operationId": f"{method}{path}".translate(_NO_WORD).strip("_"), **operation}
            for method, operation in methods.items()
        }
        for path, methods in _OPERATIONS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tiercel, admin port", "version": version("tiercel")},
        "paths": paths,
    }
