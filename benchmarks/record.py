"""Rounds -> one plain record of a run (what is kept as JSON), with the ratios that the promises are about."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders.contender import BY_NAME
from benchmarks.loadgen.run import Run
from benchmarks.measuring import Rounds, versions_of

#: What is promised: (what, figure's name, comparison, bound).
PROMISES: tuple[tuple[str, str, str, float], ...] = (
    ("requests/s of one worker at c=32", "per_second", ">=", 100_000),
    ("share of the floor's requests/s", "of_floor", ">=", 0.6),
    ("CPU per request, x the floor's", "cpu_x_floor", "<=", 2.0),
    ("x the hand-written server's requests/s", "x_handwritten", ">=", 5.0),
    ("x FastAPI's requests/s", "x_fastapi", ">=", 20.0),
    ("msgpack's requests/s, x JSON's", "msgpack_x_json", ">=", 1.0),
    ("p50 at c=1, x the floor's", "p50_c1_x_floor", "<=", 1.2),
    ("p99 at 50 % of capacity, x the floor's at the same rate", "p99_x_floor", "<=", 2.0),
    ("p99.9 at 50 % of capacity, x the floor's at the same rate", "p999_x_floor", "<=", 3.0),
    ("the same p99 in the median tenth of a second", "typical_p99_x_floor", "<=", 2.0),
    ("the same p99.9 in the median tenth of a second", "typical_p999_x_floor", "<=", 3.0),
    ("p99.9 while a base is swapped every second, x quiet", "p999_swap", "<=", 2.0),
    ("p99.9 while the champion changes every second, x quiet", "p999_promote", "<=", 2.0),
    ("p99.9 while a page of the control process is read, x quiet", "p999_page", "<=", 2.0),
    ("share of CPU per request that journal and counters take", "journal_share", "<=", 0.1),
    ("requests per CPU second with 2 workers, x 1 worker's", "workers_2", ">=", 0.9),
    ("KiB of server memory for each idle connection", "idle_kib", "<=", 8.0),
    ("p99 beside 10,000 idle connections, x without", "p99_idle", "<=", 1.2),
    ("the same, x what they do to the floor's p99", "p99_idle_x_floor", "<=", 1.2),
    ("the same in the median tenth of a second", "typical_p99_idle", "<=", 1.2),
    ("resident megabytes of one worker", "rss_mb", "<=", 200.0),
    ("requests that failed", "failed", "<=", 0),
)  # fmt: skip


def median_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs of one rate: each percentile the median of the runs', the maximum of all, counts summed."""
    summaries = [run.latency.summary_us() for run in runs]
    merged = {name: statistics.median(summary[name] for summary in summaries) for name in summaries[0]}
    typical = [run.typical_us() for run in runs]
    lag = sum((run.lag for run in runs[1:]), runs[0].lag)
    return {
        **merged, "max": max(summary["max"] for summary in summaries),
        "typical": {
            name: None if any(each[name] is None for each in typical) else statistics.median(each[name] for each in typical)
            for name in typical[0]
        },
        "per_second": statistics.median(run.per_second for run in runs),
        **{name: sum(getattr(run, name) for run in runs) for name in ("sent", "ok", "failed", "late", "checked")},
        "why": "; ".join(sorted({run.why for run in runs if run.why})),
        "kept_schedule": sum(run.kept_schedule for run in runs) * 2 > len(runs),
        "send_lag_p999_us": lag.percentile_ns(99.9) / 1e3,
        "by_round": [{q: summary[q] for q in ("p50", "p99", "p99.9")} for summary in summaries],
    }  # fmt: skip


def row(rounds: Rounds, cache: Path) -> dict[str, Any]:
    """One contender's part of the record."""
    closed = {
        name: statistics.median(each[name] for each in rounds.closed) for name in ("per_second", "p50", "p99", "cpu_us")
    }
    single, loads = median_of(rounds.single), {f"{share:g}": median_of(runs) for share, runs in rounds.open.items()}
    failed = sum(each["failed"] for each in rounds.closed) + single["failed"]
    return {
        "name": rounds.contender.name, "title": rounds.contender.title, "versions": versions_of(rounds.contender, cache),
        "closed": closed, "closed_by_round": [{name: each[name] for name in ("per_second", "cpu_us")} for each in rounds.closed],
        "single": single,
        "open": {share: {**found, "rate": rounds.rate[float(share)]} for share, found in loads.items()},
        "rss_mb": rounds.rss,
        "instructions": rounds.instructions, "compared": rounds.compared,
        "failed": failed + sum(found["failed"] for found in loads.values()),
    }  # fmt: skip


def record(
    found: dict[str, Rounds],
    *,
    cache: Path,
    floor_at_rate: Sequence[Run],
    beside_json: Sequence[tuple[Run, Run]],
    not_measured: dict[str, str],
    disturbances: Sequence[dict[str, Any]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The whole run: machine, settings, a row for each contender, ratios, promises."""
    rows, refused = answered([row(rounds, cache) for rounds in found.values()])
    not_measured = {**not_measured, **refused}
    same_rate = median_of(floor_at_rate) if floor_at_rate else None
    figures = _figures({each["name"]: each for each in rows}, same_rate, disturbances)
    if beside_json:
        figures["msgpack_x_json"] = statistics.median(
            msgpack.per_second / max(1.0, json.per_second) for msgpack, json in beside_json
        )
        figures["failed"] += sum(run.failed for pair in beside_json for run in pair)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.facts(), "settings": settings,
        "contenders": rows, "floor_at_tiercel_rate": same_rate, "disturbances": list(disturbances),
        "not_measured": [
            {"name": name, "title": BY_NAME[name].title if name in BY_NAME else name, "reason": reason}
            for name, reason in not_measured.items()
        ],
        "figures": figures, "promises": promises(figures),
    }  # fmt: skip


def answered(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of contenders that answered, and why the others have none: a zero would be a figure that was not measured."""
    refused = {
        each["name"]: f"it refused every request of the load ({(each.get('single') or {}).get('why') or 'no reply'})"
        for each in rows if not each["closed"]["per_second"]
    }  # fmt: skip
    return [each for each in rows if each["name"] not in refused], refused


def ratio_of(ours: Sequence[dict[str, float]], others: Sequence[dict[str, float]], figure: str) -> float:
    """One contender's figure as a multiple of another's: the median over the rounds in which they took turns.

    What a machine gives changes from one minute to the next, for both.
    """
    return statistics.median(one[figure] / other[figure] for one, other in zip(ours, others, strict=True))


def _figures(
    rows: dict[str, dict[str, Any]], same_rate: dict[str, Any] | None, disturbances: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Every figure that could be computed of what was measured."""
    figures: dict[str, float] = {}

    def put(name: str, compute: Callable[[], float]) -> None:
        with contextlib.suppress(KeyError, ZeroDivisionError):  # its parts were not measured
            figures[name] = compute()

    def closed(name: str, other: str, figure: str = "per_second") -> float:
        return ratio_of(rows[name]["closed_by_round"], rows[other]["closed_by_round"], figure)

    put("per_second", lambda: rows["tiercel"]["closed"]["per_second"])
    put("of_floor", lambda: closed("tiercel", "floor"))
    put("cpu_x_floor", lambda: closed("tiercel", "floor", "cpu_us"))
    put("instructions_x_floor", lambda: _instructions(rows["tiercel"]) / _instructions(rows["floor"]))
    put("x_handwritten", lambda: closed("tiercel", "handwritten"))
    # A peer has its turns by itself, minutes later.
    put("x_fastapi", lambda: rows["tiercel"]["closed"]["per_second"] / rows["fastapi"]["closed"]["per_second"])
    put(
        "p50_c1_x_floor",
        lambda: ratio_of(rows["tiercel"]["single"]["by_round"], rows["floor"]["single"]["by_round"], "p50"),
    )
    if same_rate is not None:
        for name, q in (("p99_x_floor", "p99"), ("p999_x_floor", "p99.9")):
            put(name, lambda q=q: ratio_of(rows["tiercel"]["open"]["0.5"]["by_round"], same_rate["by_round"], q))
        for name, q in (("typical_p99_x_floor", "p99"), ("typical_p999_x_floor", "p99.9")):
            with contextlib.suppress(TypeError):  # too few requests for a window's percentile
                put(name, lambda q=q: rows["tiercel"]["open"]["0.5"]["typical"][q] / same_rate["typical"][q])
    put("rss_mb", lambda: rows["tiercel"]["rss_mb"]["worker"])
    for each in disturbances:
        if "figure" in each and each.get("value") is not None:
            figures[each["figure"]] = each["value"]
        figures.update(each.get("more_figures", {}))
    ours = [each["failed"] for name, each in rows.items() if name.startswith("tiercel")]
    figures["failed"] = sum(ours) + sum(each.get("failed", 0) for each in disturbances)
    return figures


def _instructions(row: dict[str, Any]) -> float:
    """Per request, in all modes.

    Raises:
        KeyError: they were not counted.
    """
    if row["instructions"] is None:
        raise KeyError("instructions")
    return row["instructions"]["user"] + row["instructions"]["kernel"]


def promises(figures: dict[str, float]) -> list[dict[str, Any]]:
    """What is promised beside what was measured; `holds` is None where it was not measured."""
    found = []
    for what, name, sign, bound in PROMISES:
        value = figures.get(name)
        holds = None if value is None else value >= bound if sign == ">=" else value <= bound
        found.append({"what": what, "figure": name, "wanted": f"{sign} {bound:,g}", "value": value, "holds": holds})
    return found


def ratio_rows(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each contender: its requests/s as a share of the floor's, and tiercel's as a multiple of its."""
    by_name = {each["name"]: each["closed"]["per_second"] for each in record["contenders"]}
    return {
        name: {
            "of_floor": rate / by_name["floor"] if by_name.get("floor") else 0.0,
            "tiercel_x": by_name["tiercel"] / rate if "tiercel" in by_name and rate else 0.0,
        }
        for name, rate in by_name.items()
    }
