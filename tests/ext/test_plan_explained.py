"""A reply may say why: both paths the same bytes, only in the time there is, and never at the cost of the score."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.linear_plans import (
    FEATURES,
    INTERCEPT,
    MEAN,
    REFERENCE,
    WEIGHTS,
    contributions,
    explanations_of,
    plan_of,
    signature_of,
)
from tiercel._hot.explained import Explanations
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.errors import RequestError, SchemaMismatchError, StoreError
from tiercel.http import payload
from tiercel.http.request import parse_predict
from tiercel.monitor.recording import Recorder
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.explaining import explain_here
from tiercel.settings import JournalSettings
from tiercel.types import Task

NOW_US = 1_700_000_000_000_000
KINDS = (payload.JSON, payload.MSGPACK)
ROW = {"a": 3.0, "b": 0.5, "c": 5.0}
MANY = {"a": [3.0, 1.0, -2.0], "b": 0.5, "c": [5.0, 3.0, 1e6]}


def encode(value, kind):
    return msgpack.packb(value) if kind else json.dumps(value).encode()


def decode(reply, kind=0):
    return msgpack.unpackb(reply) if kind else json.loads(reply)


def answer(plan, body, kind=0):
    """What the compiled path answers, with ample time: a busy machine must not decide what is explained."""
    return plan.answer(encode(body, kind), kind, NOW_US, ReplyIds(100), budget_us=60_000_000)


def general(plan, body, kind):
    """What the general path answers."""
    request = parse_predict(payload.decode(encode(body, kind), KINDS[kind], 100), 100)
    prepared = plan.prepare(request.entities, request.features, NOW_US)
    prepared.score()
    if request.explain is not None:
        explain_here(prepared, request.explain)
    return prepared.reply(kind, ReplyIds(100))


def without_id(reply, kind):
    at = 5 if kind else 7
    return reply[:at] + reply[at + 17 :]


number = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.none()


@given(
    rows=st.lists(st.tuples(number, number, number), min_size=1, max_size=5),
    single=st.booleans(),
    mode=st.sampled_from(["reasons", "full"]),
    kind=st.sampled_from([0, 1]),
    task=st.sampled_from(list(Task)),
)
def test_both_paths_give_the_same_bytes(rows, single, mode, kind, task):
    """An explained reply of the compiled path is the general path's, whatever is asked, but for the id."""
    plan = plan_of(task)
    columns = dict(
        zip(FEATURES, rows[0] if single else [list(column) for column in zip(*rows, strict=True)], strict=True)
    )
    body = {"features": columns, "explain": mode}
    reply = answer(plan, body, kind)
    assert without_id(reply, kind) == without_id(general(plan, body, kind), kind)
    told = decode(reply, kind)
    plain = decode(answer(plan, {"features": columns}, kind), kind)
    for name in plain.keys() - {"id"}:
        assert repr(told[name]) == repr(plain[name])  # NaN is not itself


@pytest.mark.parametrize("kind", [0, 1])
def test_contributions_are_those_of_the_model(kind):
    """Each is the weight times the distance from the reference, and with the expected margin they make the score."""
    told = decode(answer(plan_of(), {"features": ROW, "explain": "full"}, kind), kind)
    explanation = told["explanation"]
    assert explanation["contributions"] == contributions(ROW.values())
    assert explanation["expected"] + sum(explanation["contributions"].values()) == pytest.approx(
        told["score"], abs=1e-12
    )
    assert explanation["expected"] == pytest.approx(float(WEIGHTS @ MEAN) + INTERCEPT)
    assert (explanation["method"], explanation["kind"], explanation["scale"]) == ("exact", "linear", "margin")
    assert explanation["reference"] == REFERENCE
    assert [reason["code"] for reason in told["reasons"]] == ["a", "b", "c"]  # by size: 4, 1.5, 0.5


def test_reasons_leave_contributions_out():
    """Who asks for reasons is not sent every feature's contribution."""
    told = decode(answer(plan_of(), {"features": ROW, "explain": "reasons"}))
    assert told["reasons"][0] == {"code": "a", "text": "a", "features": ["a"], "contribution": 4.0}
    assert "contributions" not in told["explanation"]


def test_nobody_asked():
    """A reply to a question that asks for no explanation has no word of one."""
    assert not {"reasons", "explanation"} & decode(answer(plan_of(), {"features": ROW})).keys()


@pytest.mark.parametrize("kind", [0, 1])
def test_many_rows(kind):
    """Many rows have a list of reasons and of contributions each, a single row in a list too."""
    told = decode(answer(plan_of(), {"features": MANY, "explain": "full"}, kind), kind)
    rows = list(zip(MANY["a"], [0.5] * 3, MANY["c"], strict=True))
    assert told["explanation"]["contributions"] == [pytest.approx(contributions(row)) for row in rows]
    assert [row[0]["code"] for row in told["reasons"]] == ["a", "b", "c"]
    one = decode(answer(plan_of(), {"features": {"a": [3.0], "b": 0.5, "c": 5.0}, "explain": "reasons"}, kind), kind)
    assert [len(row) for row in one["reasons"]] == [3]


def test_the_class_that_is_explained():
    """Of several classes it is the one with the highest score, over all rows where there are many."""
    plan = plan_of(Task.MULTICLASS)
    high = decode(answer(plan, {"features": ROW, "explain": "full"}))
    assert (high["explanation"]["output"], high["explanation"]["contributions"]["a"]) == ("é", 12.0)
    low = decode(answer(plan, {"features": {**ROW, "a": -9.0}, "explain": "reasons"}))
    assert low["explanation"]["output"] == "x"
    both = decode(answer(plan, {"features": {**ROW, "a": [3.0, -9.0]}, "explain": "reasons"}))
    assert both["explanation"]["output"] == "x"


@pytest.mark.parametrize("value", ["all", "", "Reasons", 1, True, None, [], {}, "reasons\0"], ids=repr)
@pytest.mark.parametrize("kind", [0, 1])
def test_another_word_is_refused(value, kind):
    """What is no way to ask for an explanation is handed on, and refused there in words."""
    body = {"features": ROW, "explain": value}
    assert answer(plan_of(), body, kind) is None
    with pytest.raises(RequestError, match=r'Expected \$.explain to be "reasons" or "full"') as caught:
        general(plan_of(), body, kind)
    assert caught.value.code == "invalid_explain"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"locale": "en"}, "locale beside"),
        ({"k": 2}, "k beside"),
        ({"explain": "full", "k": 0}, "from 1 to 16, got 0"),
        ({"explain": "full", "k": 17}, "from 1 to 16, got 17"),
        ({"explain": "full", "k": True}, "got True"),
        ({"explain": "full", "k": "2"}, "got '2'"),
        ({"explain": "full", "locale": ""}, "language tag"),
        ({"explain": "full", "locale": "de/.."}, "language tag"),
        ({"explain": "full", "locale": 7}, "language tag"),
    ],
    ids=repr,
)
def test_other_options_are_refused(more, said):
    """A locale or a number of reasons stands beside "explain" and is one; each refusal says what was expected."""
    assert answer(plan_of(), {"features": ROW, **more}) is None
    with pytest.raises(RequestError, match=said) as caught:
        general(plan_of(), {"features": ROW, **more}, 0)
    assert caught.value.code == "invalid_explain"


def test_fewer_reasons_on_request():
    """`k` is the general path's, which tells at most so many."""
    body = {"features": ROW, "explain": "reasons", "k": 1}
    assert answer(plan_of(), body) is None
    assert [reason["code"] for reason in decode(general(plan_of(), body, 0))["reasons"]] == ["a"]


@pytest.mark.parametrize("twice", [b'"explain":"full","explain":"full"', b'"explain":"\\u0066ull"'])
def test_what_is_not_plain_is_handed_on(twice):
    """Twice the same name, or the word in escapes: the general path decides."""
    assert plan_of().answer(b'{"features":{"a":1,"b":1,"c":1},%b}' % twice, 0, NOW_US, ReplyIds(9)) is None


def recorded_plan(tmp_path, cost_us, **options):
    recorder = Recorder(tmp_path, 0, "0" * 16, JournalSettings())
    signature = signature_of()
    explanations = explanations_of(signature, cost_us=cost_us)
    return recorder, plan_of(explanations=explanations, recorder=recorder.for_plan("line", 1, signature), **options)


@pytest.mark.parametrize("kind", [0, 1])
def test_no_time_is_later(tmp_path, kind):
    """Where the measured cost does not fit what is left of the deadline, the reply says where to ask."""
    recorder, plan = recorded_plan(tmp_path, (0.0, 5000.0))
    try:
        told = decode(answer(plan, {"features": ROW, "explain": "full", "deadline_ms": 4}, kind), kind)
        assert told["explanation"] == {"method": "later", "href": f"/predictions/{told['id']}/explanation"}
        assert "reasons" not in told
        assert told["score"] == pytest.approx(float(WEIGHTS @ [3.0, 0.5, 5.0]) + INTERCEPT)
        told = decode(answer(plan, {"features": ROW, "explain": "full", "deadline_ms": 60_000}, kind), kind)
        assert told["explanation"]["method"] == "exact"
    finally:
        recorder.close()


def test_no_time_and_no_journal():
    """Without a journal nothing can be asked for later, and the reply says so."""
    plan = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, 5000.0)))
    told = decode(answer(plan, {"features": ROW, "explain": "full", "deadline_ms": 4}))
    assert told["explanation"]["method"] == "none"
    assert "journal" in told["explanation"]["why"]


def test_long_explanations_are_handed_on():
    """What would hold up other requests is the general path's, which has threads for it; so is an explainer in Python."""
    costly = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, 20_000.0)))
    assert answer(costly, {"features": ROW, "explain": "full", "deadline_ms": 1000}) is None
    assert answer(costly, {"features": ROW, "deadline_ms": 1000}) is not None
    python = plan_of(explanations=explanations_of(signature_of(), is_compiled=False))
    assert answer(python, {"features": ROW, "explain": "full"}) is None
    per_row = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, 4000.0)))
    assert answer(per_row, {"features": ROW, "explain": "full"}) is not None
    assert answer(per_row, {"features": MANY, "explain": "full"}) is None


@pytest.mark.parametrize("kind", [0, 1])
def test_contributions_that_do_not_add_up_are_not_sent(kind):
    """They are checked against the model's own margin; the score is answered all the same."""
    wrong = plan_of(explanations=explanations_of(signature_of(), scale=1.00001))
    told = decode(answer(wrong, {"features": ROW, "explain": "full"}, kind), kind)
    assert told["explanation"]["method"] == "none"
    assert "add up" in told["explanation"]["why"]
    assert "reasons" not in told
    assert told["score"] == decode(answer(plan_of(), {"features": ROW}))["score"]
    right = plan_of(explanations=explanations_of(signature_of(), scale=1 + 1e-9))
    assert decode(answer(right, {"features": ROW, "explain": "full"}, kind), kind)["explanation"]["method"] == "exact"


def test_a_model_without_an_explainer_says_why():
    """The reason stands in each reply; the compiled path answers it."""
    plan = plan_of(explanations=Explanations(3, 1, why='no "reference"\n'))
    for kind in (0, 1):
        body = {"features": MANY, "explain": "reasons"}
        told = decode(answer(plan, body, kind), kind)
        assert told["explanation"] == {"method": "none", "why": 'no "reference"\n'}
        assert without_id(answer(plan, body, kind), kind) == without_id(general(plan, body, kind), kind)


def test_recalled_rows_are_explained_as_they_were():
    """The recorded vector and scores give the same reasons and contributions again."""
    plan = plan_of(Task.MULTICLASS)
    told = decode(answer(plan, {"features": MANY, "explain": "full"}))
    rows = np.array([[3, 0.5, 5], [1, 0.5, 3], [-2, 0.5, 1e6]], np.float32)
    recalled = plan.recall(rows, plan.scorer.score(rows), is_single=False)
    explain_here(recalled, ExplainRequest(is_full=True))
    again = json.loads(recalled.explanation(told["id"]))
    assert again == {"id": told["id"], "reasons": told["reasons"], "explanation": told["explanation"]}


def test_recall_takes_nothing_else():
    """Rows of another width, none at all, several where one was asked about: each is refused."""
    plan = plan_of()
    for shape, single in (((1, 2), True), ((0, 3), False), ((2, 3), True)):
        with pytest.raises(StoreError, match="Expected rows of 3 features"):
            plan.recall(np.zeros(shape, np.float32), np.zeros((shape[0], 1)), is_single=single)


def test_sampled_contributions_have_their_error():
    """An explainer in Python brings contributions and standard errors; the reply says that they are sampled."""
    plan = plan_of(explanations=explanations_of(signature_of(), is_compiled=False))
    told = decode(general(plan, {"features": ROW, "explain": "full"}, 0))
    assert told["explanation"]["method"] == "sampled"
    assert told["explanation"]["standard_error"] == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert told["explanation"]["contributions"] == contributions(ROW.values())


def test_attributions_of_another_shape_are_refused():
    """Who brings contributions brings them for every row and feature, of an output that there is."""
    plan = plan_of(explanations=explanations_of(signature_of(), is_compiled=False))
    prepared = plan.prepare({}, ROW, NOW_US)
    prepared.score()
    form = plan.explanations.form
    with pytest.raises(StoreError, match="Expected contributions of 1 rows and 3 features"):
        prepared.give_attributions(np.zeros((2, 3)), 0.0, form=form)
    with pytest.raises(StoreError, match="one of 1 outputs"):
        prepared.give_attributions(np.zeros((1, 3)), 0.0, 1, form=form)
    unscored = plan.prepare({}, ROW, NOW_US)
    with pytest.raises(RequestError, match="scored question"):
        unscored.explain_later()


def test_explaining_is_a_stage_of_its_own():
    """Its time is told beside the others', and taken from that of the reply, of which the journal has it as a part."""
    plan = plan_of()
    prepared = plan.prepare({}, ROW, NOW_US)
    prepared.score()
    explain_here(prepared, ExplainRequest())
    prepared.reply(0, ReplyIds(9))
    assert list(prepared.stage_us()) == ["parse", "read", "compute", "score", "explain", "reply"]
    assert all(us >= 0 for us in prepared.stage_us().values())


def test_explanations_of_another_model_are_refused():
    """A plan takes explanations of its own number of features and outputs only."""
    signature = signature_of()
    with pytest.raises(SchemaMismatchError, match="expected explanations of 3 features"):
        ServingPlan("line", 1, signature, plan_of().scorer, explanations=Explanations(4, 1))
    with pytest.raises(ValueError, match="Expected a form"):
        Explanations(3, 1, explanations_of(signature).explainer)
