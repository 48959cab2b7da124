"""What stands between a version and being champion: how many decisions it would explain otherwise."""

from __future__ import annotations

import json
import pickle

import pytest
from click.testing import CliRunner
from tests.monitor.recorders import FEATURES
from tests.support.explained import POLICY, explained_project, files_of, population, register

from tiercel import Project
from tiercel.cli.main import main
from tiercel.errors import InvalidFactsError, InvalidNameError, PromotionRefusedError, RegistryConflictError, TableError
from tiercel.registry import Registry

LIMIT = "[models.late.promotion]\nmax_reason_churn = 0.2\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Version 2 explains nearly all otherwise, 3 is the champion with a tree more, 4 cannot be explained."""
    directory = explained_project(tmp_path_factory.mktemp("promoted") / "project", toml=LIMIT, policy=POLICY)
    with Registry.for_state(directory / ".tiercel") as registry:
        register(registry, n_trees=21, policy=POLICY)
        registry.register("late", {"model.txt": b"1"}, registry.get("late", 1).facts)
    return directory


@pytest.fixture
def project(directory):
    """The project with version 1 as champion, whatever the test before did."""
    with Project(directory) as project:
        yield project
        project.registry.promote("late", 1, actor="a")


def test_churn_is_measured_on_what_was_served(project):
    """The challenger that ignores `c` never names its reason; decisions differ too. Nobody is compared with himself."""
    churn = project.reason_churn("late", "challenger")
    assert (churn.champion, churn.challenger, churn.source, churn.n_rows) == (1, 2, "predictions", 300)
    assert churn.share > 0.2
    assert churn.n_decisions > 0
    lost = {each.code: each.n_lost for each in churn.changes}
    assert lost["R02"] > 0
    assert project.reason_churn("late", "champion") is None
    assert project.reason_churn("late", 3).share < 0.2


def test_too_much_churn_is_refused_and_nothing_changes(project):
    """The message has the limit, what was found, and what to do; the alias stays."""
    with pytest.raises(PromotionRefusedError, match=r"at most 20\.0% .* got more: .*% of 300 rows") as refused:
        project.promote("late", 2)
    assert "--override" in str(refused.value)
    assert "champion" in project.registry.get("late", 1).aliases
    assert "challenger" in project.promote("late", 2, alias="challenger").aliases  # only champions are judged


@pytest.mark.parametrize("alias", ["Champion", "CHAMPION", "previous"])
def test_no_spelling_and_no_rollback_gets_past_the_limit(project, alias):
    """Aliases are kept in lower case, and a rollback makes `previous` the champion: both are judged alike."""
    before = project.registry.aliases("late")
    with pytest.raises(PromotionRefusedError, match=r"at most 20\.0%"):
        project.promote("late", 2, alias=alias)
    assert project.registry.aliases("late") == before


def test_what_keeps_to_the_limit_is_promoted_with_its_figure(project):
    """Little churn passes and stands in the history beside the reason."""
    assert "champion" in project.promote("late", 3, reason="one more tree").aliases
    event = [
        each for each in project.registry.history("late") if each.action == "alias.set" and each.alias == "champion"
    ][-1]
    assert event.reason.startswith("one more tree | ")
    assert "of 300 rows that were asked get other reasons" in event.reason


def test_an_override_needs_a_reason_and_is_noted(project):
    """Never a silent bypass."""
    with pytest.raises(InvalidFactsError, match="Expected a reason to override with"):
        project.promote("late", 2, override=True)
    project.promote("late", 2, override=True, reason="c is no longer collected")
    event = [each for each in project.registry.history("late") if each.alias == "champion"][-1]
    assert event.reason.startswith("c is no longer collected | overridden: Expected at most 20.0%")


def test_what_cannot_be_checked_is_refused(project):
    """A version that nobody can explain does not pass a limit on explanations."""
    with pytest.raises(PromotionRefusedError, match="cannot be checked: Expected golden"):
        project.promote("late", 4)


def test_a_damaged_table_is_overridden_and_in_nobodys_way_without_a_limit(directory, project, monkeypatch):
    """What was served cannot be read: a limit refuses that, an override gets past it, and the command only says it."""

    def convert(*_, **__):
        raise TableError("Expected a whole table, got half of one")

    monkeypatch.setattr("tiercel.monitor.predictions.PredictionTable.convert", convert)
    with pytest.raises(PromotionRefusedError, match="cannot be checked: Expected a whole table"):
        project.promote("late", 3)
    assert "champion" in project.promote("late", 3, override=True, reason="the disk was full").aliases
    project.registry.promote("late", 1, actor="a")
    told = CliRunner().invoke(
        main, ["promote", "late", "3", "--override", "--reason", "disk", "--project", str(directory)]
    )
    assert (told.exit_code, "Expected a whole table" in told.output) == (0, True), told.output


def test_a_champion_that_changed_meanwhile_is_a_conflict(project):
    """Evidence against one champion does not promote over another."""
    churn = project.reason_churn("late", 3)
    expected = project.registry.promote

    def promote(*args, **kwargs):
        expected("late", 4, actor="somebody else")
        return expected(*args, **kwargs)

    project.registry.promote = promote
    try:
        with pytest.raises(RegistryConflictError):
            project.promote("late", 3, churn=churn)
    finally:
        project.registry.promote = expected


def test_the_command_says_it(directory, project):
    """`tiercel promote` shows the churn, refuses with status 1, and promotes over it when told to."""
    run = lambda *arguments: CliRunner().invoke(main, ["promote", "late", *arguments, "--project", str(directory)])  # noqa: E731
    refused = run("2")
    assert (refused.exit_code, "promotion_refused" in refused.output) == (1, True), refused.output
    told = run("2", "--override", "--reason", "tried")
    assert (told.exit_code, "late version 2 is now champion." in told.output) == (0, True), told.output
    assert "get other reasons" in told.output
    project.registry.promote("late", 1, actor="a")
    found = json.loads(run("3", "--json").output)
    assert found["reason_churn"]["share"] < 0.2


def test_without_a_limit_nothing_is_compared_or_refused(directory, tmp_path):
    """No setting: a promotion takes no time and no version is in its way."""
    with Project(directory) as project:
        (tmp_path / "tiercel.toml").write_text(f'[state]\npath = "{directory / ".tiercel"}"\n')
    with Project(tmp_path) as project:
        project.reason_churn = lambda *_, **__: pytest.fail("compared")
        assert "champion" in project.promote("late", 2).aliases
        project.promote("late", 1)


def test_without_a_champion_the_limit_is_said_to_be_unchecked(directory, project, caplog):
    """A removed champion leaves nobody to compare with: that passes, and result, history and log say that it was not checked."""
    project.registry.remove_alias("late", "champion", actor="a")
    with caplog.at_level("WARNING", "tiercel"):
        project.promote("late", 2, reason="again")
    event = [each for each in project.registry.history("late") if each.alias == "champion"][-1]
    assert event.reason.startswith("again | max_reason_churn was not checked")
    assert event.reason.endswith("its champion was removed")
    assert "late version 2: max_reason_churn was not checked" in caplog.text
    project.registry.remove_alias("late", "champion", actor="a")
    told = CliRunner().invoke(main, ["promote", "late", "3", "--project", str(directory)])
    assert (told.exit_code, "max_reason_churn was not checked" in told.output) == (0, True), told.output
    project.registry.remove_alias("late", "champion", actor="a")
    told = CliRunner().invoke(main, ["promote", "late", "3", "--project", str(directory), "--json"])
    assert "not checked" in json.loads(told.stdout)["note"]


def test_a_registered_version_whose_alias_is_refused_says_both(project):
    """The version stays; the error has its number, says that only the alias was refused, and what to do next."""
    _, _, model = files_of(policy=POLICY, change=lambda rows, _: (rows[:, 0] > 0).astype(int))
    rows = population(64, 5)[0]
    options = {"name": "late", "feature_names": FEATURES, "golden_rows": rows, "reasons": POLICY, "measure": False}
    n_before = len(project.registry.list_versions("late"))
    with pytest.raises(PromotionRefusedError, match=r"is registered; only its alias 'champion' was refused") as refused:
        project.register(model, alias="Champion", **options)
    number = refused.value.registered
    assert number == n_before + 1 == len(project.registry.list_versions("late"))
    assert f"late version {number} is registered" in str(refused.value)
    assert f"`tiercel promote late {number} --override --reason ...`" in str(refused.value)
    assert project.registry.aliases("late")["champion"] == 1
    assert pickle.loads(pickle.dumps(refused.value)).registered == number
    with pytest.raises(InvalidNameError):
        project.register(model, alias="no alias!", **{**options, "name": "unheard"})
    assert "unheard" not in {each.name for each in project.registry.list_models()}
