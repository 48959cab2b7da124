"""`tiercel why`: what one prediction's time went to, and which stage took more than it should."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option

if TYPE_CHECKING:
    from tiercel.monitor.journal import Record
    from tiercel.monitor.stage_times import Quantiles, StageTimes
    from tiercel.project import Project


@click.command()
@click.argument("prediction_id")
@project_option
@json_option
def why(prediction_id: str, project_dir: str, as_json: bool) -> None:
    """Say where the time of the prediction with PREDICTION_ID (a reply's "id") went, and what was out of line.

    Its stages stand beside the quantiles of all that its version answered in its tier, and beside the version's measured
    profile where there is one.
    """
    from tiercel.monitor.lookup import find_record
    from tiercel.monitor.recording import COUNTERS, JOURNAL
    from tiercel.monitor.stage_times import stage_times
    from tiercel.monitor.totals import read_totals
    from tiercel.project import Project

    with Project(project_dir) as project:
        state_dir = project.settings.state_dir
        record = find_record(state_dir / JOURNAL, prediction_id)
        plan = record.plan
        counts = read_totals(state_dir / COUNTERS).by_version().get((plan.model, plan.version, plan.tier))
        times = stage_times(record, counts, _measured(project, plan.model, plan.version))
    if as_json:
        print_json(_to_json(record, times))
    else:
        _print(record, times)


def _print(record: Record, times: StageTimes) -> None:
    plan = record.plan
    base = "" if plan.base is None else f", {plan.base}"
    console.print(f"[bold]{plan.model}[/] version [bold]{plan.version}[/], {plan.tier}{base}")
    console.print(f"  {_circumstances(record)}")
    counted = f"of {times.n_counted:,} requests" if times.n_counted else "not counted"
    columns = ["stage", "µs", f"p50 ({counted})", "p99", "x p99"]
    is_measured = any(stage.measured is not None for stage in times.stages)
    rows = []
    for stage in times.stages:
        row: list[Any] = [_name(stage.stage, times), f"{stage.time_us:.1f}", *_shown(stage.counted)]
        p99_us = 0.0 if stage.counted is None else stage.counted.p99_us
        row.append(f"{stage.time_us / p99_us:.2f}" if p99_us else None)
        rows.append([*row, *_shown(stage.measured)] if is_measured else row)
    print_table("Stages", [*columns, "measured p50", "measured p99"] if is_measured else columns, rows)
    console.print(_verdict(record, times))


def _name(stage: str, times: StageTimes) -> str:
    from tiercel.monitor.stage_times import REPLY

    return f"{stage} (with the explanation)" if stage == REPLY and times.is_explained else stage


def _circumstances(record: Record) -> str:
    moment = datetime.fromtimestamp(record.received_us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    parts = [
        f"received {moment} UTC",
        f"by worker {record.worker} on the {'compiled' if record.is_fast else 'general'} path",
        f"{record.request_rows} row{'' if record.request_rows == 1 else 's'}",
    ]
    if record.degraded is not None:
        instead_of = record.instead_of or "the model"
        parts.append(f"answered by {record.degraded} instead of {instead_of}, because: {record.degrade_reason}")
        if record.instead_of is None:
            parts.append("which model that was its reply said, its record does not")
    if record.arm != "champion":
        parts.append(f"in the {record.arm}'s share")
    if record.is_shadow:
        parts.append("a shadow's score, not sent")
    if record.oldest_age_us is not None:
        parts.append(f"oldest value {record.oldest_age_us / 1e6:.1f} s old")
    return ", ".join(parts)


def _verdict(record: Record, times: StageTimes) -> str:
    from tiercel.monitor.stage_times import LEAST_REQUESTS, OUTSIDE, REPLY

    worst = times.out_of_line
    if worst is None:
        if times.is_explained:
            return "No other stage is out of line; how long an explanation should take is not counted."
        if times.n_counted >= LEAST_REQUESTS or any(stage.measured is not None for stage in times.stages):
            return "No stage is out of line."
        return f"Nothing to judge by yet: {times.n_counted} requests are counted of this version, {LEAST_REQUESTS} are needed."
    usual = "p99" if worst.against == "counted" else "measured p99"
    share = f"{worst.share:.0%} of all time beyond"
    if worst.stage == OUTSIDE:
        # The general path's stages begin where the compiled path's parsing ends.
        why = "waited for its turn behind others"
        why = why if record.is_fast else f"was read and parsed by the general path, or {why}"
        return f"[bold]{worst.time_us:.1f} µs outside of the stages[/] are out of line, {share}: the request {why}."
    is_unknown = worst.stage == REPLY and times.is_explained is None
    beside = " Its record does not say whether it was explained, which is done in this stage." if is_unknown else ""
    return (
        f"[bold]{worst.stage} is out of line[/]: {worst.time_us:.1f} µs, {worst.ratio:.1f} times its {usual} of "
        f"{worst.p99_us:.1f} µs; {share}.{beside}"
    )


def _shown(quantiles: Quantiles | None) -> list[str | None]:
    return [None, None] if quantiles is None else [f"{quantiles.p50_us:.1f}", f"{quantiles.p99_us:.1f}"]


def _to_json(record: Record, times: StageTimes) -> dict[str, Any]:
    def shown(quantiles: Quantiles | None) -> dict[str, float] | None:
        return None if quantiles is None else {"p50_us": quantiles.p50_us, "p99_us": quantiles.p99_us}

    plan, worst = record.plan, times.out_of_line
    return {
        "id": record.id,
        "model": plan.model,
        "version": plan.version,
        "tier": plan.tier,
        "base": plan.base,
        "worker": record.worker,
        "received_us": record.received_us,
        "rows": record.request_rows,
        "fast": record.is_fast,
        "degraded": record.degraded,
        "degrade_reason": record.degrade_reason,
        "instead_of": record.instead_of,
        "arm": record.arm,
        "shadow": record.is_shadow,
        "oldest_age_us": record.oldest_age_us,
        "explained": times.is_explained,
        "requests_counted": times.n_counted,
        "stages": [
            {
                "stage": stage.stage,
                "us": stage.time_us,
                "counted": shown(stage.counted),
                "measured": shown(stage.measured),
            }
            for stage in times.stages
        ],
        "out_of_line": None
        if worst is None
        else {
            "stage": worst.stage,
            "us": worst.time_us,
            "against": worst.against,
            "p99_us": worst.p99_us,
            "ratio": worst.ratio if math.isfinite(worst.ratio) else None,
            "excess_us": worst.excess_us,
            "share": worst.share,
        },
    }


def _measured(project: Project, model: str, version: int) -> dict[str, Quantiles]:
    """The version's measured profile on this host, by stage; empty without one."""
    from tiercel.errors import TiercelError
    from tiercel.models.profile import ProfileStore, this_host
    from tiercel.monitor.stage_times import Quantiles

    try:
        digest = project.registry.get(model, version).manifest_digest
    except TiercelError:  # a prediction is explained without it too
        return {}
    profile = ProfileStore(project.settings.state_dir).find(digest, this_host())
    if profile is None:
        return {}
    stages = {"read": profile.read, "score": profile.score, "total": profile.total}
    return {name: Quantiles(each.p50_us, each.p99_us) for name, each in stages.items() if each is not None}
