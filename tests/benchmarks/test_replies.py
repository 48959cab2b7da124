"""The log of a run: what is counted from it."""

from __future__ import annotations

import numpy as np
from benchmarks.loadgen.histogram import SOURCE
from benchmarks.loadgen.replies import ABANDONED, BROKEN, NOT_TIMED, UNFINISHED, Replies, percentiles, share

from benchmarks import compiled

MS = 1_000_000


def made(*rows):
    """(due ms, done ms, status, request)."""
    log = np.zeros(len(rows), compiled.load(SOURCE).LOGGED)
    for at, (due_ms, done_ms, status, request) in enumerate(rows):
        log[at]["due_ns"], log[at]["done_ns"] = due_ms * MS, done_ms * MS
        log[at]["sent_ns"] = due_ms * MS + MS
        log[at]["status"], log[at]["request"], log[at]["server_us"] = status, request, NOT_TIMED
    return Replies(log)


def test_every_fate_is_counted_once():
    """Answers, refusals, errors, and who was never answered or never sent add up to all."""
    replies = made(
        (0, 5, 200, 0), (0, 7, 503, 0), (1, 8, 504, 0), (2, 3, 400, 0), (3, 9, BROKEN, 0), (4, -1, UNFINISHED, 0),
        (5, -1, ABANDONED, 0), (6, 9, 500, 0),
    )  # fmt: skip
    parts = (len(replies.answered), len(replies.refused), replies.n_failed, replies.count(UNFINISHED, ABANDONED))
    assert parts == (1, 2, 3, 2)
    assert sum(parts) == len(replies)


def test_in_time_is_from_when_a_request_was_due():
    """The wait before the send counts for the client, and not in the service time."""
    replies = made((0, 10, 200, 0), (0, 11, 200, 0), (0, 2, 503, 0))
    assert replies.n_within(10 * MS) == 1
    assert replies.answered.service_ns.tolist() == [9 * MS, 10 * MS]
    assert len(replies.server_ns) == 0


def test_kinds_and_moments_select():
    """Requests are told apart by their number in what was sent, and by when they were due."""
    replies, kinds = (
        made((0, 1, 200, 0), (500, 501, 200, 1), (999, 1001, 503, 2), (1000, 1001, 200, 2)),
        np.array([0, 1, 1]),
    )
    assert [len(replies.of(kinds, kind)) for kind in (0, 1)] == [1, 3]
    assert replies.due_within(0.5, 1.0).log["request"].tolist() == [1, 2]


def test_recovery_is_the_first_window_that_is_good():
    """Refused, late and unsent requests make their tenth of a second bad; each request has the bound of its own kind."""
    late = [(2000 + k, 2000 + k + 60, 200, 0) for k in range(0, 100, 10)]
    refused = [(2100 + k, 2101 + k, 503, 1) for k in range(0, 100, 10)]
    good = [(2200 + k, 2200 + k + 60, 200, 1) for k in range(0, 200, 10)]
    bounds_ns = np.array([10 * MS, 100 * MS])
    assert made(*late, *refused, *good).recovered_s(2.0, bounds_ns) == 0.2
    assert made(*good).recovered_s(2.2, bounds_ns) == 0.0
    assert made(*late, *refused).recovered_s(2.0, bounds_ns) is None
    assert made(*late[:1], *good).recovered_s(2.0, bounds_ns) == 0.2  # nothing was due in between


def test_texts_of_nothing():
    """Where nobody was answered there is no share and no percentile."""
    assert share(0, 0).strip() == "none"
    assert share(1, 3).strip() == "33.333 %"
    assert percentiles(np.empty(0, np.int64)) == "none"
    assert "max     2,000 us" in percentiles(np.array([1, 2 * MS]))
