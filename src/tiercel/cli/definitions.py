"""Commands about features: `init`, `apply`, `materialize`, `training-set`, `rollback-base`."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiercel.cli.console import console, errors, json_option, print_json, print_table, progress, project_option
from tiercel.cli.output_file import replacing

if TYPE_CHECKING:
    from tiercel.features.compute import ComputedView

MOMENT = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S"]


def _name_project(directory: Path) -> None:
    """Put the directory's name where the empty example has one of its own; what is no TOML text by itself is escaped."""
    path = directory / "tiercel.toml"
    name = json.dumps(directory.resolve().name or "my-project", ensure_ascii=False)
    path.write_text(
        path.read_text(encoding="utf-8").replace('name = "my-project"', f"name = {name}", 1), encoding="utf-8"
    )


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--example", type=click.Choice(["flights"]), help="Start from a complete example.")
def init(directory: Path, example: str | None) -> None:
    """Make a new project in DIRECTORY."""
    from tiercel.examples import copy_example

    copy_example(example or "empty", directory)
    if example is None:
        _name_project(directory)
    console.print(f"Made project [bold]{directory}[/].")
    quoted = shlex.quote(str(directory))  # what follows "Next" is to be pasted
    if example == "flights":
        console.print(f"Next: tiercel demo --directory {quoted}", markup=False, soft_wrap=True)
    else:
        following = f"Next: edit {directory / 'features.py'}, then: tiercel apply --project {quoted}"
        console.print(following, markup=False, soft_wrap=True)


@click.command()
@project_option
@json_option
def apply(project_dir: str, as_json: bool) -> None:
    """Check the project's definitions and record them."""
    from tiercel.project import Project

    with Project(project_dir) as project:
        diff = project.apply()
    digest = diff.catalog.digest
    if as_json:
        print_json({"catalog": digest, "added": diff.added, "changed": diff.changed, "removed": diff.removed})
    elif diff.is_empty:
        console.print(f"Nothing changed. Catalog {digest[:12]}.")
    else:
        for title, names in (("added", diff.added), ("changed", diff.changed), ("removed", diff.removed)):
            for name in names:
                console.print(f"  {title:8} {name}")
        console.print(f"Applied catalog {digest[:12]}. Next: tiercel materialize")


@click.command()
@click.argument("services", nargs=-1)
@click.option("--as-of", type=click.DateTime(MOMENT), help="Use only what was known at this time (UTC). Default: now.")
@click.option("--allow-empty", is_flag=True, help="Publish even when that replaces rows by none.")
@project_option
@json_option
def materialize(
    services: tuple[str, ...], as_of: datetime | None, allow_empty: bool, project_dir: str, as_json: bool
) -> None:
    """Compute features and publish them for serving (all SERVICES by default)."""
    from tiercel.project import Project

    computed: list[ComputedView] = []
    with Project(project_dir) as project, progress() as report:
        published = project.materialize(
            list(services) or None, as_of=as_of, allow_empty=allow_empty, progress=report, on_view=computed.append
        )
    for view in computed:
        for n_rows, lack in ((view.n_null_keys, "a join key"), (view.n_null_times, "a time")):
            if n_rows:
                errors.print(f"{view.view.name}: left out {n_rows:,} of {view.n_read:,} rows without {lack}")
    if as_json:
        facts = ("service", "fingerprint", "base", "n_rows", "size_bytes", "sha256", "content_digest", "as_of_us")
        print_json([{name: item.to_json()[name] for name in facts} for item in published])
        return
    rows = [
        (item.service, item.base_name, f"{item.n_rows:,}", f"{item.size_bytes / 1e6:,.1f} MB", _time(item.as_of_us))
        for item in published
    ]
    print_table("Materialized", ["service", "base", "rows", "size", "as of (UTC)"], rows)


@click.command("rollback-base")
@click.argument("service")
@click.option("--to", metavar="BASE", help="An older base that is kept, by its file name. Default: the one before.")
@project_option
def rollback_base(service: str, to: str | None, project_dir: str) -> None:
    """Serve a feature service from the base (what one `materialize` published) before the current one."""
    from tiercel.features.rollback import rollback
    from tiercel.project import Project

    with Project(project_dir) as project:
        project.service(service)
        manifest = rollback(project.settings.features_dir / service, to=to)
    console.print(f"Service {service} is back on {manifest.base_name}.")


@click.command("training-set")
@click.argument("service")
@click.option(
    "--labels",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Parquet or CSV: join keys, time, label.",
)
@click.option("--timestamp-field", default="event_timestamp", show_default=True, help="The labels' time column.")
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet file to write.")
@project_option
@json_option
def training_set(
    service: str, labels: str, timestamp_field: str, output: Path, project_dir: str, as_json: bool
) -> None:
    """Join labels with the features of SERVICE as they were known at each label's time."""
    import pyarrow.parquet as pq

    from tiercel.project import Project

    if output.exists() and output.samefile(labels):
        raise click.BadParameter(f"'{output}' is the labels' file, which it would replace.", param_hint="--output")
    if not output.parent.is_dir():
        raise click.BadParameter(f"Expected a directory at '{output.parent}', there is none.", param_hint="--output")
    with Project(project_dir) as project:
        made = project.get_historical_features(labels, service, timestamp_field=timestamp_field)
    with replacing(output) as unfinished:
        pq.write_table(made.to_arrow(), unfinished)
    if as_json:
        print_json({"output": str(output), **made.snapshot.to_json()})
    else:
        n_rows, n_features = made.snapshot.n_rows, len(made.feature_names)
        console.print(f"Wrote {n_rows:,} rows with {n_features} features to {output} ({made.snapshot.digest[:12]}).")


def _time(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
