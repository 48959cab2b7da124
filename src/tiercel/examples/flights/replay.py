"""Play flights against a running server: publish an hour's features, ask about its departures, say what became of them.

A label is sent when its aircraft has arrived, so a prediction has none at first, and late flights have theirs last.
"""

from __future__ import annotations

import heapq
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import httpx

from tiercel import Client
from tiercel.errors import TiercelError
from tiercel.examples.flights.data import LABEL, airports_file, labels_sql
from tiercel.examples.flights.features import ARRIVALS
from tiercel.examples.flights.train import MODEL, SERVICE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tiercel import Project

#: 05:00 in New York, before the first departure of October 10: a day of bad weather, when there is something to predict.
FIRST_HOUR = datetime(2013, 10, 10, 9, tzinfo=UTC)
ENTITY_KEYS = ("tailnum", "carrier", "origin", "dest")
REQUEST_FEATURES = ("distance", "airline", "year", "month", "day", "sched_dep_time")
N_SAMPLES = 6
LABELS_PER_REQUEST = 500
SWITCH_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Sample:
    """One prediction as a person would look at it."""

    scheduled: datetime
    flight: str
    route: str
    aircraft: str
    request: dict[str, Any]
    champion: float
    challenger: float
    late: bool
    latency_ms: float
    id: str  # of the champion's reply
    reasons: tuple[str, ...]  # that it told, in words; empty where it told none

    def as_json(self) -> str:
        """The request's body."""
        return json.dumps(self.request)


@dataclass
class Replay:
    """What was sent and what came back."""

    url: str
    samples: list[Sample] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    champion: list[float] = field(default_factory=list)
    challenger: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    n_published: int = 0
    n_labels: int = 0

    @property
    def n_flights(self) -> int:
        """Flights asked about."""
        return len(self.labels)

    @property
    def n_requests(self) -> int:
        """Predictions received."""
        return len(self.champion) + len(self.challenger)

    @property
    def late_share(self) -> float:
        """Share of the flights that did arrive late."""
        return sum(self.labels) / len(self.labels)

    @property
    def champion_auc(self) -> float:
        """Area under the ROC curve of the champion's scores."""
        return self._auc(self.champion)

    @property
    def challenger_auc(self) -> float:
        """Area under the ROC curve of the challenger's scores."""
        return self._auc(self.challenger)

    def latency_ms(self, quantile: float) -> float:
        """A quantile of the client's round trips."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))]

    def _auc(self, scores: list[float]) -> float:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(self.labels, scores))


class Arrivals:
    """Labels on their way: each is sent once its aircraft is there.

    Args:
        client: of the server that predicted.

    Attributes:
        n_sent: labels that the server has on its disk.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[tuple[datetime, str, int]] = []
        self.n_sent = 0

    def expect(self, flight: dict[str, Any], *prediction_ids: str) -> None:
        """Remember a flight that is in the air, by what was predicted of it."""
        for prediction_id in prediction_ids:
            heapq.heappush(self._waiting, (flight["arrived_at"], prediction_id, flight[LABEL]))

    def send(self, until: datetime) -> None:
        """Send what has arrived before a moment.

        Raises:
            TiercelError: the server does not take it.
        """
        arrived = []
        while self._waiting and self._waiting[0][0] < until:
            arrived.append(heapq.heappop(self._waiting))
        for begin in range(0, len(arrived), LABELS_PER_REQUEST):
            some = arrived[begin : begin + LABELS_PER_REQUEST]
            receipt = self._client.feedback([each[1] for each in some], [each[2] for each in some])
            if receipt.refused:
                raise TiercelError(
                    f"Expected {len(some)} labels to be taken, {receipt.refused} were not: {receipt.problems}"
                )
            self.n_sent += receipt.accepted


def replay(
    project: Project, url: str, *, hours: int, progress: Callable[[str, int, int], None] | None = None
) -> Replay:
    """Replay `hours` hours from FIRST_HOUR on, and send the labels of all that arrived by then.

    Args:
        project: the flights project, with its models registered.
        url: of the server that serves it.
        hours: how many; hours without a departure publish nothing.
        progress: called with (stage, flights done, flights).

    Raises:
        TiercelError: the server did not follow, or refused a request.
    """
    told = Replay(url)
    end = FIRST_HOUR + timedelta(hours=hours)
    flights = find_flights(project.settings.project_dir, "test", FIRST_HOUR, end)
    every = max(1, len(flights) // N_SAMPLES)
    hour = None
    with Client(url) as client:
        arrivals = Arrivals(client)
        for done, flight in enumerate(flights):
            departs = flight["event_timestamp"]
            if hour != departs.replace(minute=0):
                hour = departs.replace(minute=0)
                arrivals.send(hour)
                publish(project, url, hour)
                told.n_published += 1
            is_kept = done % every == every // 2 and len(told.samples) < N_SAMPLES
            arrivals.expect(flight, *_ask(client, flight, told, keep=is_kept))
            if progress is not None:
                progress("flights", done + 1, len(flights))
        arrivals.send(end)
        told.n_labels = arrivals.n_sent
    return told


def request_of(flight: dict[str, Any]) -> dict[str, Any]:
    """What a prediction is asked for with, at scheduled departure."""
    return {
        "entities": {key: flight[key] for key in ENTITY_KEYS},
        "features": {name: flight[name] for name in REQUEST_FEATURES},
        "now": flight["event_timestamp"].isoformat(),
    }


def publish(project: Project, url: str, moment: datetime) -> None:
    """Publish what was known at a moment, and wait until the server reads it.

    Raises:
        TiercelError: it does not.
    """
    _wait_for_base(url, project.materialize([SERVICE], as_of=moment)[0].base_name)


def _ask(client: Client, flight: dict[str, Any], told: Replay, *, keep: bool) -> tuple[str, str]:
    request = request_of(flight)
    begun = time.perf_counter()
    champion = client.predict(MODEL, **request, explain="reasons")
    latency_ms = 1000 * (time.perf_counter() - begun)
    challenger = client.predict(f"{MODEL}@challenger", **request)
    told.labels.append(flight[LABEL])
    told.champion.append(_number(champion))
    told.challenger.append(_number(challenger))
    told.latencies_ms.append(latency_ms)
    if keep:
        told.samples.append(
            Sample(
                scheduled=flight["event_timestamp"],
                flight=f"{flight['carrier']} {flight['flight']}",
                route=f"{flight['origin']}-{flight['dest']}",
                aircraft=flight["tailnum"] or "unknown",
                request=request,
                champion=told.champion[-1],
                challenger=told.challenger[-1],
                late=bool(flight[LABEL]),
                latency_ms=latency_ms,
                id=champion.id,
                reasons=_texts(client, champion),
            )
        )
    return champion.id, challenger.id


def _number(prediction: Any) -> float:
    score: float = prediction.score
    return score


def _texts(client: Client, prediction: Any) -> tuple[str, ...]:
    told = prediction.explanation
    if told is not None and told.method == "later":  # there was no time for it within the tier's bound
        told = client.explanation(prediction.id)
    return () if told is None or told.reasons is None else tuple(reason.text for reason in told.reasons)


def find_flights(
    project_dir: Path, split: Literal["test", "season"], start: datetime, end: datetime
) -> list[dict[str, Any]]:
    """Flights that are scheduled to leave in [start, end), in order, as `labels_sql` has them, and when they arrived."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        source = str(project_dir / "data" / "flights.csv").replace("'", "''")
        connection.execute(f"CREATE VIEW flights AS FROM read_csv('{source}', nullstr = ['NA', ''])")
        source = str(airports_file()).replace("'", "''")
        connection.execute(f"CREATE VIEW airports AS FROM read_csv('{source}', nullstr = ['NA', '', '\\N'])")
        table = connection.sql(
            f"""
            SELECT f.*, a.arrived_at FROM ({labels_sql(split)}) f
            JOIN ({ARRIVALS}) a ON a.scheduled_at = f.event_timestamp AND a.flight = f.flight AND a.carrier = f.carrier
                AND a.origin = f.origin AND a.dest = f.dest AND a.tailnum IS NOT DISTINCT FROM f.tailnum
            WHERE f.event_timestamp >= $start AND f.event_timestamp < $end
            ORDER BY f.event_timestamp, f.carrier, f.flight, f.origin, f.dest, f.tailnum
            """,  # noqa: S608 - constants
            params={"start": start.replace(tzinfo=None), "end": end.replace(tzinfo=None)},
        ).to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for name in ("event_timestamp", "arrived_at"):
            row[name] = row[name].replace(tzinfo=UTC)
    return rows


def _wait_for_base(url: str, base: str) -> None:
    """Until the server reads the base that was just published; it looks ten times a second."""
    deadline = time.monotonic() + SWITCH_TIMEOUT_S
    live = None
    with httpx.Client(base_url=url, timeout=SWITCH_TIMEOUT_S) as http:
        while time.monotonic() < deadline:
            live = http.get("/readyz").json()["services"].get(SERVICE)
            if live == base:
                return
            time.sleep(0.005)
    raise TiercelError(f"Expected the server at {url} to serve {base} within {SWITCH_TIMEOUT_S:g} s, it serves {live}")
