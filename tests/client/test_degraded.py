"""What the client says of who answered: a stand-in, and instead of whom; a challenger."""

from __future__ import annotations

import asyncio

import httpx
import msgpack
import orjson
import pytest

from tiercel.client import AsyncClient, Client, Degraded, Prediction, Predictions
from tiercel.errors import NoScoreError, ProtocolError
from tiercel.serving import answers

REPLY = {
    "id": "r",
    "model": "fraud",
    "version": 1,
    "tier": "realtime",
    "features": {"oldest_age_ms": None, "missing": []},
}
LAST = answers.Degraded("last_score", "fraud:1", "deadline", 29_608)
ENCODE = {"application/json": orjson.dumps, "application/msgpack": msgpack.packb}


def transport(body, kind="application/json"):
    """One that answers everything with this body."""
    return httpx.MockTransport(
        lambda request: httpx.Response(200, content=ENCODE[kind](body), headers={"content-type": kind})
    )


def predict(body, kind="application/json", **asked):
    with Client(transport=transport(body, kind)) as client:
        return client.predict("fraud", features=asked or {"a": 1})


@pytest.mark.parametrize("kind", ENCODE)
@pytest.mark.parametrize("told", [LAST, answers.Degraded("fallback", "fraud:1", "overloaded")])
def test_what_the_server_tells_is_what_the_client_reads(kind, told):
    """By whom, instead of whom, why, and the age of a last score; of one row and of many."""
    expected = Degraded(told.by, told.instead_of, told.reason, None if told.age_us is None else told.age_us / 1000)
    one = predict(REPLY | {"score": 0.5, "degraded": told.to_json()}, kind)
    many = predict(REPLY | {"scores": [0.5, 0.6], "features": {}, "degraded": told.to_json()}, kind, a=[1, 2])
    assert isinstance(one, Prediction)
    assert isinstance(many, Predictions)
    assert (one.degraded, many.degraded) == (expected, expected)
    assert (one.arm, many.arm) == (None, None)


def test_the_async_client_reads_the_same():
    """Both clients understand replies in one place."""

    async def run():
        body = REPLY | {"score": 0.5, "degraded": LAST.to_json()}
        async with AsyncClient(transport=transport(body)) as client:
            return await client.predict("fraud", features={"a": 1})

    assert asyncio.run(run()).degraded == Degraded("last_score", "fraud:1", "deadline", 29.608)


@pytest.mark.parametrize("rest", [{"score": 0.5}, {"scores": [0.5], "features": {}}])
def test_whose_turn_it_was(rest):
    """A challenger's answer is its model's own: it has an arm, and is not degraded. Without either there is nothing to say."""
    made = predict(REPLY | rest | {"arm": "challenger"})
    assert (made.arm, made.degraded) == ("challenger", None)
    plain = predict(REPLY | rest)
    assert (plain.arm, plain.degraded) == (None, None)


def test_an_answer_without_a_score_keeps_who_gave_it():
    """The answer in a NoScoreError says as much as any other."""
    with pytest.raises(NoScoreError) as failed:
        predict(REPLY | {"score": None, "arm": "challenger"})
    assert failed.value.prediction.arm == "challenger"


def test_in_words():
    """Who, of what age, instead of whom and why; what has no age says none."""
    assert Degraded("last_score", "fraud:1", "deadline", 29.608).describe() == (
        "answered by last_score (29.6 ms old) instead of fraud:1, because: deadline"
    )
    assert Degraded("default", "fraud", "unavailable").describe() == (
        "answered by default instead of fraud, because: unavailable"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"degraded": True}, {"degraded": "fallback"}, {"degraded": ["fallback"]}, {"degraded": {"by": "fallback"}},
        {"degraded": LAST.to_json() | {"by": 1}}, {"degraded": LAST.to_json() | {"instead_of": None}},
        {"degraded": LAST.to_json() | {"reason": []}}, {"degraded": LAST.to_json() | {"age_ms": "old"}},
        {"degraded": LAST.to_json() | {"age_ms": True}}, {"arm": 1}, {"arm": {}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("rest", [{"score": 0.5}, {"scores": [0.5], "features": {}}])
def test_what_says_it_in_another_shape_is_refused(rest, change):
    """Nothing in a reply is trusted, who answered neither."""
    with pytest.raises(ProtocolError, match="Expected a tiercel prediction"):
        predict(REPLY | rest | change)


def test_a_newer_server_may_say_more():
    """Other parts, and other words for rungs and reasons, are kept or passed over, not refused."""
    told = {"by": "sibling", "instead_of": "fraud:1", "reason": "asleep", "since": 3}
    assert predict(REPLY | {"score": 0.5, "degraded": told}).degraded == Degraded("sibling", "fraud:1", "asleep")
