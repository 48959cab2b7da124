"""The load generator against small servers whose behaviour is known."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from benchmarks.loadgen.histogram import SOURCE
from benchmarks.loadgen.run import Requests, run

from benchmarks import compiled


def score_of(user):
    return user / 7


def make_requests(n_rows=50):
    def body(user):
        return json.dumps({"user": user}).encode()

    return Requests.make(path="/predict", content_type="application/json", body=body, n_rows=n_rows, seed=3)


@contextmanager
def toy_server(answer):
    """A thread for each connection; `answer(body, number)` gives the bytes of a reply, b"" to close, None to be silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen, open_sockets, lock = [], [listener], threading.Lock()

    def serve(connection):
        with connection, connection.makefile("rb") as stream:
            while True:
                length = 0
                line = stream.readline()
                if not line:
                    return
                while (header := stream.readline()) not in {b"\r\n", b""}:
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                body = stream.read(length)
                with lock:
                    seen.append((line, body))
                    number = len(seen)
                reply = answer(body, number)
                if reply == b"":
                    return
                if reply is not None:
                    connection.sendall(reply)

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        for one in open_sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def reply(score, status=200):
    body = json.dumps({"score": score}).encode()
    return b"HTTP/1.1 %d OK\r\nConTENT-length: %d\r\nx: y\r\n\r\n%b" % (status, len(body), body)


def honest(body, _):
    return reply(score_of(json.loads(body)["user"]))


def right(user, body):
    return math.isclose(json.loads(body)["score"], score_of(user))


def test_arrivals_are_a_poisson_process():
    """Gaps have the mean and variance of an exponential, and pass a Kolmogorov-Smirnov test against it."""
    n, rate = 200_000, 12_345.0
    gaps = np.diff(compiled.load(SOURCE).arrivals(99, rate, n + 1)) * rate
    assert abs(gaps.mean() - 1) < 5 / math.sqrt(n)
    assert abs(gaps.var() - 1) < 5 * math.sqrt(8 / n)
    distance = np.abs(np.sort(1 - np.exp(-gaps)) - np.arange(1, n + 1) / n).max()
    assert distance < 1.95 / math.sqrt(n)  # alpha = 0.001
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5 / math.sqrt(n)


def test_arrivals_depend_on_the_seed_alone():
    """The same seed gives the same schedule, another seed another."""
    arrivals = compiled.load(SOURCE).arrivals
    assert np.array_equal(arrivals(5, 100.0, 50), arrivals(5, 100.0, 50))
    assert not np.array_equal(arrivals(5, 100.0, 50), arrivals(6, 100.0, 50))


def test_requests_ask_about_every_user_once_in_a_seeded_order():
    """The bytes to send hold each user once; the order is not the users' own."""
    requests = make_requests(200)
    assert sorted(requests.users.tolist()) == list(range(200)) != requests.users.tolist()
    third = requests.data[requests.starts[2] : requests.starts[3]].tobytes()
    head, _, body = third.partition(b"\r\n\r\n")
    assert json.loads(body) == {"user": int(requests.users[2])}
    assert head.endswith(b"Content-Length: %d" % len(body))


@pytest.mark.parametrize("rate", [0, 400], ids=["closed", "open"])
def test_every_reply_is_counted_and_checked(rate):
    """The server sees what the generator says it sent, whole and in order of its requests, and all scores are right."""
    requests = make_requests()
    with toy_server(honest) as (port, seen):
        found = run(port, requests, rate=rate, seconds=0.5, connections=3, warmup_s=0, check=right, n_checked=5)
    assert found.sent == found.ok == found.latency.n == len(seen) > 0
    assert (found.failed, found.why) == (0, "")
    asked = [json.loads(body)["user"] for _, body in seen]
    counts = np.bincount(asked, minlength=50)
    assert counts.max() - counts.min() <= 1
    assert {line for line, _ in seen} == {b"POST /predict HTTP/1.1\r\n"}


def test_open_loop_sends_what_the_schedule_says():
    """The number of requests is the number of arrivals before the end, however slow the server is."""
    due = compiled.load(SOURCE).arrivals(21, 300.0, 1000)

    def slow(body, number):
        time.sleep(0.002)
        return honest(body, number)

    with toy_server(slow) as (port, seen):
        found = run(port, make_requests(), rate=300, seconds=0.5, connections=1, warmup_s=0, seed=21)
    assert found.sent == len(seen) == int((due < 0.5).sum())


def test_a_stall_is_charged_to_everybody_who_was_due():
    """One reply held back for 0.3 s on the only connection makes a third of all latencies long, not one of them."""

    def stalling(body, number):
        if number == 50:
            time.sleep(0.3)
        return honest(body, number)

    with toy_server(stalling) as (port, _):
        found = run(port, make_requests(), rate=300, seconds=0.8, connections=1, warmup_s=0)
    assert found.ok == found.sent
    assert found.latency.percentile_ns(80) > 50e6
    assert found.service.percentile_ns(95) < 290e6 <= found.service.max_ns <= found.latency.max_ns


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda body, number: reply(0.0, 503), "bad_status"),
        (lambda body, number: b"", "broken"),
        (lambda body, number: b"garbage\r\n\r\n", "broken"),
        (lambda body, number: None, "unfinished"),
        (lambda body, number: reply(-1.0), "wrong_score"),
        (lambda body, number: reply(0.0) + b"more", "broken"),
    ],
    ids=["status", "closed", "garbage", "silent", "wrong", "too much"],
)
def test_failures_are_told_apart(answer, why):
    """An error status, a closed connection, no HTTP, no answer, a wrong score, surplus bytes: each is a failed request."""
    with toy_server(answer) as (port, _):
        found = run(
            port, make_requests(), rate=100, seconds=0.3, connections=2, warmup_s=0, grace_s=0.2, check=right, n_checked=5
        )  # fmt: skip
    assert found.failed > 0
    assert why in found.why


def test_chunked_and_split_replies_are_read_whole():
    """A reply may come in pieces and in chunks."""
    text = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"sco\r\n8\r\nre": 1.0}\r\n0\r\n\r\n'  # fmt: skip
    with toy_server(lambda body, number: text) as (port, _):
        found = run(port, make_requests(), rate=0, seconds=0.2, connections=2, warmup_s=0)
    assert found.ok == found.sent > 0
    assert found.failed == 0


def test_what_makes_no_run_is_refused():
    """Nobody listening, no connections, no requests: said before anything is measured."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="Expected a server on"):
        run(port, make_requests(), rate=0, seconds=0.1, connections=1)
    with pytest.raises(ValueError, match="Expected connections in"):
        run(port, make_requests(), rate=0, seconds=0.1, connections=0)
    with pytest.raises(ValueError, match="Expected `starts`"):
        run(port, Requests(np.zeros(1, np.uint8), np.zeros(1, np.int64), np.zeros(0)), rate=0, seconds=1, connections=1)
    with pytest.raises(ValueError, match="Expected a rate above 0"):
        compiled.load(SOURCE).arrivals(1, 0.0, 3)
