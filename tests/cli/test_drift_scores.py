"""What `tiercel drift` says of the score: which features moved it, on real attributions of what was served."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.explained import explained_project, population

from tiercel.cli.main import main


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return explained_project(tmp_path_factory.mktemp("moved") / "project")


def drift(directory, *arguments):
    result = CliRunner().invoke(main, ["drift", *arguments, "--project", str(directory)], catch_exceptions=False)
    return result.exit_code, result.output


def test_parts_add_up_to_what_the_scores_did(directory):
    """The named feature moved the mean margin most; parts add up; the mean scores beside it are those that were answered."""
    status, output = drift(directory, "late", "--json")
    (report,) = json.loads(output)["reports"]
    shift = report["score_shift"]
    assert (status, shift["against"], shift["n_rows"], shift["n_reference"]) == (0, "training", 300, 800)
    assert shift["features"][0]["name"] == "b"
    assert sum(each["shift"] for each in shift["features"]) == pytest.approx(shift["shift"], rel=1e-9)
    assert shift["shift"] == pytest.approx(shift["margin"] - shift["reference_margin"])
    margin = np.log(shift["score"] / (1 - shift["score"]))
    assert abs(margin - shift["margin"]) < 1  # the margin of a mean is not the mean of margins, but near it
    assert shift["is_certain"]
    assert shift["meaning"].startswith("The mean margin rose: +")
    assert "chiefly through b +" in shift["meaning"]


def test_a_person_reads_a_sentence_and_a_table(directory):
    """Below the drift of features: what moved the score, largest first, with what became of the values."""
    status, output = drift(directory, "late")
    assert status == 0
    assert "The mean margin rose: +" in output
    head = next(
        i for i, line in enumerate(output.splitlines()) if line.startswith("feature ") and "moved the mean" in line
    )
    first = output.splitlines()[head + 1]
    assert re.match(r"b +\+\d", first)
    assert "higher: median" in first


def test_it_can_be_left_out_or_asked_for(directory):
    """Without a MODEL it is not said unless asked for; with one it can be left out."""
    assert "moved the mean" not in drift(directory)[1]
    assert "moved the mean" in drift(directory, "--score-shift")[1]
    assert "moved the mean" not in drift(directory, "late", "--no-score-shift")[1]
    status, output = drift(directory, "late", "--test", "mmd", "--score-shift")
    assert (status, "--score-shift is of features one by one" in output) == (2, True)


def test_the_page_draws_the_bridge(directory, tmp_path):
    """--html has the sentence, the table and a bridge whose steps are the parts, the others summed."""
    page = tmp_path / "drift.html"
    assert drift(directory, "late", "--html", str(page))[0] == 0
    text = page.read_text()
    assert "What moved the score" in text
    (data,) = re.findall(r"const PLOTS = (\{.*?\});\n", text)
    bridge = json.loads(data)["0-shift"]
    assert bridge["from"][0] == "training"
    assert next(name for name, _ in bridge["parts"]) == "b"
    status, output = drift(directory, "late", "--json")
    expected = json.loads(output)["reports"][0]["score_shift"]
    assert bridge["from"][1] + sum(size for _, size in bridge["parts"]) == pytest.approx(expected["margin"])
    assert status == 0


def test_what_cannot_be_said_is_a_note_and_no_error(directory):
    """Against the period before, when nothing was served: a sentence. A version that cannot be opened: a note."""
    status, output = drift(directory, "late", "--against", "previous")
    assert (status, "no prediction with features was served in the period before" in output) == (0, True), output
    from tiercel.registry import Registry

    with Registry.for_state(directory / ".tiercel") as registry:
        registry.register("late", {"model.txt": b"1"}, registry.get("late", 1).facts)
    from tests.support.explained import serve

    class Model:
        @staticmethod
        def predict_proba(rows):
            return np.full((len(rows), 2), 0.5)

    serve(directory, Model, population(30, 3)[0], version=3)
    status, output = drift(directory, "late:3")
    assert status == 0, output
    assert "late version 3: what moved its score cannot be said: Expected golden.msgpack" in output
