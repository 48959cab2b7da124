"""`tiercel reasons check`, and a version that was registered with a policy."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main
from tiercel.errors import ReasonPolicyError, SchemaMismatchError
from tiercel.explain.version_files import load_explanation_files
from tiercel.models.golden import Golden

POLICY = """
version = 1
excluded = ["staff"]
[insufficient]
code = "R0"
text = { en = "Nothing.", nl = "Niets." }
[[reasons]]
code = "R1"
text = { en = "The orders.", nl = "De bestellingen." }
features = ["n_orders", "mean_amount", "plan"]
missing = { code = "R1M", text = { en = "No orders known.", nl = "Geen bestellingen bekend." } }
[[reasons]]
code = "R2"
text = { en = "The amount.", nl = "Het bedrag." }
features = ["amount"]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def directory(template, tmp_path):
    shutil.copytree(template, tmp_path / "project")
    (tmp_path / "project" / "reasons.toml").write_text(POLICY)
    (tmp_path / "project" / "tiercel.toml").write_text(
        '[project]\nname = "shop"\n[models.fraud.explain]\npolicy = "reasons.toml"\n'
    )
    return tmp_path / "project"


def run(directory, *arguments):
    result = CliRunner().invoke(main, ["reasons", "check", *arguments], env={"TIERCEL_PROJECT": str(directory)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_policy_is_checked_against_its_model(directory):
    """The table has every code in the language asked for, and the model that the policy fits is named."""
    status, output = run(directory, "--model", "fraud", "--locale", "nl-BE")
    assert status == 0, output
    for text in (
        "R1M",
        "Geen bestellingen bekend.",
        "n_orders, mean_amount, plan",
        "staff",
        "fits fraud version 1",
        "nl",
    ):
        assert text in output
    status, output = run(directory, str(directory / "reasons.toml"), "--service", "checkout", "--json")
    assert status == 0, output
    found = json.loads(output)
    assert found["fits"] == "service checkout"
    assert len(found["digest"]) == 64
    assert [each["code"] for each in found["policy"]["reasons"]] == ["R1", "R2"]


def test_a_file_alone_is_checked_without_a_project(tmp_path):
    """Writing a policy needs no project yet."""
    (tmp_path / "mine.toml").write_text(POLICY)
    status, output = run(tmp_path / "nowhere", str(tmp_path / "mine.toml"))
    assert status == 0, output
    assert "mine.toml is a reason policy" in output


def test_mistakes_end_with_their_code(directory):
    """A feature without its place, a broken file and a model without a policy say what to do, and fail."""
    (directory / "reasons.toml").write_text(POLICY.replace('features = ["amount"]', 'features = ["amounts"]'))
    status, output = run(directory, "--model", "fraud")
    assert status == 1
    assert "none has 'amount'" in output.replace("\n", " ")
    assert "feature_without_reason" in output
    (directory / "reasons.toml").write_text("version = 1\n=")
    status, output = run(directory, "--model", "fraud@champion")
    assert status == 1
    assert "policy_unreadable" in output
    for arguments, message in (((), "FILE"), (("--model", "other"), "names no reason policy for 'other'")):
        status, output = run(directory, *arguments)
        assert status == 2
        assert message in output.replace("\n", " ")


def test_versions_are_registered_with_the_projects_policy(directory):
    """The file that tiercel.toml names, and rows of the training set, become files of the version; another policy another."""
    with Project(directory) as project:
        version, _, training_set = projects.train(project)
        loaded = load_explanation_files(
            project.registry.load_artifacts(version), version.facts.signature, project.settings.model("fraud").explain
        )
        assert loaded.policy.reasons[0].missing.text("nl") == "Geen bestellingen bekend."
        known = {row.tobytes() for row in training_set.X}
        assert len(loaded.reference_rows) == 100
        assert {row.tobytes() for row in loaded.reference_rows} <= known
        again, _, _ = projects.train(project)
        assert again.reused
        (directory / "reasons.toml").write_text(POLICY.replace("The amount.", "The amount of money."))
        other, _, _ = projects.train(project)
        assert other.version == version.version + 1


def test_a_policy_that_does_not_fit_registers_nothing(directory):
    """A mistake is found before anything is stored, whether the policy is a file, a path or bytes."""
    with Project(directory) as project:
        training_set = project.get_historical_features(projects.labels(), "checkout", label_columns=["label"])
        model = projects.train(project)[1]
        before = project.registry.generation()
        wrong = POLICY.replace('features = ["amount"]', 'features = ["amounts"]')
        (directory / "wrong.toml").write_text(wrong)
        for reasons in (wrong.encode(), "wrong.toml", directory / "wrong.toml", "nowhere.toml"):
            with pytest.raises(ReasonPolicyError):
                project.register(model, name="fraud", training_set=training_set, reasons=reasons, measure=False)
        with pytest.raises(SchemaMismatchError, match="reference rows"):
            project.register(
                model, name="fraud", training_set=training_set, reference_rows=np.zeros((3, 2)), measure=False
            )
        assert project.registry.generation() == before
        version = project.register(
            model, name="fraud", training_set=training_set, reference_rows=training_set.X[:7], measure=False
        )
        loaded = load_explanation_files(project.registry.load_artifacts(version), version.facts.signature)
        assert (len(loaded.reference_rows), loaded.reference.origin) == (7, "given")


def test_a_file_without_rows_has_no_reference_set(directory):
    """Rows that registering makes up are nobody to compare with: golden rows count only where the caller brought them."""
    with Project(directory) as project:
        model, training_set = projects.train(project)[1:]
        data = model.booster_.model_to_string().encode()
        for golden_rows, n_rows in ((None, None), (training_set.X[:9], 9)):
            version = project.register(
                data, name="file", feature_names=training_set.feature_names, golden_rows=golden_rows, measure=False
            )
            artifacts = project.registry.load_artifacts(version)
            golden = Golden.from_bytes(artifacts["golden.msgpack"]).rows
            loaded = load_explanation_files(artifacts, version.facts.signature, golden_rows=golden)
            assert (None if loaded.reference is None else len(loaded.reference_rows)) == n_rows
            assert ("no reference set" in loaded.why_no_reference) == (n_rows is None)
