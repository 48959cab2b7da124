"""Point-in-time training sets against a brute-force search, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.features.projects import applied, times, us
from tests.reference.asof import newest_known

from tiercel.errors import ServiceNotFoundError, SourceError
from tiercel.features.dictionary import load_values
from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.features.training import get_historical_features

SECOND = 1_000_000
PHASES = (
    Phase.explicit,
    Phase.reuse,
    Phase.generate,
)  # an example takes a third of a second: shrinking would take minutes
KEYS = st.tuples(st.sampled_from(["a", "b", "é"]), st.sampled_from([-(2**63), 0, 2**63 - 1]))
MOMENTS = st.integers(-3, 9)
ROW = st.fixed_dictionaries(
    {
        "key": KEYS,
        "event_us": MOMENTS.map(lambda s: s * SECOND),
        "created_us": st.none() | MOMENTS.map(lambda s: s * SECOND),
        "value": st.none() | st.integers(0, 3),
    }
)
LABEL = st.tuples(KEYS, MOMENTS.map(lambda s: s * SECOND))


@settings(max_examples=20, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(ROW, min_size=1, max_size=20),
    labels=st.lists(LABEL, min_size=1, max_size=12),
    ttl_s=st.none() | st.integers(1, 6),
)
def test_equals_brute_force_and_serving(tmp_path_factory, rows, labels, ttl_s):
    """Every label gets the value a search over all rows finds, and serving as of its time gives the same bits.

    Covers ties, late arrivals, nulls, ttl edges, duplicate labels, and composite string and integer keys.
    """
    ttl = f"timedelta(seconds={ttl_s})" if ttl_s else "None"
    text = f"""
pair = Entity('pair', ['name', Field('id', Int64)])
schema = [Field('x', Float64), Field('t', String)]
late = ParquetSource('late', 'rows.parquet', timestamp_field='ts', created_timestamp_column='seen')
v = FeatureView('v', [pair], schema, source=late, ttl={ttl})
w = FeatureView('w', [Entity('number', ['id'], Int64)], [Field('n', Int64)], timestamp_field='ts',
                source=ParquetSource('plain', 'rows.parquet'), sql="SELECT id, ts, n FROM plain")
s = FeatureService('s', [w, v], on_missing_entity="null")
"""
    table = pa.table(
        {
            "name": [row["key"][0] for row in rows],
            "id": pa.array([row["key"][1] for row in rows], pa.int64()),
            "ts": times([row["event_us"] for row in rows]),
            "seen": times([row["created_us"] for row in rows]),
            "x": pa.array([row["value"] for row in rows], pa.float64()),
            "n": pa.array([row["value"] for row in rows], pa.int64()),
            "t": pa.array([None if row["value"] is None else f"t{row['value']}" for row in rows], pa.string()),
        }
    )
    catalog, state = applied(tmp_path_factory.mktemp("project"), text, rows=table)
    frame = pa.table(
        {
            "name": [key[0] for key, _ in labels],
            "id": pa.array([key[1] for key, _ in labels], pa.int64()),
            "event_timestamp": times([time for _, time in labels]),
        }
    )
    found = get_historical_features(catalog, state, frame, "s", ages=True)
    seen_at_once = [{**row, "key": row["key"][1], "created_us": None} for row in rows]
    codes = load_values(state, catalog.views["v"], catalog.views["v"].field("t"))
    for index, (key, time_us) in enumerate(labels):
        late = newest_known(rows, key, time_us, ttl_s and ttl_s * SECOND)
        plain = newest_known(seen_at_once, key[1], time_us)
        value = late and late["value"]
        line = found.to_arrow().slice(index, 1).to_pylist()[0]
        assert line["n"] == (plain and plain["value"])
        assert line["x"] == value
        assert line["t"] == (None if value is None else f"t{value}")
        assert line["v__age_s"] == (late and (time_us - late["event_us"]) / SECOND)
        code = np.nan if value is None else codes.index(f"t{value}")
        np.testing.assert_array_equal(found.X[index, 1:], np.float32([np.nan if value is None else value, code]))
    time_us = labels[0][1]
    manifest = materialize(state, catalog, as_of_us=time_us)[0]
    assert manifest.as_of_us == time_us
    base = OnlineBase.open(state / "features" / "s")
    at_once = [index for index, label in enumerate(labels) if label[1] == time_us]
    keys = {"name": [labels[i][0][0] for i in at_once], "id": [labels[i][0][1] for i in at_once]}
    served = base.read_vectors(keys, time_us)
    assert served.features == found.feature_names
    vectors = served.values  # noqa: PD011 - no DataFrame
    assert vectors.tobytes() == np.ascontiguousarray(found.X[at_once]).tobytes()


TEXT = """
user = Entity('uid')
v = FeatureView('v', [user], [Field('x', Float64), Field('big', Int64)], ttl=timedelta(days=1),
                source=ParquetSource('events', 'events.parquet', timestamp_field='ts'))
r = RequestSource('r', [Field('amount', Float64), Field('kind', String, categories=['q', 'p'])])
s = FeatureService('s', [r, v])
"""
EVENTS = {"uid": ["a", "b"], "ts": times([us(1), us(2)]), "x": [1.0, 1e300], "big": [2**53 + 1, 16_777_217]}
LABELS = pa.table(
    {
        "uid": ["b", "a", "c", "a"],
        "event_timestamp": times([us(2), us(2), us(2), us(2, 0, 1)]),
        "amount": [1, 2, None, 4],
        "kind": ["p", "q", None, "p"],
        "late": [0, 1, 0, 1],
    }
)


@pytest.fixture
def project(tmp_path):
    return applied(tmp_path, TEXT, events=EVENTS)


def test_matrix_is_in_service_order_as_served(project):
    """X has the service's order, declared category codes, one rounding to float32, NaN for null, stale and unknown."""
    found = get_historical_features(*project, LABELS, "s", label_columns=["late"])
    assert found.feature_names == ("amount", "kind", "x", "big")
    nan = np.nan
    expected = np.array(
        [
            [1, 1, np.inf, np.float32(16_777_217)],
            [2, 0, 1, np.float32(2**53 + 1)],
            [nan, nan, nan, nan],
            [4, 1, nan, nan],
        ],
        dtype=np.float32,
    )
    np.testing.assert_array_equal(found.X, expected)
    assert found.X.dtype == np.float32
    assert found.X.flags.c_contiguous
    assert found.label().tolist() == [0, 1, 0, 1]
    assert found.to_arrow().column_names == [*LABELS.column_names, "x", "big"]
    assert found.categories == {"kind": ("q", "p")}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_label_time_units(project, unit):
    """Label times of any unit mean the same instants; naive ones are UTC."""
    frame = LABELS.set_column(
        1, "event_timestamp", LABELS.column(1).cast(pa.timestamp(unit, tz="UTC")).cast(pa.timestamp(unit))
    )
    found = get_historical_features(*project, frame, "s")
    np.testing.assert_array_equal(found.X, get_historical_features(*project, LABELS, "s").X)


def test_label_sources_agree(project, tmp_path):
    """An Arrow table, a DataFrame, a Parquet file and SQL over the sources give equal sets and digests."""
    pq.write_table(LABELS, tmp_path / "labels.parquet")
    frame = LABELS.to_pandas()
    frame["amount"] = frame["amount"].astype("Int64")
    sets = [
        get_historical_features(*project, labels, "s", label_columns=["late"])
        for labels in (LABELS, frame, tmp_path / "labels.parquet", str(tmp_path / "labels.parquet"))
    ]
    csv = tmp_path / "labels.csv"
    frame.to_csv(csv, index=False)
    (tmp_path / "labels.pq").write_bytes((tmp_path / "labels.parquet").read_bytes())
    sets += [
        get_historical_features(*project, labels, "s", label_columns=["late"])
        for labels in (csv, str(csv), tmp_path / "labels.pq", str(tmp_path / "labels.pq"))
    ]
    assert len({found.snapshot.digest for found in sets}) == 1
    assert [found.snapshot.source for found in sets[:2]] == ["pyarrow.Table", "pandas.DataFrame"]
    assert (sets[0].snapshot.time_start_us, sets[0].snapshot.time_end_us) == (us(2), us(2, 0, 1))
    assert isinstance(sets[0].to_df(), pd.DataFrame)
    sql = "SELECT uid, ts AS event_timestamp, 1.0 AS amount, 'p' AS kind FROM events ORDER BY uid"
    queried = get_historical_features(*project, sql, "s")
    np.testing.assert_array_equal(queried.X[:, 0], [1, 1])
    assert queried.snapshot.source == sql


def test_digest_pins_the_content(project):
    """A changed label, feature row or key changes the digest; nothing else does."""
    same = [get_historical_features(*project, LABELS, "s", label_columns=["late"]).snapshot.digest for _ in range(2)]
    other = LABELS.set_column(4, "late", pa.array([0, 1, 0, 0]))
    assert same[0] == same[1] != get_historical_features(*project, other, "s", label_columns=["late"]).snapshot.digest


def replaced(name, values):
    return LABELS.set_column(LABELS.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param(LABELS.drop_columns(["uid"]), "column 'uid', a join key of entity 'uid'", id="no key"),
        pytest.param(LABELS.drop_columns(["amount"]), "column 'amount', a request feature", id="no request field"),
        pytest.param(LABELS.drop_columns(["event_timestamp"]), "timestamp_field=", id="no time"),
        pytest.param(LABELS.drop_columns(["late"]), "column 'late', a label column", id="no label"),
        pytest.param(replaced("uid", pa.array([1, 2, 3, 4])), "'uid' is int64, expected string", id="key type"),
        pytest.param(replaced("event_timestamp", pa.array([1, 2, 3, 4])), "expected a timestamp", id="time type"),
        pytest.param(replaced("event_timestamp", times([1, None, 2, 3])), "null in 1 rows", id="null time"),
        pytest.param(replaced("amount", pa.array(["1", "x", "2", "3"])), "'amount' is string, expected float64", id="request type"),
        pytest.param(replaced("kind", pa.array(["p", "q", "z", "p"])), "'z' outside its categories", id="category"),
        pytest.param(LABELS.append_column("x", pa.array([1.0] * 4)), "also a stored feature", id="name clash"),
        pytest.param(LABELS.append_column("__row", pa.array([1] * 4)), "reserved", id="reserved name"),
        pytest.param(LABELS.append_column("late", pa.array([1] * 4)), "there twice", id="column twice"),
        pytest.param("SELECT nothing FROM nowhere", "SELECT over the project's sources (events)", id="sql"),
        pytest.param("missing.parquet", "expected a Parquet or CSV file, found no such file", id="no file"),
        pytest.param([1, 2], "expected a pyarrow Table", id="a list"),
    ],
)  # fmt: skip
def test_refused_labels(project, labels, message):
    """Labels that cannot be joined are refused with the column and what was expected."""
    with pytest.raises(SourceError) as caught:
        get_historical_features(*project, labels, "s", label_columns=["late"])
    assert message in str(caught.value)


HEAD = "uid,amount,kind,event_timestamp,late\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.parquet", b"", "got an empty file"),
        ("l.csv", b"", "got an empty file"),
        ("l.parquet", b"PAR1" + b"x" * 30, "expected a Parquet file (or CSV, named .csv)"),
        ("l.txt", HEAD.encode(), "expected a Parquet file (or CSV, named .csv)"),
        ("l.csv", HEAD.encode(), "got no rows; its columns are uid, amount, kind, event_timestamp, late"),
        ("l.csv", b"a,1,p,2024-01-02T00:00:00Z,0\n" * 2, "got a, 1, p, 2024-01-02T00:00:00Z, 0"),
        ("l.csv", HEAD.encode("utf-16"), "in UTF-8"),
        ("l.csv", HEAD.encode() + b"a,1,p,2024-01-02T00:00:00Z,0\na,1\na,1,2,3,4,5,6\n", "as many fields in every row as in the header"),
        ("l.csv", HEAD.encode() + b"a,x,p,2024-01-02T00:00:00Z,0\n", "Line: 2; Original Line: a,x,p,"),
        ("l.csv", HEAD.encode() + b"a,1,p,2024-01-02,0\n", "(got 2024-01-02). In CSV, in every row: 2026-01-31T12:00:00Z"),
        ("l.csv", HEAD.encode() + b"a,1,p,yesterday,0\n", "(got 'yesterday')"),
        ("l.csv", HEAD.encode() + b"a,1,p,1704153600,0\n", "(got 1704153600)"),
    ],
)  # fmt: skip
def test_refused_label_files(project, tmp_path, name, content, message):
    """A file that holds no labels is refused in one line with its name, or the column and what it holds."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        get_historical_features(*project, tmp_path / name, "s", label_columns=["late"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_file_without_rows(project, tmp_path):
    """A Parquet file of no rows is refused: a table may have none, but a file was to hold something."""
    pq.write_table(LABELS.slice(0, 0), tmp_path / "labels.parquet")
    with pytest.raises(SourceError, match="got no rows"):
        get_historical_features(*project, tmp_path / "labels.parquet", "s")


def test_one_label_column(project):
    """A single name needs no list around it."""
    found = get_historical_features(*project, LABELS, "s", label_columns="late")
    np.testing.assert_array_equal(found.label(), LABELS.column("late").to_numpy())


def test_request_features_alone(tmp_path):
    """A service without stored features is a matrix of request fields; a boolean is 0 or 1."""
    text = "r = RequestSource('r', [Field('f', Bool), Field('n', Int64)])\ns = FeatureService('s', [r])\n"
    frame = pa.table({"event_timestamp": times([us(1)] * 2), "f": [True, None], "n": pa.array([7, -1], pa.int8())})
    found = get_historical_features(*applied(tmp_path, text), frame, "s")
    np.testing.assert_array_equal(found.X, np.float32([[1, 7], [np.nan, -1]]))


def test_key_beyond_int64(tmp_path):
    """An unsigned key that does not fit is refused, not wrapped."""
    text = TEXT.replace("Entity('uid')", "Entity('uid', value_type=Int64)")
    catalog_state = applied(tmp_path, text, events={**EVENTS, "uid": [1, 2]})
    frame = LABELS.set_column(0, "uid", pa.array([1, 2, 3, 2**64 - 1], pa.uint64()))
    with pytest.raises(SourceError, match="cannot be read as int64"):
        get_historical_features(*catalog_state, frame, "s")


def test_unknown_service(project):
    """An unknown service is refused before anything is read."""
    with pytest.raises(ServiceNotFoundError):
        get_historical_features(*project, LABELS, "t")


def test_no_labels(project):
    """An empty label table gives an empty set."""
    found = get_historical_features(*project, LABELS.slice(0, 0), "s")
    assert found.X.shape == (0, 4)
    assert found.snapshot.time_start_us is None


def test_many_labels_keep_their_order(project):
    """The order of a large label table survives DuckDB's parallel join."""
    order = np.random.default_rng(5).integers(0, 2, 300_000)
    frame = pa.table(
        {
            "uid": pa.array(["a", "b"]).take(pa.array(order)),
            "event_timestamp": times([us(2)] * len(order)),
            "amount": pa.array(order),
            "kind": pa.array(["p"] * len(order)),
        }
    )
    found = get_historical_features(*project, frame, "s")
    np.testing.assert_array_equal(found.X[:, 2], np.float32([1, np.inf])[order])


@pytest.mark.parametrize(
    ("kind", "values"), [("Bool", [2]), ("Int64", ["12"]), ("Float32", ["1e3"]), ("Float64", [True])]
)
def test_request_features_are_not_coerced(tmp_path, kind, values):
    """A request feature of a type that the server refuses is refused in labels too, with column and value."""
    text = f"""
e = ParquetSource('e', 'e.parquet', timestamp_field='ts')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=e)
one = FeatureService('one', [v, RequestSource('r', [Field('q', {kind})])])
"""
    catalog, state = applied(tmp_path, text, e={"uid": ["a"], "ts": times([us(1)]), "x": [1.0]})
    labels = pa.table({"uid": ["a"], "event_timestamp": times([us(2)]), "q": values})
    with pytest.raises(SourceError, match=f"'q' is .*, expected .*{values[0]!r}"):
        get_historical_features(catalog, state, labels, "one")


def test_label_times_beyond_microseconds(tmp_path):
    """A time that int64 microseconds cannot hold is refused, not wrapped around."""
    text = """
e = ParquetSource('e', 'e.parquet', timestamp_field='ts')
one = FeatureService('one', [FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=e)])
"""
    catalog, state = applied(tmp_path, text, e={"uid": ["a"], "ts": times([us(1)]), "x": [1.0]})
    labels = pa.table({"uid": ["a"], "event_timestamp": pa.array([2**60], pa.timestamp("s"))})
    with pytest.raises(SourceError, match="beyond what microseconds"):
        get_historical_features(catalog, state, labels, "one")
