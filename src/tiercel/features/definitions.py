"""What a project's `features.py` is written in: entities, sources, feature views and feature services.

The names and their meaning are Feast's wherever Feast has them. Every object is immutable and checks itself when it is
made, so a mistake is reported at the line that made it; what needs the data (columns, types) is checked by
`tiercel apply` (`features/catalog.py`). Nothing here reads a file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal

from tiercel.errors import DefinitionError
from tiercel.types import Bool, DType, Float32, Float64, Int64, KeyColumn, String

__all__ = [
    "Bool",
    "CSVSource",
    "Entity",
    "FeatureService",
    "FeatureView",
    "FeatureViewProjection",
    "Field",
    "Float32",
    "Float64",
    "Int64",
    "ParquetSource",
    "RequestSource",
    "Source",
    "String",
]

#: Names become file names, URL parts and SQL identifiers, so one rule serves all of them.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
#: A stored string travels to the model as its code in a float32, which counts exactly up to here.
MAX_CATEGORIES = 2**24


def _caller() -> str:
    """`file:line` of the first frame outside this module: where the user wrote the definition."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to name the line a definition stands on
    while frame.f_back is not None and frame.f_code.co_filename in {__file__, "<string>"}:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _where() -> Any:
    """Dataclass field that remembers where an object was defined; no part of its identity."""
    return field(default_factory=_caller, compare=False, repr=False, kw_only=True)


def _freeze(owner: object, **values: Any) -> None:
    """Set fields of a frozen dataclass from its own __post_init__."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DefinitionError(
            f"{kind} name {name!r}: expected a letter followed by up to 62 letters, digits or underscores."
        )


def _check_items(what: str, items: object, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """`items` as a tuple, each of one of `kinds`.

    Raises:
        DefinitionError: not a list or tuple, or an item of another type.
    """
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise DefinitionError(f"{what}: expected a list, got {items!r}.")
    for item in items:
        if not isinstance(item, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise DefinitionError(f"{what}: expected items of type {expected}, got {item!r}.")
    return tuple(items)


def _check_unique(what: str, names: Iterable[str]) -> None:
    # SQL identifiers ignore case, so names that differ only by case would collide there.
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other is not name or list(names).count(name) > 1:
            raise DefinitionError(f"{what}: '{name}' is listed twice (names ignore case; the other one is '{other}').")


def _dtype(what: str, value: object) -> DType:
    try:
        return DType(value)  # type: ignore[arg-type]
    except ValueError:
        raise DefinitionError(
            f"{what}: expected one of {', '.join(kind.value for kind in DType)}, got {value!r}."
        ) from None


@dataclass(frozen=True)
class Field:
    """One feature, request field or join key.

    Args:
        name: letter first, then letters, digits, underscores.
        dtype: Float32, Float64, Int64, Bool or String.
        description: free text.
        categories: for String only: the complete list of values. Their order is their code. Without it, a stored
            String's values are collected into an append-only dictionary when its view is computed.
    """

    name: str
    dtype: DType
    description: str = ""
    categories: Sequence[str] | None = None
    where: str = _where()

    def __post_init__(self) -> None:
        _check_name("Field", self.name)
        _freeze(self, dtype=_dtype(f"Field '{self.name}', dtype", self.dtype))
        if self.categories is None:
            return
        what = f"Field '{self.name}', categories"
        if self.dtype is not String:
            raise DefinitionError(f"{what}: only a String field has categories, this one is {self.dtype}.")
        categories = _check_items(what, self.categories, (str,))
        if not categories or len(set(categories)) != len(categories):
            raise DefinitionError(f"{what}: expected at least one value and none twice, got {list(categories)!r}.")
        if len(categories) > MAX_CATEGORIES:
            raise DefinitionError(f"{what}: {len(categories)} values; at most {MAX_CATEGORIES} have exact codes.")
        _freeze(self, categories=categories)


@dataclass(frozen=True)
class Entity:
    """What features describe, and the join keys that identify one.

    Args:
        name: of the entity.
        join_keys: key columns: names (of type `value_type`), or `Field`s of type Int64 or String. Default: the entity's
            own name. Two keys make a composite entity.
        value_type: type of the keys given by name.
    """

    name: str
    join_keys: Sequence[str | Field] | None = None
    value_type: DType = String
    description: str = ""
    where: str = _where()

    def __post_init__(self) -> None:
        _check_name("Entity", self.name)
        what = f"Entity '{self.name}'"
        value_type = _dtype(f"{what}, value_type", self.value_type)
        given = [self.name] if self.join_keys is None else self.join_keys
        keys = []
        for key in _check_items(f"{what}, join_keys", given, (str, Field)):
            made = Field(key, value_type) if isinstance(key, str) else key
            if made.dtype not in (Int64, String):
                raise DefinitionError(
                    f"{what}: join key '{made.name}' is {made.dtype}; keys are Int64 or String, because equality of "
                    "other types depends on rounding. CAST the key in the view's SQL."
                )
            if made.categories is not None:
                raise DefinitionError(f"{what}: join key '{made.name}' has categories; keys cannot.")
            keys.append(made)
        if not keys:
            raise DefinitionError(f"{what}: expected at least one join key, got none.")
        _check_unique(f"{what}, join_keys", [key.name for key in keys])
        _freeze(self, join_keys=tuple(keys), value_type=value_type)

    @property
    def key_columns(self) -> tuple[KeyColumn, ...]:
        """The join keys, in order."""
        return tuple(KeyColumn(key.name, key.dtype) for key in self.join_keys or () if isinstance(key, Field))


@dataclass(frozen=True)
class Source:
    """Base of the file sources. Use `ParquetSource` or `CSVSource`.

    Args:
        name: the table's name in a view's SQL.
        path: relative to the project directory, or absolute; may be a glob (`data/*.parquet`), or
            `package://distribution/inner/file.csv` for a file inside an installed Python package.
        timestamp_field: column holding when the row's facts were true; a default for views over this source.
        created_timestamp_column: column holding when the row became known (arrived), if later.
    """

    name: str
    path: str
    timestamp_field: str | None = None
    created_timestamp_column: str | None = None
    description: str = ""
    where: str = _where()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if type(self) is Source:
            raise DefinitionError("Source is a base class; use ParquetSource or CSVSource.")
        _check_name(kind, self.name)
        if not isinstance(self.path, str) or not self.path or "\0" in self.path:
            raise DefinitionError(f"{kind} '{self.name}': expected a path, got {self.path!r}.")
        scheme, separator, rest = self.path.partition("://")
        if separator and (scheme != "package" or "/" not in rest.strip("/")):
            raise DefinitionError(
                f"{kind} '{self.name}': path {self.path!r}: expected a local path or package://<package>/<file>."
            )
        if self.created_timestamp_column is not None and self.timestamp_field is None:
            raise DefinitionError(f"{kind} '{self.name}': created_timestamp_column needs a timestamp_field.")


@dataclass(frozen=True)
class ParquetSource(Source):
    """One Parquet file, or many matching a glob (columns are matched by name).

    NaN counts as missing. Filter on missing values in a view's SQL with care: a Parquet file's statistics leave NaN out, so
    DuckDB may skip rows that `WHERE isnan(x)` asks for.
    """


@dataclass(frozen=True)
class CSVSource(Source):
    """One CSV file, or many matching a glob; gzip is read as it is.

    Args:
        delimiter: one character; None detects it.
        header: whether the first line names the columns.
        null_strings: texts that mean missing.
        types: column name -> DuckDB type, for columns whose detected type is wrong.
    """

    delimiter: str | None = None
    header: bool = True
    null_strings: Sequence[str] = ("",)
    types: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"CSVSource '{self.name}'"
        if self.delimiter is not None and (not isinstance(self.delimiter, str) or len(self.delimiter) != 1):
            raise DefinitionError(f"{what}, delimiter: expected one character, got {self.delimiter!r}.")
        nulls = _check_items(f"{what}, null_strings", self.null_strings, (str,))
        if not isinstance(self.types, Mapping) or not all(
            isinstance(text, str) for pair in self.types.items() for text in pair
        ):
            raise DefinitionError(f"{what}, types: expected a dict of column name to DuckDB type, got {self.types!r}.")
        _freeze(self, null_strings=nulls, types=MappingProxyType(dict(self.types)))


@dataclass(frozen=True)
class FeatureView:
    """Features of one kind of entity, computed by one query.

    Args:
        name: of the view.
        entities: whose features these are; their join keys together are the row's key.
        schema: the features.
        source: one source, or `sources` several; the SQL sees them under their names.
        sql: a DuckDB SELECT over the sources that yields the join keys, the timestamp column and the fields (further
            columns are ignored). None: the single source has these columns itself.
        ttl: a value counts as missing when it is older than this at the time of the read (or of the label). None: never.
        timestamp_field: column of the result holding when the row became true. Default: the single source's. Naive
            timestamps are UTC. A view over sources without times may have none; it is then static: its values count as
            always known and never stale (their event time is the epoch), and it cannot have a ttl.
        created_timestamp_column: column of the result holding when the row became known, if later than that. A row is
            used only from then on; among rows for one event time the last created wins.
    """

    name: str
    entities: Sequence[Entity]
    schema: Sequence[Field]
    source: Source | None = None
    sources: Sequence[Source] | None = None
    sql: str | None = None
    ttl: timedelta | None = None
    timestamp_field: str | None = None
    created_timestamp_column: str | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    where: str = _where()

    def __post_init__(self) -> None:
        _check_name("FeatureView", self.name)
        what = f"FeatureView '{self.name}'"
        entities = _check_items(f"{what}, entities", self.entities, (Entity,))
        schema = _check_items(f"{what}, schema", self.schema, (Field,))
        if not entities or not schema:
            raise DefinitionError(f"{what}: expected at least one entity and one field in schema.")
        if (self.source is None) == (self.sources is None):
            raise DefinitionError(f"{what}: expected either source= or sources=[...].")
        given = [self.source] if self.sources is None else self.sources
        sources = _check_items(f"{what}, sources", given, (Source,))
        _check_unique(f"{what}, sources", [source.name for source in sources])
        if not sources or (self.sql is None and len(sources) != 1):
            raise DefinitionError(f"{what}: without sql= a view has exactly one source, got {len(sources)}.")
        if self.sql is not None and (not isinstance(self.sql, str) or not self.sql.strip()):
            raise DefinitionError(f"{what}, sql: expected a SELECT, got {self.sql!r}.")
        tags = dict(self.tags) if isinstance(self.tags, Mapping) else None
        if tags is None or not all(isinstance(text, str) for pair in tags.items() for text in pair):
            raise DefinitionError(f"{what}, tags: expected a dict of str to str, got {self.tags!r}.")
        _freeze(self, entities=entities, schema=schema, source=None, sources=sources, tags=MappingProxyType(tags))
        self._settle_time(what)
        times = [name for name in (self.timestamp_field, self.created_timestamp_column) if name is not None]
        keys = [key.name for key in self.key_columns]
        _check_unique(f"{what}, join keys, timestamps and schema", [*keys, *times, *(f.name for f in schema)])

    def _settle_time(self, what: str) -> None:
        """Take the timestamp columns from a single source where the view names none, and check them and the ttl."""
        sources = _check_items(what, self.sources, (Source,))
        if len(sources) == 1 and self.timestamp_field is None and self.created_timestamp_column is None:
            _freeze(
                self,
                timestamp_field=sources[0].timestamp_field,
                created_timestamp_column=sources[0].created_timestamp_column,
            )
        if self.timestamp_field is None:
            timed = [source.name for source in sources if source.timestamp_field is not None]
            if timed:
                raise DefinitionError(
                    f"{what}: expected timestamp_field=, the column of its sql that says when a row became true: its source "
                    f"'{timed[0]}' has times, and without one every row would count as known forever."
                )
            if self.created_timestamp_column is not None:
                raise DefinitionError(f"{what}: created_timestamp_column needs a timestamp_field.")
        for name in (self.timestamp_field, self.created_timestamp_column):
            if name is not None and (not isinstance(name, str) or not name or name.startswith("__")):
                raise DefinitionError(f"{what}: timestamp column {name!r}: expected a name not starting with '__'.")
        if self.ttl is None:
            return
        if not isinstance(self.ttl, timedelta) or self.ttl <= timedelta(0):
            raise DefinitionError(
                f"{what}, ttl: expected a positive timedelta, or None for no limit; got {self.ttl!r}."
            )
        if self.timestamp_field is None:
            raise DefinitionError(f"{what}: a ttl needs a timestamp_field; a static view's values have no age.")

    @property
    def key_columns(self) -> tuple[KeyColumn, ...]:
        """The join keys of all entities, in order."""
        return tuple(key for entity in self.entities for key in entity.key_columns)

    @property
    def ttl_us(self) -> int | None:
        """The ttl in microseconds."""
        return None if self.ttl is None else self.ttl // timedelta(microseconds=1)

    def __getitem__(self, names: Sequence[str]) -> FeatureViewProjection:
        """Only these features, in this order: `view[["a", "b"]]`."""
        return FeatureViewProjection(self, [names] if isinstance(names, str) else names)


@dataclass(frozen=True)
class FeatureViewProjection:
    """Some features of a view; written `view[["a", "b"]]`."""

    view: FeatureView
    features: Sequence[str]

    def __post_init__(self) -> None:
        what = f"FeatureView '{self.view.name}' [...]"
        names = _check_items(what, self.features, (str,))
        known = [made.name for made in self.view.schema]
        for name in names:
            if name not in known:
                raise DefinitionError(f"{what}: no feature '{name}'; the view has {', '.join(known)}.")
        if not names:
            raise DefinitionError(f"{what}: expected at least one feature.")
        _check_unique(what, names)
        _freeze(self, features=names)


@dataclass(frozen=True)
class RequestSource:
    """Features that arrive with the request. A String field needs `categories`: their order fixes the codes."""

    name: str
    schema: Sequence[Field]
    description: str = ""
    where: str = _where()

    def __post_init__(self) -> None:
        _check_name("RequestSource", self.name)
        what = f"RequestSource '{self.name}'"
        schema = _check_items(f"{what}, schema", self.schema, (Field,))
        if not schema:
            raise DefinitionError(f"{what}: expected at least one field.")
        _check_unique(what, [made.name for made in schema])
        for made in schema:
            if made.dtype is String and made.categories is None:
                raise DefinitionError(
                    f"{what}: String field '{made.name}' needs categories=[...]: a request's text becomes its position there."
                )
        _freeze(self, schema=schema)


@dataclass(frozen=True)
class FeatureService:
    """The input of a model: features of several views and of the request, in the order of the vector.

    Args:
        name: of the service; it names the stored base and the route `/features/<name>`.
        features: views, projections of views and request sources.
        on_missing_entity: a request for an entity without a row fails ("error") or has nulls there ("null").
    """

    name: str
    features: Sequence[FeatureView | FeatureViewProjection | RequestSource]
    on_missing_entity: Literal["error", "null"] = "error"
    description: str = ""
    where: str = _where()

    def __post_init__(self) -> None:
        _check_name("FeatureService", self.name)
        what = f"FeatureService '{self.name}'"
        parts = _check_items(f"{what}, features", self.features, (FeatureView, FeatureViewProjection, RequestSource))
        if not parts:
            raise DefinitionError(f"{what}: expected at least one feature view or request source.")
        if self.on_missing_entity not in ("error", "null"):
            raise DefinitionError(
                f'{what}, on_missing_entity: expected "error" or "null", got {self.on_missing_entity!r}.'
            )
        _freeze(self, features=parts)
        keys: dict[str, KeyColumn] = {}
        owner: dict[str, str] = {}
        for part in parts:
            view = part.view if isinstance(part, FeatureViewProjection) else part
            for key in view.key_columns if isinstance(view, FeatureView) else ():
                if keys.setdefault(key.name, key) != key:
                    raise DefinitionError(f"{what}: join key '{key.name}' is Int64 in one view and String in another.")
            names = part.features if isinstance(part, FeatureViewProjection) else [made.name for made in part.schema]
            for name in names:
                if name in owner:
                    raise DefinitionError(
                        f"{what}: feature '{name}' comes from both '{owner[name]}' and '{view.name}'. Features of a "
                        f"service have unique names: rename one, or select others with {view.name}[[...]]."
                    )
                owner[name] = view.name
        for name in owner:
            if name in keys:
                raise DefinitionError(f"{what}: '{name}' is both a feature and a join key; rename the feature.")
