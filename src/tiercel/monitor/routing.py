"""Where alerts go: the log always, and the webhook that the project names, signed.

A request of the webhook is

    POST <webhook_url>
    Content-Type: application/json
    X-Tiercel-Delivery: 17-opened-1767225600000000
    X-Tiercel-Signature: t=1767225601,v1=<hex HMAC-SHA256 of "1767225601." and the body>

    {"event": "opened", "id": 17, "class": "pipeline", "pages": true, "project": "shop", "message": ..., "command": ...}

Any 2xx answer takes it. Whatever else happens, it is tried again, ever later, the same delivery under the same name; a
receiver that keeps names takes each once. Sending has a thread of its own with a bounded queue: a receiver that hangs delays
no look. What does not fit, or is not sent when the process ends, is offered again by the alert store, which knows what was.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from tiercel.errors import AlertNotFoundError, TiercelError
from tiercel.priority import stand_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tiercel.monitor.alert import Alert
    from tiercel.monitor.alerts import AlertStore
    from tiercel.settings import MonitorSettings

__all__ = ["SIGNATURE", "Router", "RouterStatus", "sign", "verify"]

log = logging.getLogger("tiercel.alerts")

SIGNATURE, DELIVERY = "X-Tiercel-Signature", "X-Tiercel-Delivery"
#: Deliveries that wait for their turn; more stay in the store until there is room.
MAX_WAITING = 64
#: Tries of one delivery, and the waits between them: doubled each time, half an hour in all.
MAX_TRIES = 12
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 300.0
TIMEOUT_S = 10.0
#: How old a signature a receiver should accept.
TOLERANCE_S = 300
CLOSE_S = 2.0
#: What a log without --verbose shows.
_SHOWN = frozenset({"opened", "reopened", "unsilenced", "resolved"})


def sign(secret: bytes, body: bytes, now_s: int) -> str:
    """The signature header of a body."""
    digest = hmac.new(secret, b"%d." % now_s + body, hashlib.sha256).hexdigest()
    return f"t={now_s},v1={digest}"


def verify(secret: bytes, body: bytes, header: str, now_s: int, *, tolerance_s: int = TOLERANCE_S) -> bool:
    """Whether a header is the signature of a body and not older, or newer, than is tolerated: what a receiver checks."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    made, digits = parts.get("v1", ""), parts.get("t", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16 and abs(now_s - int(digits)) <= tolerance_s):
        return False
    return hmac.compare_digest(sign(secret, body, int(digits)).partition(",v1=")[2].encode(), made.encode())


@dataclass
class RouterStatus:
    """What became of deliveries since the process began.

    Attributes:
        sent, failed_tries, given_up: deliveries; tries that were not taken; deliveries that nobody will hear of.
        waiting: in the queue, and under way.
        problem: why nothing is sent at the moment, in words; empty where it is.
    """

    sent: int = 0
    failed_tries: int = 0
    given_up: int = 0
    waiting: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Delivery:
    alert: Alert
    what: str
    name: str = field(compare=False)


class Router:
    """Tells the log and the webhook.

    Args:
        settings: the URL, the classes it hears of and the variable that holds its key.
        store: of alerts; learns what was sent.
        project: its name, for receivers that hear of several.
        transport: in place of the network, for tests.

    Threads: `tell` and `offer` from one; sending has its own.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        store: AlertStore,
        *,
        project: str = "",
        transport: httpx.BaseTransport | None = None,
        now_s: Callable[[], float] = time.time,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        self._url, self._store, self._project, self._now_s = settings.webhook_url, store, project, now_s
        self._first_wait_s = first_wait_s
        self._queue: queue.Queue[_Delivery] = queue.Queue(MAX_WAITING)
        self._taken: set[tuple[int, str]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._transport = transport
        self._secret, problem = _secret_of(settings)
        self.status = RouterStatus(problem=problem)
        if problem:
            log.error("Alerts are not sent: %s", problem)

    def tell(self, alerts: Iterable[Alert]) -> None:
        """Say in the log what happened to alerts: the newest event of each."""
        for alert in alerts:
            event = alert.history[-1]
            if event.what in {"sent", "not_sent"}:
                continue
            finding = alert.finding
            log.log(
                logging.WARNING if event.what in _SHOWN else logging.INFO,
                "Alert %d %s (%s%s): %s Shown by: %s",
                alert.id, event.what, finding.alert_class.value, ", pages" if alert.pages else "",
                finding.message, finding.command,
            )  # fmt: skip

    def offer(self, alerts: Iterable[Alert]) -> None:
        """Queue what is to be sent and is not queued yet, as far as there is room. Never waits."""
        if not self._url or self.status.problem:
            return
        for alert in alerts:
            for what in alert.unsent:
                self._queue_up(alert, what)

    def close(self) -> None:
        """Stop sending; what is not sent stays in the store."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _queue_up(self, alert: Alert, what: str) -> None:
        key = alert.id, what
        with self._lock:
            if key in self._taken:
                return
            time_us = next((event.time_us for event in reversed(alert.history) if event.what == what), alert.updated_us)
            try:
                self._queue.put_nowait(_Delivery(alert, what, f"{alert.id}-{what}-{time_us}"))
            except queue.Full:
                return
            self._taken.add(key)
            self.status.waiting = len(self._taken)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        stand_back()
        # No proxy or certificate from the environment, and no redirect: alerts go where the project says and nowhere else.
        with httpx.Client(
            timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, transport=self._transport
        ) as client:
            while not self._stopping.is_set():
                try:
                    delivery = self._queue.get(timeout=0.2)
                except queue.Empty:
                    continue
                self._deliver(client, delivery)

    def _deliver(self, client: httpx.Client, delivery: _Delivery) -> None:
        """Try until it is taken, given up, or the process ends."""
        body = self._body(delivery)
        failure = ""
        for n_tried in range(MAX_TRIES):
            if not self._is_due(delivery):
                self._let_go(delivery)
                return
            failure = self._try(client, delivery, body)
            if not failure:
                self.status.sent += 1
                break
            self.status.failed_tries += 1
            wait_s = min(MAX_WAIT_S, self._first_wait_s * 2.0**n_tried)
            log.warning("The webhook did not take alert %d (%s): %s", delivery.alert.id, delivery.what, failure)
            if n_tried + 1 < MAX_TRIES and self._stopping.wait(wait_s):
                return
        else:
            self.status.given_up += 1
            failure = f"not taken in {MAX_TRIES} tries: {failure}"
            log.error("Alert %d (%s) is not sent: %s", delivery.alert.id, delivery.what, failure)
        try:
            now_us = round(self._now_s() * 1e6)
            self._store.mark_sent(delivery.alert.id, delivery.what, now_us, failure=failure)
        except TiercelError as error:  # it is sent again after a restart: twice is better than never
            log.warning("That alert %d was sent cannot be kept: %s", delivery.alert.id, error)
            return  # and stays taken, so that this process does not repeat itself
        self._let_go(delivery)

    def _is_due(self, delivery: _Delivery) -> bool:
        """Whether the store still wants it sent.

        What is offered was read before: by now it may have been sent, or somebody may have acknowledged the alert.
        """
        try:
            return delivery.what in self._store.get(delivery.alert.id).unsent
        except AlertNotFoundError:
            return False
        except TiercelError:  # a file that cannot be read is no reason to keep an alert from anybody
            return True

    def _let_go(self, delivery: _Delivery) -> None:
        with self._lock:
            self._taken.discard((delivery.alert.id, delivery.what))
            self.status.waiting = len(self._taken)

    def _try(self, client: httpx.Client, delivery: _Delivery, body: bytes) -> str:
        """One request; returns why it was not taken, or nothing."""
        headers = {"Content-Type": "application/json", "User-Agent": "tiercel", DELIVERY: delivery.name}
        if self._secret:
            headers[SIGNATURE] = sign(self._secret, body, int(self._now_s()))
        try:
            with client.stream("POST", self._url, content=body, headers=headers) as reply:
                return "" if reply.is_success else f"it answered {reply.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{type(error).__name__}: {error}"

    def _body(self, delivery: _Delivery) -> bytes:
        data = delivery.alert.to_json()
        for name in ("history", "unsent"):
            del data[name]
        return json.dumps({"event": delivery.what, "project": self._project, **data}).encode()


def _secret_of(settings: MonitorSettings) -> tuple[bytes, str]:
    """The webhook's key, and why nothing may be sent."""
    name = settings.webhook_secret_env
    if not settings.webhook_url or not name:
        return b"", ""
    secret = os.environ.get(name, "").encode()
    if secret:
        return secret, ""
    return b"", (
        f"monitor.webhook_secret_env names {name}, which is not set in the server's environment. Set it and start the "
        f"server again; alerts wait in the store"
    )
