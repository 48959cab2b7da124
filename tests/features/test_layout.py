"""Row packing against the obvious packer, and its limits."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.stores import CATEGORIES, entities, group_schemas, simple_store, table_of
from tests.reference.row import Entity, reference_row

from tiercel.errors import BaseCorruptError, DefinitionError, SchemaMismatchError, SourceError
from tiercel.features.layout import MAX_ROW_BYTES, RowLayout
from tiercel.types import NO_EVENT_US, Column, DType, GroupSchema, KeyColumn, ViewSchema

GROUPS_AND_ROWS = group_schemas().flatmap(
    lambda group: st.tuples(st.just(group), st.lists(entities(group), max_size=5))
)


def categories_of(group: GroupSchema) -> dict[str, list[str]]:
    return {column.name: CATEGORIES for column in group.columns if column.dtype is DType.STRING}


def sizes_of(group: GroupSchema) -> dict[str, int]:
    return {name: len(strings) for name, strings in categories_of(group).items()}


def same(a: object, b: object) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


@settings(max_examples=150)
@given(GROUPS_AND_ROWS)
def test_packed_rows_equal_the_reference(case):
    """Vectorised packing gives the reference's bytes, and unpacking gives back types and values."""
    group, rows = case
    layout = RowLayout.of(group)
    table = table_of(_with_an_id(group), {(i,): row for i, row in enumerate(rows)})
    packed = layout.pack(table, n_categories=sizes_of(group))
    assert packed.shape == (len(rows), layout.row_bytes)
    for got, row in zip(packed, rows, strict=True):
        if not any(isinstance(value, float) and math.isnan(value) for value in row.values):  # NaN payloads may differ
            assert got.tobytes() == reference_row(group, row, categories_of(group))
        unpacked = layout.unpack(got.tobytes(), categories=categories_of(group))
        assert unpacked.event_us == tuple(NO_EVENT_US if event is None else event for event in row.event_us)
        assert all(same(a, b) and type(a) is type(b) for a, b in zip(unpacked.values, row.values, strict=True))


def _with_an_id(group: GroupSchema) -> GroupSchema:
    return GroupSchema(group.entity, (KeyColumn("id", DType.INT64),), group.views, group.columns)


def test_columns_lie_widest_first_on_their_alignment():
    """Every column starts at a multiple of its width from the start of the row."""
    dtypes = [DType.BOOL, DType.FLOAT32, DType.INT64, DType.BOOL, DType.STRING, DType.FLOAT64]
    group = GroupSchema(
        "e", (), (ViewSchema("v", None, ""),), tuple(Column(f"c{i}", d, 0) for i, d in enumerate(dtypes))
    )
    layout = RowLayout.of(group)
    assert all(at % column.dtype.width == 0 for at, column in zip(layout.offsets, group.columns, strict=True))
    assert layout.row_bytes == 8 + 8 + 8 + 16 + 8 + 2


def wide(n: int, dtype: DType = DType.FLOAT64) -> GroupSchema:
    return GroupSchema("e", (), (ViewSchema("v", None, ""),), tuple(Column(f"c{i}", dtype, 0) for i in range(n)))


def test_too_wide_a_row_is_a_definition_error():
    """The error names the size, the limit and the widest columns."""
    RowLayout.of(wide(8_000))
    with pytest.raises(DefinitionError, match=rf"{MAX_ROW_BYTES} bytes .* got 7\d{{4}} .*c0 \(float64\)"):
        RowLayout.of(wide(9_000))


def test_too_many_views_is_a_definition_error():
    """The reader's per-view state is bounded."""
    views = tuple(ViewSchema(f"v{i}", None, "") for i in range(257))
    with pytest.raises(DefinitionError, match="at most 256"):
        RowLayout.of(GroupSchema("e", (), views, ()))


def test_inline_rows_are_told_from_wide_ones():
    """`is_inline` says whether a row shares a page under any key."""
    assert RowLayout.of(wide(300, DType.FLOAT32)).is_inline
    assert not RowLayout.of(wide(500, DType.FLOAT32)).is_inline


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda t: t.drop_columns(["x"]), "one column 'x'", id="absent column"),
        pytest.param(lambda t: t.drop_columns(["__event_us_0"]), "event time of view 'view'", id="absent event time"),
        pytest.param(
            lambda t: t.set_column(1, "x", pa.array([1.0] * 5)), "float for feature 'x', got double", id="wrong type"
        ),
        pytest.param(
            lambda t: t.set_column(2, "s", pa.array([4] * 5, pa.int32())),
            r"0\.\.3 \(4 strings\), got 4\.\.4",
            id="code too high",
        ),
        pytest.param(
            lambda t: t.set_column(2, "s", pa.array([-1] * 5, pa.int32())), r"got -1\.\.-1", id="negative code"
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, said):
    """The writer says which column is absent, of another type, or holds codes outside its dictionary."""
    store = simple_store()
    with pytest.raises(SourceError, match=said):
        RowLayout.of(store.schema.groups[0]).pack(change(store.tables[0]), n_categories={"s": 4})


def test_a_code_needs_a_dictionary():
    """An empty dictionary fits a column of nulls only."""
    store = simple_store()
    layout, table = RowLayout.of(store.schema.groups[0]), store.tables[0]
    nulls = table.set_column(2, "s", pa.nulls(5, pa.int32()))
    assert layout.pack(nulls, n_categories={"s": 0}).shape[0] == 5
    zeros = table.set_column(2, "s", pa.array([0] * 5, pa.int32()))
    with pytest.raises(SourceError, match="0 strings"):
        layout.pack(zeros, n_categories={"s": 0})


def test_foreign_and_cut_rows_do_not_unpack():
    """A row of another width or schema is reported, not decoded."""
    group = simple_store().schema.groups[0]
    layout = RowLayout.of(group)
    row = reference_row(group, Entity((1.0, "JFK", 3), (5,)), {"s": CATEGORIES})
    for kept in range(len(row)):
        with pytest.raises(BaseCorruptError):
            layout.unpack(row[:kept], categories={"s": CATEGORIES})
    with pytest.raises(SchemaMismatchError):
        layout.unpack(b"\0" + row[1:], categories={"s": CATEGORIES})
    with pytest.raises(BaseCorruptError, match="code of 's'"):
        layout.unpack(row, categories={"s": []})
