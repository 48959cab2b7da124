"""Commands that answer requests: `serve`, and `predict` to send one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tiercel.cli.console import console, errors, json_option, print_json, project_option

if TYPE_CHECKING:
    from tiercel.errors import JobAcceptedError


@click.command()
@click.option("--host", help="Address of the data port. Default: tiercel.toml, else 127.0.0.1.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="The data port. Default: tiercel.toml, else 8000. 0 picks a free one.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that answer. Default: tiercel.toml, else 1.")
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65_535),
    help="Port of the dashboard and metrics. Default: tiercel.toml, else 8001. 0 picks a free one.",
)
@project_option
@click.pass_context
def serve(
    context: click.Context,
    host: str | None,
    port: int | None,
    workers: int | None,
    admin_port: int | None,
    project_dir: str,
) -> None:
    """Serve the project's models and features until interrupted.

    SIGTERM and Ctrl-C answer what was accepted, then end; a second one ends at once. SIGHUP reads tiercel.toml again and
    replaces the processes one by one.

    In a container of Vertex AI, its variables AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are honoured.
    """
    import os
    from pathlib import Path

    from tiercel.http.deployment import Deployment, Options

    options = Options(host=host, port=port, workers=workers, admin_port=admin_port)
    if any(name.startswith("AIP_") for name in os.environ):  # what reads it imports more than a supervisor needs
        from tiercel.http.invocations import vertex_routes

        options = options.in_vertex(vertex_routes(os.environ).port)
    verbose = bool(context.find_root().params.get("verbose"))
    with Deployment(Path(project_dir), options, verbose=verbose, say=_say, warn=_warn) as deployment:
        deployment.run()


def _say(text: str) -> None:
    console.print(text, markup=False)


def _warn(text: str) -> None:
    errors.print(text, markup=False)


@click.command()
@click.argument("model")
@click.option("--entity", "entities", multiple=True, metavar="KEY=VALUE", help="A join key; repeatable.")
@click.option("--feature", "features", multiple=True, metavar="NAME=VALUE", help="A request-time feature; repeatable.")
@click.option("--now", help="Read features as of this time (ISO 8601).")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running server.")
@json_option
def predict(
    model: str, entities: tuple[str, ...], features: tuple[str, ...], now: str | None, url: str, as_json: bool
) -> None:
    """Ask a running server for a prediction of MODEL ("name", "name@alias" or "name:version").

    A VALUE that reads as a JSON number, true, false or null is sent as one; for a text that looks like a number write
    the quotes: --entity 'id="17"'.

    A model of the batch tier makes a job of it: its id is printed, and where its results will be.
    """
    from tiercel.cli.registry import literal, pairs
    from tiercel.client import Client, Prediction
    from tiercel.errors import JobAcceptedError

    with Client(url) as client:
        try:
            prediction = client.predict(
                model,
                entities={key: literal(text) for key, text in pairs("--entity", entities)} or None,
                features={key: literal(text) for key, text in pairs("--feature", features)} or None,
                now=now,
            )
        except JobAcceptedError as job:
            _print_job(model, job, as_json=as_json)
            return
    if as_json:
        print_json(asdict(prediction))
        return
    score = prediction.score if isinstance(prediction, Prediction) else prediction.scores
    console.print(f"{prediction.model} version {prediction.version}: [bold]{score}[/]")
    if prediction.degraded is not None:
        console.print(f"  {prediction.degraded.describe()}", markup=False)
    if prediction.arm is not None:
        console.print(f"  in the {prediction.arm}'s share", markup=False)
    if prediction.missing:
        console.print(f"  no value for: {', '.join(prediction.missing)}")


def _print_job(model: str, job: JobAcceptedError, *, as_json: bool) -> None:
    """A success: a caller that took it for a failure and asked again would have made a second job."""
    if as_json:
        print_json({"job": job.job_id, "status": job.status_url, "results": job.results_url})
        return
    console.print(f"{model}: no score yet, the server took it as batch job {job.job_id}", markup=False)
    console.print(
        f"  how far it is: tiercel jobs show {job.job_id} (in the server's project), or {job.status_url}", markup=False
    )
    console.print(f"  its results, once it is done: curl {job.results_url}", markup=False)
