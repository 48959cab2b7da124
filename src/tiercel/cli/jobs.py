"""Commands about batch jobs: `jobs`, `jobs show`, `jobs cancel`. They read the state directory; no server is needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tiercel.cli.console import console, json_option, print_json, print_table, project_option

if TYPE_CHECKING:
    from tiercel.serving.jobs import JobStatus, JobStore


@click.group(invoke_without_command=True)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="The newest so many.")
@project_option
@json_option
@click.pass_context
def jobs(context: click.Context, limit: int, project_dir: str, as_json: bool) -> None:
    """List batch jobs, newest first; see also `jobs show` and `jobs cancel`."""
    if context.invoked_subcommand is not None:
        return
    found = _store(project_dir).list_jobs(limit)
    if as_json:
        print_json([status.to_json() for status in found])
        return
    now_us = time.time_ns() // 1000
    rows = [
        (
            status.job.id,
            status.state,
            f"{status.job.model}:{status.job.version}",
            f"{status.rows_done:,} of {status.job.n_rows:,}",
            age((now_us - status.job.created_us) / 1e6),
            "" if status.error is None else status.error.code,
        )
        for status in found
    ]
    print_table("Jobs", ["job", "state", "model", "rows", "age", "error"], rows)


@jobs.command()
@click.argument("job_id", metavar="ID")
@project_option
@json_option
@click.pass_context
def show(context: click.Context, job_id: str, project_dir: str, as_json: bool) -> None:
    """Say how far job ID is, or why it failed."""
    _print(_store(_said(context, project_dir)).status(job_id), as_json=as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@project_option
@json_option
@click.pass_context
def cancel(context: click.Context, job_id: str, project_dir: str, as_json: bool) -> None:
    """Cancel job ID; one that runs stops within a moment."""
    status = _store(_said(context, project_dir)).cancel(job_id)
    if as_json:
        print_json(status.to_json())
    else:
        console.print(f"Job {status.job.id} is cancelled.")


def age(seconds: float) -> str:
    """A length of time, in the one unit that says enough."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _said(context: click.Context, project_dir: str) -> str:
    """The project, whether `--project` stood before the command's name or behind it."""
    is_default = context.get_parameter_source("project_dir") is ParameterSource.DEFAULT
    if not is_default or context.parent is None:
        return project_dir
    before: str = context.parent.params["project_dir"]
    return before


def _store(project_dir: str) -> JobStore:
    from pathlib import Path

    from tiercel.serving.jobs import JobStore
    from tiercel.settings import load_settings

    return JobStore(load_settings(Path(project_dir)).state_dir)


def _print(status: JobStatus, *, as_json: bool) -> None:
    data = status.to_json()
    if as_json:
        print_json(data)
        return
    error = data.pop("error")
    rows = [(name, value) for name, value in data.items()]
    if error is not None:
        rows += [("error", error["error"]), ("code", error["code"])]
        rows += [("row", error["row"])] if "row" in error else []
    print_table(f"Job {status.job.id}", ["", ""], rows)
