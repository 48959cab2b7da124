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
from benchmarks.loadgen.replies import ABANDONED, BROKEN, UNFINISHED
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
        with suppress(OSError), connection, connection.makefile("rb") as stream:  # whoever asks may leave
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


def by_user(body, _):
    """A prediction, a refusal of either kind, or an error, by the user that is asked about."""
    return reply(0.0, (200, 503, 504, 400)[json.loads(body)["user"] % 4])


@pytest.mark.parametrize("may_refuse", [True, False])
def test_refusals_are_failures_unless_the_server_may_refuse(may_refuse):
    """A 503 and a 504 are counted by themselves where they are expected, and as any other bad status where not."""
    with toy_server(by_user) as (port, seen):
        found = run(
            port, make_requests(), rate=400, seconds=0.4, connections=3, warmup_s=0, may_refuse=may_refuse, logged=True
        )  # fmt: skip
    statuses = np.bincount([json.loads(body)["user"] % 4 for _, body in seen], minlength=4).tolist()
    assert found.ok == statuses[0] > 0
    assert found.refused == (statuses[1] + statuses[2] if may_refuse else 0)
    assert found.failed == statuses[3] + (0 if may_refuse else statuses[1] + statuses[2])
    assert [found.replies.count(status) for status in (200, 503, 504, 400)] == statuses
    assert (len(found.replies.refused), found.replies.n_failed) == (statuses[1] + statuses[2], statuses[3])


def test_the_log_tells_of_each_request_when_and_whose_it_was():
    """Its replies are those of the histograms, each by the request that was sent, and none of the warm-up's is in it."""
    with toy_server(honest) as (port, seen):
        found = run(port, make_requests(), rate=300, seconds=0.3, connections=2, warmup_s=0.2, logged=True)
    log = found.replies.log
    assert len(log) == found.sent == found.ok < len(seen)
    assert found.replies.latency_ns.max() == found.latency.max_ns
    assert found.replies.service_ns.max() == found.service.max_ns
    assert ((log["due_ns"] >= 0) & (log["due_ns"] <= log["sent_ns"]) & (log["sent_ns"] < log["done_ns"])).all()
    assert np.array_equal(np.sort(log["request"]), np.sort(np.arange(len(seen) - len(log), len(seen)) % 50))


def test_the_servers_own_times_are_read_without_the_budget():
    """Server-Timing's durations are added up, wherever they stand in an entry; a budget is none, and many send no header."""
    timed = (
        b'HTTP/1.1 200 OK\r\nServer-Timing: parse;dur=0.5, read;desc="x";dur=1.25,score;dur=2, '
        b'budget;dur=50.000;desc="deadline_ms"\r\ncontent-length: 2\r\n\r\n{}'
    )
    answers = [timed, timed.replace(b"Server-Timing", b"x-timing")]
    with toy_server(lambda body, number: answers[number % 2]) as (port, _):
        found = run(port, make_requests(), rate=200, seconds=0.3, connections=1, warmup_s=0, logged=True)
    assert found.failed == 0
    assert set(found.replies.server_ns.tolist()) == {3_750_000}
    assert abs(2 * len(found.replies.server_ns) - found.ok) <= 1


def test_a_run_may_go_on_at_another_rate():
    """Arrivals are Poisson before the step and after it, each at its own rate, and all are in the log."""
    with toy_server(honest) as (port, _):
        found = run(
            port, make_requests(), rate=200, seconds=0.4, connections=4, warmup_s=0.1, then=(1000, 0.3), logged=True
        )  # fmt: skip
    assert len(found.replies) == found.sent
    assert found.replies.log["due_ns"].max() < 0.7e9
    before, after = found.replies.due_within(0, 0.4), found.replies.due_within(0.4, 0.7)
    assert abs(len(before) - 80) < 5 * 80**0.5
    assert abs(len(after) - 300) < 5 * 300**0.5


def test_who_finds_no_connection_is_abandoned_and_counted():
    """With the only connection held, whoever waits longer than allowed is not sent; who was sent is unfinished."""
    due = compiled.load(SOURCE).arrivals(4, 200.0, 1000)
    with toy_server(lambda body, number: honest(body, number) if number < 20 else None) as (port, seen):
        found = run(
            port, make_requests(), rate=200, seconds=0.5, connections=1, warmup_s=0, grace_s=0.1, seed=4, abandon_s=0.02,
            logged=True, may_refuse=True,
        )  # fmt: skip
    assert (found.ok, found.sent, found.failed) == (19, 20, 1) == (19, len(seen), 1)
    assert found.replies.count(UNFINISHED) == 1
    assert found.abandoned == found.replies.count(ABANDONED) == int((due < 0.5).sum()) - 20 > 0


def test_who_waits_for_a_connection_too_long_gives_it_up_to_the_next():
    """After a stall the connection goes to who came lately: nobody is sent who waited longer than allowed."""

    def stalling(body, number):
        time.sleep(0.2 if number == 20 else 0)
        return honest(body, number)

    with toy_server(stalling) as (port, _):
        found = run(
            port, make_requests(), rate=200, seconds=0.6, connections=1, warmup_s=0, abandon_s=0.05, logged=True
        )  # fmt: skip
    assert found.failed == 0
    assert 10 < found.abandoned < 60
    # Sent at once when the connection was free, and that is noticed by a thread that may have to wait for a core.
    assert (found.replies.answered.log["sent_ns"] - found.replies.answered.log["due_ns"]).max() < 0.15e9
    assert found.sent + found.abandoned == len(found.replies)


def test_a_broken_connection_is_in_the_log():
    """Whoever gets no reply because the server closed is there with its fate."""
    with toy_server(lambda body, number: b"" if number == 3 else honest(body, number)) as (port, _):
        found = run(port, make_requests(), rate=100, seconds=0.2, connections=1, warmup_s=0, logged=True)
    assert (found.replies.count(BROKEN), found.replies.n_failed, found.failed) == (1, 1, 1)


def test_requests_are_mixed_by_their_shares_each_in_its_own_order():
    """A mix holds whole requests of its parts, as often as their shares say, and begins a part again at its end."""
    parts = [make_requests(30), make_requests(7)]
    mixed, kinds = Requests.mixed(parts, [3, 1], n=400, seed=5)
    assert abs(int((kinds == 0).sum()) - 300) < 5 * (400 * 0.75 * 0.25) ** 0.5
    for kind, part in enumerate(parts):
        at = np.flatnonzero(kinds == kind)
        assert np.array_equal(mixed.users[at], np.resize(part.users, len(at)))
        k = int(at[-1])
        sent = mixed.data[mixed.starts[k] : mixed.starts[k + 1]].tobytes()
        assert json.loads(sent.partition(b"\r\n\r\n")[2]) == {"user": int(mixed.users[k])}


def test_chunked_and_split_replies_are_read_whole():
    """A reply may come in pieces and in chunks."""
    text = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"sco\r\n8\r\nre": 1.0}\r\n0\r\n\r\n'  # fmt: skip
    with toy_server(lambda body, number: text) as (port, _):
        found = run(port, make_requests(), rate=0, seconds=0.2, connections=2, warmup_s=0)
    assert found.ok == found.sent > 0
    assert found.failed == 0


def test_a_closed_loop_beside_an_open_one():
    """Its requests go out over its own connections, are counted by themselves, and change nothing about the other's."""
    others = Requests.make(
        path="/other", content_type="application/json", body=lambda user: b'{"user": %d}' % user, n_rows=20, seed=5
    )

    def answer(body, number):
        return reply(1.0) if number % 10 else reply(1.0, 500)

    with toy_server(answer) as (port, seen):
        found = run(
            port, make_requests(), rate=200, seconds=0.5, connections=3, warmup_s=0.1, beside=(others, 2), logged=True
        )
    lines = [line for line, _ in seen]
    mine, theirs = lines.count(b"POST /predict HTTP/1.1\r\n"), lines.count(b"POST /other HTTP/1.1\r\n")
    assert mine + theirs == len(lines)
    assert 80 <= mine <= 160
    assert found.sent == len(found.replies) <= mine
    assert found.ok + found.replies.count(500) == found.sent
    n_beside = found.beside_per_second * 0.5 + found.beside_failed
    assert 0 < found.beside_failed < 0.5 * n_beside
    assert 0.5 * theirs < n_beside <= theirs
    asked = [json.loads(body)["user"] for line, body in seen if line.startswith(b"POST /other")]
    assert np.ptp(np.bincount(asked, minlength=20)) <= 1


def test_a_closed_loop_beside_that_loses_its_connections():
    """It is counted as failed and goes on with those that are left; the run ends all the same."""
    others = Requests.make(path="/other", content_type="x/y", body=lambda user: b"{}", n_rows=20, seed=5)
    with toy_server(lambda body, number: b"" if body == b"{}" else reply(1.0)) as (port, _):
        found = run(port, make_requests(), rate=200, seconds=0.2, connections=3, warmup_s=0, beside=(others, 2))
    assert found.beside_failed == 2
    assert found.beside_per_second == 0
    assert found.ok == found.sent > 0


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
    with pytest.raises(ValueError, match="Expected a step of an open loop"):
        run(port, make_requests(), rate=0, seconds=0.1, connections=1, then=(10, 1))
    with pytest.raises(ValueError, match="Expected a closed loop beside"):
        run(port, make_requests(), rate=0, seconds=0.1, connections=1, beside=(make_requests(), 1))
    with pytest.raises(ValueError, match="Expected a rate above 0"):
        compiled.load(SOURCE).arrivals(1, 0.0, 3)
