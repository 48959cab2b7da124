"""Dictionaries: the text values of a String feature and their codes.

A view's String field either declares its `categories`, whose positions are the codes for good, or grows a dictionary
under `<state>/dictionaries/`: new values are appended, so a code never changes its meaning and a model trained last
month still reads this month's rows. Models see a code as a float32, which is exact up to 2^24.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import SourceError, StoreError
from tiercel.features.fields import MAX_CATEGORIES
from tiercel.features.files import locked, replace_file
from tiercel.types import DType, categories_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tiercel.features.catalog import Catalog, FieldRecord, ViewRecord
    from tiercel.types import ServiceSchema


def load_values(state_dir: Path, view: ViewRecord, field: FieldRecord) -> tuple[str, ...]:
    """The field's values in code order; empty before the view was first computed.

    Raises:
        StoreError: the dictionary file is damaged.
    """
    if field.categories is not None:
        return field.categories
    path = _path(state_dir, view, field)
    try:
        stored = json.loads(path.read_bytes())
        values, digest = stored["values"], stored["sha256"]
        intact = digest == categories_digest(values) and len(set(values)) == len(values)
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    if not intact or not all(isinstance(value, str) for value in values):
        raise _damaged(path, "the values are not those it was written with")
    return tuple(values)


def stored_categories(catalog: Catalog, schema: ServiceSchema, state_dir: Path) -> dict[str, tuple[str, ...]]:
    """What the codes of a service's stored text columns mean now: name -> values in code order.

    Raises:
        StoreError: a dictionary is damaged.
    """
    views = {view.name: view for view in catalog.views_of(schema)}
    found = {}
    for group in schema.groups:
        for column in group.columns:
            if column.dtype is DType.STRING:
                view = views[group.views[column.view].name]
                found[column.name] = load_values(state_dir, view, view.field(column.name))
    return found


def asked_categories(schema: ServiceSchema) -> dict[str, tuple[str, ...]]:
    """What the codes of text fields that come with the request mean: they are a part of the service itself."""
    return {each.name: each.categories for each in schema.request_fields if each.categories is not None}


def extend(state_dir: Path, view: ViewRecord, field: FieldRecord, seen: Iterable[str]) -> tuple[str, ...]:
    """Make sure every value in `seen` has a code; new ones are appended in sorted order.

    Returns:
        All values in code order.

    Raises:
        SourceError: a value outside the declared categories, or too many values.
    """
    if field.categories is not None:
        _refuse_unknown(view, field, set(seen) - set(field.categories))
        return field.categories
    with locked(state_dir / "dictionaries" / ".lock"):  # two computations may extend at once
        known = load_values(state_dir, view, field)
        new = sorted(set(seen) - set(known))
        if len(known) + len(new) > MAX_CATEGORIES:
            raise SourceError(
                f"FeatureView '{view.name}', field '{field.name}': {len(known) + len(new)} different values; at most "
                f"{MAX_CATEGORIES} have exact codes. Is this an identifier? Make it a join key, or group its values."
            )
        values = (*known, *new)
        if new:
            content = {"sha256": categories_digest(values), "values": values}
            replace_file(_path(state_dir, view, field), json.dumps(content, ensure_ascii=False, indent=0).encode())
    return values


def encode(view: ViewRecord, field: FieldRecord, values: Sequence[str], column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text to int32 codes; null stays null.

    Raises:
        SourceError: a text outside the declared categories.
        StoreError: a text without a code in the dictionary, so the dictionary is not the one that was extended.
    """
    codes = pc.index_in(column, value_set=pa.array(values, column.type))
    if codes.null_count != column.null_count:
        unknown = pc.unique(column.filter(pc.and_(pc.is_null(codes), pc.is_valid(column))))
        _refuse_unknown(view, field, set(unknown.to_pylist()))
    return codes


def _refuse_unknown(view: ViewRecord, field: FieldRecord, unknown: set[str]) -> None:
    if unknown and field.categories is None:
        raise StoreError(
            f"FeatureView '{view.name}', field '{field.name}': its dictionary under <state>/dictionaries/ lacks values that "
            "computed rows have. Restore it from a backup: it gives stored codes their meaning."
        )
    if unknown:
        shown = ", ".join(repr(value) for value in sorted(unknown)[:5])
        raise SourceError(
            f"FeatureView '{view.name}', field '{field.name}': value {shown} is not among its categories. Add it at the "
            "end of the list (earlier codes stay as they are), or map it in the view's sql."
        )


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged: {why}. Restore it from a backup: it gives stored codes their meaning.")


def _path(state_dir: Path, view: ViewRecord, field: FieldRecord) -> Path:
    return state_dir / "dictionaries" / f"{view.name}.{field.name}.json"
