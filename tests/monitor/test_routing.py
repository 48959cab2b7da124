"""The webhook: signed, tried again, bounded, and nobody waits for it."""

from __future__ import annotations

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.monitor.findings import START_US, finding, look

from tiercel.monitor import routing
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.routing import DELIVERY, SIGNATURE, Router, sign, verify
from tiercel.settings import MonitorSettings

SECRET = "s3cret"
CLASSES = ("pipeline", "impact")


class Receiver:
    """A webhook on loopback that answers with what it is told to, in order, then with 204."""

    def __init__(self):
        self.requests, self.answers, self.hold = [], [], threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                receiver.hold.wait(20)
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815 - the base class names it

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def store(tmp_path):
    return AlertStore(tmp_path, routed=CLASSES)


@pytest.fixture
def make_router(store, receiver, monkeypatch):
    """Routers that try again at once; closed at the end."""
    monkeypatch.setenv("HOOK_KEY", SECRET)
    made = []

    def make(**changes):
        settings = MonitorSettings(**{"webhook_url": receiver.url, "webhook_secret_env": "HOOK_KEY", **changes})
        made.append(Router(settings, store, project="shop", first_wait_s=0.001))
        return made[-1]

    yield make
    for router in made:
        router.close()


def open_alerts(store, *causes):
    return store.update([look(*(finding(cause) for cause in causes), n_confirm=1)], START_US)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def unsent(store):
    return [what for alert in store.find_all(with_resolved=True) for what in alert.unsent]


def test_a_signed_request(store, receiver, make_router):
    """The body says what a person needs, the headers who it is from, and the store learns that it was taken."""
    open_alerts(store, "pipeline:a")
    router = make_router()
    router.offer(store.find_all())
    until(lambda: not unsent(store))
    ((path, headers, body),) = receiver.requests
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert verify(SECRET.encode(), body, headers[SIGNATURE], int(time.time()))
    assert headers[DELIVERY] == f"1-opened-{START_US}"
    said = json.loads(body)
    assert (said["event"], said["class"], said["pages"], said["project"]) == ("opened", "pipeline", True, "shop")
    assert {"n", "effect", "threshold", "features", "begin_us", "end_us", "message", "command"} <= set(said)
    until(lambda: router.status.waiting == 0)
    assert (router.status.sent, router.status.failed_tries) == (1, 0)
    assert store.get(1).history[-1].what == "sent"


def test_refused_is_tried_again_under_the_same_name(store, receiver, make_router):
    """Errors and redirects do not count as taken, a redirect is not followed, and the receiver can tell a repetition."""
    receiver.answers += [(500, {}), (404, {}), (302, {"location": receiver.url + "/elsewhere"})]
    open_alerts(store, "pipeline:a")
    router = make_router()
    router.offer(store.find_all())
    until(lambda: not unsent(store))
    assert [path for path, _, _ in receiver.requests] == ["/hook"] * 4
    assert len({headers[DELIVERY] for _, headers, _ in receiver.requests}) == 1
    assert (router.status.sent, router.status.failed_tries) == (1, 3)


def test_given_up_is_said(store, receiver, make_router, monkeypatch):
    """After the last try the alert says that nobody heard of it, and why; the next one is sent all the same."""
    monkeypatch.setattr(routing, "MAX_TRIES", 3)
    receiver.answers += [(503, {})] * 3
    open_alerts(store, "pipeline:a", "impact:b")
    router = make_router()
    router.offer(sorted(store.find_all(), key=lambda alert: alert.id))
    until(lambda: not unsent(store))
    assert (router.status.given_up, router.status.sent) == (1, 1)
    assert store.get(1).history[-1].what == "not_sent"
    assert "3 tries: it answered 503" in store.get(1).history[-1].note


def test_nobody_waits_for_a_receiver_that_hangs(store, receiver, make_router, monkeypatch):
    """While a request hangs, offering returns at once, the queue stays bounded, and nothing is forgotten."""
    monkeypatch.setattr(routing, "MAX_WAITING", 2)
    receiver.hold.clear()
    open_alerts(store, *(f"pipeline:{i}" for i in range(8)))
    router = make_router()
    for _ in range(3):
        began_s = time.monotonic()
        router.offer(store.find_all())
        assert time.monotonic() - began_s < 1.0
    until(lambda: receiver.requests)
    assert router.status.waiting <= 3
    assert len(unsent(store)) == 8
    receiver.hold.set()

    def all_taken():
        router.offer(store.find_all())
        return not unsent(store)

    until(all_taken)
    names = [headers[DELIVERY] for _, headers, _ in receiver.requests]
    assert len(names) == len(set(names)) == 8


def test_what_was_offered_late_is_not_sent_again(store, receiver, make_router):
    """An offer that was read before the last delivery was marked does not repeat it."""
    open_alerts(store, "pipeline:a")
    router = make_router()
    read_early = store.find_all()
    for _ in range(2):
        router.offer(read_early)
        until(lambda: router.status.waiting == 0)
    assert (len(receiver.requests), router.status.sent) == (1, 1)


def test_what_somebody_acknowledged_is_not_tried_again(store, receiver, make_router, monkeypatch):
    """Between two tries somebody takes the alert on: the receiver hears no more of it."""
    monkeypatch.setattr(routing, "MAX_TRIES", 100_000)
    monkeypatch.setattr(routing, "MAX_WAIT_S", 0.01)
    receiver.answers += [(500, {})] * 10_000
    open_alerts(store, "pipeline:a")
    router = make_router()
    router.offer(store.find_all())
    until(lambda: receiver.requests)
    store.acknowledge(1, by="ana", now_us=START_US + 1)
    until(lambda: router.status.waiting == 0)
    assert (router.status.sent, router.status.given_up) == (0, 0)
    assert unsent(store) == []


def test_what_is_not_sent_is_sent_by_the_next_process(store, receiver, make_router):
    """A router that ends in the middle of its tries leaves the event in the store, for whoever comes after it."""
    receiver.answers += [(500, {})] * 1000
    open_alerts(store, "pipeline:a")
    first = make_router()
    first.offer(store.find_all())
    until(lambda: receiver.requests)
    first.close()
    assert unsent(store) == ["opened"]
    receiver.answers.clear()
    make_router().offer(store.find_all())
    until(lambda: not unsent(store))


def test_a_receiver_that_is_not_there(store, receiver, make_router):
    """A port that nobody listens on is a failed try, not an end."""
    open_alerts(store, "pipeline:a")
    router = make_router(webhook_url="http://127.0.0.1:1/hook")
    router.offer(store.find_all())
    until(lambda: router.status.failed_tries >= 2)
    assert unsent(store) == ["opened"]


def test_a_named_key_that_is_not_set_sends_nothing(store, receiver, make_router, caplog):
    """Unsigned is not sent where signed was asked for; it is said, and the alerts wait."""
    open_alerts(store, "pipeline:a")
    router = make_router(webhook_secret_env="NO_SUCH_KEY")
    router.offer(store.find_all())
    assert "NO_SUCH_KEY" in router.status.problem
    assert "NO_SUCH_KEY" in caplog.text
    assert unsent(store) == ["opened"]
    assert receiver.requests == []


def test_without_a_key_it_is_unsigned(store, receiver, make_router):
    """Receivers that check no signature need no key."""
    open_alerts(store, "pipeline:a")
    make_router(webhook_secret_env="").offer(store.find_all())
    until(lambda: not unsent(store))
    assert SIGNATURE not in receiver.requests[0][1]


def test_without_a_url_nothing_is_sent(store, receiver, make_router):
    """The log has it all; no thread is started."""
    open_alerts(store, "pipeline:a")
    router = make_router(webhook_url="")
    router.offer(store.find_all())
    assert router.status.waiting == 0
    assert receiver.requests == []


def test_the_log_has_every_alert(store, make_router, caplog):
    """What began and what ended is in any log, with what shows it again; what people did in a verbose one."""
    caplog.set_level(logging.INFO, "tiercel.alerts")
    router = make_router(webhook_url="")
    router.tell(open_alerts(store, "population:fraud:1"))
    assert "Alert 1 opened (population): Features of source orders are missing. Shown by: tiercel drift" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
    router.tell([store.acknowledge(1, by="ann", now_us=START_US)])
    assert (caplog.records[-1].levelname, "Alert 1 acknowledged" in caplog.text) == ("INFO", True)
    router.tell([store.resolve(1, by="ann", now_us=START_US)])
    assert (caplog.records[-1].levelname, "Alert 1 resolved" in caplog.text) == ("WARNING", True)


@pytest.mark.parametrize(
    ("body", "header", "now_s", "is_good"),
    [
        (b"{}", "", 1000, False),
        (b"{}", "t=1000", 1000, False),
        (b"{}", "v1=00", 1000, False),
        (b"{}", "t=,v1=00", 1000, False),
        (b"{}", "t=999999999999999999,v1=00", 1000, False),
        (b"{}", sign(b"k", b"{}", 1000), 1000, True),
        (b"{}", sign(b"k", b"{}", 1000), 1300, True),
        (b"{}", sign(b"k", b"{}", 1000), 1301, False),
        (b"{}", sign(b"k", b"{}", 1000), 699, False),
        (b"{ }", sign(b"k", b"{}", 1000), 1000, False),
        (b"{}", sign(b"other", b"{}", 1000), 1000, False),
        (b"{}", sign(b"k", b"{}", 1000).replace("t=1000", "t=1001"), 1000, False),
        (b"{}", sign(b"k", b"{}", 1000) + "\u00e9", 1000, False),
    ],
)
def test_signatures(body, header, now_s, is_good):
    """Only the key's own signature of these bytes at about this time is one."""
    assert verify(b"k", body, header, now_s) is is_good
