"""The command group. Commands import what they need when they run, so `tiercel --help` is quick."""

from __future__ import annotations

import logging

import click

from tiercel import __version__
from tiercel.cli.alerts import alerts
from tiercel.cli.audit import audit
from tiercel.cli.bench import bench
from tiercel.cli.console import TiercelGroup
from tiercel.cli.definitions import apply, init, materialize, rollback_base, training_set
from tiercel.cli.demo import demo
from tiercel.cli.drift import drift
from tiercel.cli.explain import explain
from tiercel.cli.feedback import feedback
from tiercel.cli.jobs import jobs
from tiercel.cli.performance import performance
from tiercel.cli.reasons import reasons
from tiercel.cli.registry import history, models, promote, register, rollback
from tiercel.cli.replay import replay
from tiercel.cli.serve import predict, serve
from tiercel.cli.sql import sql
from tiercel.cli.why import why


@click.group(cls=TiercelGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside.")
def main(verbose: bool) -> None:
    """Feature store, model registry and low-latency server for tabular models.

    Start with `tiercel demo`: it does everything on real flights.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


for command in (
    demo,
    init,
    apply,
    materialize,
    rollback_base,
    training_set,
    register,
    models,
    promote,
    rollback,
    history,
    serve,
    predict,
    explain,
    why,
    replay,
    audit,
    feedback,
    sql,
    jobs,
    drift,
    performance,
    reasons,
    alerts,
    bench,
):
    main.add_command(command)
