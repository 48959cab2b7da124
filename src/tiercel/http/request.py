"""What a prediction or feature-read body holds: checked once, then handed to the plan."""

from __future__ import annotations

import reprlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tiercel.errors import RequestError
from tiercel.serving.explain_request import EXPLAIN_FIELDS, ExplainRequest, parse_explain
from tiercel.types import Tier

_EMPTY: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Entity keys and request-time features, scalars or equally long lists, and the time of the read."""

    entities: dict[str, Any]
    features: dict[str, Any]
    now_us: int
    deadline_ms: Any = None  # as it was sent
    tier: Tier | None = None
    explain: ExplainRequest | None = None


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """Entity keys, an optional projection, and the time of the read."""

    entities: dict[str, Any]
    features: list[str] | None
    now_us: int


def parse_predict(data: Any, max_rows: int) -> PredictRequest:
    """A `POST /predict` body.

    Raises:
        RequestError: not an object, an unknown top-level field, nothing to score, too many rows.
    """
    entities, features, now_us, deadline_ms, tier = _EMPTY, _EMPTY, None, None, None
    wanted: dict[str, Any] = {}
    for key, value in _object(data).items():
        if key == "entities":
            entities = _columns(key, value, max_rows)
        elif key == "features":
            features = _columns(key, value, max_rows)
        elif key == "now":
            now_us = _time(value)
        elif key == "deadline_ms":
            if type(value) not in (int, float):
                raise RequestError(
                    f"Expected milliseconds at $.deadline_ms, got {show(value)}", code="invalid_deadline"
                )
            deadline_ms = value
        elif key == "tier":
            tier = _tier(value)
        elif key in EXPLAIN_FIELDS:
            wanted[key] = value
        else:
            raise _unknown(key, "entities, features, now, deadline_ms, tier, explain, locale, k")
    if not entities and not features:
        raise RequestError('Expected "entities", "features" or both, got neither of them with anything in it')
    moment_us = time.time_ns() // 1000 if now_us is None else now_us
    explain = parse_explain(wanted, "$") if wanted else None
    return PredictRequest(entities, features, moment_us, deadline_ms, tier, explain)


def parse_features(data: Any, max_rows: int) -> FeatureRequest:
    """A `POST /features` body. Raises as `parse_predict`."""
    entities, features, now_us = _EMPTY, None, None
    for key, value in _object(data).items():
        if key == "entities":
            entities = _columns(key, value, max_rows)
        elif key == "features":
            if type(value) is not list or not all(type(name) is str for name in value):
                raise RequestError(
                    f"Expected a list of feature names at $.features, got {show(value)}", code="wrong_type"
                )
            # Twice the same would let a small request ask for any amount of values.
            if not value or len(set(value)) != len(value):
                raise RequestError(f"Expected different feature names at $.features, got {show(value)}")
            features = value
        elif key == "now":
            now_us = _time(value)
        else:
            raise _unknown(key, "entities, features, now")
    if not entities:
        raise RequestError('Expected "entities" with at least one join key, got none')
    return FeatureRequest(entities, features, time.time_ns() // 1000 if now_us is None else now_us)


def show(value: Any) -> str:
    """A value as error messages show it: short, whatever was sent."""
    return _SHORT.repr(value)


def _object(data: Any) -> dict[str, Any]:
    if type(data) is not dict:
        raise RequestError(f"Expected an object with entities and features, got {show(data)}", code="invalid_request")
    return data


def _columns(part: str, value: Any, max_rows: int) -> dict[str, Any]:
    if type(value) is not dict:
        raise RequestError(f"Expected an object at $.{part}, got {show(value)}", code="wrong_type")
    for name, column in value.items():
        if type(name) is not str:
            raise RequestError(f"Expected text keys at $.{part}, got {show(name)}", code="wrong_type")
        if type(column) is list and not 0 < len(column) <= max_rows:
            if not column:
                raise RequestError(f"Expected at least one row, got an empty list at $.{part}.{show(name)}")
            raise RequestError(
                f"Expected at most {max_rows} rows, got {len(column)} at $.{part}.{show(name)}. Send several requests.",
                code="too_many_rows",
            )
    return value


def _tier(value: Any) -> Tier:
    try:
        return Tier(value)
    except ValueError:
        known = ", ".join(Tier)
        raise RequestError(f"Expected one of {known} at $.tier, got {show(value)}", code="wrong_type") from None


def _time(value: Any) -> int:
    """Microseconds since the epoch from an integer of them or an ISO 8601 text (without an offset: UTC)."""
    if type(value) is int and 0 <= value < 2**62:
        return value
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None:
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            delta = moment - _EPOCH
            if delta.days >= 0:
                return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    raise RequestError(
        f"Expected $.now to be a time since 1970, as ISO 8601 text or in microseconds, got {show(value)}",
        code="wrong_type",
    )


def _unknown(key: Any, known: str) -> RequestError:
    return RequestError(f"Expected the fields {known}, got {show(key)}", code="unknown_field")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxdict = 4
_SHORT.maxlevel = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
