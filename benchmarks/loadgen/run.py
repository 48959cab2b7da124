"""One run of the generator: requests made before it starts, replies checked, everything it noticed about itself told."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import compiled
from benchmarks.loadgen.histogram import SOURCE, Histogram
from benchmarks.loadgen.replies import Replies

#: A request sent this long after it was due, with a connection free, was late by the generator's own fault.
LATE_NS = 100_000
#: More late sends than this and the row says so: its p99.9 may be the generator's.
LATE_SHARE = 0.0005
#: A machine that stops for milliseconds a few times a second owns every tail. The median of windows this short tells what
#: the tail is between its stops; one with fewer than MIN_WINDOW replies has no p99.9.
WINDOW_S = 0.1
MIN_WINDOW = 1000


@dataclass(frozen=True)
class Requests:
    """HTTP requests as the bytes to send, one after the other, in a random order of keys."""

    data: np.ndarray  # uint8, all requests end to end
    starts: np.ndarray  # int64 (n + 1,)
    users: np.ndarray  # int64 (n,): whom each asks about

    @classmethod
    def make(
        cls,
        *,
        path: str,
        content_type: str,
        body: Callable[[int], bytes],
        n_rows: int,
        seed: int,
        at_most: int = 262_144,
    ) -> Requests:
        """Each of `n_rows` users once (at most `at_most` of them), shuffled by `seed`."""
        users = np.random.default_rng(seed).permutation(n_rows)[:at_most]
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: ".encode()
        bodies = map(body, users.tolist())
        return cls.of([b"%b%d\r\n\r\n%b" % (head, len(content), content) for content in bodies], users)

    @classmethod
    def of(cls, pieces: Sequence[bytes], users: np.ndarray) -> Requests:
        """Whole requests, heads and all, one for each of `users`."""
        starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), starts, users)

    @classmethod
    def mixed(
        cls, parts: Sequence[Requests], shares: Sequence[float], *, n: int, seed: int
    ) -> tuple[Requests, np.ndarray]:
        """`n` requests, each of a part that is drawn by its share, in the order that it has there (again from its start).

        Returns:
            (the requests, uint8 (n,): of which part each is).
        """
        kinds = (
            np.random.default_rng(seed).choice(len(parts), size=n, p=np.asarray(shares) / sum(shares)).astype(np.uint8)
        )
        next_of, pieces, users = [0] * len(parts), [], []
        for kind in kinds.tolist():
            part = parts[kind]
            at = next_of[kind] % len(part.users)
            next_of[kind] += 1
            pieces.append(part.data[part.starts[at] : part.starts[at + 1]])
            users.append(part.users[at])
        starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        return cls(np.concatenate(pieces), starts, np.asarray(users)), kinds


@dataclass(frozen=True)
class Run:
    """What one run saw. `latency` counts from when a request was due (closed loop: was sent), `service` from the send."""

    latency: Histogram
    service: Histogram
    lag: Histogram
    sent: int
    ok: int
    #: Another status, a broken connection, no reply in time, or a wrong score among those looked at; in the warm-up too.
    failed: int
    late: int
    checked: int
    per_second: float
    why: str = ""
    windows: tuple[Histogram, ...] = ()  # latency, by the tenth of a second in which the reply came
    refused: int = 0  # by a 503 or 504, where that `may_refuse`; in the warm-up too
    abandoned: int = 0  # not sent, because no connection was free for too long
    replies: Replies | None = None  # of each request, where it is `logged`
    beside_per_second: float = 0.0  # good replies to the closed loop `beside` it
    beside_failed: int = 0

    def typical_us(self) -> dict[str, float | None]:
        """p99 and p99.9 of the median window, in microseconds; None where most windows have too few replies."""
        full = [each for each in self.windows if each.n >= MIN_WINDOW]
        if 2 * len(full) <= len(self.windows):
            return {"p99": None, "p99.9": None}
        return {f"p{q:g}": statistics.median(each.percentile_ns(q) for each in full) / 1e3 for q in (99, 99.9)}

    @property
    def kept_schedule(self) -> bool:
        """Whether the generator sent on time, so that the tail is the server's."""
        return self.late <= LATE_SHARE * max(1, self.sent)

    def to_json(self) -> dict[str, Any]:
        """Numbers of the report; times in microseconds."""
        return {
            "sent": self.sent, "ok": self.ok, "failed": self.failed, "late": self.late, "checked": self.checked,
            "per_second": self.per_second, "kept_schedule": self.kept_schedule, "why": self.why,
            "latency_us": self.latency.summary_us(), "send_lag_us": self.lag.summary_us(),
        }  # fmt: skip


def run(
    port: int,
    requests: Requests,
    *,
    rate: float,
    seconds: float,
    connections: int,
    warmup_s: float = 0.5,
    grace_s: float = 5.0,
    seed: int = 1,
    core: int | None = None,
    check: Callable[[int, bytes], bool] | None = None,
    n_checked: int = 200,
    may_refuse: bool = False,
    logged: bool = False,
    abandon_s: float = 0.0,
    then: tuple[float, float] | None = None,
    beside: tuple[Requests, int] | None = None,
) -> Run:
    """Send at `rate` per second (0: closed loop) to the loopback's `port`, for `warmup_s` and then `seconds` that count.

    This thread is pinned to `core` for the run, where it busy-polls in open loop. `check` (user, body) -> whether the reply
    is right; it is asked about `n_checked` replies, after the run. What was sent in time may be answered up to `grace_s`
    later.

    With `may_refuse` a 503 or 504 is a refusal and no failure. With `logged` what became of each request of an open loop is
    kept. In open loop, who waited `abandon_s` for a free connection does not ask any more (0: everybody asks), and `then`,
    (rate, seconds), goes on at another rate in the same run. `beside`, (requests, connections), is a closed loop of others
    from the same thread, over connections of its own.

    Raises:
        OSError: nobody listens there.
    """
    step_rate, step_s = then or (0.0, 0.0)
    expected = rate * seconds + step_rate * step_s
    # Of a Poisson process: ten standard deviations more never happen.
    log_at_most = int(expected + 10 * expected**0.5 + 100) if logged else 0
    others, beside_connections = beside or (None, 0)
    before = os.sched_getaffinity(0) if core is not None and hasattr(os, "sched_getaffinity") else None
    if before is not None:
        os.sched_setaffinity(0, {core})
    try:
        counts, maxima, _, counters, kept, windows, log = compiled.load(SOURCE).run(
            "127.0.0.1", port, requests.data, requests.starts,
            connections=connections, rate=rate, seconds=seconds, warmup_s=warmup_s, grace_s=grace_s, seed=seed,
            late_ns=LATE_NS, keep_every=97, keep_at_most=n_checked, window_s=WINDOW_S,
            step_rate=step_rate, step_s=step_s, abandon_ns=int(1e9 * abandon_s), log_at_most=log_at_most,
            beside=None if others is None else others.data, beside_starts=None if others is None else others.starts,
            beside_connections=beside_connections,
        )  # fmt: skip
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
    latency, service, lag = (Histogram(counts[i], maxima[i]) for i in range(3))
    wrong = _wrong(kept, requests.users, check)
    if not may_refuse:
        counters["bad_status"] += counters["refused"]
        counters["refused"] = 0
    if counters["unlogged"]:
        raise RuntimeError(f"Expected at most {log_at_most} requests, {counters['unlogged']} more were not logged")
    failed = {name: counters[name] for name in ("bad_status", "broken", "unfinished") if counters[name]}
    if wrong:
        failed["wrong_score"] = wrong
    if "bad_status" in failed:
        failed["last_status"] = counters["last_status"]
    return Run(
        latency, service, lag, counters["sent"], counters["ok"],
        sum(n for name, n in failed.items() if name != "last_status"), counters["late"], len(kept) if check else 0,
        counters["ok"] / counters["measured_s"] if counters["measured_s"] > 0 else 0.0,
        ", ".join(f"{name} {n}" for name, n in failed.items()),
        tuple(Histogram(each, maxima[0]) for each in windows),
        counters["refused"], counters["abandoned"], Replies(log) if logged else None,
        counters["beside_ok"] / seconds, counters["beside_failed"],
    )  # fmt: skip


def _wrong(kept: Sequence[tuple[int, bytes]], users: np.ndarray, check: Callable[[int, bytes], bool] | None) -> int:
    return 0 if check is None else sum(not check(int(users[request]), body) for request, body in kept)
