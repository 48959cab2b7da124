"""`tiercel alerts`: what is wrong, since when, what shows it, and what is done about it. No server is needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tiercel.cli.console import console, errors, json_option, print_json, print_table, project_option
from tiercel.cli.durations import DURATION, shown_duration, shown_moment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tiercel.monitor.alerts import Alert, AlertStore, Finding

#: A window that is shorter is shown to the second.
_SHORT_US = 600_000_000
by_option = click.option("--by", help="Who says so. Default: the login name.")
note_option = click.option("--note", default="", help="Why, for whoever reads it later.")
alert_id = click.argument("alert_id", metavar="ID", type=click.IntRange(1))


@click.group(invoke_without_command=True)
@click.option("--all", "with_resolved", is_flag=True, help="Those that are over, too.")
@click.option(
    "--class",
    "alert_class",
    type=click.Choice(["pipeline", "population", "concept", "impact"]),
    help="Only these.",
)
@project_option
@json_option
@click.pass_context
def alerts(
    context: click.Context, with_resolved: bool, alert_class: str | None, project_dir: str, as_json: bool
) -> None:
    """List alerts, newest first. Of the four classes only `pipeline` and `impact` wake somebody."""
    if context.invoked_subcommand is not None:
        return
    from tiercel.monitor.watch_state import WatchState

    state_dir = _state_dir(project_dir)
    found = _store(state_dir).find_all(with_resolved=with_resolved)
    found = [alert for alert in found if alert_class in {None, alert.finding.alert_class.value}]
    watch = WatchState.load(state_dir)
    if as_json:
        print_json({"alerts": [alert.to_json() for alert in found], "watch": watch.to_json()})
        return
    now_us = time.time_ns() // 1000
    rows = [
        (
            alert.id,
            alert.state,
            alert.finding.alert_class,
            _whose(alert),
            shown_duration(max(0, (alert.resolved_us or now_us) - alert.opened_us)),
            alert.finding.message,
        )
        for alert in found
    ]
    print_table("Alerts", ["alert", "state", "class", "of", "for", "what"], rows)
    if not watch.turns:
        errors.print("note: nothing was watched yet. `tiercel serve` watches, every monitor.interval_s")
    for problem in watch.problems:
        errors.print(f"note: watching, {problem}", markup=False)


@alerts.command()
@alert_id
@project_option
@json_option
@click.pass_context
def show(context: click.Context, alert_id: int, project_dir: str, as_json: bool) -> None:
    """Say all there is to say about alert ID."""
    _print(_store(_state_dir(_said(context, project_dir))).get(alert_id), as_json=as_json)


@alerts.command()
@alert_id
@by_option
@note_option
@project_option
@json_option
@click.pass_context
def ack(context: click.Context, alert_id: int, by: str | None, note: str, project_dir: str, as_json: bool) -> None:
    """Say that somebody knows of alert ID: it is not sent again while it lasts."""
    _change(
        context, project_dir, lambda store, now_us: store.acknowledge(alert_id, by=_who(by), note=note, now_us=now_us),
        as_json=as_json,
    )  # fmt: skip


@alerts.command()
@alert_id
@click.option("--for", "length_us", type=DURATION, default="1d", show_default=True, help="How long.")
@by_option
@note_option
@project_option
@json_option
@click.pass_context
def silence(
    context: click.Context,
    alert_id: int,
    length_us: int,
    by: str | None,
    note: str,
    project_dir: str,
    as_json: bool,
) -> None:
    """Send nothing about the cause of alert ID for a time. What still lasts then is open again."""
    _change(
        context,
        project_dir,
        lambda store, now_us: store.silence(alert_id, now_us + length_us, by=_who(by), note=note, now_us=now_us),
        as_json=as_json,
    )


@alerts.command()
@alert_id
@by_option
@note_option
@project_option
@json_option
@click.pass_context
def resolve(context: click.Context, alert_id: int, by: str | None, note: str, project_dir: str, as_json: bool) -> None:
    """Call alert ID over. If its cause is still there it opens again: silence it instead."""
    _change(
        context, project_dir, lambda store, now_us: store.resolve(alert_id, by=_who(by), note=note, now_us=now_us),
        as_json=as_json,
    )  # fmt: skip


def _change(
    context: click.Context, project_dir: str, action: Callable[[AlertStore, int], Alert], *, as_json: bool
) -> None:
    alert = action(_store(_state_dir(_said(context, project_dir))), time.time_ns() // 1000)
    if as_json:
        print_json(alert.to_json())
        return
    until = "" if alert.silenced_until_us is None else f" until {shown_moment(alert.silenced_until_us)} UTC"
    console.print(f"Alert {alert.id} is {alert.state}{until}.")


def _print(alert: Alert, *, as_json: bool) -> None:
    if as_json:
        print_json(alert.to_json())
        return
    finding = alert.finding
    rows = [
        ("class", f"{finding.alert_class}{' (wakes somebody)' if alert.pages else ''}"),
        ("state", alert.state),
        ("of", _whose(alert)),
        ("what", finding.message),
        ("window", _window(finding)),
        ("rows", f"{finding.n:,}"),
        (finding.effect_name, f"{finding.effect:.4g}; from {finding.threshold:.4g} on it is one"),
        *((f"  {each.name}", f"{each.effect:.4g}; {each.reason}") for each in finding.features),
        *((f"  moved by {each.name}", f"{each.effect:+.3g}; {each.reason}") for each in finding.moves),
        ("shown by", finding.command),
        *(
            (f"{shown_moment(event.time_us)} UTC", " ".join(filter(None, (event.what, event.by, event.note))))
            for event in alert.history
        ),
    ]
    print_table(f"Alert {alert.id}", ["", ""], rows)


def _window(finding: Finding) -> str:
    is_short = finding.end_us - finding.begin_us < _SHORT_US
    begin, end = (shown_moment(us, seconds=is_short) for us in (finding.begin_us, finding.end_us))
    return f"{begin} to {end} UTC"


def _whose(alert: Alert) -> str:
    finding = alert.finding
    model = "" if not finding.model else f"{finding.model}:{finding.version}, "
    return f"{model}{finding.subject}"


def _who(by: str | None) -> str:
    from tiercel.project import login_name

    return login_name() if by is None else by


def _said(context: click.Context, project_dir: str) -> str:
    """The project, whether `--project` stood before the command's name or behind it."""
    is_default = context.get_parameter_source("project_dir") is ParameterSource.DEFAULT
    if not is_default or context.parent is None:
        return project_dir
    before: str = context.parent.params["project_dir"]
    return before


def _state_dir(project_dir: str) -> Path:
    from pathlib import Path

    from tiercel.settings import load_settings

    return load_settings(Path(project_dir)).state_dir


def _store(state_dir: Path) -> AlertStore:
    from tiercel.monitor.alerts import AlertStore

    return AlertStore(state_dir)
