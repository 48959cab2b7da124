"""What a project's `features.py` is written in: entities, sources, feature views and feature services.

The names and their meaning are Feast's wherever Feast has them. Every object is immutable and checks itself when it is
made, so a mistake is reported at the line that made it; what needs the data (columns, types) is checked by
`tiercel apply` (`features/catalog.py`). Nothing here reads a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FunctionType, MappingProxyType
from typing import Any, Literal, TypeAlias

from tiercel.errors import DefinitionError
from tiercel.features.fields import (
    CSVSource,
    Entity,
    Field,
    ParquetSource,
    Source,
    check_items,
    check_name,
    check_unique,
    defined_here,
    freeze,
)
from tiercel.types import NOW_US, Bool, Float32, Float64, Int64, KeyColumn, String

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
    "OnDemandFeatureView",
    "OnDemandFeatureViewProjection",
    "ParquetSource",
    "RequestSource",
    "Source",
    "String",
    "on_demand_feature_view",
]

#: Inputs, or outputs, of one on-demand view: the server's buffers have this size (`vector.pxd`).
MAX_TRANSFORM_VALUES = 256


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
    where: str = defined_here()

    def __post_init__(self) -> None:
        check_name("FeatureView", self.name)
        what = f"FeatureView '{self.name}'"
        entities = check_items(f"{what}, entities", self.entities, (Entity,))
        schema = check_items(f"{what}, schema", self.schema, (Field,))
        if not entities or not schema:
            raise DefinitionError(f"{what}: expected at least one entity and one field in schema.")
        if (self.source is None) == (self.sources is None):
            raise DefinitionError(f"{what}: expected either source= or sources=[...].")
        given = [self.source] if self.sources is None else self.sources
        sources = check_items(f"{what}, sources", given, (Source,))
        check_unique(f"{what}, sources", [source.name for source in sources])
        if not sources or (self.sql is None and len(sources) != 1):
            raise DefinitionError(f"{what}: without sql= a view has exactly one source, got {len(sources)}.")
        if self.sql is not None and (not isinstance(self.sql, str) or not self.sql.strip()):
            raise DefinitionError(f"{what}, sql: expected a SELECT, got {self.sql!r}.")
        tags = dict(self.tags) if isinstance(self.tags, Mapping) else None
        if tags is None or not all(isinstance(text, str) for pair in tags.items() for text in pair):
            raise DefinitionError(f"{what}, tags: expected a dict of str to str, got {self.tags!r}.")
        freeze(self, entities=entities, schema=schema, source=None, sources=sources, tags=MappingProxyType(tags))
        self._settle_time(what)
        times = [name for name in (self.timestamp_field, self.created_timestamp_column) if name is not None]
        keys = [key.name for key in self.key_columns]
        check_unique(f"{what}, join keys, timestamps and schema", [*keys, *times, *(f.name for f in schema)])

    def _settle_time(self, what: str) -> None:
        """Take the timestamp columns from a single source where the view names none, and check them and the ttl."""
        sources = check_items(what, self.sources, (Source,))
        if len(sources) == 1 and self.timestamp_field is None and self.created_timestamp_column is None:
            freeze(
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
        freeze(self, features=_check_selection("FeatureView", self.view, self.features))


def _check_selection(kind: str, view: Any, features: object) -> tuple[str, ...]:
    what = f"{kind} '{view.name}' [...]"
    names = check_items(what, features, (str,))
    known = [made.name for made in view.schema]
    for name in names:
        if name not in known:
            raise DefinitionError(f"{what}: no feature '{name}'; the view has {', '.join(known)}.")
    if not names:
        raise DefinitionError(f"{what}: expected at least one feature.")
    check_unique(what, names)
    return names


@dataclass(frozen=True)
class RequestSource:
    """Features that arrive with the request. A String field needs `categories`: their order fixes the codes."""

    name: str
    schema: Sequence[Field]
    description: str = ""
    where: str = defined_here()

    def __post_init__(self) -> None:
        check_name("RequestSource", self.name)
        what = f"RequestSource '{self.name}'"
        schema = check_items(f"{what}, schema", self.schema, (Field,))
        if not schema:
            raise DefinitionError(f"{what}: expected at least one field.")
        check_unique(what, [made.name for made in schema])
        for made in schema:
            if made.dtype is String and made.categories is None:
                raise DefinitionError(
                    f"{what}: String field '{made.name}' needs categories=[...]: a request's text becomes its position there."
                )
        freeze(self, schema=schema)


@dataclass(frozen=True)
class OnDemandFeatureView:
    """Features computed at the read, from stored features and from what the request brings. Made by the decorator.

    Still callable as the plain Python function it was made from.

    Args:
        function: its parameters are names of features of `sources`, or `now_us`.
        sources: request sources, feature views and projections of views.
        schema: the outputs: one for a function that returns a number, or as many as its tuple has.
        name: default: the function's.
    """

    function: Callable[..., Any]
    sources: Sequence[RequestSource | FeatureView | FeatureViewProjection]
    schema: Sequence[Field]
    name: str = ""
    description: str = ""
    where: str = defined_here()

    def __post_init__(self) -> None:
        if not isinstance(self.function, FunctionType):
            raise DefinitionError(f"on_demand_feature_view: expected a plain Python function, got {self.function!r}.")
        code = self.function.__code__
        freeze(self, name=self.name or code.co_name, where=f"{code.co_filename}:{code.co_firstlineno}")
        check_name("OnDemandFeatureView", self.name)
        what = f"{self.where}: OnDemandFeatureView '{self.name}'"
        if isinstance(self.sources, Sequence) and any(
            isinstance(part, OnDemandFeatureView | OnDemandFeatureViewProjection) for part in self.sources
        ):
            raise DefinitionError(
                f"{what}, sources: an on-demand view cannot read another one. Move what both compute into a plain function "
                "that both call."
            )
        kinds = (RequestSource, FeatureView, FeatureViewProjection)
        sources = check_items(f"{what}, sources", self.sources, kinds)
        schema = check_items(f"{what}, schema", self.schema, (Field,))
        if not schema:
            raise DefinitionError(f"{what}: expected at least one field in schema.")
        check_unique(f"{what}, schema", [made.name for made in schema])
        for made in schema:
            if made.dtype is String:
                raise DefinitionError(f"{what}: output '{made.name}' is {String}; an on-demand view computes numbers.")
        freeze(self, sources=sources, schema=schema)
        self._check_parameters(what)

    def _check_parameters(self, what: str) -> None:
        owners: dict[str, list[str]] = {}
        for source in self.sources:
            for made in _fields_of(source):
                owners.setdefault(made.name, []).append(_named(source).name)
        if NOW_US in owners:
            raise DefinitionError(
                f"{what}: '{NOW_US}' means the time of the read, and '{owners[NOW_US][0]}' has a feature of that name. Rename it."
            )
        for name in self.inputs:
            found = owners.get(name, [])
            if name != NOW_US and len(found) != 1:
                where = f"is in {' and in '.join(found)}; rename one" if found else "is in none of them"
                raise DefinitionError(
                    f"{what}: expected parameters named after features of its sources ({', '.join(owners) or 'none'}) or "
                    f"{NOW_US}; '{name}' {where}."
                )
            dtype = NOW_US if name == NOW_US else self.input(name)[1].dtype
            if dtype is String:
                raise DefinitionError(
                    f"{what}: input '{name}' is {String}, and an on-demand view computes with numbers. Compute a number from "
                    "the text in the view's sql, or send one with the request."
                )
        if not self.inputs:
            takes_any = self.function.__code__.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
            got = "got * or ** alone. Name each parameter" if takes_any else "a constant is no feature"
            raise DefinitionError(f"{what}: expected at least one parameter; {got}.")
        if max(len(self.inputs), len(self.schema)) > MAX_TRANSFORM_VALUES:
            raise DefinitionError(
                f"{what}: expected at most {MAX_TRANSFORM_VALUES} parameters and as many outputs, got {len(self.inputs)} and "
                f"{len(self.schema)}. Split the view."
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the function's parameters."""
        code = self.function.__code__
        return tuple(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    def input(self, name: str) -> tuple[RequestSource | FeatureView, Field]:
        """The source of an input, and its field there.

        Raises:
            KeyError: there is none, as for `now_us`.
        """
        for source in self.sources:
            for made in _fields_of(source):
                if made.name == name:
                    return _named(source), made
        raise KeyError(name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the plain function gives."""
        return self.function(*arguments, **named)

    def __getitem__(self, names: Sequence[str]) -> OnDemandFeatureViewProjection:
        """Only these outputs, in this order: `view[["a", "b"]]`."""
        return OnDemandFeatureViewProjection(self, [names] if isinstance(names, str) else names)


@dataclass(frozen=True)
class OnDemandFeatureViewProjection:
    """Some outputs of an on-demand feature view; written `view[["a", "b"]]`."""

    view: OnDemandFeatureView
    features: Sequence[str]

    def __post_init__(self) -> None:
        freeze(self, features=_check_selection("OnDemandFeatureView", self.view, self.features))


def on_demand_feature_view(
    *,
    sources: Sequence[RequestSource | FeatureView | FeatureViewProjection],
    schema: Sequence[Field],
    name: str | None = None,
    description: str | None = None,
) -> Callable[[Callable[..., Any]], OnDemandFeatureView]:
    """Decorate a plain function of numbers: it becomes features that are computed at the read, and in training sets.

    The function is compiled when the project is applied; the README says what it may contain.

    Args:
        sources: where its parameters come from: they are named after features of these, or `now_us`, the time of the
            read (of the label) in microseconds since the epoch. Each is a float64; a missing value is NaN.
        schema: what it returns: one number, or a tuple in this order. NaN is a missing value.
        name: default: the function's.
        description: default: the first line of the function's docstring.

    Raises:
        DefinitionError: a parameter that no source has, a String, another on-demand view as a source.
    """

    def decorate(function: Callable[..., Any]) -> OnDemandFeatureView:
        text = (function.__doc__ or "").strip().partition("\n")[0] if description is None else description
        return OnDemandFeatureView(function, sources, schema, name or "", text)

    return decorate


#: What a service takes features from.
Part: TypeAlias = (
    FeatureView | FeatureViewProjection | RequestSource | OnDemandFeatureView | OnDemandFeatureViewProjection
)


def _named(part: Any) -> Any:
    """The view or source behind a projection."""
    return part.view if isinstance(part, FeatureViewProjection | OnDemandFeatureViewProjection) else part


def _fields_of(part: Any) -> list[Field]:
    """The fields that a part selects, in its order."""
    if not isinstance(part, FeatureViewProjection | OnDemandFeatureViewProjection):
        return list(part.schema)
    by_name = {made.name: made for made in part.view.schema}
    return [by_name[name] for name in part.features]


@dataclass(frozen=True)
class FeatureService:
    """The input of a model: features of several views and of the request, in the order of the vector.

    Args:
        name: of the service; it names the stored base and the route `/features/<name>`.
        features: views, projections of views, request sources and on-demand views. What an on-demand view reads need not
            be among them: it is then stored, or comes with the request, without being part of the vector.
        on_missing_entity: a request for an entity without a row fails ("error") or has nulls there ("null").
    """

    name: str
    features: Sequence[Part]
    on_missing_entity: Literal["error", "null"] = "error"
    description: str = ""
    where: str = defined_here()

    def __post_init__(self) -> None:
        check_name("FeatureService", self.name)
        what = f"FeatureService '{self.name}'"
        kinds = (FeatureView, FeatureViewProjection, RequestSource, OnDemandFeatureView, OnDemandFeatureViewProjection)
        parts = check_items(f"{what}, features", self.features, kinds)
        if not parts:
            raise DefinitionError(f"{what}: expected at least one feature view or request source.")
        if self.on_missing_entity not in ("error", "null"):
            raise DefinitionError(
                f'{what}, on_missing_entity: expected "error" or "null", got {self.on_missing_entity!r}.'
            )
        freeze(self, features=parts)
        keys: dict[str, KeyColumn] = {}
        owner: dict[str, Any] = {}
        views = [_named(part) for part in parts]
        on_demand = list(dict.fromkeys(view for view in views if isinstance(view, OnDemandFeatureView)))
        read = [view.input(name) for view in on_demand for name in view.inputs if name != NOW_US]
        for view in (*views, *(source for source, _ in read)):
            for key in view.key_columns if isinstance(view, FeatureView) else ():
                if keys.setdefault(key.name, key) != key:
                    raise DefinitionError(f"{what}: join key '{key.name}' is Int64 in one view and String in another.")
        for part, view in zip(parts, views, strict=True):
            for made in _fields_of(part):
                if made.name in owner:
                    raise DefinitionError(
                        f"{what}: feature '{made.name}' comes from both '{owner[made.name].name}' and '{view.name}'. "
                        f"Features of a service have unique names: rename one, or select others with {view.name}[[...]]."
                    )
                owner[made.name] = view
        # What is only read, and outputs that are not selected, share the name space: values travel by name.
        computed = [(view, made) for view in on_demand for made in view.schema]
        for view, made in (*read, *computed):
            other = owner.setdefault(made.name, view)
            if other != view:
                raise DefinitionError(
                    f"{what}: '{made.name}' of '{view.name}', which an on-demand view reads or computes, and '{made.name}' of "
                    f"'{other.name}' have one name. Rename one."
                )
        for name in owner:
            if name in keys:
                raise DefinitionError(f"{what}: '{name}' is both a feature and a join key; rename the feature.")
