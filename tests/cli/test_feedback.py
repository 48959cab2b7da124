"""`tiercel feedback` and `tiercel sql`: labels from files, the report, and questions to the prediction table."""

from __future__ import annotations

import csv
import json

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tests.monitor.recorders import PREFIX, SCHEMA, SIGNATURE, key_bytes, make_recorder

from tiercel.cli.main import main

DAY_US = 86_400_000_000


@pytest.fixture
def directory(tmp_path):
    """A project whose model answered ten requests, one of them with a score that is NaN."""
    (tmp_path / "tiercel.toml").write_text('[monitor]\nretention_days = 36500\ndrop_columns = ["shop"]\n')
    recorder = make_recorder(tmp_path / ".tiercel")
    plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA)
    for number in range(10):
        score = np.array([[np.nan if number == 9 else number / 10]])
        plan.add(
            np.zeros((1, 3), np.float32),
            score,
            number=number,
            received_us=1_700_000_000_000_000,
            keys=key_bytes(number, "x"),
        )
    recorder.close()
    return tmp_path


@pytest.fixture
def run(directory):
    """Run a command; returns (status, standard output, all output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, [*arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.output

    return invoke


def labels_frame():
    return pd.DataFrame(
        {
            "prediction_id": [f"{PREFIX}{number:x}" for number in range(6)] + ["nonsense"],
            "label": [1, 0, 1, 0, 1, 0, 1],
            "value": [1.5, 2, 3, 4, 5, 6, 7],
            "time": pd.to_datetime([1_700_000_060 + n for n in range(7)], unit="s"),
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_labels_from_a_file(run, tmp_path, suffix):
    """Every format's labels are joined, with value and time; what cannot be accepted is said; the same file again adds nothing."""
    path = tmp_path / f"labels{suffix}"
    frame = labels_frame()
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.assign(time=frame.time.astype(str)).to_json(path, orient="records", lines=True)
    status, output, _ = run("feedback", str(path), "--json")
    assert status == 0
    told = json.loads(output)
    assert (told["accepted"], told["refused"]) == (6, {"invalid_id": 1})
    (version,) = told["report"]["versions"]
    assert (version["rows"], version["labelled"], version["coverage"]) == (10, 6, 0.6)
    assert version["delay_p50_s"] == 62.5
    _, output, _ = run("feedback", str(path))
    assert "Accepted 6 events." in output
    assert "Refused 1 (invalid_id), such as event 6:" in output
    assert "12 events: 6 first labels, 6 repeated, 0 corrected, 0 completed; 2 refused" in output
    _, output, _ = run("sql", "SELECT sum(value) AS money, sum(label) AS n FROM outcomes", "--json")
    assert json.loads(output) == [{"money": 21.5, "n": 3.0}]


def test_columns_by_other_names(run, tmp_path):
    """A file's columns may be called anything; an id of digits alone stays text; text labels are names of classes."""
    path = tmp_path / "told.csv"
    path.write_text("reply,outcome\n0123456789012345678,yes\n00000000000000001,no\n00000000000000002,TRUE\n")
    status, output, _ = run("feedback", str(path), "--id-column", "reply", "--label-column", "outcome", "--json")
    assert status == 0
    assert json.loads(output)["accepted"] == 3
    assert json.loads(output)["report"]["unknown"] == 3
    _, output, _ = run("sql", "SELECT id, label_text, label FROM labels ORDER BY id", "--json")
    assert json.loads(output) == [
        {"id": "00000000000000001", "label_text": "no", "label": None},
        {"id": "00000000000000002", "label_text": None, "label": 1.0},
        {"id": "0123456789012345678", "label_text": "yes", "label": None},
    ]


def test_the_report_without_a_file(run):
    """It says how many predictions have a label: none yet."""
    status, output, _ = run("feedback")
    assert status == 0
    assert "late:3" in output
    assert "0.0%" in output


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.txt", "id\n", "expected a file that ends in .csv"),
        ("labels.csv", "a,label\n1,2\n", "expected a column id or prediction_id, got a, label"),
        ("labels.parquet", "id,label\n", "expected a readable file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(run, tmp_path, name, content, said):
    """The error names the file and what was expected."""
    (tmp_path / name).write_text(content)
    status, _, output = run("feedback", str(tmp_path / name))
    assert status == 1
    assert said in output
    assert name in output


def test_questions_are_answered(run, directory):
    """As a table, as CSV and as JSON, over what was answered a moment ago; masked columns are not there."""
    query = "SELECT version, count(*) AS n, count(label) AS labelled FROM outcomes GROUP BY version"
    status, output, _ = run("sql", query)
    assert status == 0
    assert output.split()[-3:] == ["3", "10", "0"]
    _, output, _ = run("sql", "SELECT id, score FROM predictions ORDER BY id", "--csv")
    rows = list(csv.reader(output.splitlines()))
    assert rows[0] == ["id", "score"]
    assert len(rows) == 11
    _, output, _ = run("sql", "SELECT score FROM predictions ORDER BY id DESC LIMIT 1", "--json")
    assert json.loads(output) == [{"score": None}]
    status, _, output = run("sql", "SELECT shop FROM predictions")
    assert status == 1
    assert "shop" in output
    assert "invalid_query" in output


def test_a_table_shows_as_many_rows_as_asked(run):
    """More are not hidden: it says that there are some."""
    _, _, output = run("sql", "SELECT id FROM predictions", "--limit", "3")
    assert output.count(PREFIX) == 3
    assert "Only the first 3 rows" in output


def test_nothing_is_converted_when_it_is_not_wanted(run, directory):
    """--no-refresh asks what is there."""
    _, output, _ = run("sql", "SELECT count(*) AS n FROM predictions", "--no-refresh", "--json")
    assert json.loads(output) == [{"n": 0}]
    assert not (directory / ".tiercel" / "predictions").exists()


def test_one_model_alone(run):
    """--model leaves out the others."""
    _, output, _ = run("sql", "SELECT count(*) AS n FROM predictions", "--model", "other", "--json")
    assert json.loads(output) == [{"n": 0}]


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM predictions", ""])
def test_wrong_sql_is_one_line(run, query):
    """DuckDB's words behind ours, and a stable code."""
    status, _, output = run("sql", query)
    assert status == 1
    assert "(invalid_query)" in output


def test_exports_work(run, tmp_path):
    """A query may write a file, as DuckDB's COPY does."""
    path = tmp_path / "out.parquet"
    status, _, _ = run("sql", f"COPY (SELECT id, score FROM predictions) TO '{path}' (FORMAT parquet)")
    assert status == 0
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(10,)]
