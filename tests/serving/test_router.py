"""Who answers: the degrade ladder, the arms of a rollout, shadows and tiers, as one client's requests meet them."""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time

import httpx
import numpy as np
import pytest
from tests.support import stores
from tests.support.tiers import BODY, World, constant, failing, held, until

from tiercel.errors import CapacityError, DeadlineError, StoreError
from tiercel.features.online import OnlineBase
from tiercel.serving.answers import Question
from tiercel.serving.deadline import Deadline
from tiercel.settings import ModelSettings
from tiercel.types import Task

SLOW = (0, 30_000, 0)  # microseconds, ten times what was measured
QUICK = (50, 100, 10)
QUESTION = Question(BODY["entities"], BODY["features"], BODY["now"])
SUM = float(np.float32(0.25)) + 180 + 12.5 + 7 + 0 + 719 + 1 + 70_000.5 + 1 + 1


@pytest.fixture
def world(tmp_path, base):
    """Make a world of these tables; closed in the end."""
    made = []

    def make(*declared, jobs=None):
        made.append(World(tmp_path, base, declared, jobs))
        return made[-1]

    yield make
    for each in made:
        each.close()


def body(deadline_ms=None, tail="N1", **more):
    asked = {**BODY, "entities": {**BODY["entities"], "tailnum": tail}, **more}
    return asked if deadline_ms is None else {**asked, "deadline_ms": deadline_ms}


# -- the ladder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("by", ["fallback", "last_score", "default"])
def test_each_rung_is_chosen_up_front(world, by, kind):
    """A champion that became ten times slower is not begun; reply, journal and counters name the rung and the reason."""
    declared = {
        "fallback": ModelSettings("late", fallback="simple"),
        "last_score": ModelSettings("late", last_score_max_age_s=60.0, default_score=0.3),
        "default": ModelSettings("late", default_score=0.3),
    }[by]
    late = world(declared)
    champion = late.add("late", 3, what=constant(0.9), needs_us=SLOW)
    late.add("simple", 2, what=constant(0.5), needs_us=QUICK)

    async def scenario(ask):
        assert (await ask(body(5000))).data["score"] == 0.9
        n_calls = len(champion.calls)
        reply = await ask(body(20), kind=kind)
        assert len(champion.calls) == n_calls
        return reply

    reply = late.run(scenario)
    assert reply.status_code == 200
    degraded = reply.data["degraded"]
    age_ms = degraded.pop("age_ms", None)
    assert degraded == {"by": by, "instead_of": "late:3", "reason": "deadline"}
    assert (age_ms is not None) == (by == "last_score")
    if age_ms is not None:
        assert 0 < age_ms < 10_000
    assert reply.data["score"] == {"fallback": 0.5, "last_score": 0.9, "default": 0.3}[by]
    assert (reply.data["model"], reply.data["version"]) == (("simple", 2) if by == "fallback" else ("late", 3))
    assert [late.counters.get(f"degraded_{each}") for each in ("fallback", "last_score", "default")] == [
        int(by == each) for each in ("fallback", "last_score", "default")
    ]
    record = late.records()[reply.data["id"]]
    assert (record.degraded, record.degrade_reason, record.arm, record.is_shadow) == (by, "deadline", "champion", False)
    assert record.scores.tolist() == [[reply.data["score"]]]
    assert dict(zip([name for name, _ in record.plan.join_keys], record.keys[0], strict=True)) == BODY["entities"]


def test_with_time_enough_the_champion_answers(world):
    """A ladder changes nothing for who has time, or sets no deadline."""
    late = world(ModelSettings("late", fallback="simple", default_score=0.3))
    late.add("late", what=constant(0.9), needs_us=SLOW)
    late.add("simple", what=constant(0.5), needs_us=QUICK)
    for asked in (body(5000), body()):
        data = late.ask(asked).data
        assert (data["score"], data.get("degraded"), data.get("arm")) == (0.9, None, None)


def test_a_declared_deadline_counts(world):
    """[models.NAME] deadline_ms is everybody's who sets none, of any version of the model."""
    late = world(ModelSettings("late", deadline_ms=20.0, default_score=0.3))
    late.add("late", needs_us=SLOW)
    assert late.ask().data["degraded"]["by"] == "default"
    assert late.ask(model="late:1").status_code == 504


@pytest.mark.parametrize(
    "reference", ["late", "late@champion", "late@CHAMPION", "models:/late", "models:/late@champion"]
)
def test_the_ladder_is_the_models_however_it_is_spelled(world, reference):
    """A name and its champion are one model; a version by number is that version and no other."""
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late", needs_us=SLOW)
    plan = late.find_plan("late")

    async def load(_reference):
        return plan

    late.load_plan = load
    budget = {"question": QUESTION, "deadline_ms": 20}

    async def scenario(_ask):
        served = await late.serve(**budget, model=reference)
        with pytest.raises(DeadlineError):
            await late.serve(**budget, model="late:1")
        return served

    assert late.run(scenario).degraded.by == "default"


def test_a_fallback_is_asked_what_it_knows(world):
    """A fallback without a service gets the features it has, and neither keys nor features of the champion alone."""
    late = world(ModelSettings("late", fallback="simple"))
    late.add("late", needs_us=SLOW)
    late.add("simple", features=("hour", "rain"), needs_us=QUICK)
    reply = late.ask(body(20))
    assert (reply.status_code, reply.data["score"], reply.data["degraded"]["by"]) == (200, 7.25, "fallback")


def test_what_neither_model_knows_is_refused(world):
    """A misspelled feature is an error, and no stand-in is asked."""
    late = world(ModelSettings("late", fallback="simple"))
    late.add("late", needs_us=SLOW)
    late.add("simple", features=("hour", "rain"), needs_us=QUICK)
    asked = body(20)
    reply = late.ask({**asked, "features": {**asked["features"], "rian": 1}})
    assert (reply.status_code, reply.data["code"]) == (400, "unknown_feature")
    assert late.scorers["simple", 1].calls == []


def test_a_fallback_that_cannot_be_asked_is_no_fault_of_the_question(world):
    """Where the fallback needs what was not sent, the next rung answers; the client hears nothing of the fallback."""
    late = world(ModelSettings("late", fallback="other", default_score=0.3))
    late.add("late", needs_us=SLOW)
    late.add("other", features=("rain", "colour"), needs_us=QUICK)
    reply = late.ask(body(20))
    assert (reply.status_code, reply.data.get("degraded", {}).get("by")) == (200, "default")


@pytest.mark.parametrize("tier", ["realtime", "near-realtime"])
def test_a_champion_that_raises_is_replaced(world, tier, caplog):
    """A failure of the model, inline or in the queue, is the next rung's to answer, with the reason "failed"; the log says why."""
    late = world(ModelSettings("late", fallback="simple"))
    late.add("late", 3, what=failing, tier=tier)
    late.add("simple", what=constant(0.5))
    reply = late.ask()
    assert reply.status_code == 200
    assert reply.data["degraded"] == {"by": "fallback", "instead_of": "late:3", "reason": "failed"}
    assert late.records()[reply.data["id"]].degrade_reason == "failed"
    assert "broken model" in caplog.text


@pytest.mark.parametrize("tier", ["realtime", "near-realtime"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by", ["fallback", "last_score", "default"])
def test_a_score_that_is_no_number_is_a_failure(world, tier, value, by, caplog):
    """With a stand-in declared, NaN and infinities are never answered: reason "failed", counted, journaled, logged once."""
    late = world(
        ModelSettings(
            "late",
            fallback="simple" if by == "fallback" else None,
            last_score_max_age_s=60.0 if by == "last_score" else 0.0,
            default_score=0.3 if by == "default" else None,
        )
    )
    champion = late.add("late", 3, what=constant(0.9), tier=tier)
    late.add("simple", what=constant(0.5))

    async def scenario(ask):
        assert (await ask()).data["score"] == 0.9
        champion.what = constant(value)
        return [await ask() for _ in range(3)]

    replies = late.run(scenario)
    for reply in replies:
        assert reply.status_code == 200
        degraded = {name: each for name, each in reply.data["degraded"].items() if name != "age_ms"}
        assert degraded == {"by": by, "instead_of": "late:3", "reason": "failed"}
        assert reply.data["score"] == {"fallback": 0.5, "last_score": 0.9, "default": 0.3}[by]
    assert late.counters.get(f"degraded_{by}") == 3
    told = [each.getMessage() for each in caplog.records if "Expected finite scores" in each.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(
        f"Model late:3: another answers for it: Expected finite scores of model 'late' version 3, got {value}. Ask within"
    )
    assert late.records()[replies[0].data["id"]].degrade_reason == "failed"


def test_one_row_without_a_number_degrades_the_whole_question(world):
    """A reply names one model for all its rows, so one row that it cannot score is all of them."""
    late = world(ModelSettings("late", fallback="simple"))
    late.add("late", what=lambda rows: np.where(rows[:, 3] == 7, 0.9, np.nan))
    late.add("simple", what=constant(0.5))
    hours = {**BODY["features"], "hour": [7, 8]}
    assert late.ask({**BODY, "features": hours}).data["scores"] == [0.5, 0.5]


def test_nobody_left_to_give_a_number(world):
    """Where the ladder ends in NaN too the failure is told, with the champion's row; it is not answered as null."""
    late = world(ModelSettings("late", fallback="simple"))
    late.add("late", what=lambda rows: np.where(rows[:, 3] == 7, 0.9, np.nan))
    late.add("simple", what=constant(math.inf))
    reply = late.ask({**BODY, "features": {**BODY["features"], "hour": [7, 8]}})
    assert (reply.status_code, reply.data["code"], reply.data["row"]) == (500, "score_not_finite", 1)
    assert "model 'late' version 1, got nan for row 1" in reply.data["error"]


@pytest.mark.parametrize("table", [(), (ModelSettings("late", deadline_ms=5000.0),)])
def test_without_a_ladder_no_number_is_null(world, table):
    """Nobody could stand in: JSON says null, msgpack says what it is."""
    late = world(*table)
    late.add("late", what=constant(math.nan))
    assert late.ask().data["score"] is None
    assert math.isnan(late.ask(kind="application/msgpack").data["score"])


def test_a_wrong_question_stays_wrong(world):
    """What is wrong with a question is said, not degraded over."""
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late")
    reply = late.ask({**BODY, "features": {}})
    assert (reply.status_code, reply.data["code"]) == (400, "missing_feature")


WRONG = {
    "unknown_feature": {"features": {**BODY["features"], "rian": 1}},
    "missing_feature": {"features": {"rain": 0.25}},
    "unknown_entity_key": {"entities": {**BODY["entities"], "tail": "N1"}},
    "missing_entity_key": {"entities": {"tailnum": "N1"}},
    "wrong_type": {"features": {**BODY["features"], "hour": "seven"}},
    "unknown_category": {"features": {**BODY["features"], "cabin": "roof"}},
    "wrong_length": {"features": {**BODY["features"], "hour": [7] * 99, "rain": [0.25] * 100}},
    "key_too_long": {"entities": {**BODY["entities"], "tailnum": ["N1"] * 63 + ["N" * 600] + ["N1"] * 900}},
}


@pytest.mark.parametrize("code", WRONG)
@pytest.mark.parametrize("by", ["fallback", "last_score", "default"])
def test_a_wrong_question_is_wrong_in_a_hurry_too(world, by, code):
    """Who has no time for the champion is told what is wrong in the same words as who has, whoever would stand in."""
    late = world(
        ModelSettings(
            "late",
            fallback="simple" if by == "fallback" else None,
            last_score_max_age_s=60.0 if by == "last_score" else 0.0,
            default_score=0.3 if by == "default" else None,
        )
    )
    late.add("late", needs_us=SLOW)
    simple = late.add("simple", features=("hour", "rain"), what=constant(0.5), needs_us=QUICK)
    wrong = {**BODY, **WRONG[code]}

    async def scenario(ask):
        right = await ask(body(5000))  # leaves a last score
        assert right.status_code == 200
        return await ask({**wrong, "deadline_ms": 5000}), await ask({**wrong, "deadline_ms": 20}), await ask(body(20))

    in_time, in_a_hurry, right = late.run(scenario)
    assert (in_time.status_code, in_time.data["code"]) == (400, code)
    assert (in_a_hurry.status_code, in_a_hurry.data) == (400, in_time.data)
    assert (right.status_code, right.data["degraded"]["by"]) == (200, by)
    assert len(simple.calls) == (by == "fallback")


def test_a_wrong_question_is_wrong_without_room_too(world):
    """Where the champion's queue is full a default answers what is right, and nothing else."""
    late = world(ModelSettings("late", default_score=0.3))
    champion = late.add("late", tier="near-realtime", curve=[(1, 20_000.0, 25_000.0), (64, 40_000.0, 50_000.0)])

    async def scenario(ask):
        with held(champion):
            first = asyncio.create_task(ask(body(90)))
            await until(champion.entered.is_set)
            wrong = await ask({**body(30), "features": {**BODY["features"], "rian": 1}})
            right = await ask(body(30))
        await first
        return wrong, right

    wrong, right = late.run(scenario)
    assert (wrong.status_code, wrong.data["code"]) == (400, "unknown_feature")
    assert (right.status_code, right.data["degraded"]["by"], right.data["degraded"]["reason"]) == (
        200,
        "default",
        "overloaded",
    )


def test_an_unknown_entity_is_unknown_in_a_hurry_too(world, tmp_path):
    """A service that refuses entities it does not have refuses them whoever would answer."""
    stores.publish(tmp_path, stores.schema("error", "strict"))
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late", base=OnlineBase.open(tmp_path / "strict"), needs_us=SLOW)
    reply = late.ask(body(20, tail="N9"))
    assert (reply.status_code, reply.data["code"]) == (404, "entity_not_found")


def test_only_the_first_rows_of_a_long_question_are_looked_at(world):
    """A thousand rows in a hurry cost a stand-in no more than 64: what only a later row shows is let through."""
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late", needs_us=SLOW)
    hours = [7] * 100
    for row, status in ((63, 400), (64, 200)):
        asked = {**body(20), "features": {**BODY["features"], "hour": [*hours[:row], "seven", *hours[row + 1 :]]}}
        assert late.ask(asked).status_code == status


def test_a_store_that_cannot_be_read_is_no_wrong_question(world):
    """Why the champion has no features is not the client's fault: the default answers."""
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late", needs_us=SLOW)

    class Broken:
        def __init__(self, plan):
            self._plan = plan

        def __getattr__(self, name):
            return getattr(self._plan, name)

        def prepare(self, *_args):
            raise StoreError("damaged page")

    plans, _ = late.models["late"]
    plans[1] = Broken(plans[1])
    late.route()
    reply = late.ask(body(20))
    assert (reply.status_code, reply.data["degraded"]["by"]) == (200, "default")


def test_when_all_fail_the_champions_failure_is_told(world, caplog):
    """The last resort failing too is the champion's error, not the fallback's."""
    late = world(ModelSettings("late", fallback="other"))
    late.add("late", what=failing)
    late.add("other", features=("rain", "colour"))
    reply = late.ask()
    assert (reply.status_code, reply.data["code"]) == (500, "scoring_failed")
    assert "model 'late' version 1" in reply.data["error"]
    assert "broken model" in caplog.text


def test_nothing_fits(world):
    """Where even the quickest is too slow the refusal has the numbers, and nothing was begun."""
    late = world(ModelSettings("late", fallback="simple"))
    champion, simple = late.add("late", needs_us=SLOW), late.add("simple", needs_us=(0, 4_000, 0))
    reply = late.ask(body(2))
    assert (reply.status_code, reply.data["code"]) == (504, "deadline_exceeded")
    assert (reply.data["budget_ms"], reply.data["needed_ms"]) == (2.0, 4.0)
    assert champion.calls == simple.calls == []
    assert late.counters.get("refused_deadline") == 1


def test_an_unavailable_champion_is_replaced(world):
    """A model whose champion could not be loaded is answered for by its fallback."""
    late = world(ModelSettings("late", fallback="simple", default_score=0.3))
    late.unavailable["late"] = True
    late.add("simple", what=constant(0.5))
    reply = late.ask()
    assert (reply.status_code, reply.data["degraded"]["reason"], reply.data["score"]) == (200, "unavailable", 0.5)


def test_another_versions_score_is_not_the_models(world):
    """What was asked of a version by its number is not remembered as the model's last score."""
    late = world(ModelSettings("late", last_score_max_age_s=60.0))
    late.add("late", 2, what=constant(0.9), needs_us=SLOW)
    late.add("late", 1, alias="old", what=constant(0.1))

    async def scenario(ask):
        assert (await ask(model="late:1")).data["score"] == 0.1
        assert (await ask(model="late@old")).data["score"] == 0.1
        return await ask(body(20))

    assert late.run(scenario).status_code == 504


def test_a_last_score_is_of_the_same_entities(world):
    """All rows are known or none is used; a list gives a list."""
    late = world(ModelSettings("late", last_score_max_age_s=60.0))
    late.add("late", needs_us=SLOW)

    async def scenario(ask):
        first = await ask(body(5000, tail=["N1", "N2"]))
        return first, await ask(body(20, tail=["N2", "N1"])), await ask(body(20, tail=["N1", "N3"]))

    first, known, unknown = late.run(scenario)
    assert known.data["scores"] == first.data["scores"][::-1]
    assert known.data["degraded"]["by"] == "last_score"
    assert unknown.status_code == 504


def test_degraded_answers_are_not_remembered(world):
    """A default that was given once does not come back as a last score."""
    late = world(ModelSettings("late", last_score_max_age_s=60.0, default_score=0.3))
    late.add("late", needs_us=SLOW)

    async def scenario(ask):
        return [(await ask(body(20))).data["degraded"]["by"] for _ in range(3)]

    assert late.run(scenario) == ["default"] * 3


def test_thousands_at_once_never_time_out(world):
    """With a default at the end, all of 4,000 concurrent requests are answered, none by what it had no time for."""
    rng = random.Random(7)
    late = world(ModelSettings("late", fallback="simple", last_score_max_age_s=60.0, default_score=0.3))
    late.add("late", what=constant(0.9), needs_us=(0, 9_000, 0))
    late.add("simple", what=constant(0.5), needs_us=(0, 3_000, 0))
    budgets_ms = [rng.choice([1.0, 2.9, 5.0, 8.9, 20.0, 100.0]) for _ in range(4_000)]

    async def one(deadline_ms):
        served = await late.serve(QUESTION, deadline_ms)
        late.router.after(served, QUESTION)
        return served

    async def scenario(_ask):
        return await asyncio.gather(*[one(each) for each in budgets_ms])

    by = {None: 9, "fallback": 3, "last_score": 0, "default": 0}
    seen = set()
    for budget_ms, served in zip(budgets_ms, late.run(scenario), strict=True):
        rung = served.degraded and served.degraded.by
        seen.add((budget_ms, rung))
        assert by[rung] <= budget_ms
        assert served.deadline.budget_us == 1000 * budget_ms
    assert late.counters.get("refused_deadline") == 0
    # Given time enough, nobody gets less than he could have: noise of the host may only push a few of the tight ones down.
    assert {(100.0, None), (5.0, "fallback")} <= seen
    assert not {rung for budget_ms, rung in seen if budget_ms == 100.0} & {"fallback", "last_score", "default"}


@pytest.mark.parametrize("spare_us", range(8))
def test_time_that_runs_out_between_two_looks(world, monkeypatch, spare_us):
    """Wherever the last microsecond passes, the ladder is climbed down, and nobody is refused."""
    late = world(ModelSettings("late", default_score=0.3))
    late.add("late", needs_us=(0, 1_000, 0))
    left_us = iter(range(1_000 + spare_us, 0, -1))
    monkeypatch.setattr(Deadline, "remaining_us", lambda _self, _now_ns=None: next(left_us))
    reply = late.ask(body(20))
    assert reply.status_code == 200
    assert reply.data.get("degraded", {"by": "default"})["by"] == "default"


# -- rollout ----------------------------------------------------------------------------------------------------------


def rollout(world, weight, what=None, **challenger):
    late = world(ModelSettings("late", challenger_weight=weight))
    late.add("late", 1, what=constant(0.9))
    late.add("late", 2, alias="challenger", what=what or constant(0.1), **challenger)
    return late


def test_entities_are_divided_stickily_and_monotonically(world):
    """An entity keeps its arm, a larger weight only adds to the challenger's; reply and journal agree on the arm."""
    tails = [f"N{i}" for i in range(200)]
    shares = []
    for weight in (0.0, 0.2, 0.5, 1.0):
        late = rollout(world, weight)

        async def scenario(ask):
            return [[await ask(body(tail=tail)) for tail in tails] for _ in range(2)]

        turns = late.run(scenario)
        arms = [[reply.data.get("arm", "champion") for reply in turn] for turn in turns]
        assert arms[0] == arms[1]
        records = late.records()
        for reply, arm in zip(turns[0], arms[0], strict=True):
            assert reply.data["version"] == (2 if arm == "challenger" else 1)
            assert records[reply.data["id"]].arm == arm
            assert "degraded" not in reply.data
        shares.append({tail for tail, arm in zip(tails, arms[0], strict=True) if arm == "challenger"})
    assert shares[0] < shares[1] < shares[2] < shares[3] == set(tails)
    assert 20 <= len(shares[1]) <= 65


def test_other_references_are_not_divided(world):
    """Who names a version or an alias gets it."""
    late = rollout(world, 1.0)
    assert late.ask(model="late:1").data["version"] == 1
    assert late.ask(model="late@challenger").data["version"] == 2


BAD_CHALLENGERS = {
    "raises": {"what": failing},
    "gives NaN": {"what": constant(math.nan)},
    "gives infinity": {"what": constant(math.inf)},
    "raises in the queue": {"what": failing, "tier": "near-realtime"},
    "needs what is not sent": {"features": ("rain", "colour")},
}


@pytest.mark.parametrize("challenger", BAD_CHALLENGERS.values(), ids=BAD_CHALLENGERS)
def test_a_bad_challenger_is_not_felt_and_goes(world, challenger):
    """Its share gets the champion's answer, as if there were no challenger; after five failures nobody asks it again."""
    late = rollout(world, 1.0, **challenger)

    async def scenario(ask):
        replies = [await ask() for _ in range(8)]
        return replies, (await ask.http.get("/readyz")).json()

    replies, ready = late.run(scenario)
    for reply in replies:
        assert (reply.status_code, reply.data["score"], reply.data["version"]) == (200, 0.9, 1)
        assert not {"degraded", "arm"} & reply.data.keys()
    assert late.counters.get("challenger_failed") == 5
    assert len(late.scorers["late", 2].calls) in {0, 5}
    assert any("challenger version 2 is out after 5 failures" in problem for problem in ready["problems"])
    assert {record.arm for record in late.records().values()} == {"champion"}


def test_wrong_questions_do_not_take_a_challenger_out(world):
    """What the champion refuses as well is no failure of the challenger."""
    late = rollout(world, 1.0)

    async def scenario(ask):
        statuses = [(await ask({**BODY, "features": {}})).status_code for _ in range(8)]
        return statuses, (await ask()).data

    statuses, data = late.run(scenario)
    assert set(statuses) == {400}
    assert data["arm"] == "challenger"
    assert late.counters.get("challenger_failed") == 0


def test_a_challenger_without_time_leaves_the_arm_to_the_champion(world):
    """Who is answered by the champion for want of time is in the champion's arm, in reply and journal."""
    late = rollout(world, 1.0, needs_us=SLOW)
    reply = late.ask(body(20))
    assert (reply.data["version"], reply.data.get("arm"), "degraded" in reply.data) == (1, None, False)
    assert late.records()[reply.data["id"]].arm == "champion"
    assert late.scorers["late", 2].calls == []


def test_the_champions_reason_counts_when_both_arms_fail(world):
    """Behind a broken challenger a degraded reply names the champion, and why the champion did not answer."""
    late = world(ModelSettings("late", challenger_weight=1.0, default_score=0.3))
    late.add("late", 1, needs_us=SLOW)
    late.add("late", 2, alias="challenger", what=failing, needs_us=QUICK)
    assert late.ask(body(20)).data["degraded"] == {"by": "default", "instead_of": "late:1", "reason": "deadline"}


# -- shadow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["next", "Next"])
def test_a_shadow_scores_after_the_reply(world, alias):
    """The reply is the champion's and sent before the shadow is asked; its record is flagged, under an id of its own."""
    late = world(ModelSettings("late", shadow=alias))
    late.add("late", 1, what=constant(0.9))
    shadow = late.add("late", 2, alias="next", what=constant(0.1))

    async def scenario(ask):
        served = await late.serve(QUESTION)
        assert shadow.calls == []
        late.router.after(served, QUESTION)
        assert shadow.calls == []
        reply = await ask()
        await until(lambda: len(shadow.calls) == 2)
        return reply

    reply = late.run(scenario)
    assert (reply.data["version"], reply.data["score"]) == (1, 0.9)
    assert (late.counters.get("shadow_scored"), late.counters.get("replies_2xx")) == (2, 1)
    records = late.records()
    assert not records[reply.data["id"]].is_shadow
    shadows = [record for record in records.values() if record.is_shadow]
    assert [(record.plan.version, record.scores.tolist()) for record in shadows] == [(2, [[0.1]])] * 2


@pytest.mark.parametrize("what", [failing, constant(math.nan)], ids=["raises", "NaN"])
def test_a_broken_shadow_is_nobodys_trouble(world, what):
    """Its failures are counted, never recorded and never in a reply."""
    late = world(ModelSettings("late", shadow="next"))
    late.add("late", 1, what=constant(0.9))
    shadow = late.add("late", 2, alias="next", what=what)

    async def scenario(ask):
        replies = [await ask() for _ in range(3)]
        await until(lambda: len(shadow.calls) == 3)
        await asyncio.sleep(0)
        return replies

    assert {(reply.status_code, reply.data["score"]) for reply in late.run(scenario)} == {(200, 0.9)}
    assert (late.counters.get("shadow_failed"), late.counters.get("shadow_scored")) == (3, 0)
    assert [record.is_shadow for record in late.records().values()] == [False] * 3


def test_a_slow_shadow_does_not_hold_up_the_loop(world):
    """What is too slow to be scored where requests wait is scored on the queue's threads as a shadow too."""
    late = world(ModelSettings("late", shadow="next"))
    late.add("late", 1)
    shadow = late.add("late", 2, alias="next", tier="near-realtime")

    async def scenario(ask):
        await ask()
        await until(lambda: late.router._shadows.counts.recorded == 1)

    late.run(scenario)
    assert threading.get_ident() not in shadow.threads


# -- near-realtime ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_the_queue_gives_the_scores_that_inline_scoring_gives(world, kind):
    """A near-realtime plan goes through the queue's threads, for one row and many; its scores are the same."""
    late = world()
    queued = late.add("queued", tier="near-realtime")
    late.add("late")

    async def scenario(ask):
        rows = ["N1", ["N1", "N2", "N9"], *[f"N{i}" for i in range(20)]]
        asked = [body(5000, tail=tail) for tail in rows]  # a machine's stall is not the queue's
        return [await asyncio.gather(*[ask(each, model, kind) for each in asked]) for model in ("late", "queued")]

    inline, through = late.run(scenario)
    for one, other in zip(inline, through, strict=True):
        assert one.status_code == other.status_code == 200
        assert [one.data.get("score"), one.data.get("scores")] == [other.data.get("score"), other.data.get("scores")]
        assert other.data["tier"] == "near-realtime"
    assert inline[0].data["score"] == SUM
    assert threading.get_ident() not in queued.threads
    assert late.counters.get("near_realtime_requests") == len(through)
    assert late.counters.get("near_realtime_rows") == len(through) + 2
    assert late.counters.get("near_realtime_batches") == len(queued.calls) < len(through)


async def start_raw(world, messages, model="late"):
    """A request as raw ASGI; `messages` is the queue that it receives from."""
    sent = []

    async def collect(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/predict/{model}",
             "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    messages.put_nowait({"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False})
    return asyncio.create_task(world.app(scope, messages.get, collect)), sent


def test_a_client_that_leaves_frees_its_place(world):
    """A disconnect takes a waiting request out of the queue at once; it is not scored, and its task ends."""
    late = world()
    scorer = late.add("late", tier="near-realtime")

    async def scenario(ask):
        with held(scorer):
            first = asyncio.create_task(ask())
            await until(scorer.entered.is_set)
            messages = asyncio.Queue()
            second, sent = await start_raw(late, messages)
            batcher = late.router._queues.of(late.find_plan("late"))
            await until(lambda: batcher.n_waiting == 1)
            messages.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(second, 5)
            assert (batcher.n_waiting, batcher.cancelled) == (0, 1)
            assert json.loads(sent[1]["body"])["code"] == "client_disconnected"
        assert (await first).status_code == 200

    late.run(scenario)
    assert scorer.calls == [1]
    assert late.counters.get("replies_4xx") == 1


def test_a_cancelled_request_is_cancelled(world):
    """Somebody else's cancellation, a stop of the server, is not taken for the client's."""
    late = world()
    scorer = late.add("late", tier="near-realtime")

    async def scenario(_ask):
        with held(scorer):
            task, sent = await start_raw(late, asyncio.Queue())
            await until(scorer.entered.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sent == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    late.run(scenario)


def test_no_watch_outlives_its_request(world):
    """A request that is answered leaves no task behind."""
    late = world()
    late.add("late", tier="near-realtime")

    async def scenario(_ask):
        task, sent = await start_raw(late, asyncio.Queue())
        await task
        await asyncio.sleep(0)
        assert sent[0]["status"] == 200
        assert asyncio.all_tasks() == {asyncio.current_task()}

    late.run(scenario)


CURVE = ((1, 4_000, 5_000), (64, 200_000, 250_000))


@pytest.mark.parametrize("declared", [(), (ModelSettings("late", deadline_ms=60.0),)], ids=["plain", "declared"])
def test_a_full_queue_refuses_at_once(world, declared):
    """Who would be late behind others is told when to come back: 503, `overloaded`, Retry-After; quickly, and unscored."""
    late = world(*declared)
    scorer = late.add("late", tier="near-realtime", needs_us=(0, 4_000, 1_000), curve=CURVE)

    async def scenario(ask):
        with held(scorer):
            first = asyncio.create_task(ask(body(90)))
            await until(scorer.entered.is_set)
            begun = time.perf_counter()
            waiting = [asyncio.create_task(ask(body(60))) for _ in range(60)]
            await until(lambda: sum(task.done() for task in waiting) >= 30)
            took_s = time.perf_counter() - begun
            refused = [task.result() for task in waiting if task.done()]
        await asyncio.gather(first, *waiting)
        return refused, took_s

    refused, took_s = late.run(scenario)
    assert took_s < 1
    for reply in refused:
        assert (reply.status_code, reply.data["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.data["retry_after_ms"] > 0
    assert late.counters.get("refused_capacity") >= len(refused)


def test_overload_has_its_own_reason_on_the_ladder(world):
    """A champion that is quick enough, behind a queue that is not, is `overloaded`, not too slow."""
    late = world(ModelSettings("late", default_score=0.3))
    scorer = late.add("late", tier="near-realtime", needs_us=(0, 4_000, 1_000), curve=CURVE)

    async def scenario(ask):
        with held(scorer):
            first = [asyncio.create_task(ask(body(200))) for _ in range(12)]
            await until(scorer.entered.is_set)
            await until(lambda: late.router._queues.of(late.find_plan("late")).n_waiting >= 8)
            reply = await ask(body(20))
        await asyncio.gather(*first)
        return reply

    assert late.run(scenario).data["degraded"] == {"by": "default", "instead_of": "late:1", "reason": "overloaded"}


def test_a_stop_answers_what_was_accepted(world):
    """Closing waits for accepted requests, which are answered; later ones are refused."""
    late = world()
    scorer = late.add("late", tier="near-realtime")

    async def scenario(ask):
        with held(scorer):
            first = asyncio.create_task(ask())
            await until(scorer.entered.is_set)
            waiting = [asyncio.create_task(ask()) for _ in range(5)]
            await until(lambda: late.router._queues.of(late.find_plan("late")).n_waiting == 5)
            closing = asyncio.create_task(late.router.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
        await asyncio.wait_for(closing, 5)
        return await asyncio.gather(first, *waiting)

    assert [reply.status_code for reply in late.run(scenario)] == [200] * 6


def test_a_new_base_keeps_the_queue_and_a_removed_version_loses_it(world, base):
    """Plans over one scorer share a queue; a version that is gone answers what it accepted and is closed."""
    late = world()
    scorer = late.add("late", 1, tier="near-realtime")
    late.add("other")

    async def scenario(ask):
        assert (await ask()).status_code == 200
        batcher = late.router._queues.of(late.find_plan("late"))
        late.add("late", 1, tier="near-realtime", scorer=scorer)
        assert (await ask()).status_code == 200
        assert late.router._queues.of(late.find_plan("late")) is batcher
        assert batcher.rows == 2
        with held(scorer):
            last = asyncio.create_task(ask())
            await until(scorer.entered.is_set)
            late.remove("late", 1)
            assert (await ask(model="other")).status_code == 200
            assert late.router._queues.batchers() == {}
            await asyncio.sleep(0)
            with pytest.raises(CapacityError):
                batcher.submit(np.zeros((1, scorer.n_features), np.float32), time.monotonic_ns() + 10**9)
        return await last

    assert late.run(scenario).status_code == 200
    assert late.counters.get("near_realtime_rows") == 3


# -- tiers and deadlines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "needs_us", "asked", "status"),
    [
        ("realtime", (0, 2_000, 0), "realtime", 200),
        ("realtime", (0, 2_000, 0), "near-realtime", 200),
        ("near-realtime", (0, 2_000, 0), "realtime", 200),
        ("near-realtime", (0, 30_000, 0), "realtime", 504),
        ("near-realtime", (0, 30_000, 0), "near-realtime", 200),
        ("near-realtime", (0, 30_000, 0), None, 200),
        ("batch", (0, 300_000, 0), "realtime", 400),
        ("batch", (0, 300_000, 0), "near-realtime", 400),
    ],
)
def test_a_tier_that_is_asked_for_is_a_deadline(world, tier, needs_us, asked, status):
    """A slower tier is always granted, a faster one where the measured cost fits its bound; else it is refused."""
    late = world()
    late.add("late", tier=tier, needs_us=needs_us)
    reply = late.ask(body() if asked is None else body(tier=asked))
    assert reply.status_code == status
    if status == 504:
        assert (reply.data["budget_ms"], reply.data["needed_ms"]) == (10.0, 30.0)
    if status == 400:
        assert reply.data["code"] == "tier_denied"


def test_an_explicit_deadline_wins_over_the_tiers(world):
    """`tier` stands for its bound only where no deadline is named; of deadlines the smallest counts."""
    late = world()
    late.add("late", needs_us=(0, 30_000, 0))
    assert late.ask(body(5000, tier="realtime")).status_code == 200
    late.add("late", needs_us=(0, 30_000, 0))
    assert late.ask(body(5000), x_request_timeout_seconds="0.001").status_code == 504
    assert late.ask(body(5000), x_request_timeout_seconds="9").headers["server-timing"].endswith('desc="deadline_ms"')


@pytest.mark.parametrize("declared", [(), (ModelSettings("late", default_score=0.3),)], ids=["plain", "declared"])
@pytest.mark.parametrize("row_us", [20, 100, 1_000])
def test_many_rows_without_a_deadline_are_answered(world, declared, row_us):
    """A realtime model scores 1,000 rows beside the event loop where they take longer than its tier, and refuses none."""
    late = world(*declared)
    scorer = late.add(
        "late", needs_us=(0, 100, row_us), curve=((1, 100, 100 + row_us), (512, 512 * row_us, 513 * row_us))
    )
    reply = late.ask(body(tail=["N1"] * 1000))
    assert reply.status_code == 200
    assert reply.data["scores"] == [SUM] * 1000
    assert "degraded" not in reply.data
    # Of many small batches the last ones may come to the loop: this scorer is far quicker than its profile.
    assert scorer.threads - {threading.get_ident()}
    assert row_us == 1_000 or threading.get_ident() not in scorer.threads


def test_many_rows_of_an_unmeasured_model_are_answered(world):
    """The cost that the queue has learned decides, where there is no profile: many rows get the time they take."""
    late = world()
    late.add("late", tier="near-realtime", takes_s=0.01)

    async def scenario(ask):
        for _ in range(4):
            assert (await ask()).status_code == 200
        return await ask(body(tail=["N1"] * 500))

    assert late.run(scenario).status_code == 200


# -- batch ------------------------------------------------------------------------------------------------------------


class Jobs:
    """Takes every question."""

    def __init__(self):
        self.taken = []

    def routes(self):
        return []

    async def submit(self, plan, question, reply, results):
        self.taken.append((plan.model, plan.version, question))
        self.dues = reply, results
        return 202, {"job": "j1"}, [(b"location", b"/jobs/j1")]


@pytest.mark.parametrize("reference", ["late", "late@champion", "late:1", "models:/late"])
def test_a_model_without_another_tier_makes_jobs(world, reference):
    """However it is named, a batch model's question is accepted as a job."""
    jobs = Jobs()
    late = world(jobs=jobs)
    scorer = late.add("late", tier="batch")
    plan = late.find_plan("late")

    async def load(_reference):
        return plan

    late.load_plan = load
    reply = late.ask(model=reference)
    assert (reply.status_code, reply.data, reply.headers["location"]) == (202, {"job": "j1"}, "/jobs/j1")
    assert [(model, version) for model, version, _ in jobs.taken] == [("late", 1)]
    assert scorer.calls == []
    assert late.counters.get("jobs_submitted") == 1


def test_any_model_takes_jobs_when_asked(world):
    """`"tier": "batch"` makes a job of any model's question; without jobs it says so."""
    jobs = Jobs()
    late = world(jobs=jobs)
    late.add("late")
    assert late.ask(body(tier="batch")).status_code == 202
    late = world()
    late.add("late")
    assert late.ask(body(tier="batch")).data["code"] == "jobs_disabled"


def test_a_jobs_two_deadlines(world):
    """A header's is the exchange's, which ends with the 202; `deadline_ms` is the results'; neither becomes the other."""
    jobs = Jobs()
    late = world(ModelSettings("late", deadline_ms=5.0), jobs=jobs)
    late.add("late", tier="batch")
    for asked, headers, expected in (
        (body(), {}, (None, None)),
        (body(60_000), {}, (None, (60_000_000, "deadline_ms"))),
        (body(), {"x_envoy_expected_rq_timeout_ms": "15000"}, ((15_000_000, "x-envoy-expected-rq-timeout-ms"), None)),
        (
            body(60_000),
            {"x_request_timeout_seconds": "2"},
            ((2_000_000, "x-request-timeout-seconds"), (60_000_000, "deadline_ms")),
        ),
    ):
        assert late.ask(asked, **headers).status_code == 202
        assert tuple(due and (due.budget_us, due.source) for due in jobs.dues) == expected
    assert late.ask(body(-1)).data["code"] == "invalid_deadline"


def test_a_batch_model_in_another_protocol(world):
    """Protocols without jobs say where to get one; a declared fallback answers instead."""
    for declared, status in (((), 400), ((ModelSettings("late", fallback="simple"),), 200)):
        late = world(*declared)
        late.add("late", features=("rain",), tier="batch")
        late.add("simple", features=("rain",), what=constant(0.5))

        async def scenario(ask):
            return await ask.http.post("/v1/models/late:predict", json={"instances": [[0.5]]})

        reply = late.run(scenario)
        assert reply.status_code == status, reply.text
        assert ("/predict/late" in reply.text) == (status == 400)


# -- what cannot work -------------------------------------------------------------------------------------------------


def test_mistakes_are_named_by_readyz(world):
    """Each declaration that cannot work is a sentence among the problems; what works is not."""
    late = world(
        ModelSettings("late", fallback="simple:7", challenger_weight=0.5),
        ModelSettings("simple", default_score=7.0, shadow="next"),
        ModelSettings("price", fallback="late"),
        ModelSettings("nobody"),
        ModelSettings("fine", fallback="simple:2"),
    )
    late.add("late")
    late.add("simple")
    late.add("simple", 2, alias=None)
    late.add("price", task=Task.REGRESSION)
    late.add("fine")
    ready = late.run(lambda ask: ask.http.get("/readyz"))
    assert isinstance(ready, httpx.Response)
    told = "\n".join(ready.json()["problems"])
    for expected in (
        "[models.late] fallback: expected a version that exists, got 'simple:7'",
        "[models.late] challenger_weight: expected the model to have a challenger",
        "[models.simple] default_score: expected a probability",
        "[models.simple] shadow: expected an alias of the model",
        "[models.price] fallback: expected a regression model",
        "[models.nobody]: expected a registered model",
    ):
        assert expected in told
    assert "models.fine" not in told
