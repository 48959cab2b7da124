"""Explanations in the client: what is asked, what a reply becomes, and what is fetched later."""

from __future__ import annotations

import asyncio

import httpx
import msgpack
import orjson
import pytest

from tiercel.client import AsyncClient, Client, Explanation, Prediction, Predictions, Reason
from tiercel.errors import ProtocolError, RequestError, ServerNotFoundError

ID = "0123456789abcdef1"
REPLY = {
    "id": ID,
    "model": "late",
    "version": 3,
    "tier": "realtime",
    "features": {"oldest_age_ms": None, "missing": []},
}
REASON = {"code": "R01", "text": "It left late", "features": ["dep_delay"], "contribution": 0.25}
TOLD = {
    "method": "exact", "kind": "interventional", "scale": "margin", "output": "1", "expected": -1.5, "reference": "ab",
    "policy": "cd", "contributions": {"dep_delay": 0.25, "hour": None},
}  # fmt: skip
READ = Explanation(
    "exact", (Reason("R01", "It left late", ("dep_delay",), 0.25),), "interventional", "margin", "1", -1.5, "ab", "cd",
    {"dep_delay": 0.25, "hour": None},
)  # fmt: skip
LATER = {"method": "later", "href": f"/predictions/{ID}/explanation"}


def exchange(*replies, kind=Client):
    """(client, list of (path with query, body)) of these (status, body) replies."""
    sent, waiting = [], list(replies)

    def handle(request):
        body = msgpack.unpackb(request.content) if request.content else None
        sent.append((request.url.raw_path.decode(), body))
        status, reply = waiting.pop(0)
        return httpx.Response(status, content=orjson.dumps(reply), headers={"content-type": "application/json"})

    return kind(transport=httpx.MockTransport(handle)), sent


def test_what_is_asked_and_read():
    """The options are fields of the body, and the reply's reasons and explanation become plain objects."""
    client, sent = exchange((200, {**REPLY, "score": 0.5, "reasons": [REASON], "explanation": TOLD}))
    made = client.predict("late", features={"hour": 7}, explain="full", locale="de", k=2)
    assert sent == [("/predict/late", {"features": {"hour": 7}, "explain": "full", "locale": "de", "k": 2})]
    assert isinstance(made, Prediction)
    assert made.explanation == READ


def test_nothing_asked_nothing_sent():
    """Without options the body has none, and a prediction no explanation."""
    client, sent = exchange((200, {**REPLY, "score": 0.5}))
    assert client.predict("late", features={"hour": 7}).explanation is None
    assert sent[0][1] == {"features": {"hour": 7}}


def test_many_rows():
    """Of many rows there is a tuple of reasons and a mapping of contributions for each; None where a row has none."""
    told = {
        **TOLD,
        "contributions": [{"hour": 1.0}, None],
        "standard_error": [{"hour": 0.1}, None],
        "method": "sampled",
    }
    body = {**REPLY, "scores": [0.5, 0.6], "reasons": [[REASON], None], "explanation": told}
    client, _ = exchange((200, body | {"features": {}}))
    made = client.predict("late", features={"hour": [7, 8]}, explain="full")
    assert isinstance(made, Predictions)
    assert made.explanation is not None
    assert made.explanation.reasons == (READ.reasons, None)
    assert made.explanation.contributions == ({"hour": 1.0}, None)
    assert made.explanation.standard_error == ({"hour": 0.1}, None)


def test_explain_waits_for_what_is_put_off():
    """`explain` fetches what the reply put off, with the same options; what is there already is not asked for again."""
    explained = {**REPLY, "score": 0.5, "reasons": [REASON], "explanation": TOLD}
    client, sent = exchange((200, {**REPLY, "score": 0.5, "explanation": LATER}), (200, explained))
    made = client.explain("late", features={"hour": 7}, k=3)
    assert made.explanation == READ
    assert [path for path, _ in sent] == ["/predict/late", f"/predictions/{ID}/explanation?explain=full&k=3"]
    client, sent = exchange((200, explained))
    assert client.explain("late", features={"hour": 7}, version=3).explanation == READ
    assert [path for path, _ in sent] == ["/predict/late:3"]


def test_async_is_the_same():
    """The asynchronous client asks and reads the same."""
    explained = {**REPLY, "score": 0.5, "reasons": [REASON], "explanation": TOLD}
    client, sent = exchange((200, {**REPLY, "score": 0.5, "explanation": LATER}), (200, explained), kind=AsyncClient)
    assert asyncio.run(client.explain("late", features={"hour": 7})).explanation == READ
    assert [path for path, _ in sent] == ["/predict/late", f"/predictions/{ID}/explanation?explain=full"]


def test_explanation_of_an_earlier_prediction():
    """An id or what `predict` returned; an unknown one is the server's own error."""
    explained = {"id": ID, "model": "late", "version": 3, "score": 0.5, "reasons": [REASON], "explanation": TOLD}
    client, sent = exchange((200, explained), (200, explained), (404, {"error": "no", "code": "not_found"}))
    assert client.explanation(ID, locale="en") == READ
    assert client.explanation(Prediction(ID, "late", 3, "realtime", 0.5)) == READ
    assert sent[0][0] == f"/predictions/{ID}/explanation?explain=full&locale=en"
    with pytest.raises(ServerNotFoundError):
        client.explanation(ID)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda client: client.predict("late", features={"a": 1}, explain="all"), "invalid_explain"),
        (lambda client: client.predict("late", features={"a": 1}, k=3), "invalid_explain"),
        (lambda client: client.explanation("../../livez"), "invalid_id"),
        (lambda client: client.explanation(17), "invalid_id"),
    ],
)
def test_what_no_server_accepts(call, code):
    """It is refused before anything is sent."""
    client, sent = exchange()
    with pytest.raises(RequestError) as caught:
        call(client)
    assert (caught.value.code, sent) == (code, [])


@pytest.mark.parametrize(
    "told",
    [
        "exact",
        {"method": "guessed"},
        {},
        {**TOLD, "expected": "low"},
        {**TOLD, "contributions": 3},
        {**TOLD, "contributions": {"a": "b"}},
        {**TOLD, "kind": 7},
    ],
    ids=repr,
)
def test_what_is_no_explanation(told):
    """A reply of another shape is a protocol error, never an attribute error."""
    client, _ = exchange((200, {**REPLY, "score": 0.5, "explanation": told}))
    with pytest.raises(ProtocolError):
        client.predict("late", features={"hour": 7}, explain="full")


@pytest.mark.parametrize(
    "reasons", ["R01", {}, [1], [{}], [{**REASON, "features": "x"}], [{**REASON, "contribution": "x"}]]
)
def test_what_are_no_reasons(reasons):
    """So are reasons that are none."""
    client, _ = exchange((200, {**REPLY, "score": 0.5, "reasons": reasons, "explanation": TOLD}))
    with pytest.raises(ProtocolError):
        client.predict("late", features={"hour": 7}, explain="reasons")
