"""`tiercel apply`: check a project's definitions against its data and record them as the catalog in force."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import DefinitionError
from tiercel.features.binding import ViewChecker
from tiercel.features.catalog import Catalog, EntityRecord, FieldRecord, ViewRecord, load_catalog, store_catalog
from tiercel.features.compute import is_computed
from tiercel.features.definitions import FeatureService, FeatureView, FeatureViewProjection, RequestSource
from tiercel.features.layout import RowLayout
from tiercel.features.project_file import load_definitions
from tiercel.features.sources import ComputeLimits, SourceFiles, SourceSpec
from tiercel.types import Column, GroupSchema, KeyColumn, RequestField, ServiceSchema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    try:
        before = load_catalog(state_dir)
    except DefinitionError:  # the first apply, or damage that this apply repairs
        before = Catalog(project_dir, {}, {}, {})
    store_catalog(catalog, state_dir)
    return diff_catalogs(before, catalog)


def build_catalog(definitions: Definitions, project_dir: Path) -> Catalog:
    """The catalog these definitions mean, before any data is looked at.

    Raises:
        DefinitionError: a service's stored row would be too large.
    """
    views = {name: _view_record(view) for name, view in definitions.views.items()}
    return Catalog(
        project_dir=project_dir,
        entities={
            name: EntityRecord(name, entity.key_columns, entity.description)
            for name, entity in definitions.entities.items()
        },
        views=views,
        services={name: _service_schema(service, views) for name, service in definitions.services.items()},
        service_descriptions={name: service.description for name, service in definitions.services.items()},
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


def _service_schema(service: FeatureService, views: dict[str, ViewRecord]) -> ServiceSchema:
    """Group the selected features by join keys, keeping the order of the vector."""
    groups: dict[tuple[KeyColumn, ...], _GroupBuilder] = {}
    request_fields: list[RequestField] = []
    names: list[str] = []
    for part in service.features:
        if isinstance(part, RequestSource):
            for made in part.schema:
                categories = None if made.categories is None else tuple(made.categories)
                request_fields.append(RequestField(made.name, made.dtype, categories))
                names.append(made.name)
            continue
        view = part.view if isinstance(part, FeatureViewProjection) else part
        record = views[view.name]
        selected = part.features if isinstance(part, FeatureViewProjection) else [f.name for f in record.fields]
        group = groups.setdefault(record.keys, _GroupBuilder("_".join(record.entities), [], []))
        if record not in group.views:
            group.views.append(record)
        index = group.views.index(record)
        group.columns += [Column(name, record.field(name).dtype, index) for name in selected]
        names += selected
    _refuse_near_duplicates(service, [*names, *(key.name for keys in groups for key in keys)])
    schema = ServiceSchema(
        name=service.name,
        groups=tuple(
            GroupSchema(group.entity, keys, tuple(view.schema for view in group.views), tuple(group.columns))
            for keys, group in groups.items()
        ),
        request_fields=tuple(request_fields),
        features=tuple(names),
        on_missing_entity=service.on_missing_entity,
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


@dataclass
class _GroupBuilder:
    entity: str
    views: list[ViewRecord]
    columns: list[Column]
