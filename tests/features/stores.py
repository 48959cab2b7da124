"""Random feature stores for property tests: schemas, their entities, and the tables a materialization would hand over."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from hypothesis import strategies as st
from tests.reference.row import Entity

from tiercel.types import Column, DType, GroupSchema, KeyColumn, ServiceSchema, ViewSchema

INT64 = st.integers(-(2**63), 2**63 - 1)
#: Event times: any but NO_EVENT_US, which means "no row".
TIMES = st.integers(-(2**63) + 1, 2**63 - 1)
#: Bytes of every UTF-8 length, a NUL, and neighbours whose order differs between UTF-8 and UTF-16.
TEXT = st.text(alphabet="\0aZé߿ࠀ€\uffff\U00010000🛫\U0010ffff", max_size=12)
CATEGORIES = ["", "JFK", "LGA", "Zürich 🛫"]
VALUES = {
    DType.FLOAT32: st.floats(width=32),
    DType.FLOAT64: st.floats(),
    DType.INT64: INT64,
    DType.BOOL: st.booleans(),
    DType.STRING: st.sampled_from(CATEGORIES),
}
ARROW = {
    DType.FLOAT32: pa.float32(),
    DType.FLOAT64: pa.float64(),
    DType.INT64: pa.int64(),
    DType.BOOL: pa.bool_(),
    DType.STRING: pa.int32(),
}


@dataclass(frozen=True)
class Store:
    """A service and everything it holds: per group, entities by key values."""

    schema: ServiceSchema
    groups: tuple[dict[tuple[int | str, ...], Entity], ...]

    @property
    def categories(self) -> dict[str, list[str]]:
        return {c.name: CATEGORIES for g in self.schema.groups for c in g.columns if c.dtype is DType.STRING}

    @property
    def tables(self) -> list[pa.Table]:
        return [table_of(group, rows) for group, rows in zip(self.schema.groups, self.groups, strict=True)]


def table_of(group: GroupSchema, rows: dict[tuple[int | str, ...], Entity]) -> pa.Table:
    """`rows` as `write_base` takes them."""
    columns: dict[str, pa.Array] = {}
    for i, key in enumerate(group.keys):
        columns[key.name] = pa.array([k[i] for k in rows], pa.int64() if key.dtype is DType.INT64 else pa.string())
    for i, column in enumerate(group.columns):
        values = [entity.values[i] for entity in rows.values()]
        if column.dtype is DType.STRING:
            values = [None if value is None else CATEGORIES.index(value) for value in values]
        columns[column.name] = pa.array(values, ARROW[column.dtype], from_pandas=False)
    for j in range(len(group.views)):
        columns[f"__event_us_{j}"] = pa.array([entity.event_us[j] for entity in rows.values()], pa.int64())
    return pa.table(columns)


def key_columns(prefix: str = "k") -> st.SearchStrategy[tuple[KeyColumn, ...]]:
    kinds = st.lists(st.sampled_from([DType.INT64, DType.STRING]), min_size=1, max_size=3)
    return kinds.map(lambda dtypes: tuple(KeyColumn(f"{prefix}{i}", dtype) for i, dtype in enumerate(dtypes)))


def key_values(keys: tuple[KeyColumn, ...]) -> st.SearchStrategy[tuple[int | str, ...]]:
    return st.tuples(*(INT64 if key.dtype is DType.INT64 else TEXT for key in keys))


@st.composite
def group_schemas(draw: st.DrawFn, prefix: str = "") -> GroupSchema:
    ttls = draw(st.lists(st.none() | st.integers(0, 2**62), min_size=1, max_size=3))
    views = tuple(ViewSchema(f"{prefix}v{j}", ttl, "d") for j, ttl in enumerate(ttls))
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(list(DType)), st.integers(0, len(views) - 1)), min_size=1, max_size=10)
    )
    columns = tuple(Column(f"{prefix}c{i}", dtype, view) for i, (dtype, view) in enumerate(kinds))
    return GroupSchema(f"{prefix}e", draw(key_columns(f"{prefix}k")), views, columns)


def entities(group: GroupSchema) -> st.SearchStrategy[Entity]:
    return st.builds(
        Entity,
        st.tuples(*(st.none() | VALUES[column.dtype] for column in group.columns)),
        st.tuples(*(st.none() | TIMES for _ in group.views)),
    )


@st.composite
def stores(draw: st.DrawFn) -> Store:
    groups = tuple(draw(group_schemas(f"g{g}_")) for g in range(draw(st.integers(1, 2))))
    schema = ServiceSchema("svc", groups, (), tuple(column.name for group in groups for column in group.columns))
    rows = tuple(draw(st.dictionaries(key_values(group.keys), entities(group), max_size=8)) for group in groups)
    return Store(schema, rows)


def simple_store(n: int = 5, *, ttl_us: int | None = None, event_us: int = 1_000, offset: float = 0.0) -> Store:
    """`n` entities `id` = 0..n-1 with a float32 `x` = id + offset, a string `s` and an int64 `big` with some missing."""
    group = GroupSchema(
        "entity",
        (KeyColumn("id", DType.INT64),),
        (ViewSchema("view", ttl_us, "d"),),
        (Column("x", DType.FLOAT32, 0), Column("s", DType.STRING, 0), Column("big", DType.INT64, 0)),
    )
    rows = {
        (i,): Entity((i + offset, CATEGORIES[i % 4], None if i % 3 == 2 else 2**62 + i), (event_us,)) for i in range(n)
    }
    return Store(ServiceSchema("svc", (group,), (), ("x", "s", "big")), (rows,))
