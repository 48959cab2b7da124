"""`POST /get-online-features`, in the request and reply shape of Feast's feature server.

Request: `feature_service`, or `features` as "view:feature"; `entities`, a list of values by join key; optionally
`full_feature_names`, which makes the reply say "view__feature", and `include_feature_view_version_metadata`, which has no
effect: views have no version numbers here. Reply: names in `metadata.feature_names`, join keys
first, and for each name its `values`, `statuses` and `event_timestamps` by row.

Like Feast, and unlike `POST /features/{service}`, an entity without a row is never an error: its values are null and
their status is NOT_FOUND, whatever the service's `on_missing_entity` says. Unlike Feast's own server, a ttl is honoured:
a value past it is null and OUTSIDE_MAX_AGE. Request features may stand among the entities and come back as they were
sent; on-demand features are not computed here. Feature views are not published one by one: "view:feature" is read from
a service that holds all that is asked for, or else from the first in alphabetical order that holds it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Route

from tiercel.errors import RequestError, ServiceNotFoundError
from tiercel.http.exchange import Endpoint, Reply, exactly_one, json_reply, refuse_unknown
from tiercel.http.request import show
from tiercel.http.rows import check_rows
from tiercel.types import ValueStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tiercel.features.online import FeatureValue, OnlineBase
    from tiercel.http.exchange import Exchange, Host

STATUS: Final = {
    ValueStatus.PRESENT: "PRESENT",
    ValueStatus.NULL: "NULL_VALUE",
    ValueStatus.NOT_FOUND: "NOT_FOUND",
    ValueStatus.OUTSIDE_TTL: "OUTSIDE_MAX_AGE",
}
_FLAGS = ("full_feature_names", "include_feature_view_version_metadata")
_FIELDS = ("feature_service", "features", "entities", *_FLAGS)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - UTC, written as Z and not as an offset
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 and 9999
_NO_TIME = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One feature, and the base it is read from."""

    base: OnlineBase
    view: str
    feature: str


def feast_routes(host: Host) -> list[Route]:
    """Feast's read endpoint."""
    return [Route("/get-online-features", Endpoint(host, _get_online_features), methods=["POST"])]


async def _get_online_features(exchange: Exchange) -> Reply:
    request = await exchange.json()
    refuse_unknown(request, _FIELDS, "$")
    engine = exchange.host.engine
    for flag in _FLAGS:
        if type(request.get(flag, False)) not in {bool, type(None)}:
            raise RequestError(f"Expected $.{flag} to be true or false, got {show(request[flag])}", code="wrong_type")
    if request.get("features") == []:  # what Feast's clients may send beside a service
        del request["features"]
    entities = _entities(request.get("entities"), exchange.host.settings.max_rows)
    if exactly_one(request, ("feature_service", "features")) == "features":
        wanted = find_features(request["features"], engine.routes.services)
    else:
        name = request["feature_service"]
        if type(name) is not str:
            raise RequestError(f"Expected $.feature_service to be a name, got {show(name)}", code="wrong_type")
        base = engine.service(name)
        wanted = [_Wanted(base, view, feature) for view, feature in _stored(base) if feature in base.features]
    return json_reply(
        read(wanted, entities, full_names=bool(request.get("full_feature_names")), now_us=time.time_ns() // 1000)
    )


def find_features(references: Any, services: Mapping[str, OnlineBase]) -> list[_Wanted]:
    """Where each "view:feature" is read from.

    Raises:
        RequestError: no list of different references of that form.
        ServiceNotFoundError: no published service has a feature (`service_not_found`).
    """
    if type(references) is not list or not references or not all(type(each) is str for each in references):
        raise RequestError(
            f'Expected $.features to be a list of "view:feature", got {show(references)}', code="wrong_type"
        )
    if len(set(references)) < len(references):
        raise RequestError(f"Expected different features at $.features, got {show(references)}")
    pairs: list[tuple[str, str]] = []
    for index, reference in enumerate(references):
        view, found, feature = reference.partition(":")
        if not (view and found and feature):
            raise RequestError(
                f'Expected "view:feature" at $.features[{index}], got {show(reference)}', code="unknown_feature"
            )
        pairs.append((view, feature))
    held = {
        name: {pair for pair in _stored(base) if pair[1] in base.features} for name, base in sorted(services.items())
    }
    whole = [name for name, stored in held.items() if stored.issuperset(pairs)]
    wanted: list[_Wanted] = []
    for view, feature in pairs:
        name = next((name for name in (*whole, *held) if (view, feature) in held[name]), None)
        if name is None:
            known = ", ".join(sorted({f"{view}:{feature}" for stored in held.values() for view, feature in stored}))
            raise ServiceNotFoundError(
                f"Expected a feature that a materialized feature service stores, got '{view}:{feature}'. "
                f"Stored: {known[:1000] or 'none'}"
            )
        wanted.append(_Wanted(services[name], view, feature))
    return wanted


def read(
    wanted: Sequence[_Wanted], entities: Mapping[str, list[Any]], *, full_names: bool, now_us: int
) -> dict[str, Any]:
    """The reply.

    Raises:
        RequestError: a join key that is missing, unknown, or of another type than it has; the same name twice.
    """
    n_rows = len(next(iter(entities.values())))
    bases = {base.schema.name: base for base in (each.base for each in wanted)}
    values: dict[str, dict[str, list[FeatureValue]]] = {}
    for name, base in bases.items():
        features = {each.feature for each in wanted if each.base is base}
        values[name] = base.read_values(_keys(base, features, entities, n_rows), now_us)
    known = {key.name for base in bases.values() for group in base.schema.groups for key in group.keys}
    known |= {each.name for base in bases.values() for each in base.schema.request_fields}
    for name in entities:
        if name not in known:
            raise RequestError(
                f"Expected join keys or request features ({', '.join(sorted(known))}) at $.entities, got {show(name)}",
                code="unknown_entity_key",
            )
    names = [*entities, *(f"{each.view}__{each.feature}" if full_names else each.feature for each in wanted)]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise RequestError(
            f"Expected features of different names, got {show(twice)} twice. Ask with full_feature_names."
        )
    sent = [
        {"values": column, "statuses": ["PRESENT"] * n_rows, "event_timestamps": [_NO_TIME] * n_rows}
        for column in entities.values()
    ]
    stored = [_result(values[each.base.schema.name][each.feature]) for each in wanted]
    return {"metadata": {"feature_names": names}, "results": [*sent, *stored]}


def format_time(event_us: int | None) -> str:
    """A time as protobuf writes it in JSON: UTC, with no, three or six digits of a second; the epoch for none."""
    if not event_us:
        return _NO_TIME
    microseconds = min(max(event_us, _FIRST_US), _LAST_US)  # the range of protobuf's times, and of Python's
    spec = (
        "seconds" if microseconds % 1_000_000 == 0 else "milliseconds" if microseconds % 1000 == 0 else "microseconds"
    )
    return f"{(_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec=spec)}Z"


def _stored(base: OnlineBase) -> Iterator[tuple[str, str]]:
    """(view, feature) of every stored column, in the order of the service's schema."""
    for group in base.schema.groups:
        for column in group.columns:
            yield group.views[column.view].name, column.name


def _keys(base: OnlineBase, features: set[str], entities: Mapping[str, list[Any]], n_rows: int) -> dict[str, list[Any]]:
    """The key columns of a read: those of entities that nobody asked about may be absent, and count as no entity."""
    keys: dict[str, list[Any]] = {}
    for group in base.schema.groups:
        is_read = any(column.name in features for column in group.columns)
        for key in group.keys:
            if key.name in entities:
                keys[key.name] = entities[key.name]
            elif is_read:
                raise RequestError(
                    f"Expected join key '{key.name}' of entity '{group.entity}' at $.entities, got {', '.join(entities)}",
                    code="missing_entity_key",
                )
            else:
                keys.setdefault(key.name, [None] * n_rows)
    return keys


def _entities(value: Any, max_rows: int) -> dict[str, list[Any]]:
    if type(value) is not dict or not value:
        raise RequestError(
            f"Expected $.entities to be an object of lists by join key, got {show(value)}", code="wrong_type"
        )
    for name, column in value.items():
        check_rows(column, f"$.entities.{name}", max_rows)
    lengths = {name: len(column) for name, column in value.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"Expected lists of equal length at $.entities, got {show(lengths)}", code="wrong_length")
    return value


def _result(column: Sequence[FeatureValue]) -> dict[str, list[Any]]:
    return {
        "values": [cell.value for cell in column],
        "statuses": [STATUS[cell.status] for cell in column],
        "event_timestamps": [format_time(cell.event_us) for cell in column],
    }
