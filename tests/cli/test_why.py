"""`tiercel why`: the stages of one prediction, and the one that is out of line."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from tests.monitor.recorders import PREFIX, SIGNATURE, make_recorder, rows_of

from tiercel.cli.main import main
from tiercel.models.profile import CostProfile, ProfileStore, Quantiles, this_host
from tiercel.registry import Registry, VersionFacts
from tiercel.types import Tier, TrainingSnapshot

USUAL_NS = (1_000, 2_000, 3_000, 4_000, 5_000)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A project with a journal: 1 is usual, 2 slow in its score, 3 degraded, 4 of a version that answered once.

    5 and 6 are ready answers; 7 is explained, and 8 as slow in its reply, for no known reason.
    """
    directory = tmp_path_factory.mktemp("why")
    (directory / "tiercel.toml").write_text("")
    recorder = make_recorder(directory / ".tiercel", worker=2)
    rows, scores = rows_of(1)
    plan = recorder.for_plan("late", 3, SIGNATURE, base_name="base-000007.mdb", tier=Tier.NEAR_REALTIME)
    ready = recorder.for_plan("ready", 7, SIGNATURE)
    common = {"received_us": 1_700_000_000_000_000, "oldest_age_us": 2_500_000}
    plan.add(rows, scores, number=1, stage_ns=USUAL_NS, total_ns=15_000, flags=1, **common)
    plan.add(rows, scores, number=2, stage_ns=(*USUAL_NS[:3], 404_000, 5_000), total_ns=415_000, **common)
    flags = 4 | 8 | 1 << 8 | 1 << 12
    plan.add(rows, scores, number=3, stage_ns=USUAL_NS, total_ns=15_000, flags=flags, **common)
    for number, rung, reason in ((5, 2, 2), (6, 3, 3)):
        flags = 4 | rung << 8 | reason << 12
        ready.add(rows, scores, number=number, stage_ns=USUAL_NS, total_ns=15_000, flags=flags, **common)
    plan.add(rows, scores, number=10, stage_ns=USUAL_NS, total_ns=15_000, repeat=995)
    with_explanation = {"request": b'{"explain": "full"}', "request_kind": 1}
    late = (*USUAL_NS[:4], 305_000)
    plan.add(rows, scores, number=7, stage_ns=late, total_ns=315_000, **with_explanation, **common)
    plan.add(rows, scores, number=8, stage_ns=late, total_ns=315_000, **common)
    recorder.for_plan("late", 4, SIGNATURE).add(rows, scores, number=4, stage_ns=USUAL_NS, total_ns=15_000)
    recorder.close()
    return directory


@pytest.fixture
def why(directory):
    """Run the command; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(
            main, ["why", *arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def test_the_stage_out_of_line_is_named(why):
    """A slow score stands in the table beside its quantiles and in a sentence with its ratio."""
    status, output = why(PREFIX + "2")
    assert status == 0
    assert "late version 3, near-realtime, base-000007.mdb" in output
    assert (
        "received 2023-11-14 22:13:20.000000 UTC, by worker 2 on the general path, 1 row, oldest value 2.5 s old"
        in output
    )
    (line,) = [line.split() for line in output.splitlines() if line.startswith("score ") and " is " not in line]
    assert line[1] == "404.0"
    assert float(line[2]) == pytest.approx(4, rel=0.02)
    assert "p50 (of 1,000 requests)" in output
    assert "score is out of line: 404.0 µs, 10" in output
    assert "100% of all time beyond" in output


def test_nothing_out_of_line_is_said(why):
    """A usual prediction is said to be one."""
    status, output = why(PREFIX + "1")
    assert (status, "No stage is out of line." in output) == (0, True)
    assert "compiled path" in output


def test_too_few_requests_are_said(why):
    """A version that hardly answered gives no verdict, and it is said why."""
    assert "Nothing to judge by yet: 1 requests" in why(PREFIX + "4")[1]


def test_who_answered_instead_is_said(why):
    """A degraded answer says who gave it, why, and in whose share."""
    output = why(PREFIX + "3")[1]
    assert "answered by fallback instead of the model, because: deadline" in output
    assert "in the challenger's share" in output


def test_an_explanation_is_no_slow_reply(why):
    """What was explained says so and is not out of line; where the record cannot tell, that is said."""
    output = why(PREFIX + "7")[1]
    assert "reply (with the explanation)  305.0" in output
    assert "No other stage is out of line" in output
    assert json.loads(why(PREFIX + "7", "--json")[1])["explained"] is True
    output = why(PREFIX + "8")[1]
    assert "reply is out of line" in output
    assert "Its record does not say whether it was explained" in output


def test_programs_get_the_same(why):
    """--json holds the flags, every stage with its quantiles, and the stage out of line."""
    status, output = why(PREFIX + "2", "--json")
    found = json.loads(output)
    assert (status, found["id"], found["model"], found["version"], found["tier"]) == (
        0, PREFIX + "2", "late", 3, "near-realtime"
    )  # fmt: skip
    assert [stage["stage"] for stage in found["stages"]] == ["parse", "read", "compute", "score", "reply", "total"]
    assert found["stages"][3]["us"] == 404.0
    assert found["stages"][3]["counted"]["p50_us"] == pytest.approx(4, rel=0.02)
    assert (found["out_of_line"]["stage"], found["out_of_line"]["against"]) == ("score", "counted")
    assert json.loads(why(PREFIX + "3", "--json")[1])["degraded"] == "fallback"
    assert json.loads(why(PREFIX + "1", "--json")[1])["out_of_line"] is None


@pytest.mark.parametrize(
    ("number", "by", "reason"), [("5", "last_score", "overloaded"), ("6", "default", "unavailable")]
)
def test_instead_of_whom_is_said_where_the_record_knows(why, number, by, reason):
    """A last score and a default stand in for the version whose name their record has."""
    assert f"answered by {by} instead of ready:7, because: {reason}" in why(PREFIX + number)[1]
    found = json.loads(why(PREFIX + number, "--json")[1])
    assert (found["degraded"], found["instead_of"], found["degrade_reason"]) == (by, "ready:7", reason)


def test_instead_of_whom_is_not_guessed(why):
    """A fallback's record names the fallback only: it says so, and that the reply said more. Others have nobody to name."""
    assert "which model that was its reply said, its record does not" in why(PREFIX + "3")[1]
    assert json.loads(why(PREFIX + "3", "--json")[1])["instead_of"] is None
    assert json.loads(why(PREFIX + "1", "--json")[1])["instead_of"] is None
    assert "instead of" not in why(PREFIX + "1")[1]


@pytest.mark.parametrize(
    ("prediction_id", "message", "code"),
    [
        ("nonsense", "17 to 32 hexadecimal digits", "invalid_request"),
        (PREFIX + "ffff", "ended without a record of it", "not_found"),
        ("f" * 16 + "1", "No segment there", "not_found"),
    ],
)
def test_what_cannot_be_told_is_one_clear_line(why, prediction_id, message, code):
    """An id that is none, and one that the journal does not hold, end with status 1 and a reason."""
    status, output = why(prediction_id)
    assert status == 1
    assert message in output
    assert f"({code})" in output


def test_a_measured_profile_is_shown(why, directory):
    """Where the registered version was measured its quantiles stand in columns of their own, and judge what traffic does not."""
    snapshot = TrainingSnapshot("flights.parquet", 1000, "ab" * 32)
    with Registry.for_state(directory / ".tiercel") as registry:
        for n in (1, 2, 3):
            facts = VersionFacts(snapshot=snapshot, signature=SIGNATURE, author="ann", engine="forest")
            version = registry.register("late", {"model": b"model %d" % n}, facts)
    quantiles = Quantiles(1.25, 1.5, 9.0)
    store = ProfileStore(directory / ".tiercel")
    store.put(
        version.manifest_digest,
        CostProfile(this_host(), 1, 10, None, quantiles, Quantiles(90.0, 99.0, 99.9), ((1, 1.25, 1.5),), 1.0, 1.0),
    )
    try:
        output = why(PREFIX + "1")[1]
    finally:
        shutil.rmtree(store.directory(version.manifest_digest))
    assert "measured p99" in output
    assert "score is out of line: 4.0 µs, 2.7 times its measured p99 of 1.5 µs" in output
    assert "measured p99" not in why(PREFIX + "1")[1]
