"""A question may be assembled now and scored later; a stage is begun only if it fits the request's deadline."""

from __future__ import annotations

import json
import time

import msgpack
import numpy as np
import pytest
from tests.ext.test_plan import KEYS, REQUEST, Recorder
from tests.support import stores
from tiercel._hot.plan import STAGE_NAMES, Prepared, ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.errors import EntityNotFoundError, RequestError, StoreError
from tiercel.features.online import OnlineBase
from tiercel.monitor import recording as monitor
from tiercel.monitor.journal import read_journal
from tiercel.settings import JournalSettings
from tiercel.types import Signature, Task, Tier

BODY = json.dumps({"entities": KEYS, "features": REQUEST, "now": stores.NOW_US}).encode()
MANY = {
    "entities": {key: [value] * 3 for key, value in KEYS.items()},
    "features": {k: [v] * 3 for k, v in REQUEST.items()},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    stores.publish(path)
    return OnlineBase.open(path / "svc")


def make_plan(base, *, task=Task.BINARY, **options):
    signature = Signature(base.schema.features, task, ("a", "b", "c") if task is Task.MULTICLASS else ("0", "1"))
    scorer = Recorder(len(signature.features), signature.n_outputs)
    return ServingPlan("late", 3, signature, scorer, base.schema, base, **options)


def told(reply, kind):
    """A reply without its id."""
    data = msgpack.unpackb(reply) if kind else json.loads(reply)
    data.pop("id")
    return data


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS])
def test_prepared_then_answered_is_the_same_reply(base, kind, task):
    """Assembling, scoring elsewhere and answering gives what answering at once gives, for one row and for many."""
    plan, ids = make_plan(base, task=task), ReplyIds(100)
    for entities, features in ((KEYS, REQUEST), (MANY["entities"], MANY["features"])):
        at_once = plan.reply(entities, features, stores.NOW_US, kind, ids)
        prepared = plan.prepare(entities, features, stores.NOW_US)
        prepared.give_scores(plan_scores(plan, prepared.rows()))
        assert told(prepared.reply(kind, ids), kind) == told(at_once, kind)


def plan_scores(plan, rows):
    return Recorder(plan.n_features, plan.n_outputs).score(rows)


def test_the_rows_are_what_is_scored(base):
    """`rows` is the vector of `score`, bit for bit, missing values as NaN, and a copy."""
    plan = make_plan(base)
    prepared = plan.prepare(KEYS, REQUEST, stores.NOW_US)
    rows = prepared.rows()
    rows[:] = -1
    prepared.score()
    scorer = Recorder(plan.n_features)
    other = ServingPlan("late", 3, plan.signature, scorer, base.schema, base)
    other.predict(KEYS, REQUEST, stores.NOW_US)
    np.testing.assert_array_equal(prepared.rows(), scorer.rows)
    assert prepared.is_single
    assert prepared.scores() == [0.0]
    assert set(prepared.stage_us()) == set(STAGE_NAMES)


def test_an_unscored_question_is_not_answered(base):
    """Without scores there is no reply, and scores of another shape are refused."""
    prepared = make_plan(base).prepare(MANY["entities"], MANY["features"], stores.NOW_US)
    with pytest.raises(RequestError):
        prepared.reply(0, ReplyIds(10))
    with pytest.raises(StoreError, match=r"shape \(3, 1\)"):
        prepared.give_scores(np.zeros((2, 1)))
    prepared.give_scores(0.25)
    assert prepared.scores() == [0.25] * 3


def test_preparing_refuses_as_predicting_does(base):
    """What is wrong with a question is said while it is assembled."""
    plan = make_plan(base)
    with pytest.raises(RequestError, match="not_a_key"):
        plan.prepare({**KEYS, "not_a_key": 1}, REQUEST, stores.NOW_US)
    with pytest.raises(RequestError, match="one row"):
        plan.prepare({key: [] for key in KEYS}, {}, stores.NOW_US)
    with pytest.raises((RequestError, EntityNotFoundError)):
        plan.prepare({}, {}, stores.NOW_US)


def test_a_blank_question_has_no_values(base):
    """What is answered without features says that every feature is missing."""
    plan, ids = make_plan(base), ReplyIds(10)
    blank = plan.blank(KEYS)
    blank.give_scores(0.5)
    reply = json.loads(blank.reply(0, ids))
    assert (reply["score"], reply["features"]["oldest_age_ms"]) == (0.5, None)
    assert reply["features"]["missing"] == list(plan.signature.features)
    many = plan.blank(KEYS, 4)
    many.give_scores(0.5)
    assert json.loads(many.reply(0, ids))["scores"] == [0.5] * 4
    assert np.isnan(many.rows()).all()


def test_a_question_without_a_plan_cannot_be_made():
    """Only plans make questions: one without a plan would have no memory to answer from."""
    with pytest.raises(TypeError, match=r"ServingPlan\.prepare"):
        Prepared()


def test_a_question_outlives_its_names(base):
    """A prepared question keeps its plan, and with it the base it was read from."""
    prepared = make_plan(base).prepare(KEYS, REQUEST, stores.NOW_US)
    prepared.score()
    assert json.loads(prepared.reply(0, ReplyIds(10)))["model"] == "late"


@pytest.mark.parametrize(
    ("needs_us", "budget_us", "is_answered"),
    [
        pytest.param(None, -1, True, id="nothing measured, nothing asked"),
        pytest.param(None, 1_000_000, True, id="nothing measured"),
        pytest.param((100, 200, 100), 1_000_000, True, id="fits"),
        pytest.param((1_000_000, 0, 0), 1_000_000, False, id="reading does not fit"),
        pytest.param((0, 900_000, 200_000), 1_000_000, False, id="scoring does not fit"),
        pytest.param((0, 5_000, 0), -1, True, id="no deadline, and short"),
        pytest.param((0, 9_000, 2_000), -1, False, id="no deadline, and too long for others to wait"),
    ],
)
def test_a_stage_is_begun_only_if_it_fits(base, needs_us, budget_us, is_answered):
    """The compiled path hands on what its measured cost says would be late, and what would keep others waiting."""
    plan = make_plan(base, needs_us=needs_us)
    found = plan.answer(BODY, 0, stores.NOW_US, ReplyIds(10), budget_us=budget_us)
    assert (found is not None) == is_answered


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(
    ("deadline_ms", "is_answered"),
    [(1000, True), (1000.5, True), (40, False), (39.999, False), (0, False), (-5, False)],
)
def test_the_body_has_a_deadline(base, kind, deadline_ms, is_answered):
    """`deadline_ms` counts as a header's does, in both formats; a deadline that is none is the general path's to refuse."""
    plan = make_plan(base, needs_us=(50_000, 0, 0))
    body = {**json.loads(BODY), "deadline_ms": deadline_ms}
    data = msgpack.packb(body) if kind else json.dumps(body).encode()
    assert (plan.answer(data, kind, stores.NOW_US, ReplyIds(10)) is not None) == is_answered
    # The smaller of the two wins.
    assert plan.answer(data, kind, stores.NOW_US, ReplyIds(10), budget_us=10_000) is None


def test_a_model_may_have_a_deadline_of_its_own(base):
    """It counts where the request names none, and not where it does."""
    plan = make_plan(base, needs_us=(50_000, 0, 0), default_budget_us=20_000)
    assert plan.answer(BODY, 0, stores.NOW_US, ReplyIds(10)) is None
    assert plan.answer(BODY, 0, stores.NOW_US, ReplyIds(10), budget_us=1_000_000) is not None


def test_what_is_not_inline_is_handed_on(base):
    """A plan of another tier leaves the compiled path to others, and its replies say which tier it is."""
    plan = make_plan(base, tier=Tier.NEAR_REALTIME.value, is_inline=False)
    assert plan.answer(BODY, 0, stores.NOW_US, ReplyIds(10)) is None
    assert json.loads(plan.reply(KEYS, REQUEST, stores.NOW_US, 0, ReplyIds(10)))["tier"] == "near-realtime"


def test_time_begins_when_the_request_was_read(base):
    """Stage times add up to what passed since then."""
    begin_ns = time.monotonic_ns() - 5_000_000
    prepared = make_plan(base).prepare(KEYS, REQUEST, stores.NOW_US, begin_ns)
    prepared.score()
    prepared.reply(0, ReplyIds(10))
    total_us = sum(prepared.stage_us().values())
    assert 5_000 <= total_us <= (time.monotonic_ns() - begin_ns) / 1000
    assert prepared.stage_us()["parse"] >= 5_000


def test_the_journal_and_the_reply_tell_the_same_stages(base, tmp_path):
    """What was read before the rows were is the first stage in both, and the stages are all of the time."""
    journal = monitor.Recorder(
        tmp_path, 0, ReplyIds(10).prefix, JournalSettings(segment_bytes=1 << 20, max_bytes=1 << 22)
    )
    try:
        signature = make_plan(base).signature
        plan = make_plan(base, recorder=journal.for_plan("late", 3, signature, base.schema))
        begin_ns = time.monotonic_ns() - 5_000_000
        asked = [plan.prepare(KEYS, REQUEST, stores.NOW_US, begin_ns), plan.blank(KEYS, read_ns=begin_ns)]
        for prepared in asked:
            prepared.give_scores(0.5)
            prepared.record(ReplyIds(10))
    finally:
        journal.close()
    records = list(read_journal(tmp_path / "journal"))
    assert len(records) == 2
    for prepared, record in zip(asked, records, strict=True):
        assert [ns / 1000 for ns in record.stage_ns] == list(prepared.stage_us().values())
        assert record.stage_ns[0] >= 5_000_000
        assert sum(record.stage_ns) == record.total_ns
