"""A feature service's page: what it holds, how fresh that is, what is missing, what moved, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.http.dashboard import words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiercel.features.catalog import Catalog, ViewRecord
    from tiercel.features.manifest import Manifest
    from tiercel.http.dashboard.readings import ModelFacts, ServiceBase
    from tiercel.types import ServiceSchema


@dataclass(frozen=True)
class ServiceLine:
    """A service in the list. `age_s`: since the time as of which its live base was computed; None: nothing is live."""

    name: str
    description: str
    n_features: int | None
    base: str
    age_s: float | None
    published_us: int | None
    models: Sequence[str]


@dataclass(frozen=True)
class ViewLine:
    """Where values come from: a view, its sources, and how fresh it must be.

    Attributes:
        freshness: good; warn: the base is older than half of the view's ttl; bad: older than it; none: no ttl or no base.
    """

    name: str
    entity: str
    keys: Sequence[str]
    sources: Sequence[tuple[str, str, str]]
    sql: str
    ttl_s: float | None
    freshness: str
    owner: str
    description: str
    n_rows: int | None
    features: Sequence[str]


@dataclass(frozen=True)
class Use:
    """What a model's newest drift report says of a feature."""

    model: str
    version: int
    verdict: str
    missing: float | None
    missing_before: float | None
    effect: float | None
    threshold: float | None
    reason: str

    @property
    def is_alarm(self) -> bool:
        """Whether it says that something changed."""
        return self.verdict in {"drift", "missing"}


@dataclass(frozen=True)
class FeatureLine:
    """A feature: its type, where it comes from (a view, the request or a transform), and how it does in each model."""

    name: str
    dtype: str
    origin: str
    inputs: Sequence[str]
    uses: Sequence[Use]

    @property
    def worst(self) -> Use | None:
        """The use with the largest effect, alarms first."""
        return max(self.uses, key=lambda use: (use.is_alarm, use.effect or 0.0), default=None)

    @property
    def missing(self) -> float | None:
        """The largest share of rows without a value."""
        return max((use.missing for use in self.uses if use.missing is not None), default=None)


@dataclass(frozen=True)
class ServicePage:
    """The page. `problem` says what cannot be read, `todo` what to do next where something is absent."""

    name: str
    description: str
    problem: str
    todo: str
    manifest: Manifest | None
    as_of_age_s: float | None
    published_age_s: float | None
    views: Sequence[ViewLine]
    features: Sequence[FeatureLine]
    request_fields: Sequence[str]
    models: Sequence[ModelFacts]
    n_alarms: int
    is_stale_schema: bool


def service_lines(
    services: Mapping[str, ServiceBase], catalog: Catalog | None, models: Sequence[ModelFacts], now_us: int
) -> list[ServiceLine]:
    """All services by name."""
    lines = []
    for name, each in services.items():
        schema = None if catalog is None else catalog.services.get(name)
        live = each.live
        lines.append(
            ServiceLine(
                name=name,
                description="" if catalog is None else catalog.service_descriptions.get(name, ""),
                n_features=None if schema is None else len(schema.features),
                base="" if live is None else live.base,
                age_s=None if live is None else (now_us - live.as_of_us) / 1e6,
                published_us=None if live is None else live.published_us,
                models=[model.name for model in _models_of(name, models)],
            )
        )
    return lines


def build(
    base: ServiceBase,
    catalog: Catalog | None,
    models: Sequence[ModelFacts],
    drift: Mapping[tuple[str, int, str], Mapping[str, Any]],
    now_us: int,
) -> ServicePage:
    """The page of what was read. Pure."""
    applied = None if catalog is None else catalog.services.get(base.name)
    manifest, live = base.manifest, base.live
    schema = applied or (None if manifest is None else manifest.schema)
    users = _models_of(base.name, models)
    as_of_age_s = None if live is None else (now_us - live.as_of_us) / 1e6
    lines = [] if schema is None else _features(schema, users, drift)
    todo = ""
    if live is None:
        todo = "Nothing is published yet. Run: tiercel materialize"
    elif applied is None:
        todo = "The service is published and no longer among the applied definitions. Run: tiercel apply"
    return ServicePage(
        name=base.name,
        description="" if catalog is None else catalog.service_descriptions.get(base.name, ""),
        problem=base.problem if live is not None else "",
        todo=todo,
        manifest=manifest,
        as_of_age_s=as_of_age_s,
        published_age_s=None if live is None else (now_us - live.published_us) / 1e6,
        views=[] if schema is None else _views(schema, catalog, manifest, as_of_age_s),
        features=lines,
        request_fields=[] if schema is None else [field.name for field in schema.request_fields],
        models=users,
        n_alarms=sum(any(use.is_alarm for use in line.uses) for line in lines),
        is_stale_schema=applied is not None and manifest is not None and applied.fingerprint != manifest.fingerprint,
    )


def _models_of(service: str, models: Sequence[ModelFacts]) -> list[ModelFacts]:
    return [model for model in models if any(version.facts.service == service for version in model.versions.values())]


def _views(
    schema: ServiceSchema, catalog: Catalog | None, manifest: Manifest | None, age_s: float | None
) -> list[ViewLine]:
    lines = []
    for place, group in enumerate(schema.groups):
        n_rows = None
        if manifest is not None and len(manifest.group_rows) == len(schema.groups):
            n_rows = manifest.group_rows[place]
        for at, view in enumerate(group.views):
            record: ViewRecord | None = None if catalog is None else catalog.views.get(view.name)
            ttl_s = None if view.ttl_us is None else view.ttl_us / 1e6
            lines.append(
                ViewLine(
                    name=view.name,
                    entity=group.entity,
                    keys=[key.name for key in group.keys],
                    sources=[] if record is None else [(s.name, s.kind, str(s.path or "")) for s in record.sources],
                    sql="" if record is None or record.sql is None else record.sql.strip(),
                    ttl_s=ttl_s,
                    freshness=_freshness(age_s, ttl_s),
                    owner="" if record is None else record.owner,
                    description="" if record is None else record.description,
                    n_rows=n_rows,
                    features=[column.name for column in group.columns if column.view == at],
                )
            )
    return lines


def _freshness(age_s: float | None, ttl_s: float | None) -> str:
    if age_s is None or ttl_s is None:
        return "none"
    return "bad" if age_s > ttl_s else "warn" if age_s > ttl_s / 2 else "good"


def _features(
    schema: ServiceSchema, models: Sequence[ModelFacts], drift: Mapping[tuple[str, int, str], Mapping[str, Any]]
) -> list[FeatureLine]:
    stored = {c.name: (c.dtype.value, group.views[c.view].name) for group in schema.groups for c in group.columns}
    asked = {field.name: field.dtype.value for field in schema.request_fields}
    made = {output.name: (output.dtype.value, each) for each in schema.transforms for output in each.outputs}
    uses: dict[str, list[Use]] = {}
    for model in models:
        for number in model.versions:
            report = drift.get((model.name, number, "training"))
            for each in () if report is None else report["features"]:
                uses.setdefault(str(each["name"]), []).append(
                    Use(
                        model.name,
                        number,
                        str(each["verdict"]),
                        each["missing_share"],
                        each["reference_missing_share"],
                        each["effect"],
                        each["threshold"],
                        str(each["reason"]),
                    )
                )
    lines = []
    for name in schema.features:
        inputs: Sequence[str] = ()
        if name in stored:
            dtype, origin = stored[name]
        elif name in made:
            dtype, origin, inputs = made[name][0], f"computed by {made[name][1].name}", made[name][1].inputs
        else:
            dtype, origin = asked.get(name, ""), "request"
        lines.append(FeatureLine(name, dtype, origin, inputs, uses.get(name, [])))
    lines.sort(key=lambda line: not any(use.is_alarm for use in line.uses))
    return lines


def describe_size(manifest: Manifest) -> str:
    """A base's size in words."""
    return f"{words.count(manifest.n_rows)} rows, {manifest.size_bytes / 1e6:,.1f} MB"
