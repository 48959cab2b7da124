"""What the client sends: paths and bodies, checked before anything goes out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import httpx
import msgpack
import orjson

import tiercel
from tiercel.errors import RequestError

if TYPE_CHECKING:
    import ssl

Format = Literal["msgpack", "json"]
Scalar: TypeAlias = str | int | float | bool | None
#: One value for one row or for every row, or a sequence (list, tuple, NumPy array, pandas column) with one per row.
Values: TypeAlias = Any
#: A moment: an aware datetime, microseconds since the epoch, or an ISO 8601 text that the server reads.
Moment: TypeAlias = datetime | int | str
#: How much of an explanation is wanted: the reasons, or every feature's contribution too.
Explain: TypeAlias = Literal["reasons", "full"]

DEFAULT_URL: Final = "http://127.0.0.1:8000"

_MEDIA_TYPES: Final[Mapping[str, str]] = {"msgpack": "application/msgpack", "json": "application/json"}
_MODEL = re.compile(r"[A-Za-z0-9_-]+")
_MODEL_REFERENCE = re.compile(r"[A-Za-z0-9_-]+([@:][A-Za-z0-9_-]+)?")
_ID = re.compile(r"[0-9a-f]{17,32}")
_JOB_ID = re.compile(r"[0-9a-f]+-[0-9a-f]+")
_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Codec:
    """Writes bodies in one of the two formats."""

    def __init__(self, format_: str) -> None:
        if format_ not in _MEDIA_TYPES:
            raise RequestError(f"Expected format 'msgpack' or 'json', got {format_!r}")
        self._pack = orjson.dumps if format_ == "json" else msgpack.packb
        self._headers = {"content-type": _MEDIA_TYPES[format_], "accept": _MEDIA_TYPES[format_]}

    def encode(self, http: httpx.Client | httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Request:
        """A POST of `body`."""
        try:
            content = cast("bytes", self._pack(body))
        except (TypeError, ValueError) as error:  # half a surrogate pair; all else was checked
            raise RequestError(f"Expected text that UTF-8 can carry: {error}", code="wrong_type") from error
        return http.build_request("POST", path, content=content, headers=self._headers)


def check_url(base_url: object) -> httpx.URL:
    """The URL of a server; RequestError if it cannot be one."""
    try:
        url = httpx.URL(cast("str", base_url))
    except (httpx.InvalidURL, TypeError) as error:
        raise RequestError(f"Expected a URL such as {DEFAULT_URL}, got {base_url!r:.200}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 1) > 65535 or url.query or url.fragment:
        raise RequestError(f"Expected a URL such as {DEFAULT_URL}, without query or fragment, got {base_url!r:.200}")
    return url


def certificates(url: httpx.URL, verify: ssl.SSLContext | bool) -> ssl.SSLContext | bool:
    """What to check certificates with. Loading them takes 38 ms, which plain http, never redirected, need not pay."""
    return verify if url.scheme == "https" else False


def check_timeout(timeout: object) -> httpx.Timeout:
    """Seconds, or an `httpx.Timeout`, as the latter; RequestError if it is neither."""
    if isinstance(timeout, httpx.Timeout):
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise RequestError(f"Expected a timeout in seconds above 0, got {timeout!r}")
    return httpx.Timeout(timeout)


def make_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of every request; the caller's own win."""
    # Replies are small and the link is fast: compression would cost more than it saves.
    return {"accept-encoding": "identity", "user-agent": f"tiercel-python/{tiercel.__version__}", **(headers or {})}


def make_limits(max_connections: int) -> httpx.Limits:
    """All connections are kept open for reuse."""
    return httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)


def model_path(model: str, version: int | None, alias: str | None) -> str:
    """The path of `predict`; RequestError for what is no model reference.

    Names are only checked for characters that have a meaning in a path: the server knows the rules.
    """
    if version is not None and alias is not None:
        raise RequestError("Expected a version or an alias, got both")
    is_plain = version is not None or alias is not None
    pattern = _MODEL if is_plain else _MODEL_REFERENCE
    if not isinstance(model, str) or pattern.fullmatch(model) is None:
        wanted = "a plain model name beside version or alias" if is_plain else "a name, 'name@alias' or 'name:version'"
        raise RequestError(f"Expected {wanted}, got {model!r:.100}", code="invalid_name")
    if version is not None:
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise RequestError(f"Expected a version number from 1, got {version!r:.100}", code="invalid_name")
        return f"/predict/{model}:{version}"
    if alias is not None:
        if not isinstance(alias, str) or _MODEL.fullmatch(alias) is None:
            raise RequestError(
                f"Expected an alias of letters, digits, '_' and '-', got {alias!r:.100}", code="invalid_name"
            )
        return f"/predict/{model}@{alias}"
    return f"/predict/{model}"


def service_path(service: str) -> str:
    """The path of `features`; RequestError for what is no name."""
    if not isinstance(service, str) or _SERVICE.fullmatch(service) is None:
        raise RequestError(f"Expected the name of a feature service, got {service!r:.100}", code="invalid_name")
    return f"/features/{service}"


def explain_options(explain: str | None, locale: str | None, k: int | None) -> dict[str, Any]:
    """The fields of a body that ask for an explanation; RequestError for what no server could accept."""
    if explain not in (None, "reasons", "full"):
        raise RequestError(f"Expected explain to be 'reasons' or 'full', got {explain!r:.60}", code="invalid_explain")
    if explain is None and (locale is not None or k is not None):
        raise RequestError("Expected locale and k only beside explain, got them without", code="invalid_explain")
    options = {"explain": explain, "locale": locale, "k": k}
    return {name: value for name, value in options.items() if value is not None}


def explanation_path(prediction: Any, locale: str | None, k: int | None) -> str:
    """The path of `explanation`; RequestError for what cannot be a prediction's id."""
    own = getattr(prediction, "id", prediction)
    if not isinstance(own, str) or _ID.fullmatch(own) is None:
        raise RequestError(f"Expected a prediction or its id, got {own!r:.100}", code="invalid_id")
    query = httpx.QueryParams(explain_options("full", locale, k))
    return f"/predictions/{own}/explanation?{query}"


def results_path(job: object) -> str:
    """Of a job's results; RequestError for what cannot be the id of one."""
    job_id = getattr(job, "job_id", job)  # what `predict` raised
    if not isinstance(job_id, str) or _JOB_ID.fullmatch(job_id) is None:
        raise RequestError(
            f'Expected the id of a job as in "job" of the reply that accepted it, got {job_id!r:.100}',
            code="invalid_id",
        )
    return f"/jobs/{job_id}/results"


def predict_body(
    entities: Mapping[str, Values] | None,
    features: Mapping[str, Values] | None,
    now: Moment | None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of `predict`, with these options in it; RequestError for values no server could accept."""
    body: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    if entities is not None:
        body["entities"] = _columns(entities, "entities", lengths)
    if features is not None:
        body["features"] = _columns(features, "features", lengths)
    if not body.get("entities") and not body.get("features"):
        raise RequestError("Expected entities, features or both; got neither: there is nothing to score")
    _check_lengths(lengths)
    return _with_now(body | dict(options or {}), now)


def features_body(entities: Mapping[str, Values], features: Sequence[str] | None, now: Moment | None) -> dict[str, Any]:
    """The body of `features`; RequestError for values no server could accept."""
    lengths: dict[str, int] = {}
    body: dict[str, Any] = {"entities": _columns(entities, "entities", lengths)}
    if not body["entities"]:
        raise RequestError("Expected the join keys of at least one entity, got none")
    _check_lengths(lengths)
    if features is not None:
        if isinstance(features, str) or not all(isinstance(name, str) for name in features):
            raise RequestError(f"features: expected a list of names, got {features!r:.100}", code="wrong_type")
        body["features"] = list(features)
    return _with_now(body, now)


def feedback_body(prediction: Any, label: Values, row: Values, value: Values, time: Any) -> dict[str, Any]:
    """The body of `feedback`; RequestError for values no server could accept."""
    own = getattr(prediction, "id", prediction)  # a reply of `predict`
    lengths: dict[str, int] = {}
    given = {"id": own, "row": row, "label": label, "value": value}
    columns = _columns({name: each for name, each in given.items() if each is not None}, "feedback", lengths)
    times = list(time) if isinstance(time, (list, tuple)) else time
    if isinstance(times, list):
        lengths["feedback.time"] = len(times)
    _check_lengths(lengths)
    n_events = next(iter(lengths.values()), 1)
    if lengths and not isinstance(columns["id"], list) and row is None:
        columns["row"] = list(range(n_events))  # one request of many rows
    events = []
    for place in range(n_events):
        event = {name: each[place] if isinstance(each, list) else each for name, each in columns.items()}
        moment = times[place] if isinstance(times, list) else times
        if moment is not None:
            event["time"] = _moment(moment, "time")
        events.append({name: each for name, each in event.items() if each is not None})
    for event in events:
        if not isinstance(event.get("id"), str):
            raise RequestError(f"Expected the id of a prediction, got {event.get('id')!r:.100}", code="invalid_id")
    return {"events": events}


def _with_now(body: dict[str, Any], now: Moment | None) -> dict[str, Any]:
    if now is not None:
        body["now"] = _moment(now, "now")
    return body


def _moment(moment: Any, where: str) -> int | str:
    """A moment as a server reads it."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise RequestError(
                f"{where}: expected a time with its zone, got {moment.isoformat()} without", code="wrong_type"
            )
        return (moment - _EPOCH) // timedelta(microseconds=1)
    if isinstance(moment, (int, str)) and not isinstance(moment, bool):
        return moment
    raise RequestError(
        f"{where}: expected a datetime, microseconds since the epoch or ISO 8601 text, got {type(moment).__name__}",
        code="wrong_type",
    )


def _columns(columns: object, where: str, lengths: dict[str, int]) -> dict[str, Any]:
    """Values as plain scalars and lists; the length of each list is put into `lengths`."""
    if not isinstance(columns, Mapping):
        raise RequestError(
            f"{where}: expected a mapping from name to value, got {type(columns).__name__}", code="wrong_type"
        )
    plain: dict[str, Any] = {}
    for name, value in columns.items():
        if not isinstance(name, str):
            raise RequestError(f"{where}: expected names as keys, got {name!r:.100}", code="wrong_type")
        column = f"{where}.{name}"
        to_list = getattr(value, "tolist", None)  # NumPy arrays and scalars, pandas columns, Arrow arrays
        values = to_list() if callable(to_list) else value
        if isinstance(values, (list, tuple)):
            plain[name] = [_scalar(item, column, row) for row, item in enumerate(values)]
            lengths[column] = len(values)
        else:
            plain[name] = _scalar(values, column, None)
    return plain


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{column}: {n}" for column, n in lengths.items())
        raise RequestError(f"Expected lists of one length, got {shown}", code="wrong_length")
    if 0 in lengths.values():
        raise RequestError("Expected at least one row, got empty lists", code="wrong_length")


def _scalar(value: Any, where: str, row: int | None) -> Scalar:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise RequestError(
                f"{where}: expected an integer of 64 bits, got {value!r:.60}", code="not_finite", row=row
            )
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None  # JSON has no NaN, and everywhere in tiercel it means "missing"
        if math.isinf(value):
            raise RequestError(f"{where}: expected a finite number, got {value}", code="not_finite", row=row)
        return value
    raise RequestError(
        f"{where}: expected text, a number, a boolean or None, got {type(value).__name__}", code="wrong_type", row=row
    )
