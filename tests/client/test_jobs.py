"""Batch jobs in the client: a question that was taken as one is not lost, not asked twice, and its results are predictions."""

from __future__ import annotations

import asyncio

import httpx
import msgpack
import orjson
import pytest

from tiercel.client import AsyncClient, Client, Prediction, Predictions
from tiercel.errors import BadRequestError, ClientError, JobAcceptedError, NoScoreError, ProtocolError, RequestError

JOB = "0006448f2f1c00-0123456789abcdef"
ACCEPTED = {"job": JOB, "status": f"/jobs/{JOB}", "results": f"/jobs/{JOB}/results"}
RESULTS = {
    "id": JOB,
    "model": "late",
    "version": 3,
    "tier": "batch",
    "features": {"oldest_age_ms": 2.5, "missing": {"a": 1}},
}
ENCODE = {"application/json": orjson.dumps, "application/msgpack": msgpack.packb}


def exchange(*replies, kind=Client, media_type="application/json", headers=None, **options):
    """(client, list of (method, URL)) of these (status, body) replies."""
    sent, waiting = [], list(replies)

    def handle(request):
        sent.append((request.method, str(request.url)))
        status, reply = waiting.pop(0)
        return httpx.Response(
            status, content=ENCODE[media_type](reply), headers={"content-type": media_type, **(headers or {})}
        )

    return kind(transport=httpx.MockTransport(handle), **options), sent


@pytest.mark.parametrize("media_type", ENCODE)
def test_a_job_is_an_error_that_names_it(media_type):
    """202 is no prediction and no foreign server: the id and both places are there, and one request was sent."""
    client, sent = exchange((202, ACCEPTED), media_type=media_type, headers={"retry-after": "7"})
    with client, pytest.raises(JobAcceptedError, match=rf"{JOB}.* results will be at .*Do not ask again") as caught:
        client.predict("late", features={"a": [1, 2]})
    job = caught.value
    assert (job.code, job.job_id, job.retry_after_s) == ("job_accepted", JOB, 7.0)
    assert job.status_url == f"http://127.0.0.1:8000/jobs/{JOB}"
    assert job.results_url == f"http://127.0.0.1:8000/jobs/{JOB}/results"
    assert isinstance(job, ClientError)
    assert sent == [("POST", "http://127.0.0.1:8000/predict/late")]


def test_the_places_are_below_the_base_url_and_hold_no_password():
    """A path that a proxy put before tiercel's is kept; who the client is is not for logs."""
    client, _ = exchange((202, ACCEPTED), base_url="http://ann:secret@proxy:81/tiercel/")
    with client, pytest.raises(JobAcceptedError) as caught:
        client.predict("late", features={"a": 1})
    assert caught.value.results_url == f"http://proxy:81/tiercel/jobs/{JOB}/results"
    assert "secret" not in str(caught.value)
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    "body",
    [
        {}, {"job": JOB}, ACCEPTED | {"job": 3}, ACCEPTED | {"status": None}, ACCEPTED | {"results": ["/jobs"]},
        ACCEPTED | {"results": "http://elsewhere/"}, ACCEPTED | {"results": "@elsewhere/"}, ACCEPTED | {"status": "/a\nb"},
        [ACCEPTED],
    ],
)  # fmt: skip
def test_what_accepts_no_job_is_not_tiercels(body):
    """Another 202 is still another server's."""
    client, _ = exchange((202, body))
    with client, pytest.raises(ProtocolError, match="HTTP 202"):
        client.predict("late", features={"a": 1})


def test_results_are_predictions():
    """By id or by the error itself; one row and many, as if they had been waited for."""
    client, sent = exchange(
        (202, ACCEPTED), (200, RESULTS | {"scores": [0.5, 0.25]}), (200, RESULTS | {"features": {}, "score": 0.5})
    )
    with client:
        with pytest.raises(JobAcceptedError) as caught:
            client.predict("late", features={"a": [1, 2]})
        many, one = client.results(caught.value), client.results(JOB)
    assert many == Predictions(JOB, "late", 3, "batch", (0.5, 0.25), (), 2.5, {"a": 1})
    assert one == Prediction(JOB, "late", 3, "batch", 0.5)
    assert sent[1:] == [("GET", f"http://127.0.0.1:8000/jobs/{JOB}/results")] * 2


def test_a_row_without_a_score():
    """The other rows' scores are kept as of any answer; stand-ins, which no job has, are not recommended."""
    client, _ = exchange((200, RESULTS | {"scores": [0.5, None]}))
    with client, pytest.raises(NoScoreError, match=r"1 of 2 rows \(1\)") as caught:
        client.results(JOB)
    assert caught.value.prediction.scores[0] == 0.5
    assert "default_score" not in str(caught.value)


def test_the_async_client_is_told_the_same():
    """Both clients accept jobs in one place."""

    async def run():
        client, sent = exchange((202, ACCEPTED), (200, RESULTS | {"scores": [0.5]}), kind=AsyncClient)
        async with client:
            with pytest.raises(JobAcceptedError) as caught:
                await client.predict("late", features={"a": [1]})
            return await client.results(caught.value), sent

    made, sent = asyncio.run(run())
    assert (made.scores, len(sent)) == ((0.5,), 2)


def test_results_that_are_not_there_yet():
    """The server's refusal says so by name, and when to come back."""
    refusal = {"error": "Expected a job that is done", "code": "job_not_finished"}
    client, _ = exchange((409, refusal), headers={"retry-after": "3"})
    with client, pytest.raises(BadRequestError) as caught:
        client.results(JOB)
    assert (caught.value.code, caught.value.retry_after_s) == ("job_not_finished", 3.0)


@pytest.mark.parametrize("job", ["", "../x", 3, None, f"{JOB}/", "0123456789abcdef1"])
def test_what_is_no_job(job):
    """Nothing is sent for what no job is called."""
    client, sent = exchange()
    with client, pytest.raises(RequestError, match="id of a job") as caught:
        client.results(job)
    assert (caught.value.code, sent) == ("invalid_id", [])
