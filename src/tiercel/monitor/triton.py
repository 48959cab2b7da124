"""The counters that Triton's dashboards and autoscaling rules ask for, under its names.

What is the same here is told; the rest is left out rather than guessed. A request is an inference of as many rows, and in
the realtime tier an execution of its own. Batches of the near-realtime tier are not counted by version, so executions of
those versions are absent. A refused or failed request is counted by reason and not by model, over every path of the data
plane: its labels are empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.monitor.counting import MAGNITUDE_BOUNDS, PLAN_CELLS, STAGES
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.monitor.totals import Totals

_SUM = len(MAGNITUDE_BOUNDS)


def triton_text(totals: Totals) -> str:
    """The `nv_inference_*` group in Prometheus' text format, with Triton's names: counters without `_total`."""
    success: list[tuple[str, int]] = []
    rows: list[tuple[str, int]] = []
    executions: list[tuple[str, int]] = []
    durations: list[tuple[str, int]] = []
    by_name: dict[tuple[str, int], list[tuple[str, dict[str, int], int]]] = {}
    for (model, version, tier), counts in totals.by_version().items():
        plan = dict(zip(PLAN_CELLS, map(int, counts.sections["plan"]), strict=False))
        total_us = int(counts.sections["durations_ns"][STAGES.index("total"), _SUM]) // 1000
        by_name.setdefault((model, version), []).append((tier, plan, total_us))
    for (model, version), parts in by_name.items():
        labels = f'{{model="{_escape(model)}",version="{version}"}}'
        n = sum(plan["requests_fast"] + plan["requests_general"] - plan["requests_shadow"] for _, plan, _ in parts)
        success.append((labels, n))
        rows.append((labels, sum(plan["rows_fast"] + plan["rows_general"] for _, plan, _ in parts)))
        if all(tier == Tier.REALTIME for tier, _, _ in parts):
            executions.append((labels, n))
        durations.append((labels, sum(total_us for _, _, total_us in parts)))
    cells = totals.worker
    refused = cells["refused_deadline"] + cells["refused_capacity"]
    failures = [
        (f'{{model="",version="",reason="{reason}"}}', n)
        for reason, n in (
            ("REJECTED", refused),
            ("BACKEND", max(0, cells["replies_5xx"] - refused)),
            ("OTHER", cells["replies_4xx"]),
        )
    ]
    return (
        _family("nv_inference_request_success", "Number of successful inference requests.", success)
        + _family("nv_inference_request_failure", "Number of failed inference requests, of all models.", failures)
        + _family("nv_inference_count", "Number of rows scored.", rows)
        + _family("nv_inference_exec_count", "Number of model executions.", executions)
        + _family("nv_inference_request_duration_us", "Cumulative request time in microseconds.", durations)
    )


def _family(name: str, text: str, samples: Sequence[tuple[str, int]]) -> str:
    lines = [f"# HELP {name} {text}\n# TYPE {name} counter\n", *(f"{name}{labels} {n}\n" for labels, n in samples)]
    return "".join(lines)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
