"""`tiercel apply`: check a project's definitions against its data and record them as the catalog in force."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from tiercel.errors import DefinitionError
from tiercel.features.binding import ViewChecker
from tiercel.features.catalog import Catalog, EntityRecord, FieldRecord, ViewRecord, load_catalog, store_catalog
from tiercel.features.compute import is_computed
from tiercel.features.definitions import (
    FeatureService,
    FeatureView,
    FeatureViewProjection,
    OnDemandFeatureView,
    OnDemandFeatureViewProjection,
    RequestSource,
)
from tiercel.features.layout import RowLayout
from tiercel.features.project_file import load_definitions
from tiercel.features.sources import ComputeLimits, SourceFiles, SourceSpec
from tiercel.features.transform_source import canonical_source
from tiercel.features.transforms import compile_transforms, compiled_dir
from tiercel.types import (
    NOW_US,
    Column,
    GroupSchema,
    KeyColumn,
    RequestField,
    ServiceSchema,
    TransformOutput,
    TransformSchema,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FunctionType

    from tiercel.features.project_file import Definitions


@dataclass(frozen=True)
class CatalogDiff:
    """What an apply changed. Items read like "view aircraft_history"."""

    catalog: Catalog
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the definitions in force stayed as they were."""
        return not (self.added or self.changed or self.removed)


def apply(
    project_dir: Path,
    state_dir: Path,
    *,
    limits: ComputeLimits | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CatalogDiff:
    """Validate everything in `<project_dir>/features.py` and make it the catalog in force, or change nothing.

    Args:
        project_dir: holds features.py; source paths are relative to it.
        state_dir: where the catalog goes.
        limits: for DuckDB; binding reads file headers only.
        progress: called with (view name, views done, views).

    Raises:
        DefinitionError: a definition is wrong; the message says where and what to write instead.
        SourceError, MissingExtraError: a source cannot be read.
        StoreError: the state directory cannot be written.
    """
    project_dir, state_dir = project_dir.resolve(), state_dir.resolve()
    definitions = load_definitions(project_dir)
    catalog = build_catalog(definitions, project_dir)
    if not catalog.views and not catalog.services:
        raise DefinitionError(
            f"{project_dir / 'features.py'} defines no FeatureView. Expected at least one at module level."
        )
    files = SourceFiles(project_dir, state_dir)
    checker = ViewChecker(files, limits or ComputeLimits(), state_dir)
    try:
        for done, view in enumerate(catalog.views.values()):
            if progress is not None:
                progress(view.name, done, len(catalog.views))
            if is_computed(view, files, state_dir):
                continue  # this definition over this data was evaluated before, so it binds
            try:
                checker.check(view)
            except DefinitionError as error:
                raise DefinitionError(f"{definitions.views[view.name].where}: {error}") from error
    finally:
        checker.close()
    for schema in catalog.services.values():
        compile_transforms(schema, compiled_dir(state_dir))  # now, so that no server has to
    try:
        before = load_catalog(state_dir)
    except DefinitionError:  # the first apply, or damage that this apply repairs
        before = Catalog(project_dir, {}, {}, {})
    store_catalog(catalog, state_dir)
    return diff_catalogs(before, catalog)


def build_catalog(definitions: Definitions, project_dir: Path) -> Catalog:
    """The catalog these definitions mean, before any data is looked at.

    Raises:
        DefinitionError: a service's stored row would be too large, or a function is not in the on-demand language.
    """
    views = {name: _view_record(view) for name, view in definitions.views.items()}
    transforms = {name: _transform_schema(view) for name, view in definitions.on_demand_views.items()}
    return Catalog(
        project_dir=project_dir,
        entities={
            name: EntityRecord(name, entity.key_columns, entity.description)
            for name, entity in definitions.entities.items()
        },
        views=views,
        services={name: _service_schema(service, views, transforms) for name, service in definitions.services.items()},
        service_descriptions={name: service.description for name, service in definitions.services.items()},
        transforms=transforms,
        transform_descriptions={name: view.description for name, view in definitions.on_demand_views.items()},
    )


def diff_catalogs(before: Catalog, after: Catalog) -> CatalogDiff:
    """What differs, by kind and name."""
    old, new = _items(before), _items(after)
    return CatalogDiff(
        catalog=after,
        added=tuple(name for name in new if name not in old),
        changed=tuple(name for name in new if name in old and new[name] != old[name]),
        removed=tuple(name for name in old if name not in new),
    )


def _items(catalog: Catalog) -> dict[str, Any]:
    items: dict[str, Any] = {f"entity {name}": asdict(record) for name, record in catalog.entities.items()}
    items |= {f"view {name}": asdict(record) for name, record in catalog.views.items()}
    for name, transform in catalog.transforms.items():
        items[f"on-demand view {name}"] = (transform.to_json(), catalog.transform_descriptions.get(name, ""))
    for name, schema in catalog.services.items():
        items[f"service {name}"] = (schema.to_json(), catalog.service_descriptions.get(name, ""))
    return items


def _view_record(view: FeatureView) -> ViewRecord:
    return ViewRecord(
        name=view.name,
        entities=tuple(entity.name for entity in view.entities),
        keys=view.key_columns,
        fields=tuple(
            FieldRecord(
                made.name, made.dtype, None if made.categories is None else tuple(made.categories), made.description
            )
            for made in view.schema
        ),
        sources=tuple(SourceSpec.of(source) for source in view.sources or ()),
        sql=view.sql,
        timestamp_field=view.timestamp_field,
        created_timestamp_column=view.created_timestamp_column,
        ttl_us=view.ttl_us,
        description=view.description,
        tags=dict(view.tags),
        owner=view.owner,
    )


def _transform_schema(view: OnDemandFeatureView) -> TransformSchema:
    """The function as canonical text, which needs none of the project's code."""
    checked = canonical_source(cast("FunctionType", view.function))  # the view made sure
    if checked.n_outputs != len(view.schema):
        raise DefinitionError(
            f"{view.where}: OnDemandFeatureView '{view.name}': the function returns {checked.n_outputs} values, its schema has "
            f"{len(view.schema)} fields. Expected one value per field, in order."
        )
    outputs = tuple(TransformOutput(made.name, made.dtype) for made in view.schema)
    return TransformSchema(view.name, checked.text, view.inputs, outputs)


def _service_schema(
    service: FeatureService, views: dict[str, ViewRecord], transforms: dict[str, TransformSchema]
) -> ServiceSchema:
    """Group the selected features by join keys, keeping the order of the vector."""
    builder = _ServiceBuilder(views)
    names: list[str] = []
    on_demand: dict[str, OnDemandFeatureView] = {}
    for part in service.features:
        if isinstance(part, RequestSource):
            names += [builder.add(part, made.name) for made in part.schema]
        elif isinstance(part, OnDemandFeatureView | OnDemandFeatureViewProjection):
            computed = part.view if isinstance(part, OnDemandFeatureViewProjection) else part
            on_demand[computed.name] = computed
            names += part.features if isinstance(part, OnDemandFeatureViewProjection) else [f.name for f in part.schema]
        else:
            view = part.view if isinstance(part, FeatureViewProjection) else part
            names += [builder.add(view, name) for name in _selected(part)]
    # Last, so that what is stored for the vector itself comes first in a row.
    for computed in on_demand.values():
        for name in computed.inputs:
            if name != NOW_US:
                builder.add(computed.input(name)[0], name)
    groups, request_fields = builder.groups, builder.request_fields
    outputs = [made.name for view in on_demand.values() for made in view.schema]
    _refuse_near_duplicates(service, [*builder.added, *outputs, *(key.name for keys in groups for key in keys)])
    schema = ServiceSchema(
        name=service.name,
        groups=tuple(
            GroupSchema(group.entity, keys, tuple(view.schema for view in group.views), tuple(group.columns))
            for keys, group in groups.items()
        ),
        request_fields=tuple(request_fields),
        features=tuple(names),
        on_missing_entity=service.on_missing_entity,
        transforms=tuple(transforms[name] for name in on_demand),
    )
    for stored in schema.groups:
        try:
            RowLayout.of(stored)
        except DefinitionError as error:
            raise DefinitionError(f"{service.where}: FeatureService '{service.name}': {error}") from error
    return schema


def _refuse_near_duplicates(service: FeatureService, names: list[str]) -> None:
    """SQL ignores case, so two names that differ by it alone would be one column."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise DefinitionError(
                f"{service.where}: FeatureService '{service.name}': names '{other}' and '{name}' differ only in upper and "
                "lower case, which SQL ignores. Rename one."
            )


def _selected(part: FeatureView | FeatureViewProjection) -> list[str]:
    return list(part.features) if isinstance(part, FeatureViewProjection) else [made.name for made in part.schema]


@dataclass
class _GroupBuilder:
    entity: str
    views: list[ViewRecord]
    columns: list[Column]


class _ServiceBuilder:
    """Collects stored columns and request fields, each once, in the order they are asked for."""

    def __init__(self, views: dict[str, ViewRecord]) -> None:
        self.groups: dict[tuple[KeyColumn, ...], _GroupBuilder] = {}
        self.request_fields: list[RequestField] = []
        self.added: dict[str, None] = {}
        self._views = views

    def add(self, source: RequestSource | FeatureView, name: str) -> str:
        """Take in one feature; the definitions made sure that a name means one thing."""
        if name in self.added:
            return name
        self.added[name] = None
        if isinstance(source, RequestSource):
            made = next(made for made in source.schema if made.name == name)
            categories = None if made.categories is None else tuple(made.categories)
            self.request_fields.append(RequestField(made.name, made.dtype, categories))
            return name
        record = self._views[source.name]
        group = self.groups.setdefault(record.keys, _GroupBuilder("_".join(record.entities), [], []))
        if record not in group.views:
            group.views.append(record)
        group.columns.append(Column(name, record.field(name).dtype, group.views.index(record)))
        return name
