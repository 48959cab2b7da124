"""`Client.feedback`: what is sent for each way to say it, and what comes back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import httpx
import msgpack
import numpy as np
import orjson
import pytest

from tiercel.client import AsyncClient, Client, FeedbackReceipt, Prediction, Predictions
from tiercel.errors import BadRequestError, ProtocolError, RequestError

ID = "0123456789abcdef1"
ONE = Prediction(ID, "late", 3, "realtime", 0.5)
MANY = Predictions(ID, "late", 3, "realtime", (0.1, 0.2, 0.3))


def exchange(status=200, body=None):
    """(client, list of bodies it sent)."""
    sent = []

    def handle(request):
        assert request.url.path == "/feedback"
        sent.append(
            orjson.loads(request.content)
            if "json" in request.headers["content-type"]
            else msgpack.unpackb(request.content)
        )
        content = orjson.dumps({"accepted": 1, "refused": 0} if body is None else body)
        return httpx.Response(status, content=content, headers={"content-type": "application/json"})

    return Client(transport=httpx.MockTransport(handle)), sent


@pytest.mark.parametrize(
    ("arguments", "named", "events"),
    [
        ((ID, 1), {}, [{"id": ID, "label": 1}]),
        ((ONE, True), {}, [{"id": ID, "label": True}]),
        ((ID,), {"value": 2.5}, [{"id": ID, "value": 2.5}]),
        ((ID, "late"), {"row": 4, "time": 17}, [{"id": ID, "label": "late", "row": 4, "time": 17}]),
        ((ID, 1), {"time": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}, [{"id": ID, "label": 1, "time": 1_000_000}]),
        ((MANY, [1, 0, None]), {"value": 3}, [{"id": ID, "row": 0, "label": 1, "value": 3}, {"id": ID, "row": 1, "label": 0, "value": 3}, {"id": ID, "row": 2, "value": 3}]),
        ((["a1", "a2"], np.array([1.0, 0.0])), {}, [{"id": "a1", "label": 1.0}, {"id": "a2", "label": 0.0}]),
        ((["a1", "a2"], 1), {"time": ["2026-01-01", 5]}, [{"id": "a1", "label": 1, "time": "2026-01-01"}, {"id": "a2", "label": 1, "time": 5}]),
        ((ID, [1, 0]), {"row": [7, 9]}, [{"id": ID, "row": 7, "label": 1}, {"id": ID, "row": 9, "label": 0}]),
    ],
)  # fmt: skip
def test_each_way_to_say_it(arguments, named, events):
    """Single values are one event; lists are one for each item, rows of one prediction by their places."""
    client, sent = exchange()
    assert client.feedback(*arguments, **named) == FeedbackReceipt(1)
    assert sent == [{"events": events}]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((None, 1), {}),
        ((5, 1), {}),
        (([ID, None], 1), {}),
        (([ID, ID], [1, 0, 1]), {}),
        (([], []), {}),
        ((ID, float("inf")), {}),
        ((ID, {"x": 1}), {}),
        ((ID, 1), {"time": datetime(2026, 1, 1)}),  # noqa: DTZ001 - that is what is refused
        ((ID, 1), {"time": 1.5}),
        (([ID, ID], 1), {"time": [1]}),
    ],
)
def test_what_no_server_could_accept_is_not_sent(arguments, named):
    """A wrong argument is an error before anything goes out."""
    client, sent = exchange()
    with pytest.raises(RequestError):
        client.feedback(*arguments, **named)
    assert sent == []


def test_refusals_come_back():
    """The receipt says what was not accepted and why; when nothing was, that is an error."""
    problems = [{"event": 1, "error": "Expected ...", "code": "invalid_label"}]
    client, _ = exchange(body={"accepted": 1, "refused": 1, "problems": problems})
    assert client.feedback([ID, ID], 1) == FeedbackReceipt(1, 1, tuple(problems))
    client, _ = exchange(400, {"error": "Expected ...", "code": "invalid_label", "accepted": 0, "refused": 1})
    with pytest.raises(BadRequestError) as caught:
        client.feedback(ID, 1)
    assert caught.value.code == "invalid_label"


@pytest.mark.parametrize("body", [{}, {"accepted": "1", "refused": 0}, {"accepted": 1, "refused": 0, "problems": [5]}])
def test_a_reply_that_is_no_receipt_is_said(body):
    """Something else answered."""
    client, _ = exchange(body=body)
    with pytest.raises(ProtocolError, match="receipt"):
        client.feedback(ID, 1)


def test_the_async_client_does_the_same():
    """The same body, the same receipt."""
    sent = []

    def handle(request):
        sent.append(msgpack.unpackb(request.content))
        return httpx.Response(200, json={"accepted": 2, "refused": 0})

    async def run():
        async with AsyncClient(transport=httpx.MockTransport(handle)) as client:
            return await client.feedback(ONE, [1, 0], value=2)

    assert asyncio.run(run()) == FeedbackReceipt(2)
    assert sent == [
        {"events": [{"id": ID, "label": 1, "value": 2, "row": 0}, {"id": ID, "label": 0, "value": 2, "row": 1}]}
    ]
