"""`POST /features/{service}`: stored features by entity key, typed, with a status and an age per value."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tiercel.errors import EntityNotFoundError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body
from tiercel.http.predict import respond
from tiercel.http.request import parse_features, show
from tiercel.http.status import body_of, request_id_of, status_of
from tiercel.monitor.counting import WorkerCounters
from tiercel.types import STATIC_EVENT_US, ValueStatus

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tiercel.features.online import FeatureValue, OnlineBase
    from tiercel.serving.engine import Engine
    from tiercel.settings import ServerSettings

log = logging.getLogger("tiercel.http")


class FeaturesEndpoint:
    """Reads the live base of a feature service."""

    def __init__(self, engine: Engine, settings: ServerSettings, counters: WorkerCounters | None = None) -> None:
        self._engine = engine
        self._settings = settings
        self._counters = WorkerCounters() if counters is None else counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        kind, code = payload.JSON, None
        limits = self._settings
        try:
            kind = payload.media_type(header(scope, b"content-type"))
            body = await read_body(scope, receive, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
            base = self._engine.service(scope["path_params"]["service"])
            request = parse_features(payload.decode(body, kind, limits.max_rows), limits.max_rows)
            status, reply = 200, read_features(base, request.entities, request.features, request.now_us)
        except TiercelError as error:
            status, reply, code = status_of(error), body_of(error, request_id_of(scope["headers"])), error.code
            if status == 500:
                log.exception("Feature read failed")
        except Exception:  # the client gets an answer, the log the reason
            log.exception("Feature read failed unexpectedly")
            code = "internal_error"
            status, reply = 500, {"error": "The server failed; its log has the reason", "code": code}
        self._counters.count_reply(status, code)
        await respond(send, status, reply, kind)


def read_features(base: OnlineBase, entities: dict[str, Any], names: list[str] | None, now_us: int) -> dict[str, Any]:
    """The reply: values, statuses and ages by row, in the order of `names` (all stored features by default).

    Raises:
        RequestError: an unknown feature or join key, a missing key, lists of different lengths, a wrong type.
        EntityNotFoundError: an entity without a row, where the service does not allow that.
    """
    wanted = list(base.features) if names is None else names
    for name in wanted:
        if name not in base.features:
            raise RequestError(
                f"Expected stored features of service '{base.schema.name}' ({', '.join(base.features)}), got {name!r} "
                f"at $.features",
                code="unknown_feature",
            )
    columns = _as_lists(entities)
    read = base.read_values(columns, now_us)
    rows = list(zip(*(read[name] for name in wanted), strict=True)) if wanted else []
    if base.schema.on_missing_entity == "error":
        _refuse_unknown_entities(base, columns, read)
    return {
        "service": base.schema.name,
        "fingerprint": base.schema.fingerprint,
        "features": wanted,
        "values": [[cell.value for cell in row] for row in rows],
        "statuses": [[cell.status.name for cell in row] for row in rows],
        "ages_ms": [[_age_ms(cell) for cell in row] for row in rows],
    }


def _as_lists(entities: dict[str, Any]) -> dict[str, list[Any]]:
    """Scalars repeated to the length of the lists; one row when there is no list."""
    lengths = {len(value) for value in entities.values() if type(value) is list}
    n_rows = min(lengths, default=1)  # lists of different lengths are the reader's to refuse
    return {name: value if type(value) is list else [value] * n_rows for name, value in entities.items()}


def _age_ms(cell: FeatureValue) -> float | None:
    """None for a static value: it has no age."""
    if cell.age_us is None or cell.event_us == STATIC_EVENT_US:
        return None
    return max(0, cell.age_us) / 1000


def _refuse_unknown_entities(
    base: OnlineBase, columns: dict[str, list[Any]], read: dict[str, list[FeatureValue]]
) -> None:
    for group in base.schema.groups:
        # A view may lack this entity while another of the same group has it; then it is known.
        cells = [read[column.name] for column in group.columns if column.name in read]
        for row in range(len(cells[0]) if cells else 0):
            if all(column[row].status is ValueStatus.NOT_FOUND for column in cells):
                shown = ", ".join(f"{key.name}={show(columns[key.name][row])}" for key in group.keys)
                raise EntityNotFoundError(
                    f"Expected a stored row of entity '{group.entity}', got none for {shown} (row {row}). "
                    f'Materialize the entity, or declare the feature service with on_missing_entity="null".',
                    row=row,
                )
