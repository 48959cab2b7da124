"""On-demand views in a project: what the definitions refuse, what the catalog records, and what training sets hold."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pyarrow as pa
import pytest
from tests.features.projects import applied, make_project, times, us

from tiercel.errors import DefinitionError, SourceError
from tiercel.features.apply import apply
from tiercel.features.catalog import load_catalog
from tiercel.features.training import get_historical_features
from tiercel.types import NOW_US, DType, ServiceSchema

VIEWS = """
import math
user = Entity('uid')
v = FeatureView('v', [user], [Field('x', Float64), Field('big', Int64), Field('f', Float32), Field('word', String)],
                ttl=timedelta(days=1), source=ParquetSource('events', 'events.parquet', timestamp_field='ts'))
r = RequestSource('r', [Field('amount', Float32), Field('flag', Bool), Field('count', Int64),
                        Field('kind', String, categories=['q', 'p'])])
"""
MIX = """
@on_demand_feature_view(sources=[v, r], schema=[Field('wide', Float64), Field('odd', Bool), Field('age', Int64)])
def mix(big, x, amount, flag, count, now_us):
    \"\"\"Says what it does.

    And more.\"\"\"
    return big + 2 * x - amount, flag, now_us - 1704067200000000 + count
"""
TEXT = VIEWS + MIX + "s = FeatureService('s', [mix, v[['f']]])\nplain = FeatureService('plain', [r, v[['x', 'big']]])\n"
EVENTS = pa.table(
    {
        "uid": ["a", "b"],
        "ts": times([us(1), us(2)]),
        "x": [1.0, 0.25],
        "big": [2**53 + 1, None],
        "f": pa.array([0.1, 0.2], pa.float32()),
        "word": ["p", "q"],
    }
)
LABELS = pa.table(
    {
        "uid": ["a", "b", "c", "a"],
        "event_timestamp": times([us(1, 1), us(2), us(2), us(3)]),
        "amount": [0.1, 1.0, 2.0, 3.0],
        "flag": [True, False, None, True],
        "count": [1, 2, 3, None],
        "late": [0, 1, 0, 1],
    }
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return applied(tmp_path_factory.mktemp("project"), TEXT, events=EVENTS)


def test_schema_has_what_the_function_reads(project):
    """Inputs outside the vector are stored or come with the request, after what the vector holds."""
    schema = project[0].service("s")
    assert schema.features == ("wide", "odd", "age", "f")
    (group,) = schema.groups
    assert [(column.name, column.dtype) for column in group.columns] == [
        ("f", DType.FLOAT32), ("big", DType.INT64), ("x", DType.FLOAT64)
    ]  # fmt: skip
    assert [field.name for field in schema.request_fields] == ["amount", "flag", "count"]
    (transform,) = schema.transforms
    assert transform.inputs == ("big", "x", "amount", "flag", "count", NOW_US)
    assert [output.name for output in transform.outputs] == ["wide", "odd", "age"]
    assert transform.source == (
        "def _transform(big, x, amount, flag, count, now_us):\n"
        "    return (big + 2.0 * x - amount, flag, now_us - 1704067200000000.0 + count)\n"
    )


def test_catalog_round_trip(project):
    """The catalog on disk, and the schema's JSON, give back an equal schema with the same fingerprint."""
    catalog, state = project
    schema = catalog.service("s")
    assert load_catalog(state).service("s") == schema
    again = ServiceSchema.from_json(json.loads(json.dumps(schema.to_json())))
    assert (again, again.fingerprint) == (schema, schema.fingerprint)


def test_plain_services_keep_their_fingerprint(project):
    """A service without transforms is recorded, and fingerprinted, as before there were any."""
    schema = project[0].service("plain")
    assert "transforms" not in schema.to_json()
    assert schema.fingerprint == "e87c4bc158518ce5b8f275955f88034c8265c196626eba59b0bd79d645feafd5"


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        (("2 * x", "3 * x"), True),
        (("flag, now_us", "flag,  (now_us)"), False),
        (("Says what", "Tells what"), False),
        (("return big + 2 * x", "# twice\n    return big + 2.0 * x"), False),
        (("Field('odd', Bool)", "Field('odd', Int64)"), True),
        (("def mix", "def other"), True),
    ],
)
def test_the_definition_is_part_of_the_fingerprint(tmp_path, project, change, is_changed):
    """What changes values changes the service's fingerprint and shows in the diff; layout and comments do not."""
    catalog, _ = project
    text = re.sub(r"\bmix\b", "other", TEXT) if change[0] == "def mix" else TEXT.replace(*change)
    changed, _ = applied(tmp_path, text, events=EVENTS)
    assert (changed.service("s").fingerprint != catalog.service("s").fingerprint) is is_changed


def test_apply_reports_and_compiles(tmp_path):
    """A changed function shows as a changed service; what apply leaves is compiled, so that no server has to."""
    project = make_project(tmp_path, TEXT, events=EVENTS)
    first = apply(project, project / ".tiercel")
    assert "on-demand view mix" in first.added
    assert len(list((project / ".tiercel" / "compiled").glob("*.transform"))) == 1
    make_project(tmp_path, TEXT.replace("2 * x", "4 * x"), events=EVENTS)
    assert set(apply(project, project / ".tiercel").changed) == {"on-demand view mix", "service s"}
    assert apply(project, project / ".tiercel").is_empty


HEAD = "@on_demand_feature_view(sources=[v, r], schema=[Field('o', Float64)])\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "def f(x, nothing): return x\n", "'nothing' is in none of them"),
        (HEAD + "def f(): return 1\n", "at least one parameter"),
        (HEAD + "def f(x, word): return x\n", "input 'word' is string"),
        (HEAD + "def f(x, kind): return x\n", "input 'kind' is string"),
        (HEAD.replace("[v, r]", "[v[['x']], r]") + "def f(big): return big\n", "'big' is in none of them"),
        (HEAD.replace("Float64", "String") + "def f(x): return x\n", "computes numbers"),
        (HEAD.replace("Field('o', Float64)", "") + "def f(x): return x\n", "at least one field"),
        (HEAD.replace("[v, r]", "[user]") + "def f(x): return x\n", "expected items of type RequestSource"),
        (HEAD + "class f: pass\n", "plain Python function"),
        (HEAD + "def f(x): return x\n" + HEAD.replace("[v, r]", "[v, f]") + "def g(o): return o\n", "cannot read another one"),
        (HEAD.replace("[v, r]", "[v, RequestSource('q', [Field('x', Int64)])]") + "def f(x): return x\n", "is in v and in q"),
        (HEAD.replace("[v, r]", "[RequestSource('q', [Field('now_us', Int64)])]") + "def f(now_us): return 1\n", "time of the read"),
        (HEAD + "def f(x): return x, x\n", "returns 2 values, its schema has 1"),
        (HEAD + "def f(x):\n  for i in (1, 2): pass\n  return x\n", "found a loop"),
        (HEAD.replace("'o'", "'x'") + "def f(x): return x\ns = FeatureService('s', [f])\n", "have one name"),
        (HEAD.replace("'o'", "'big'") + "def f(x): return x\ns = FeatureService('s', [f, v[['big']]])\n", "comes from both"),
        (HEAD.replace("'o'", "'uid'") + "def f(x): return x\ns = FeatureService('s', [f])\n", "both a feature and a join key"),
        (HEAD.replace("'o'", "'X'") + "def f(x): return x\ns = FeatureService('s', [f])\n", "differ only in upper and lower case"),
        (HEAD + "def f(x): return x\ns = FeatureService('s', [f[['p']]])\n", "no feature 'p'; the view has o"),
        (HEAD.replace("schema=", "name='v', schema=") + "def f(x): return x\n", "has the name of a FeatureView"),
        (HEAD + f"def f({', '.join(f'p{i}' for i in range(300))}): return 1\n", "is in none of them"),
    ],
)  # fmt: skip
def test_refused_definitions(tmp_path, text, message):
    """What an on-demand view cannot be is refused at apply, with the file."""
    project = make_project(tmp_path, VIEWS + text, events=EVENTS)
    with pytest.raises(DefinitionError) as caught:
        apply(project, project / ".tiercel")
    assert message in str(caught.value)
    assert "features.py:" in str(caught.value)


def test_still_a_function(tmp_path):
    """The decorated name can be called, and knows its description."""
    path = make_project(tmp_path, TEXT) / "features.py"
    namespace = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    assert namespace["mix"](1, 2, 3, True, 0, 1704067200000000) == (2, True, 0)
    assert namespace["mix"].description == "Says what it does."


def expected(row, now_us):
    """What serving gives a transform, and the transform, in plain Python."""
    known = {"a": (1.0, float(2**53 + 1), us(1)), "b": (0.25, math.nan, us(2))}.get(row["uid"])
    is_fresh = known is not None and 0 <= now_us - known[2] <= 86_400_000_000
    x, big = known[:2] if is_fresh else (math.nan, math.nan)
    flag, count = (math.nan if row[name] is None else float(row[name]) for name in ("flag", "count"))
    return big + 2 * x - float(np.float32(row["amount"])), flag, float(now_us) - 1704067200000000 + count


def test_training_computes_what_serving_would(project):
    """Outputs stand in X and, typed, in the table: Int64 exact, Float32 as float32, stale and unknown missing."""
    catalog, state = project
    found = get_historical_features(catalog, state, LABELS, "s", label_columns=["late"], ages=True)
    moments = [us(1, 1), us(2), us(2), us(3)]
    rows = [expected(row, now) for row, now in zip(LABELS.to_pylist(), moments, strict=True)]
    np.testing.assert_array_equal(found.X[:, :3], np.float32(rows))
    table = found.to_arrow()
    assert table.column_names == [*LABELS.column_names, "wide", "odd", "age", "f", "v__age_s"]
    assert [table.schema.field(name).type for name in ("wide", "odd", "age")] == [pa.float64(), pa.bool_(), pa.int64()]
    assert table.column("wide").to_pylist()[0] == rows[0][0]
    assert table.column("odd").to_pylist() == [True, False, None, True]
    assert table.column("age").to_pylist() == [3_600_000_001, 86_400_000_002, 86_400_000_003, None]
    assert found.vectors(["age", "f"]).shape == (4, 2)


@pytest.mark.parametrize("name", ["wide", "big"])
def test_labels_must_not_have_computed_columns(project, name):
    """A label column named like what is computed, or like what is read for it, is refused."""
    labels = LABELS.append_column(name, pa.array([1.0] * 4))
    with pytest.raises(SourceError, match=f"'{name}' is also a (computed|stored) feature"):
        get_historical_features(*project, labels, "s")


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [("Int64", "x / 2", "0.5"), ("Bool", "x + 1", "2.0"), ("Int64", "x * 1e300", "1e\\+300")],
)
def test_an_output_must_fit_its_type(tmp_path, kind, value, shown):
    """A number that the declared type cannot hold is an error that names the row."""
    text = VIEWS + HEAD.replace("Float64", kind) + f"def f(x): return {value}\ns = FeatureService('s', [f])\n"
    catalog, state = applied(tmp_path, text, events=EVENTS)
    with pytest.raises(SourceError, match=f"output 'o' is declared {kind.lower()}, and for row 1 .* returned {shown}"):
        get_historical_features(catalog, state, LABELS.take([2, 0]).select(["uid", "event_timestamp"]), "s")


def test_a_service_of_request_and_time_alone(tmp_path):
    """An on-demand view needs no stored feature."""
    text = VIEWS + HEAD.replace("[v, r]", "[r]") + "def f(count, now_us): return count * 2 + now_us * 0\n"
    catalog, state = applied(tmp_path, text + "s = FeatureService('s', [f])\n", events=EVENTS)
    assert catalog.service("s").groups == ()
    found = get_historical_features(catalog, state, LABELS.select(["event_timestamp", "count"]), "s")
    np.testing.assert_array_equal(found.X, np.float32([[2], [4], [6], [np.nan]]))
