"""Play October's flights against a running server: publish each hour's features, then ask about its departures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx

from tiercel import Client
from tiercel.errors import TiercelError
from tiercel.examples.flights.data import LABEL, labels_sql
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


def replay(
    project: Project, url: str, *, hours: int, progress: Callable[[str, int, int], None] | None = None
) -> Replay:
    """Replay `hours` hours from FIRST_HOUR on.

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
    flights = _flights(project.settings.project_dir, FIRST_HOUR, end)
    every = max(1, len(flights) // N_SAMPLES)
    hour = None
    with Client(url) as client:
        for done, flight in enumerate(flights):
            departs = flight["event_timestamp"]
            if hour != departs.replace(minute=0):
                hour = departs.replace(minute=0)
                base = project.materialize([SERVICE], as_of=hour)[0].base_name
                _wait_for_base(url, base)
                told.n_published += 1
            _ask(client, flight, told, keep=done % every == every // 2 and len(told.samples) < N_SAMPLES)
            if progress is not None:
                progress("flights", done + 1, len(flights))
    return told


def _ask(client: Client, flight: dict[str, Any], told: Replay, *, keep: bool) -> None:
    request = {
        "entities": {key: flight[key] for key in ENTITY_KEYS},
        "features": {name: flight[name] for name in REQUEST_FEATURES},
        "now": flight["event_timestamp"].isoformat(),
    }
    begun = time.perf_counter()
    champion = client.predict(MODEL, **request)
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
            )
        )


def _number(prediction: Any) -> float:
    score: float = prediction.score
    return score


def _flights(project_dir: Path, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """October's flights that are scheduled to leave in [start, end), in order."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        source = str(project_dir / "data" / "flights.csv").replace("'", "''")
        connection.execute(f"CREATE VIEW flights AS FROM read_csv('{source}', nullstr = ['NA', ''])")
        table = connection.sql(
            f"SELECT * FROM ({labels_sql('test')}) WHERE event_timestamp >= $start AND event_timestamp < $end",  # noqa: S608
            params={"start": start.replace(tzinfo=None), "end": end.replace(tzinfo=None)},
        ).to_arrow_table()
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row["event_timestamp"] = row["event_timestamp"].replace(tzinfo=UTC)
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
