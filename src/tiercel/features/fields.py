"""The nouns that definitions are made of: fields, entities and sources, and how a definition checks itself."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tiercel.errors import DefinitionError
from tiercel.types import DType, Int64, KeyColumn, String

#: Names become file names, URL parts and SQL identifiers, so one rule serves all of them.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
#: A stored string travels to the model as its code in a float32, which counts exactly up to here.
MAX_CATEGORIES = 2**24


_FOLDER = os.path.dirname(__file__)  # noqa: PTH120 - compared with every frame's, as text


def _caller() -> str:
    """`file:line` of the first frame outside this folder: where the user wrote the definition."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to name the line a definition stands on
    while frame.f_back is not None and (
        frame.f_code.co_filename == "<string>" or os.path.dirname(frame.f_code.co_filename) == _FOLDER  # noqa: PTH120
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def defined_here() -> Any:
    """Dataclass field that remembers where an object was defined; no part of its identity."""
    return field(default_factory=_caller, compare=False, repr=False, kw_only=True)


def freeze(owner: object, **values: Any) -> None:
    """Set fields of a frozen dataclass from its own __post_init__."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def check_name(kind: str, name: object) -> None:
    """Refuse what is no name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DefinitionError(
            f"{kind} name {name!r}: expected a letter followed by up to 62 letters, digits or underscores."
        )


def check_items(what: str, items: object, kinds: tuple[type, ...]) -> tuple[Any, ...]:
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


def check_unique(what: str, names: Iterable[str]) -> None:
    """Refuse a name listed twice."""
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
    where: str = defined_here()

    def __post_init__(self) -> None:
        check_name("Field", self.name)
        freeze(self, dtype=_dtype(f"Field '{self.name}', dtype", self.dtype))
        if self.categories is None:
            return
        what = f"Field '{self.name}', categories"
        if self.dtype is not String:
            raise DefinitionError(f"{what}: only a String field has categories, this one is {self.dtype}.")
        categories = check_items(what, self.categories, (str,))
        if not categories or len(set(categories)) != len(categories):
            raise DefinitionError(f"{what}: expected at least one value and none twice, got {list(categories)!r}.")
        if len(categories) > MAX_CATEGORIES:
            raise DefinitionError(f"{what}: {len(categories)} values; at most {MAX_CATEGORIES} have exact codes.")
        freeze(self, categories=categories)


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
    where: str = defined_here()

    def __post_init__(self) -> None:
        check_name("Entity", self.name)
        what = f"Entity '{self.name}'"
        value_type = _dtype(f"{what}, value_type", self.value_type)
        given = [self.name] if self.join_keys is None else self.join_keys
        keys = []
        for key in check_items(f"{what}, join_keys", given, (str, Field)):
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
        check_unique(f"{what}, join_keys", [key.name for key in keys])
        freeze(self, join_keys=tuple(keys), value_type=value_type)

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
    where: str = defined_here()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if type(self) is Source:
            raise DefinitionError("Source is a base class; use ParquetSource or CSVSource.")
        check_name(kind, self.name)
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
        nulls = check_items(f"{what}, null_strings", self.null_strings, (str,))
        if not isinstance(self.types, Mapping) or not all(
            isinstance(text, str) for pair in self.types.items() for text in pair
        ):
            raise DefinitionError(f"{what}, types: expected a dict of column name to DuckDB type, got {self.types!r}.")
        freeze(self, null_strings=nulls, types=MappingProxyType(dict(self.types)))
