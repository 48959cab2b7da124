from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import threading
from datetime import UTC, datetime, timedelta, timezone

import httpx
import msgpack
import numpy as np
import orjson
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tiercel.client import AsyncClient, Client, FeatureRows, Prediction, Predictions
from tiercel.errors import (
    BadRequestError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    NoScoreError,
    OverloadedError,
    ProtocolError,
    RequestError,
    ServerInternalError,
    ServerNotFoundError,
    UnavailableError,
)
from tiercel.types import ValueStatus

FORMATS = {"application/json": (orjson.loads, orjson.dumps), "application/msgpack": (msgpack.unpackb, msgpack.packb)}


def answer(request, body, status=200, headers=None):
    """A reply in the format the request asks for."""
    media_type = request.headers["accept"]
    return Response(FORMATS[media_type][1](body), status, headers, media_type=media_type)


async def decode(request):
    return FORMATS[request.headers["content-type"]][0](await request.body())


def n_rows(body):
    columns = [*body.get("entities", {}).values(), *body.get("features", {}).values()]
    return next((len(column) for column in columns if isinstance(column, list)), None)


def make_app():
    """A server of the wire contract that scores by counting and remembers what it was sent."""
    seen = []

    async def predict(request):
        body = await decode(request)
        seen.append((request.path_params["model"], body, dict(request.headers)))
        head = {"id": "r-1", "model": "late", "version": 3, "tier": "realtime"}
        n = n_rows(body)
        if n is None:
            rest = {"score": 0.25, "features": {"oldest_age_ms": 1234.0, "missing": ["a"]}}
        else:
            rest = {"scores": [i / 10 for i in range(n)], "features": {"oldest_age_ms": None, "missing": {"a": n}}}
        return answer(request, head | rest, headers={"server-timing": "total;dur=0.1"})

    async def features(request):
        body = await decode(request)
        seen.append((request.path_params["service"], body, dict(request.headers)))
        names = body.get("features", ["a", "b"])
        n = n_rows({"entities": body["entities"]}) or 1
        return answer(
            request,
            {
                "service": request.path_params["service"],
                "fingerprint": "f" * 64,
                "features": names,
                "values": [[1.5, None][: len(names)]] * n,
                "statuses": [["PRESENT", "NOT_FOUND"][: len(names)]] * n,
                "ages_ms": [[10.0, None][: len(names)]] * n,
            },
        )

    app = Starlette(
        routes=[
            Route("/predict/{model}", predict, methods=["POST"]),
            Route("/features/{service}", features, methods=["POST"]),
            Route("/livez", lambda request: PlainTextResponse("ok")),
            Route("/readyz", lambda request: PlainTextResponse("starting", 503)),
        ]
    )
    app.state.seen = seen
    return app


def call(app, ask, **options):
    """Run `ask(client)` on an AsyncClient of `app`."""

    async def run():
        async with AsyncClient(transport=httpx.ASGITransport(app=app), **options) as client:
            return await ask(client)

    return asyncio.run(run())


def replying(status=200, content=b"", headers=None):
    """A client whose server gives one fixed reply."""
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content, headers=headers))
    return Client(transport=transport, format="json")


def replying_json(body, status=200, headers=None):
    return replying(status, orjson.dumps(body), {"content-type": "application/json", **(headers or {})})


@contextlib.contextmanager
def running(app):
    """Serve `app` with uvicorn on a free loopback port; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()  # the socket listens already: a client that comes early waits in its backlog
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.mark.parametrize("format_", ["msgpack", "json"])
def test_one_row(format_):
    """Single values are one row: the body arrives as given and the reply is a Prediction with all its parts."""
    app = make_app()
    got = call(app, lambda c: c.predict("late", entities={"tailnum": "N1"}, features={"d": 1400}), format=format_)
    assert got == Prediction("r-1", "late", 3, "realtime", 0.25, (), 1234.0, ("a",), "total;dur=0.1")
    model, body, headers = app.state.seen[0]
    assert (model, body) == ("late", {"entities": {"tailnum": "N1"}, "features": {"d": 1400}})
    assert headers["content-type"] == headers["accept"] == f"application/{format_}"


@pytest.mark.parametrize("format_", ["msgpack", "json"])
def test_many_rows(format_):
    """Lists are rows; single values beside them are passed on for the server to repeat."""
    app = make_app()
    got = call(app, lambda c: c.predict("late", entities={"k": ["a", "b", "c"]}, features={"d": 1.5}), format=format_)
    assert got == Predictions("r-1", "late", 3, "realtime", (0.0, 0.1, 0.2), (), None, {"a": 3}, "total;dur=0.1")
    assert len(got) == 3
    assert app.state.seen[0][1] == {"entities": {"k": ["a", "b", "c"]}, "features": {"d": 1.5}}


def test_sync_and_async_agree_over_a_real_port():
    """Both clients, in both formats, get the same answers from uvicorn."""
    app = make_app()
    with running(app) as url:
        for format_ in ("msgpack", "json"):
            with Client(url, format=format_) as client:
                sync = [
                    client.predict("late", features={"d": 1}),
                    client.features("s", {"k": 1}),
                    client.live(),
                    client.ready(),
                ]

            async def ask(format_=format_):
                async with AsyncClient(url, format=format_) as client:
                    return [
                        await client.predict("late", features={"d": 1}),
                        await client.features("s", {"k": 1}),
                        await client.live(),
                        await client.ready(),
                    ]

            assert asyncio.run(ask()) == sync
            assert sync[2:] == [True, False]


def test_connections_are_reused():
    """Many calls come from one port of the client."""
    ports = set()

    async def app(scope, receive, send):
        ports.add(scope["client"][1])
        await make_app()(scope, receive, send)

    with running(app) as url, Client(url) as client:
        for _ in range(20):
            client.predict("late", features={"d": 1})
    assert len(ports) == 1


def test_threads_share_a_client():
    """Concurrent calls through one client each get the answer to their own question."""
    app = make_app()
    results = {}
    with running(app) as url, Client(url) as client:

        def ask(n):
            results[n] = len(client.predict("late", features={"d": list(range(n))}))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: n for n in range(1, 9)}


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"model": "late"}, "late"),
        ({"model": "late", "version": 3}, "late:3"),
        ({"model": "late", "alias": "challenger"}, "late@challenger"),
        ({"model": "late@challenger"}, "late@challenger"),
        ({"model": "late:3"}, "late:3"),
    ],
)
def test_paths(arguments, path):
    """Version and alias become part of the path, however they are given."""
    app = make_app()
    call(app, lambda c: c.predict(**arguments, features={"d": 1}))
    assert app.state.seen[0][0] == path


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": ""}, {"model": "../x"}, {"model": "a/b"}, {"model": "a?b"}, {"model": "a%2fb"}, {"model": None}, {"model": "a\n"},
        {"model": "late@x", "version": 3}, {"model": "late", "version": 3, "alias": "x"}, {"model": "late", "version": 0},
        {"model": "late", "version": True}, {"model": "late", "version": "3"}, {"model": "late", "alias": ""},
        {"model": "late", "alias": "a b"}, {"model": "late:"}, {"model": "late@a@b"},
    ],
)  # fmt: skip
def test_bad_references_are_refused_before_sending(arguments):
    """No name can reach another path, and contradictions are not sent."""
    app = make_app()
    with pytest.raises(RequestError):
        call(app, lambda c: c.predict(**arguments, features={"d": 1}))
    assert app.state.seen == []


@pytest.mark.parametrize(
    ("arguments", "code", "row"),
    [
        ({}, "invalid_request", None),
        ({"entities": {}, "features": {}}, "invalid_request", None),
        ({"features": [1]}, "wrong_type", None),
        ({"features": {1: 2}}, "wrong_type", None),
        ({"features": {"a": object()}}, "wrong_type", None),
        ({"features": {"a": b"x"}}, "wrong_type", None),
        ({"features": {"a": [1, {}]}}, "wrong_type", 1),
        ({"features": {"a": [[1]]}}, "wrong_type", 0),
        ({"features": {"a": np.zeros((2, 2))}}, "wrong_type", 0),
        ({"features": {"a": "\ud800"}}, "wrong_type", None),
        ({"features": {"a": float("inf")}}, "not_finite", None),
        ({"features": {"a": [1.0, float("-inf")]}}, "not_finite", 1),
        ({"features": {"a": 2**63}}, "not_finite", None),
        ({"features": {"a": [1, 2]}, "entities": {"k": [1]}}, "wrong_length", None),
        ({"features": {"a": []}}, "wrong_length", None),
        ({"features": {"a": 1}, "now": datetime(2013, 1, 1)}, "wrong_type", None),  # noqa: DTZ001
        ({"features": {"a": 1}, "now": 1.5}, "wrong_type", None),
        ({"features": {"a": 1}, "now": True}, "wrong_type", None),
    ],
)
@pytest.mark.parametrize("format_", ["msgpack", "json"])
def test_bad_values_are_refused_before_sending(arguments, code, row, format_):
    """Each kind of wrong argument has its code, and its row when there are several."""
    app = make_app()
    with pytest.raises(RequestError) as caught:
        call(app, lambda c: c.predict("late", **arguments), format=format_)
    assert (caught.value.code, caught.value.row) == (code, row)
    assert app.state.seen == []


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array(["x", "y"]), ["x", "y"]),
        ((1, 2), [1, 2]),
        (float("nan"), None),
        (None, None),
    ],
)
@pytest.mark.parametrize("format_", ["msgpack", "json"])
def test_numpy_values_and_nan(value, sent, format_):
    """NumPy values are sent as plain ones; NaN is sent as null in both formats, so both give the same answer."""
    app = make_app()
    call(app, lambda c: c.predict("late", features={"a": value}), format=format_)
    assert app.state.seen[0][1]["features"]["a"] == sent


@given(
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(hours=9, minutes=30))])
    )
)
def test_datetimes_become_exact_microseconds(moment):
    """No microsecond is lost on the way, whatever the zone."""
    sent = []

    def handle(request):
        sent.append(msgpack.unpackb(request.content)["now"])
        return httpx.Response(200, content=b"{}", headers={"content-type": "application/json"})

    with Client(transport=httpx.MockTransport(handle)) as client, pytest.raises(ProtocolError):
        client.predict("late", features={"a": 1}, now=moment)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=sent[0]) == moment


def test_features():
    """Feature rows carry values, statuses and ages of one shape; a projection and `now` are passed on."""
    app = make_app()
    got = call(app, lambda c: c.features("svc", {"k": [1, 2]}, features=["b"], now="2013-10-01T08:00:00Z"))
    assert got == FeatureRows("svc", "f" * 64, ("b",), ((1.5,),) * 2, ((ValueStatus.PRESENT,),) * 2, ((10.0,),) * 2)
    assert app.state.seen[0][1] == {"entities": {"k": [1, 2]}, "features": ["b"], "now": "2013-10-01T08:00:00Z"}
    both = call(app, lambda c: c.features("svc", {"k": 1}))
    assert both.to_dicts() == [{"a": 1.5, "b": None}]
    assert both.statuses == ((ValueStatus.PRESENT, ValueStatus.NOT_FOUND),)


@pytest.mark.parametrize(
    "arguments",
    [("", {"k": 1}), ("a/b", {"k": 1}), ("..", {"k": 1}), (None, {"k": 1}), ("s", {}), ("s", None), ("s", {"k": []})],
)
def test_bad_feature_reads_are_refused_before_sending(arguments):
    """A service name cannot reach another path; a read needs keys."""
    app = make_app()
    with pytest.raises(RequestError):
        call(app, lambda c: c.features(*arguments))
    with pytest.raises(RequestError, match="list of names"):
        call(app, lambda c: c.features("s", {"k": 1}, features="abc"))
    assert app.state.seen == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError), (404, ServerNotFoundError), (413, BadRequestError), (415, BadRequestError),
        (422, BadRequestError), (429, OverloadedError), (500, ServerInternalError), (503, UnavailableError),
        (504, ServerInternalError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("media_type", list(FORMATS))
def test_server_errors(status, kind, media_type):
    """Each class of status has its error, with the server's message, code, row and Retry-After."""
    content = FORMATS[media_type][1]({"error": "expected a, got b", "code": "wrong_type", "row": 7})
    headers = {"content-type": f"{media_type}; charset=utf-8", "retry-after": "2"}
    with replying(status, content, headers) as client, pytest.raises(kind) as caught:
        client.predict("late", features={"a": 1})
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.row, error.retry_after_s) == (status, "wrong_type", 7, 2.0)
    assert str(error) == f"expected a, got b (HTTP {status}, wrong_type, row 7)"


@pytest.mark.parametrize(
    ("status", "content", "media_type"),
    [
        (200, b"<html>", "text/html"), (200, b"", "application/json"), (200, b"[1]", "application/json"),
        (200, b"{", "application/json"), (200, b"\xc1", "application/msgpack"), (200, b"\x81\xa1a", "application/msgpack"),
        (200, b"\xdd\xff\xff\xff\xff", "application/msgpack"), (200, b"\x91" * 5000, "application/msgpack"),
        (200, b"[" * 5000, "application/json"), (204, b"", "application/json"), (302, b"{}", "application/json"),
        (404, b"Not Found", "text/plain"), (502, b"<html>Bad Gateway", "text/html"), (500, b"{}", "application/json"),
        (400, b'{"error": 3, "code": "x"}', "application/json"),
    ],
)  # fmt: skip
def test_what_is_not_a_tiercel_reply(status, content, media_type):
    """Proxy pages, damaged bodies, and bombs are ProtocolError, never a crash or a guess."""
    with replying(status, content, {"content-type": media_type}) as client, pytest.raises(ProtocolError):
        client.predict("late", features={"a": 1})


GOOD = {
    "id": "r",
    "model": "m",
    "version": 1,
    "tier": "realtime",
    "score": 0.5,
    "features": {"oldest_age_ms": None, "missing": []},
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3}, {"version": "1"}, {"version": True}, {"score": "x"}, {"score": [0.1, "x"]}, {"scores": 0.5},
        {"scores": ["x"]}, {"features": []}, {"features": [1]}, {"features": {"oldest_age_ms": "old"}},
        {"features": {"missing": "abc"}}, {"features": {"missing": [1]}}, {"scores": [1], "features": {"missing": ["a"]}},
        {"tier": None}, {"classes": 5}, {"classes": [1]},
    ],
)  # fmt: skip
def test_predictions_of_another_shape_are_refused(change):
    """A reply with a missing or wrongly typed part is a ProtocolError that shows it."""
    good = dict(GOOD)
    if change == {"features": []}:  # an empty list is an absent part
        with replying_json(good | change) as client:
            assert client.predict("m", features={"a": 1}).missing == ()
        return
    with replying_json(good | change) as client, pytest.raises(ProtocolError, match="Expected a tiercel prediction"):
        client.predict("m", features={"a": 1})


@pytest.mark.parametrize("part", ["id", "model", "version", "tier", "score"])
def test_predictions_lacking_a_part_are_refused(part):
    """Every part of the contract is required."""
    with (
        replying_json({k: v for k, v in GOOD.items() if k != part}) as client,
        pytest.raises(ProtocolError, match=part),
    ):
        client.predict("m", features={"a": 1})


@pytest.mark.parametrize(
    ("format_", "no_number"), [("json", None), ("msgpack", math.nan), ("msgpack", math.inf), ("msgpack", -math.inf)]
)
def test_a_score_that_is_no_number_is_an_error_of_its_own(format_, no_number):
    """What JSON writes as null and msgpack as NaN is one error, which says which rows and keeps the others' scores."""
    many = {k: v for k, v in GOOD.items() if k not in {"score", "features"}} | {"scores": [0.5, no_number, no_number]}
    encode = json.dumps if format_ == "json" else msgpack.packb
    headers = {"content-type": f"application/{format_}"}
    said = r"model 'm' version 1, got .* 2 of 3 rows \(1, 2\) .*default_score"
    with replying(content=encode(many), headers=headers) as client, pytest.raises(NoScoreError, match=said) as failed:
        client.predict("m", features={"a": [1, 2, 3]})
    assert failed.value.code == "no_score"
    assert (failed.value.rows, failed.value.prediction.scores[0], len(failed.value.prediction)) == ((1, 2), 0.5, 3)
    one = encode(GOOD | {"score": [0.5, no_number]})
    with replying(content=one, headers=headers) as client, pytest.raises(NoScoreError) as failed:
        client.predict("m", features={"a": 1})
    assert failed.value.rows == (0,)
    assert failed.value.prediction.score[0] == 0.5


def test_unknown_parts_of_a_reply_are_ignored_and_multiclass_is_read():
    """A newer server may say more; a multiclass score is a tuple in class order."""
    body = GOOD | {"score": [0.25, 0.75], "classes": ["no", "yes"], "degraded": False}
    with replying_json(body) as client:
        got = client.predict("m", features={"a": 1})
    assert (got.score, got.classes) == ((0.25, 0.75), ("no", "yes"))


@pytest.mark.parametrize(
    "change",
    [
        {"statuses": [["LOST"]]},
        {"values": [[1], [2]]},
        {"ages_ms": [[1.0, 2.0]]},
        {"values": [1]},
        {"features": "a"},
        {"ages_ms": [["x"]]},
    ],
)
def test_feature_rows_of_another_shape_are_refused(change):
    """Values, statuses and ages must agree in shape, and statuses must be known ones."""
    body = {
        "service": "s",
        "fingerprint": "f",
        "features": ["a"],
        "values": [[1]],
        "statuses": [["PRESENT"]],
        "ages_ms": [[1.0]],
    }
    with replying_json(body | change) as client, pytest.raises(ProtocolError):
        client.features("s", {"k": 1})


def test_no_server():
    """A refused connection is a ClientConnectionError naming the address; the probes answer False."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, connect_retries=0) as client:
        with pytest.raises(ClientConnectionError, match=url) as caught:
            client.predict("late", features={"a": 1})
        assert caught.value.code == "connection_failed"
        assert not client.ready()
        assert not client.live()


def test_silent_server_times_out():
    """A server that accepts and says nothing is a ClientTimeoutError, which is also a TimeoutError."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, timeout=0.05) as client:
            with pytest.raises(ClientTimeoutError) as caught:
                client.predict("late", features={"a": 1})
            assert isinstance(caught.value, TimeoutError)
            assert not client.ready()


def test_a_broken_exchange_is_not_repeated():
    """A server that closes after reading the request gets it once: only failed connects are tried again."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                accepted.append(connection.recv(65536))
            listener.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                accepted.append(listener.accept()[0].close())

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, connect_retries=3) as client, pytest.raises(ClientConnectionError):
            client.predict("late", features={"a": 1})
        thread.join()
    assert len(accepted) == 1


def test_failed_connects_are_repeated(monkeypatch):
    """With `connect_retries`, a connection that could not be opened is tried again before giving up."""
    attempts = []
    original = socket.create_connection

    def refuse(*args, **kwargs):
        attempts.append(args)
        if len(attempts) == 1:
            raise ConnectionRefusedError(111, "refused")
        return original(*args, **kwargs)

    with running(make_app()) as url:
        monkeypatch.setattr(socket, "create_connection", refuse)
        with Client(url, connect_retries=1) as client:
            assert client.predict("late", features={"a": 1}).score == 0.25
    assert len(attempts) == 2


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x", "http://", "http://h/?q=1", None, 3, "http://[::1", "http://h:99999999"]
)
def test_bad_urls_are_refused(url):
    """A URL that cannot be a server's is refused when the client is made."""
    with pytest.raises(RequestError, match="Expected a URL"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, None, True, float("inf"), float("nan"), "5"])
def test_bad_timeouts_are_refused(timeout):
    """Waiting forever is not offered."""
    with pytest.raises(RequestError, match="timeout"):
        Client(timeout=timeout)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_certificates_are_loaded_for_https_only(client, monkeypatch):
    """A plain http client does not pay for certificates; an https one checks them unless told otherwise."""
    asked = []

    def make(verify, limits, retries):
        asked.append(verify)
        return httpx.MockTransport(lambda request: httpx.Response(200))

    monkeypatch.setattr(httpx, "HTTPTransport", make)
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", make)
    client("http://localhost")
    client("https://localhost")
    client("https://localhost", verify=False)
    assert asked == [False, True, False]


def test_bad_format_is_refused():
    """Only the two formats exist; pickle is not one."""
    with pytest.raises(RequestError, match="msgpack"):
        Client(format="pickle")


def test_closed_client_says_so():
    """Using a closed client is a ClientError, in calls and in probes."""
    client = Client()
    client.close()
    with pytest.raises(ClientError, match="closed"):
        client.predict("late", features={"a": 1})
    with pytest.raises(ClientError, match="closed"):
        client.ready()


def test_probe_of_a_foreign_server():
    """A health path that answers 404 is not a tiercel server."""
    with replying(404, b"nope") as client, pytest.raises(ProtocolError):
        client.ready()


def test_base_url_may_have_a_path():
    """Behind a proxy's prefix, the prefix is kept."""
    app = make_app()
    got = []

    def handle(request):
        got.append(request.url.path)
        return httpx.Response(200, content=orjson.dumps(GOOD), headers={"content-type": "application/json"})

    with Client("http://gateway/models/", transport=httpx.MockTransport(handle), headers={"x-team": "a"}) as client:
        client.predict("late", features={"a": 1})
    assert got == ["/models/predict/late"]
    assert app.state.seen == []
