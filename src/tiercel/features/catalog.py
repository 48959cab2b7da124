"""The applied definitions: what serving, materialization and training read instead of a project's Python.

One JSON file per catalog, named by its own sha256, under `<state>/catalog/`; `CURRENT` names the one in force and where
the project's files are. Catalogs are never edited or deleted, so a model can always be traced to its definitions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tiercel.errors import DefinitionError, ServiceNotFoundError
from tiercel.features.files import replace_file
from tiercel.features.sources import SourceSpec
from tiercel.types import DType, KeyColumn, ServiceSchema, TransformSchema, ViewSchema

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
_TOKENS = re.compile(
    r"""(?P<kept>(?<![\w$])[eE]'(?:\\.|''|[^'\\])*' | '(?:''|[^'])*' | "(?:""|[^"])*" | (?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
      | (?P<dropped>--[^\n]* | \s)+""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class FieldRecord:
    """One feature of a view."""

    name: str
    dtype: DType
    categories: tuple[str, ...] | None = None
    description: str = ""


@dataclass(frozen=True)
class EntityRecord:
    """One entity and its join keys."""

    name: str
    keys: tuple[KeyColumn, ...]
    description: str = ""


@dataclass(frozen=True)
class ViewRecord:
    """One feature view as applied. Field for field what `FeatureView` says, in plain values."""

    name: str
    entities: tuple[str, ...]
    keys: tuple[KeyColumn, ...]
    fields: tuple[FieldRecord, ...]
    sources: tuple[SourceSpec, ...]
    sql: str | None
    timestamp_field: str | None
    created_timestamp_column: str | None
    ttl_us: int | None
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    owner: str = ""

    @cached_property
    def definition(self) -> str:
        """sha256 hex over what decides the view's values. Descriptions and the ttl (applied at the read) do not."""
        meaning = {
            "keys": [asdict(key) for key in self.keys],
            "fields": [[f.name, f.dtype, f.categories] for f in self.fields],
            "sources": [[s.name, s.kind, s.path, s.options] for s in self.sources],
            "sql": None if self.sql is None else normalize_sql(self.sql),
            "times": [self.timestamp_field, self.created_timestamp_column],
        }
        return hashlib.sha256(_canonical(meaning)).hexdigest()

    @property
    def schema(self) -> ViewSchema:
        """The view as part of a stored row."""
        return ViewSchema(self.name, self.ttl_us, self.definition)

    @property
    def query(self) -> str:
        """The SELECT that computes it, over its sources by name."""
        return f'SELECT * FROM "{self.sources[0].name}"' if self.sql is None else self.sql.strip().rstrip(";")  # noqa: S608

    def field(self, name: str) -> FieldRecord:
        """The field of this name.

        Raises:
            KeyError: there is none.
        """
        for record in self.fields:
            if record.name == name:
                return record
        raise KeyError(name)


@dataclass(frozen=True)
class Catalog:
    """All applied definitions of one project."""

    project_dir: Path = field(compare=False)
    entities: dict[str, EntityRecord]
    views: dict[str, ViewRecord]
    services: dict[str, ServiceSchema]
    service_descriptions: dict[str, str] = field(default_factory=dict)
    transforms: dict[str, TransformSchema] = field(default_factory=dict)  # on-demand views, used by a service or not
    transform_descriptions: dict[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the catalog's content; its file's name."""
        return hashlib.sha256(_canonical(self.to_json())).hexdigest()

    @property
    def sources(self) -> dict[str, SourceSpec]:
        """The sources of all views, by name."""
        return {source.name: source for view in self.views.values() for source in view.sources}

    def service(self, name: str) -> ServiceSchema:
        """The schema of a service.

        Raises:
            ServiceNotFoundError: none of this name is applied.
        """
        try:
            return self.services[name]
        except KeyError:
            known = ", ".join(self.services) or "none"
            raise ServiceNotFoundError(
                f"No feature service '{name}' is applied; applied are: {known}. Run `tiercel apply` after defining it."
            ) from None

    def views_of(self, schema: ServiceSchema) -> list[ViewRecord]:
        """The views a service reads, in order of first appearance."""
        names = dict.fromkeys(view.name for group in schema.groups for view in group.views)
        return [self.views[name] for name in names]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the project's place on this machine."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "entities": {name: asdict(record) for name, record in self.entities.items()},
            "views": {name: asdict(record) for name, record in self.views.items()},
            "services": {name: schema.to_json() for name, schema in self.services.items()},
            "service_descriptions": self.service_descriptions,
        }
        if self.transforms:  # absent otherwise: catalogs of projects without on-demand views stay what they were
            data["transforms"] = {name: transform.to_json() for name, transform in self.transforms.items()}
            data["transform_descriptions"] = self.transform_descriptions
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any], project_dir: Path) -> Catalog:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"catalog format {data['format']!r}, expected {FORMAT}")
        return cls(
            project_dir=project_dir,
            entities={
                name: EntityRecord(record["name"], _keys(record["keys"]), record["description"])
                for name, record in data["entities"].items()
            },
            views={name: _view(record) for name, record in data["views"].items()},
            services={name: ServiceSchema.from_json(schema) for name, schema in data["services"].items()},
            service_descriptions=dict(data["service_descriptions"]),
            transforms={name: TransformSchema.from_json(made) for name, made in data.get("transforms", {}).items()},
            transform_descriptions=dict(data.get("transform_descriptions", {})),
        )


def load_catalog(state_dir: Path) -> Catalog:
    """The catalog in force.

    Raises:
        DefinitionError: nothing was applied yet, or the files are damaged.
    """
    pointer = state_dir / "catalog" / "CURRENT"
    try:
        current = json.loads(pointer.read_bytes())
        digest, project_dir = str(current["catalog"]), (state_dir / current["project"]).resolve()
        content = (pointer.parent / f"{digest}.json").read_bytes()
    except FileNotFoundError as error:
        raise DefinitionError(f"{error.filename} does not exist: nothing was applied. Run `tiercel apply`.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DefinitionError(f"{pointer} cannot be read ({error}). Run `tiercel apply` to write it anew.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DefinitionError(
            f"{pointer.parent / digest}.json does not have the sha256 it is named by. Run `tiercel apply` to write it anew."
        )
    try:
        return Catalog.from_json(json.loads(content), project_dir)
    except (KeyError, TypeError, ValueError) as error:
        raise DefinitionError(
            f"{pointer.parent / digest}.json was written by another version of tiercel ({error}). Run `tiercel apply`."
        ) from error


def store_catalog(catalog: Catalog, state_dir: Path) -> None:
    """Write the catalog and make it the one in force. Storing an equal catalog again changes nothing."""
    directory = state_dir / "catalog"
    path = directory / f"{catalog.digest}.json"
    content = _canonical(catalog.to_json())
    if not path.exists() or path.read_bytes() != content:
        replace_file(path, content)
    project = os.path.relpath(catalog.project_dir, state_dir)  # relative: the project may move as a whole
    pointer = json.dumps({"catalog": catalog.digest, "project": project}).encode()
    current = directory / "CURRENT"
    if not current.exists() or current.read_bytes() != pointer:
        replace_file(current, pointer)


def normalize_sql(sql: str) -> str:
    """`sql` with white space and line comments outside quotes reduced to one space, so that re-indenting changes no hash."""
    if "/*" in sql:  # block comments nest; leaving such text alone costs at most one recomputation
        return sql.strip()
    return _TOKENS.sub(lambda match: match["kept"] or " ", sql).strip()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=False, separators=(",", ":")).encode()


def _keys(records: list[dict[str, Any]]) -> tuple[KeyColumn, ...]:
    return tuple(KeyColumn(record["name"], DType(record["dtype"])) for record in records)


def _view(record: dict[str, Any]) -> ViewRecord:
    fields = tuple(
        FieldRecord(
            f["name"],
            DType(f["dtype"]),
            None if f["categories"] is None else tuple(f["categories"]),
            f["description"],
        )
        for f in record["fields"]
    )
    sources = tuple(SourceSpec(s["name"], s["kind"], s["path"], s["options"]) for s in record["sources"])
    return ViewRecord(
        **{
            **record,
            "entities": tuple(record["entities"]),
            "keys": _keys(record["keys"]),
            "fields": fields,
            "sources": sources,
        }
    )
