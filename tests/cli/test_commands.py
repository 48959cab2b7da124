"""The command line: what a person sees, what a program reads, and one clear line when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import tomllib

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from tests.models.trained import gemm
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def directory(template, tmp_path):
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(directory):
    """Run a command on the project; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, [*arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def as_json(run, *arguments):
    status, output = run(*arguments, "--json")
    assert status == 0, output
    return json.loads(output)


def test_init_says_a_command_that_a_shell_takes(tmp_path):
    """A directory with spaces is quoted in the command to go on with."""
    directory = tmp_path / "my shöp"
    result = CliRunner().invoke(main, ["init", str(directory)])
    assert f"tiercel apply --project '{directory}'" in result.output


@pytest.mark.parametrize("name", ["shop", 'my "shöp"', "back\\slash"])
def test_init_names_the_project_after_its_directory(tmp_path, monkeypatch, name):
    """Whatever it is called, and where it is the current directory as well."""
    assert CliRunner().invoke(main, ["init", str(tmp_path / name)]).exit_code == 0
    assert tomllib.loads((tmp_path / name / "tiercel.toml").read_text())["project"]["name"] == name
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert CliRunner().invoke(main, ["init", "."]).exit_code == 0
    assert tomllib.loads((tmp_path / "here" / "tiercel.toml").read_text())["project"]["name"] == "here"


def test_init_makes_a_project_once(tmp_path):
    """A new directory becomes a project; one with files in it is left alone."""
    for _ in range(2):
        result = CliRunner().invoke(main, ["init", str(tmp_path / "new")])
    assert (tmp_path / "new" / "features.py").exists()
    assert (tmp_path / "new" / "tiercel.toml").exists()
    assert result.exit_code == 1
    assert "new or empty directory" in result.output


def test_apply_says_what_changed(run, directory):
    """The second apply changes nothing; an edit is named."""
    assert "Nothing changed" in run("apply")[1]
    path = directory / "features.py"
    path.write_text(path.read_text() + '\nextra = FeatureService("extra", features=[shop_facts])\n')
    assert as_json(run, "apply")["added"] == ["service extra"]


def test_materialize_and_roll_back(run):
    """Publishing names the base and its rows; the base before can be put back."""
    assert as_json(run, "materialize")[0]["base"] == "base-000002.mdb"
    assert "base-000003.mdb" in run("materialize", "checkout", "--as-of", "2026-06-01")[1]
    assert "base-000002.mdb" in run("rollback-base", "checkout")[1]
    assert "base-000001.mdb" in run("rollback-base", "checkout", "--to", "base-000001.mdb")[1]


def test_training_set(run, tmp_path):
    """Labels in, a Parquet file with the features as they were known out."""
    pq.write_table(projects.labels(50), tmp_path / "labels.parquet")
    out = tmp_path / "training.parquet"
    facts = as_json(run, "training-set", "checkout", "--labels", str(tmp_path / "labels.parquet"), "--output", str(out))
    assert facts["n_rows"] == 50
    table = pq.read_table(out)
    assert table.num_rows == 50
    before = out.read_bytes(), (tmp_path / "labels.parquet").read_bytes()
    for place, message in (("labels.parquet", "labels' file"), ("absent/training.parquet", "Expected a directory")):
        output = tmp_path / place
        status, said = run(
            "training-set", "checkout", "--labels", str(tmp_path / "labels.parquet"), "--output", str(output)
        )
        assert status == 2
        assert message in said
    assert (out.read_bytes(), (tmp_path / "labels.parquet").read_bytes()) == before
    assert {"n_orders", "plan", "staff", "label"} <= set(table.column_names)


def test_registry_commands(run, directory, tmp_path):
    """A file becomes a version, is promoted, rolled back, and every step is in the history."""
    with Project(directory) as project:
        _, model, training_set = projects.train(project, seed=3, colsample_bytree=0.5)
    model.booster_.save_model(tmp_path / "model.txt")
    pq.write_table(training_set.to_arrow(), tmp_path / "training.parquet")
    arguments = ["register", "fraud", str(tmp_path / "model.txt"), "--service", "checkout", "--metric", "auc=0.75",
                 "--param", "depth=3", "--tag", "team=risk", "--training-data", str(tmp_path / "training.parquet")]  # fmt: skip
    version = as_json(run, *arguments)
    assert version["version"] == 3
    assert version["metrics"] == {"auc": 0.75}
    assert version["hyperparameters"]["depth"] == 3
    assert version["snapshot"]["n_rows"] == 600
    assert version["signature"]["features"] == list(training_set.feature_names)
    assert version["engine"] == "forest"
    assert "now champion" in run("promote", "fraud", "3", "--reason", "better")[1]
    assert "back on version 1" in run("rollback", "fraud")[1]
    assert [v["status"] for v in as_json(run, "models", "fraud")] == ["champion", "none", "none"]
    assert "fraud" in run("models")[1]
    events = as_json(run, "history", "fraud")
    assert [event["action"] for event in events].count("version.created") == 3
    assert any(event["reason"].startswith("better") for event in events)
    assert "alias.set" in run("history")[1]


def test_models_say_what_they_cost(run, directory, tmp_path):
    """Registering measures; tier, quantiles, load time and memory are shown to people and printed for programs."""
    path = tmp_path / "model.onnx"
    path.write_bytes(gemm(5, 1))
    status, output = run("register", "costed", str(path), "--service", "checkout", "--tier", "near-realtime")
    assert status == 0, output
    assert "tier near-realtime: asked for; p99" in output
    (found,) = as_json(run, "models", "costed")
    assert found["tier"] == "near-realtime"
    assert found["profile"]["read"]["p50_us"] > 0
    assert found["profile"]["total"]["p99_us"] < 5000
    status, output = run("models", "costed")
    for part in ("p50 / p99 / p99.9", "load time", "memory", "near-realtime", "rows at a time", "asked for"):
        assert part in output
    (unmeasured,) = as_json(run, "models", "fraud")
    assert (unmeasured["tier"], unmeasured["profile"]) == (None, None)
    assert "not measured here" in run("models")[1]
    made = as_json(run, "register", "costed", str(path), "--service", "checkout", "--no-measure")
    assert made["version"] == 2
    assert made["profile"] is not None  # of the same files
    assert made["tier"] == "realtime"
    assert run("register", "costed", str(path), "--tier", "fast")[0] == 2


def test_one_version_is_told_to_a_person(run, directory, tmp_path):
    """All facts and figures of a version stand in words and units, and none as the JSON that programs get."""
    path = tmp_path / "model.onnx"
    path.write_bytes(gemm(5, 1))
    arguments = ["--service", "checkout", "--metric", "auc=0.75", "--param", 'grid={"depth": [3, 4], "bagged": true}']
    for text in ("first", "second"):
        status, output = run("register", "told", str(path), *arguments, "--description", text, "--tag", "team=risk")
        assert status == 0, output
    status, output = run("models", "told:2")
    assert status == 0, output
    lines = {line[:18].strip(): line[18:].strip() for line in output.splitlines()}
    assert lines["description"] == "second"
    assert lines["metrics"] == "auc 0.75"
    assert lines["tags"] == "team risk"
    assert lines["hyperparameters"] == "grid (bagged yes, depth (3, 4))"
    assert lines["5 features"] == "n_orders, mean_amount, plan, amount, staff"
    assert lines["trained on"] == "-"  # nobody said on what
    assert "0 rows" not in run("models", "told")[1]
    assert lines["predicts"] == "regression"
    assert lines["reads"].startswith("feature service checkout (")
    assert "model.onnx (" in lines["files"]
    assert re.fullmatch(r"with onnxruntime \S+ on 20,480 rows, allowed .*: no difference", lines["compared"])
    assert re.fullmatch(r"\d+\.\d{3} / \d+\.\d{3} / \d+\.\d{3} ms", lines["scoring one row"])
    assert re.fullmatch(r"[\d,]+ predictions, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC on .*", lines["measured"])
    assert re.fullmatch(
        r"64 +\d+\.\d{3} ms +\d+\.\d{3} ms +\d+\.\d\d us",
        next(line.strip() for line in output.splitlines() if line.strip().startswith("64 ")),
    )
    assert not set('{}[]"') & set(output)
    assert "version 1" not in output
    assert "told version 1" in run("models", "told:1")[1]
    assert [each["version"] for each in as_json(run, "models", "told:2")] == [2]
    assert "Models" in run("models", "told")[1]
    assert "(alias_not_found)" in run("models", "told@champion")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["materialize", "none"], "(service_not_found)"),
        (["promote", "none", "1"], "(model_not_found)"),
        (["promote", "fraud", "9"], "(version_not_found)"),
        (["rollback", "fraud"], "(alias_not_found)"),
        (["models", "Not A Name"], "(invalid_name)"),
        (["apply", "--project", "nowhere"], "tiercel init"),
        (["register", "fraud", __file__], "(unsupported_model)"),
        (["predict", "fraud", "--feature", "a=1", "--url", "http://127.0.0.1:9"], "(connection_failed)"),
    ],
)
def test_errors_are_one_line(run, arguments, message):
    """An error says what is wrong and its code, without a traceback, and the status is 1."""
    status, output = run(*arguments)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


def test_pickles_are_refused(run, tmp_path):
    """A pickle is not opened, whatever it is called."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.")
    status, output = run("register", "fraud", str(path))
    assert status == 1
    assert "(unsafe_model)" in output


@pytest.mark.parametrize(
    "arguments", [["register", "m", __file__, "--metric", "auc"], ["register", "m", __file__, "--metric", "auc=x"]]
)
def test_misspelt_options(run, arguments):
    """NAME=VALUE options say how they are written."""
    status, output = run(*arguments)
    assert status == 2
    assert "auc" in output


def test_predict_asks_a_server(run, directory):
    """`tiercel predict` sends one request and prints the score and what was missing."""
    with projects.running_server(directory) as (url, _):
        arguments = ["predict", "fraud", "--url", url, "--entity", "customer_id=17", "--entity", "shop=a",
                     "--entity", "country=nl", "--feature", "amount=0.5"]  # fmt: skip
        status, output = run(*arguments)
        assert status == 0
        assert "fraud version 1" in output
        assert "n_orders" in output
        assert as_json(run, *arguments)["version"] == 1


def test_serve_refuses_a_vertex_port_that_is_none(run, monkeypatch):
    """A variable of Vertex AI that makes no sense is told in one line, before anything is bound or started."""
    monkeypatch.setenv("AIP_HTTP_PORT", "99999")
    status, output = run("serve")
    assert status == 1
    assert (
        output
        == "error: Expected the environment variable AIP_HTTP_PORT to be a port, got '99999' (invalid_definition)\n"
    )
