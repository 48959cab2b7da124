"""Entities to measure with are entities the base holds, spread over it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from tests.support import stores

from tiercel.errors import NotMaterializedError
from tiercel.features.base import write_base
from tiercel.features.online import OnlineBase
from tiercel.features.sample import sample_entities
from tiercel.types import Column, Float32, GroupSchema, Int64, KeyColumn, ServiceSchema, String, ViewSchema


def group(entity, *keys):
    return GroupSchema(
        entity,
        tuple(KeyColumn(name, Int64 if name.endswith("id") else String) for name in keys),
        (ViewSchema(entity, None, "f" * 64),),
        (Column(f"{entity}_value", Float32, 0),),
    )


def publish(directory, groups, rows):
    """Publish rows of keys; each has one value."""
    schema = ServiceSchema("svc", groups, (), tuple(column.name for each in groups for column in each.columns))
    tables = []
    for each, keys in zip(groups, rows, strict=True):
        columns = {
            key.name: pa.array([row[at] for row in keys], pa.int64() if key.dtype is Int64 else pa.string())
            for at, key in enumerate(each.keys)
        }
        value = pa.array([0.0] * len(keys), pa.float32())
        tables.append(
            pa.table({**columns, each.columns[0].name: value, "__event_us_0": pa.array([1] * len(keys), pa.int64())})
        )
    write_base(directory, schema, tables, categories={}, as_of_us=1, catalog="c" * 64)
    return directory


def test_every_sampled_entity_is_found(tmp_path):
    """Keys of every kind come back as values that the reader finds; few rows are all drawn."""
    stores.publish(tmp_path)
    sampled = sample_entities(tmp_path / "svc", 64)
    assert {row["tailnum"] for row in sampled} == {row[0] for row in stores.AIRCRAFT}
    assert {(row["origin"], row["gate"]) for row in sampled} == {row[:2] for row in stores.ROUTES}
    base = OnlineBase.open(tmp_path / "svc")
    columns = {name: [row[name] for row in sampled] for name in ("tailnum", "origin", "gate")}
    assert base.read_vectors(columns, stores.NOW_US).found.all()


@pytest.mark.parametrize("first", [0, -500, 2**62])
def test_the_sample_is_spread_over_the_base(tmp_path, first):
    """Of many keys the drawn ones lie far apart, from the first on."""
    directory = publish(tmp_path / "svc", (group("user", "id"),), [[(first + k,) for k in range(1000)]])
    drawn = [row["id"] - first for row in sample_entities(directory, 10)]
    assert drawn == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]


def test_a_shared_key_comes_from_the_entity_with_more(tmp_path):
    """Where two entities share a join key, the pair is drawn together, so that it exists."""
    groups = (group("user", "id"), group("user_shop", "id", "shop"))
    pairs = [(k, f"s{k}") for k in range(5, 9)]
    directory = publish(tmp_path / "svc", groups, [[(k,) for k in range(100)], pairs])
    assert {(row["id"], row["shop"]) for row in sample_entities(directory, 4)} == set(pairs)


def test_an_entity_without_rows_has_null_keys(tmp_path):
    """Nothing can be drawn from an empty entity, nor from an empty base."""
    groups = (group("user", "id"), group("shop", "shop"))
    directory = publish(tmp_path / "svc", groups, [[(1,), (2,)], []])
    assert sample_entities(directory, 8) == [{"id": 1, "shop": None}, {"id": 2, "shop": None}]
    assert sample_entities(publish(tmp_path / "empty", groups, [[], []]), 8) == []


def test_no_base(tmp_path):
    """Without a published base there is nothing to draw from."""
    with pytest.raises(NotMaterializedError):
        sample_entities(tmp_path / "svc", 8)
