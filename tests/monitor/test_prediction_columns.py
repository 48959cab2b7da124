"""Segments read as columns: the same as record by record, whatever is in them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.monitor.recorders import SCHEMA, key_bytes, make_recorder

from tiercel.monitor import prediction_columns
from tiercel.monitor.journal import PlanDeclaration, read_journal, scan_segment, segment_paths
from tiercel.monitor.prediction_columns import TAKEN, SegmentColumns, column_names, shape_of
from tiercel.monitor.prediction_record import HEADS
from tiercel.types import Signature, Task


def declaration(features=("a",), classes=("no", "yes"), n_outputs=1, join_keys=()):
    return PlanDeclaration(
        "m", 1, None, None, None, tuple(features), tuple(join_keys), n_outputs, "binary", tuple(classes)
    )


def test_heads_are_laid_out_as_the_journal_says():
    """The columns' idea of a record's head is the compiled journal's, field by field."""
    for segment_format, layout in HEADS.items():
        head = prediction_columns._HEADS[segment_format]
        assert head.itemsize == layout.size
        rest = (11, 12, 13, 14, 15, 16, 17, 18, 19)[: 6 if segment_format == 1 else 9]
        packed = layout.pack(1, 2, 3, -4, 5, *range(6, 11), *rest)
        (read,) = np.frombuffer(packed, head).tolist()
        assert read[:5] == (1, 2, 3, -4, 5)
        assert read[5].tolist() == list(range(6, 11))
        assert read[6:] == rest


PLANS = [
    ("late", Signature(("a", "b", "c"), Task.BINARY, ("no", "yes")), SCHEMA),
    ("late", Signature(("a",), Task.REGRESSION, ()), None),
    ("kind", Signature(("a", "b"), Task.MULTICLASS, ("x", "y", "z")), SCHEMA),
]
KEYS = st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=5))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(range(3)), st.lists(KEYS, min_size=1, max_size=4), st.integers(0, 31), st.booleans()), max_size=12))  # fmt: skip
def test_columns_equal_records(tmp_path_factory, asked):
    """Any mixture of plans, row counts, keys and flags gives what reading record by record gives."""
    state_dir = tmp_path_factory.mktemp("columns")
    recorder = make_recorder(state_dir, worker=3)
    random = np.random.default_rng(len(asked))
    for number, (which, keys, flags, has_keys) in enumerate(asked):
        model, signature, schema = PLANS[which]
        rows = random.normal(size=(len(keys), len(signature.features))).astype(np.float32)
        rows[random.random(rows.shape) < 0.3] = np.nan
        sent = b"".join(key_bytes(*row) for row in keys) if schema is not None and has_keys else b""
        recorder.for_plan(model, which, signature, schema).add(
            rows, random.random((len(keys), signature.n_outputs)), number=number, received_us=number, flags=flags,
            oldest_age_us=number - 3, keys=sent,
        )  # fmt: skip
    recorder.close()
    records = list(read_journal(state_dir / "journal"))
    rows_of: dict[str, list[dict]] = {}
    for path in segment_paths(state_dir / "journal"):
        scan = scan_segment(path)
        assert (scan.is_sealed, scan.damage) == (True, None)
        columns = SegmentColumns(scan)
        for record in range(len(columns.heads)):
            (table,) = columns.tables(np.array([record]))
            rows_of.setdefault(table.column("id")[0].as_py(), []).extend(table.to_pylist())
    assert len(rows_of) == len(records)
    for record in records:
        found = rows_of[record.id]
        names = column_names(record.plan)
        assert len(found) == len(record.rows)
        for i, row in enumerate(found):
            assert row["row"] == record.first_row + i
            assert (row["version"], row["degraded"], row["is_shadow"]) == (
                record.plan.version, record.degraded, record.is_shadow,
            )  # fmt: skip
            assert row["oldest_age_us"] == record.oldest_age_us
            assert [row[name] for name in names.scores] == record.scores[i].tolist()
            assert tuple(row[name] for name in names.keys) == record.keys[i]
            expected = [None if np.isnan(value) else float(value) for value in record.rows[i]]
            assert [row[name] for name in names.features] == expected


def test_chunks_hold_all_rows_in_order(tmp_path, monkeypatch):
    """Large selections come in several tables that are one in the end."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 1, PLANS[0][1], None)
    for number in range(50):
        plan.add(np.zeros((3, 3), np.float32), np.zeros((3, 1)), number=number)
    recorder.close()
    (path,) = segment_paths(tmp_path / "journal")
    columns = SegmentColumns(scan_segment(path))
    monkeypatch.setattr(prediction_columns, "CHUNK_ROWS", 40)
    tables = list(columns.tables(np.arange(50)))
    assert len(tables) > 2
    assert max(len(table) for table in tables) <= 43
    whole = pa.concat_tables(tables)
    assert [int(each[16:], 16) for each in whole.column("id").to_pylist()] == np.repeat(np.arange(50), 3).tolist()


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_taken_names_are_prefixed(name):
    """No feature hides a column of the table or of its views, in whatever case it is written."""
    for each in (name, name.upper()):
        assert column_names(declaration(features=(each,))).features == (f"feature.{each}",)
        assert column_names(declaration(join_keys=[(each, "int64")])).keys == (f"key.{each}",)


def test_names_are_different_whatever_the_case():
    """Scores, keys and features whose names differ in nothing but case have columns of their own."""
    plan = declaration(
        features=("A", "a", "feature.a", "score.X"), classes=("x", "y"), n_outputs=2, join_keys=[("a", "string")]
    )
    names = column_names(plan)
    every = [each.casefold() for each in (*names.scores, *names.keys, *names.features)]
    assert len(set(every)) == len(every)
    assert names.keys == ("a",)


def test_classes_that_differ_in_case_are_numbered():
    """Scores of such classes are named by their places."""
    assert column_names(declaration(classes=("X", "x"), n_outputs=2)).scores == ("score.0", "score.1")


def test_a_shape_is_what_a_file_can_hold():
    """Plans share it if their columns are the same, and only then."""
    assert shape_of(declaration()) == shape_of(declaration(classes=("0", "1")))
    others = [
        declaration(features=("b",)),
        declaration(features=("a", "b")),
        declaration(join_keys=[("k", "int64")]),
        declaration(join_keys=[("k", "string")]),
        declaration(classes=("x", "y", "z"), n_outputs=3),
    ]
    assert len({shape_of(plan) for plan in (declaration(), *others)}) == 1 + len(others)
