"""What the client makes of replies and of their absence. Nothing in a reply is trusted to have the right shape."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import httpx
import msgpack
import orjson

from tiercel.client.explanations import Explanation, read_explanation
from tiercel.client.timing import parse_server_timing
from tiercel.errors import (
    BadRequestError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    JobAcceptedError,
    NoScoreError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerInternalError,
    ServerNotFoundError,
    UnavailableError,
)
from tiercel.types import Tier, ValueStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

Score: TypeAlias = float | tuple[float, ...]

_JOB_PATH = re.compile(r"/[A-Za-z0-9_./-]+")


@dataclass(frozen=True)
class Degraded:
    """Who answered instead of the model, as its table [models.NAME] in the server's tiercel.toml declares them.

    Args:
        by: "fallback", "last_score" or "default".
        instead_of: the version that should have answered, "fraud:3"; without its number where it could not be loaded.
        reason: why it did not: "deadline", "overloaded", "unavailable" or "failed". A newer server may know more words.
        age_ms: of a last score; of many rows, the oldest's.
    """

    by: str
    instead_of: str
    reason: str
    age_ms: float | None = None

    def describe(self) -> str:
        """In words."""
        age = "" if self.age_ms is None else f" ({self.age_ms:,.1f} ms old)"
        return f"answered by {self.by}{age} instead of {self.instead_of}, because: {self.reason}"


@dataclass(frozen=True)
class Prediction:
    """The answer for one row.

    Args:
        score: a number; for a multiclass model one per class, in `classes` order.
        oldest_age_ms: age of the oldest stored value used; None when none was.
        missing: features that had no value.
        server_timing: the reply's `Server-Timing` header.
        explanation: where one was asked for.
        degraded: who answered instead, and why; None: the model itself did.
        arm: "challenger" where it was its turn; None: the reply names none, as for a champion.
    """

    id: str
    model: str
    version: int
    tier: str
    score: Score
    classes: tuple[str, ...] = ()
    oldest_age_ms: float | None = None
    missing: tuple[str, ...] = ()
    server_timing: str | None = None
    explanation: Explanation | None = None
    degraded: Degraded | None = None
    arm: str | None = None

    @property
    def timing_ms(self) -> dict[str, float]:
        """Milliseconds by stage, from the reply's `Server-Timing`; empty when it had none."""
        return parse_server_timing(self.server_timing)


@dataclass(frozen=True)
class Predictions:
    """The answer for many rows: `scores[i]` belongs to row i. `missing` counts rows by feature.

    `degraded` and `arm` are those of all rows: a request has one answerer.
    """

    id: str
    model: str
    version: int
    tier: str
    scores: tuple[Score, ...]
    classes: tuple[str, ...] = ()
    oldest_age_ms: float | None = None
    missing: Mapping[str, int] | None = None
    server_timing: str | None = None
    explanation: Explanation | None = None
    degraded: Degraded | None = None
    arm: str | None = None

    @property
    def timing_ms(self) -> dict[str, float]:
        """Milliseconds by stage, from the reply's `Server-Timing`; empty when it had none."""
        return parse_server_timing(self.server_timing)

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class FeatureRows:
    """Stored features as read: `values[i][j]`, `statuses[i][j]` and `ages_ms[i][j]` are row i's `features[j]`."""

    service: str
    fingerprint: str
    features: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    statuses: tuple[tuple[ValueStatus, ...], ...]
    ages_ms: tuple[tuple[float | None, ...], ...]

    def __len__(self) -> int:
        return len(self.values)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One mapping from feature to value per row."""
        return [dict(zip(self.features, row, strict=True)) for row in self.values]


@dataclass(frozen=True)
class FeedbackReceipt:
    """What a server did with feedback: `accepted` events are on its disk.

    Args:
        refused: events that are not, each for a reason of its own.
        problems: the first of those: {"event": its place, "error", "code"}.
    """

    accepted: int
    refused: int = 0
    problems: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A successful reply, decoded but not yet understood."""

    body: dict[str, Any]
    server_timing: str | None


def read_reply(response: httpx.Response, base_url: httpx.URL) -> Reply:
    """The body of a successful reply from the server at `base_url`.

    Raises:
        JobAcceptedError: the server will answer, but not now.
        ServerError: the server reports an error.
        ProtocolError: the reply is not a tiercel server's.
    """
    body = _decode(response)
    if response.status_code == 200 and body is not None:
        return Reply(body, response.headers.get("server-timing"))
    if response.status_code == 202 and body is not None:
        raise _job_accepted(response, body, base_url)
    if response.status_code >= 400 and body is not None:
        raise _server_error(response, body)
    raise _not_ours(response)


def _decode(response: httpx.Response) -> dict[str, Any] | None:
    """The body as a mapping, None if it is none."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            body = orjson.loads(response.content)
        elif media_type == "application/msgpack":
            body = msgpack.unpackb(response.content)
        else:
            return None
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(
            f"Expected {media_type} from {response.url}, got a damaged body of {len(response.content)} bytes: {error}"
        ) from error
    return body if isinstance(body, dict) else None


def _job_accepted(
    response: httpx.Response, body: dict[str, Any], base_url: httpx.URL
) -> JobAcceptedError | ProtocolError:
    job_id, paths = body.get("job"), [body.get(name) for name in ("status", "results")]
    if not isinstance(job_id, str) or not all(isinstance(path, str) and _JOB_PATH.fullmatch(path) for path in paths):
        return _not_ours(response)
    # Below the base URL, whose path a proxy may have put there; its password is nobody's who reads a log.
    status_url, results_url = (
        str(base_url.copy_with(userinfo=b"", path=f"{base_url.path.rstrip('/')}{path}")) for path in paths
    )
    return JobAcceptedError(
        f"Expected a prediction, got batch job {job_id}: the server took the question and will answer it beside requests. Its "
        f"results will be at {results_url}, or what Client.results gives; {status_url} says how far it is. Do not ask again: "
        f"that makes a second job",
        job_id=job_id,
        status_url=status_url,
        results_url=results_url,
        retry_after_s=_retry_after_s(response),
    )


def _server_error(response: httpx.Response, body: dict[str, Any]) -> ServerError | ProtocolError:
    status, message, code, row = response.status_code, body.get("error"), body.get("code"), body.get("row")
    if not isinstance(message, str) or not isinstance(code, str):
        return _not_ours(response)
    return _error_class(status)(
        message, status=status, code=code, row=row if _is_integer(row) else None, retry_after_s=_retry_after_s(response)
    )


def _error_class(status: int) -> type[ServerError]:
    exact = {404: ServerNotFoundError, 429: OverloadedError, 503: UnavailableError}.get(status)
    return exact or (BadRequestError if status < 500 else ServerInternalError)


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _not_ours(response: httpx.Response) -> ProtocolError:
    return ProtocolError(
        f"Expected a tiercel reply from {response.url}, got HTTP {response.status_code} with "
        f"{response.headers.get('content-type', 'no content type')}: {response.content[:100]!r}. Is this tiercel's port?"
    )


def client_error(request: httpx.Request, error: Exception) -> ClientError:
    """What httpx raised, in tiercel's terms."""
    if isinstance(error, httpx.TimeoutException):
        return ClientTimeoutError(f"No reply from {request.url} in time ({type(error).__name__})")
    if isinstance(error, httpx.DecodingError):
        return ProtocolError(f"Expected a readable body from {request.url}: {error}")
    if isinstance(error, httpx.HTTPError):
        return ClientConnectionError(f"No connection to {request.url}, or it broke: {error}. Is the server running?")
    return ClientError(str(error))  # httpx: the client was closed


def unreachable(request: httpx.Request, error: Exception) -> bool:
    """False if nobody is there to be asked; anything else is raised."""
    mapped = client_error(request, error)
    if isinstance(mapped, (ClientConnectionError, ClientTimeoutError)):
        return False
    raise mapped from error


def is_healthy(response: httpx.Response) -> bool:
    """Read a health probe's answer; ProtocolError if it is none."""
    if response.status_code not in {200, 503}:
        raise _not_ours(response)
    return response.status_code == 200


def read_prediction(reply: Reply) -> Prediction | Predictions:
    """Understand the answer to `predict`.

    Raises:
        ProtocolError: it is none.
        NoScoreError: the model gave no number for some rows.
    """
    prediction = _read_prediction(reply)
    scores = prediction.scores if isinstance(prediction, Predictions) else (prediction.score,)
    rows = tuple(row for row, score in enumerate(scores) if not _is_finite(score))
    if rows:
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        where = f"for {len(rows)} of {len(scores)} rows ({shown})" if isinstance(prediction, Predictions) else "for it"
        remedy = (
            f". Declare a default_score or a fallback under [models.{prediction.model}] in the server's tiercel.toml to have "
            f"another answer then"
        )
        if prediction.tier == Tier.BATCH:  # nobody stands in for a job's rows
            remedy = ""
        raise NoScoreError(
            f"Expected scores of model '{prediction.model}' version {prediction.version}, got NaN or an infinity {where} "
            f"in prediction {prediction.id}. The rest is in this error's `prediction`{remedy}",
            prediction=prediction,
            rows=rows,
        )
    return prediction


def _read_prediction(reply: Reply) -> Prediction | Predictions:
    body = reply.body
    try:
        details = body.get("features") or {}
        age, missing = details.get("oldest_age_ms"), details.get("missing")
        head = (_text(body["id"]), _text(body["model"]), _integer(body["version"]), _text(body["tier"]))
        classes = tuple(_text(label) for label in body.get("classes") or ())
        oldest_age_ms = None if age is None else _number(age)
        answerer = (_degraded(body.get("degraded")), _optional_text(body.get("arm")))
        if "scores" in body:
            return Predictions(
                *head,
                tuple(_score(score) for score in _list(body["scores"])),
                classes,
                oldest_age_ms,
                {_text(name): _integer(n) for name, n in (missing or {}).items()},
                reply.server_timing,
                read_explanation(body),
                *answerer,
            )
        names = tuple(_text(name) for name in _list(missing or []))
        return Prediction(
            *head,
            _score(body["score"]),
            classes,
            oldest_age_ms,
            names,
            reply.server_timing,
            read_explanation(body),
            *answerer,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"Expected a tiercel prediction, got {body!r:.200}: {error!r}") from error


def _degraded(told: Any) -> Degraded | None:
    if not told:
        return None
    age_ms = told.get("age_ms")
    return Degraded(
        _text(told["by"]),
        _text(told["instead_of"]),
        _text(told["reason"]),
        None if age_ms is None else _number(age_ms),
    )


def read_recorded(reply: Reply) -> Explanation:
    """Understand the explanation of an earlier prediction; ProtocolError if it is none."""
    found = read_explanation(reply.body)
    if found is None:
        raise ProtocolError(f"Expected the explanation of a prediction, got {reply.body!r:.200}")
    return found


def read_features(reply: Reply) -> FeatureRows:
    """Understand the answer to `features`; ProtocolError if it is none."""
    body = reply.body
    try:
        rows = FeatureRows(
            service=_text(body["service"]),
            fingerprint=_text(body["fingerprint"]),
            features=tuple(_text(name) for name in _list(body["features"])),
            values=tuple(tuple(_list(row)) for row in _list(body["values"])),
            statuses=tuple(tuple(ValueStatus[_text(s)] for s in _list(row)) for row in _list(body["statuses"])),
            ages_ms=tuple(
                tuple(None if age is None else _number(age) for age in _list(row)) for row in _list(body["ages_ms"])
            ),
        )
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"Expected tiercel feature rows, got {body!r:.200}: {error!r}") from error
    widths = {len(row) for table in (rows.values, rows.statuses, rows.ages_ms) for row in table}
    if len({len(rows.values), len(rows.statuses), len(rows.ages_ms)}) > 1 or widths - {len(rows.features)}:
        raise ProtocolError(f"Expected values, statuses and ages of one shape, got {body!r:.200}")
    return rows


def read_feedback(reply: Reply) -> FeedbackReceipt:
    """Understand the answer to `feedback`; ProtocolError if it is none."""
    body = reply.body
    try:
        problems = tuple({**problem} for problem in _list(body.get("problems") or []))
        return FeedbackReceipt(_integer(body["accepted"]), _integer(body["refused"]), problems)
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"Expected a tiercel receipt for feedback, got {body!r:.200}: {error!r}") from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"expected text, got {value!r:.60}")


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: Any) -> int:
    if _is_integer(value):
        return cast("int", value)
    raise TypeError(f"expected an integer, got {value!r:.60}")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"expected a number, got {value!r:.60}")


def _score(value: Any) -> Score:
    return tuple(_finite_or_nan(part) for part in value) if isinstance(value, list) else _finite_or_nan(value)


def _finite_or_nan(value: Any) -> float:
    """A number; JSON has null for what is none."""
    return math.nan if value is None else _number(value)


def _is_finite(score: Score) -> bool:
    return all(map(math.isfinite, score)) if isinstance(score, tuple) else math.isfinite(score)


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TypeError(f"expected a list, got {value!r:.60}")
