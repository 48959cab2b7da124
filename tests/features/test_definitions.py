"""Definitions refuse what cannot work, at the line that says it."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from tiercel.errors import DefinitionError
from tiercel.features.definitions import (
    Bool,
    CSVSource,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float32,
    Float64,
    Int64,
    ParquetSource,
    RequestSource,
    Source,
    String,
)
from tiercel.types import DType, KeyColumn

USER = Entity("user")
EVENTS = ParquetSource("events", "events.parquet", timestamp_field="at", created_timestamp_column="arrived")
FACTS = CSVSource("facts", "facts.csv")
A, B = Field("a", Float32), Field("b", Int64)
VIEW = FeatureView("view", [USER], [A, B], source=EVENTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Field("1a", Float32), "expected a letter", id="name starts with a digit"),
        pytest.param(lambda: Field("__event_us", Float32), "expected a letter", id="reserved prefix"),
        pytest.param(lambda: Field("a" * 64, Float32), "up to 62", id="name too long"),
        pytest.param(lambda: Field(7, Float32), "expected a letter", id="name is not text"),
        pytest.param(lambda: Field("a", "int32"), "expected one of float32", id="unknown type"),
        pytest.param(lambda: Field("a", Int64, categories=["x"]), "only a String", id="categories of a number"),
        pytest.param(lambda: Field("a", String, categories=[]), "at least one value", id="no categories"),
        pytest.param(lambda: Field("a", String, categories=["x", "x"]), "none twice", id="category twice"),
        pytest.param(lambda: Field("a", String, categories="xy"), "expected a list", id="categories as text"),
        pytest.param(lambda: Field("a", String, categories=[1]), "type str", id="category is a number"),
        pytest.param(lambda: Entity("user", join_keys=[]), "at least one join key", id="no keys"),
        pytest.param(lambda: Entity("user", join_keys=["a", "A"]), "listed twice", id="keys differ by case"),
        pytest.param(lambda: Entity("user", value_type=Float64), "keys are Int64 or String", id="float key"),
        pytest.param(lambda: Entity("user", join_keys=[Field("k", Bool)]), "keys are Int64 or String", id="bool key"),
        pytest.param(lambda: Entity("user", join_keys=[Field("k", String, categories=["x"])]), "categories", id="key categories"),
        pytest.param(lambda: Entity("user", join_keys="id"), "expected a list", id="keys as text"),
        pytest.param(lambda: Source("s", "x"), "base class", id="abstract source"),
        pytest.param(lambda: ParquetSource("s", ""), "expected a path", id="empty path"),
        pytest.param(lambda: ParquetSource("s", "s3://bucket/x"), "expected a local path", id="remote path"),
        pytest.param(lambda: ParquetSource("s", "package://only"), "expected a local path", id="package without file"),
        pytest.param(lambda: ParquetSource("s", "x", created_timestamp_column="c"), "needs a timestamp", id="created alone"),
        pytest.param(lambda: CSVSource("s", "x", delimiter="||"), "one character", id="long delimiter"),
        pytest.param(lambda: CSVSource("s", "x", null_strings="NA"), "expected a list", id="null text"),
        pytest.param(lambda: CSVSource("s", "x", types={"a": 1}), "expected a dict", id="types"),
        pytest.param(lambda: FeatureView("v", [], [A], source=EVENTS), "at least one entity", id="no entity"),
        pytest.param(lambda: FeatureView("v", [USER], [], source=EVENTS), "one field", id="no field"),
        pytest.param(lambda: FeatureView("v", USER, [A], source=EVENTS), "expected a list", id="entity not in a list"),
        pytest.param(lambda: FeatureView("v", ["user"], [A], source=EVENTS), "type Entity", id="entity by name"),
        pytest.param(lambda: FeatureView("v", [USER], [A]), "either source= or sources=", id="no source"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=EVENTS, sources=[FACTS]), "either", id="both"),
        pytest.param(lambda: FeatureView("v", [USER], [A], sources=[EVENTS, FACTS], timestamp_field="at"), "exactly one", id="two, no sql"),
        pytest.param(lambda: FeatureView("v", [USER], [A], sources=[EVENTS, EVENTS], sql="x"), "listed twice", id="source twice"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=EVENTS, sql=" "), "expected a SELECT", id="empty sql"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=EVENTS, ttl=timedelta(0)), "positive", id="ttl 0"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=EVENTS, ttl=60), "positive timedelta", id="ttl number"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=FACTS, ttl=timedelta(1)), "static", id="static with ttl"),
        pytest.param(lambda: FeatureView("v", [USER], [A], sources=[EVENTS, FACTS], sql="x"), "has times", id="forgotten time"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=FACTS, created_timestamp_column="c"), "needs a", id="created"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=FACTS, timestamp_field="__t"), "'__'", id="reserved time"),
        pytest.param(lambda: FeatureView("v", [USER], [A, A], source=EVENTS), "listed twice", id="field twice"),
        pytest.param(lambda: FeatureView("v", [USER], [Field("user", String)], source=EVENTS), "listed twice", id="field is key"),
        pytest.param(lambda: FeatureView("v", [USER], [Field("at", Int64)], source=EVENTS), "listed twice", id="field is time"),
        pytest.param(lambda: FeatureView("v", [USER], [A], source=EVENTS, tags={"x": 1}), "dict of str", id="tags"),
        pytest.param(lambda: VIEW[["a", "c"]], "no feature 'c'; the view has a, b", id="unknown feature"),
        pytest.param(lambda: VIEW[[]], "at least one", id="no feature"),
        pytest.param(lambda: RequestSource("r", []), "at least one field", id="empty request"),
        pytest.param(lambda: RequestSource("r", [Field("s", String)]), "needs categories", id="text without categories"),
        pytest.param(lambda: FeatureService("s", []), "at least one", id="empty service"),
        pytest.param(lambda: FeatureService("s", VIEW), "expected a list", id="view not in a list"),
        pytest.param(lambda: FeatureService("s", [VIEW, VIEW[["a"]]]), "unique names", id="feature twice"),
        pytest.param(lambda: FeatureService("s", [VIEW], on_missing_entity="skip"), '"error" or "null"', id="missing"),
        pytest.param(
            lambda: FeatureService("s", [VIEW, FeatureView("w", [Entity("user", value_type=Int64)], [Field("c", Int64)], source=FACTS)]),
            "Int64 in one view and String in another",
            id="key of two types",
        ),
        pytest.param(
            lambda: FeatureService("s", [VIEW, RequestSource("r", [Field("user", Int64)])]),
            "both a feature and a join key",
            id="request field is a key",
        ),
    ],
)  # fmt: skip
def test_refused(make, message):
    """Each mistake is refused with a message that names what was expected."""
    with pytest.raises(DefinitionError, match=re.escape(message)):
        make()


def test_entity_keys():
    """A join key given by name has the entity's value type; a Field brings its own; the default is the entity's name."""
    assert USER.key_columns == (KeyColumn("user", DType.STRING),)
    mixed = Entity("pair", join_keys=["a", Field("b", Int64)])
    assert mixed.key_columns == (KeyColumn("a", DType.STRING), KeyColumn("b", DType.INT64))


def test_view_takes_times_from_its_single_source():
    """A view over one source uses that source's timestamp columns unless it names its own."""
    assert (VIEW.timestamp_field, VIEW.created_timestamp_column) == ("at", "arrived")
    assert FeatureView("v", [USER], [A], source=EVENTS, timestamp_field="t").created_timestamp_column is None


def test_equal_definitions_are_equal_wherever_they_stand():
    """The line a definition stands on is not part of its identity, and names where it was written."""
    again = FeatureView("view", [USER], [A, B], source=EVENTS)
    assert again == VIEW
    assert again.where != VIEW.where
    assert __file__ in again.where


def test_definitions_are_immutable():
    """Nothing can change a definition after its checks."""
    with pytest.raises(AttributeError):
        VIEW.ttl = timedelta(1)
    with pytest.raises(TypeError):
        VIEW.tags["x"] = "y"
