"""`tiercel explain --global`: champion and challenger on the same rows, for a person, a program, and as a page."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.explained import POLICY, explained_project, population

from tiercel.cli.main import main
from tiercel.insight.versions import open_version
from tiercel.project import Project

TOML = """
[models.late.value.segments]
size = "CASE WHEN c > 0 THEN 'large' ELSE 'small' END"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return explained_project(tmp_path_factory.mktemp("moves") / "project", toml=TOML, policy=POLICY)


def explain(directory, *arguments):
    result = CliRunner().invoke(main, ["explain", *arguments, "--project", str(directory)], catch_exceptions=False)
    return result.exit_code, result.output


def test_figures_are_those_of_the_rows_that_were_asked(directory):
    """Importances are the mean sizes of the explainer's own attributions of the recorded rows; pairs are exact."""
    status, output = explain(directory, "late", "--global", "--json")
    report = json.loads(output)
    assert (status, [view["version"] for view in report["views"]]) == (0, [1, 2])
    first, second = report["views"]
    assert (first["source"], first["n_rows"], first["method"], first["output"]) == ("predictions", 300, "exact", "1")
    rows = population(300, 7, b=1.5)[0]
    with Project(directory) as project:
        version = open_version(project.settings, project.registry, project.registry.get("late", 1))
    values = version.rows.explain(rows).values
    found = {each["name"]: each for each in first["features"]}
    for i, name in enumerate(("a", "b", "c")):
        assert found[name]["mean_abs"] == pytest.approx(np.abs(values[:, i]).mean())
    assert {each["name"] for each in first["reasons"]} == {"R01", "R02"}
    assert first["is_exact"]
    assert (first["interactions"][0]["first"], first["interactions"][0]["second"]) == ("a", "b")
    assert next(each for each in second["features"] if each["name"] == "c")["mean_abs"] == 0
    churn = report["churn"]
    assert (churn["champion"], churn["challenger"], churn["n_rows"]) == (1, 2, 300)
    assert {each["segment_value"] for each in report["fairness"]["groups"]} == {"large", "small"}


def test_a_person_reads_both_versions_and_what_would_change(directory):
    """Tables of features and reasons with a column per version, pairs, churn and decisions by segment."""
    status, output = explain(directory, "late", "--global")
    assert status == 0, output
    for words in ("mean size v1", "mean size v2", "a and b together", "Features that act together of version 1",
                  "Version 2 instead of 1: ", "size = large", "Decisions at 0.5"):  # fmt: skip
        assert words in output, words


def test_values_of_a_masked_feature_are_neither_printed_nor_plotted(directory, tmp_path):
    """Its name and how much it moves scores are shown; its values are not, be the rows served ones or those of training."""
    pytest.importorskip("plotly")
    masked = shutil.copytree(directory, tmp_path / "project")
    (masked / "tiercel.toml").write_text(f'{TOML}\n[monitor]\ndrop_columns = ["b"]\n')
    page = tmp_path / "moves.html"
    for is_empty in (False, True):
        if is_empty:
            shutil.rmtree(masked / ".tiercel" / "predictions")  # it is made again, without the column
        status, output = explain(masked, "late", "--global", "--json", "--html", str(page))
        report = json.loads(output)
        assert status == 0
        for view in report["views"]:
            assert view["source"] == ("training" if is_empty else "predictions")
            assert "b" in {each["name"] for each in view["features"]}
            assert "b" not in {each["feature"] for each in view["dependence"]}
            assert "b" not in {each["partner"] for each in view["dependence"]}
            assert "values of b is not shown" in view["notes"][-1]
        assert "b: what its value does" not in page.read_text()
        assert "a: what its value does" in page.read_text()


def test_one_version_is_shown_by_itself(directory):
    """NAME:VERSION compares with nobody; rows can be bounded; without traffic it is the training set's."""
    report = json.loads(explain(directory, "late:1", "--global", "--rows", "50", "--json")[1])
    assert (len(report["views"]), report["churn"]) == (1, None)
    assert (report["views"][0]["n_rows"], report["views"][0]["n_available"]) == (50, 300)
    report = json.loads(explain(directory, "late:2", "--global", "--json")[1])
    view = report["views"][0]
    assert (view["source"], view["n_rows"], view["n_available"]) == ("training", 800, 3_000)
    assert "Rows are of the training set, because 0 rows were served in this time." in view["notes"]


def test_the_page_needs_nothing_else(directory, tmp_path):
    """One file: plots for features, reasons and each dependence, tables beside them, and no address but its own."""
    page = tmp_path / "moves.html"
    status, output = explain(directory, "late", "--global", "--html", str(page))
    assert (status, f"Report with plots: {page}" in output) == (0, True)
    text = page.read_text()
    (data,) = re.findall(r"const PLOTS = (\{.*?\});\n", text)
    plots = json.loads(data)
    assert set(plots) >= {"features", "reasons", "dependence-0"}
    assert [each["name"] for each in plots["features"]["series"]] == ["version 1", "version 2"]
    assert "".join(re.findall(r"<script[^>]*src=|<link[^>]*href=", text)) == ""
    assert "What moves late" in text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("late", "--global", "-k", "2"), 2, "are of one prediction"),
        (("late", "--global", "--entity", "a=1"), 2, "are of one prediction"),
        (("late", "--html", "x.html"), 2, "are of --global"),
        (("late", "--rows", "50"), 2, "are of --global"),
        (("late", "--global", "--output", "maybe"), 1, "unknown_output"),
        (("nobody", "--global"), 1, "model_not_found"),
    ],
)
def test_what_cannot_be_asked_is_said(directory, arguments, status, words):
    """Options that do not go together, a class or a model that there is none of."""
    found, output = explain(directory, *arguments)
    assert (found, words in output) == (status, True), output
