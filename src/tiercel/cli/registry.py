"""Commands about models: `register`, `models`, `promote`, `rollback`, `history`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, errors, json_option, print_json, print_table, project_option
from tiercel.cli.versions import COLUMNS, Cost, print_sheet, row, time_text
from tiercel.types import Tier

if TYPE_CHECKING:
    from tiercel.registry import ModelVersion


@click.command()
@click.argument("name")
@click.argument("model_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--service", help="The feature service the model reads. Default: every feature comes with the request.")
@click.option("--features", "feature_names", help="The model's inputs in order, separated by commas.")
@click.option(
    "--training-data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet file it was trained on.",
)
@click.option(
    "--timestamp-field",
    default="event_timestamp",
    show_default=True,
    help="Time column of the training data.",
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="An evaluation result; repeatable.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=TEXT", help="A free label; repeatable.")
@click.option("--description", default="", help="Free text.")
@click.option("--author", help="Who registers it. Default: your login name.")
@click.option("--alias", help='Point this alias at the new version, e.g. "champion".')
@click.option(
    "--tier",
    type=click.Choice([tier.value for tier in Tier]),
    help="Tier to serve it in. Default: what its measured cost gives.",
)
@click.option(
    "--reasons",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its reason policy. Default: what [models.NAME.explain] names.",
)
@click.option("--no-measure", is_flag=True, help="Do not measure what a prediction costs now; the first server does.")
@project_option
@json_option
def register(
    name: str,
    model_file: Path,
    service: str | None,
    feature_names: str | None,
    training_data: Path | None,
    timestamp_field: str,
    metrics: tuple[str, ...],
    parameters: tuple[str, ...],
    tags: tuple[str, ...],
    description: str,
    author: str | None,
    alias: str | None,
    tier: str | None,
    reasons: Path | None,
    no_measure: bool,
    project_dir: str,
    as_json: bool,
) -> None:
    """Register MODEL_FILE (ONNX, LightGBM text, XGBoost JSON or UBJ) as the next version of NAME."""
    from tiercel.features.snapshot import snapshot_of_parquet
    from tiercel.project import Project

    with Project(project_dir) as project:
        version = project.register(
            model_file,
            name=name,
            service=service,
            feature_names=None if feature_names is None else [item.strip() for item in feature_names.split(",")],
            snapshot=None if training_data is None else snapshot_of_parquet(training_data, timestamp_field),
            metrics={key: _number(key, text) for key, text in pairs("--metric", metrics)},
            hyperparameters={key: literal(text) for key, text in pairs("--param", parameters)},
            tags=dict(pairs("--tag", tags)),
            description=description,
            author=author,
            alias=alias,
            tier=tier,
            reasons=None if reasons is None else reasons.resolve(),
            measure=not no_measure,
        )
        cost = Cost.of(project, version)
    if as_json:
        print_json({**version.to_json(), **cost.to_json()})
        return
    console.print(
        f"{'Already registered as' if version.reused else 'Registered'} [bold]{name}[/] version "
        f"[bold]{version.version}[/] ({version.manifest_digest[:12]}), status {version.status}."
    )
    console.print(f"  served by {version.facts.engine}: {version.facts.engine_reason}")
    tier_name, quantiles, load_time, memory = cost.cells
    console.print(f"  tier {tier_name or 'open'}: {cost.reason}")
    if cost.profile is not None:
        console.print(f"  p50 / p99 / p99.9 of a prediction {quantiles}, loads in {load_time}, takes {memory}")
    if version.status != "champion":
        console.print(f"Next: tiercel promote {name} {version.version}")


@click.command()
@click.argument("name", required=False)
@project_option
@json_option
def models(name: str | None, project_dir: str, as_json: bool) -> None:
    """List registered models, the versions of NAME, or all that is known of one (NAME:VERSION, NAME@ALIAS)."""
    from tiercel.project import Project
    from tiercel.registry import parse_reference

    with Project(project_dir) as project:
        registry = project.registry
        if name is None:
            versions = [version for model in registry.list_models() for version in registry.list_versions(model.name)]
        else:
            model, selector = parse_reference(name)
            versions = [*registry.list_versions(model)] if selector is None else [registry.get(model, selector)]
        costs = [Cost.of(project, version) for version in versions]
    if as_json:
        print_json([{**version.to_json(), **cost.to_json()} for version, cost in zip(versions, costs, strict=True)])
    elif name is not None and len(versions) == 1:
        print_sheet(versions[0], costs[0])
    else:
        print_table("Models", COLUMNS, [row(version, cost) for version, cost in zip(versions, costs, strict=True)])


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--alias", default="champion", show_default=True, help="The alias that points at VERSION from now on.")
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--override", is_flag=True, help="Promote although [models.NAME.promotion] refuses it. Needs a --reason.")
@click.option(
    "--no-churn", is_flag=True, help="Do not compare its reasons with the champion's, unless that is limited."
)
@project_option
@json_option
def promote(
    name: str,
    version: str,
    alias: str,
    reason: str,
    override: bool,
    no_churn: bool,
    project_dir: str,
    as_json: bool,
) -> None:
    """Make VERSION (a number or an alias) of model NAME the champion, or what --alias says.

    A new champion's reasons are compared with those of the one before, on rows of the last week: how many decisions it
    explains otherwise is said, kept in the history, and limited where tiercel.toml says so.
    """
    from tiercel.errors import NotFoundError, TiercelError
    from tiercel.project import Project

    with Project(project_dir) as project:
        churn, note = None, ""
        if alias.lower() == "champion" and not no_churn:
            try:
                churn = project.reason_churn(name, version)
            except NotFoundError:  # there is no such version
                raise
            except TiercelError as error:  # what only informs is in nobody's way
                note = f"Reasons were not compared with the champion's: {error}"
        is_limited = project.settings.model(name).promotion.max_reason_churn is not None
        if (
            is_limited
            and "champion" not in project.registry.aliases(name)
            and alias.lower() in {"champion", "previous"}
        ):
            note = (
                "max_reason_churn was not checked: no version is champion, so there is nobody to compare reasons with"
            )
        promoted = project.promote(name, version, alias=alias, reason=reason, churn=churn, override=override)
    if as_json:
        found = None if churn is None else churn.to_json()
        print_json({**promoted.to_json(), "reason_churn": found, "note": note or None})
        return
    console.print(f"{name} version {promoted.version} is now {alias}.")
    if churn is not None:
        console.print(f"  {churn.describe()}", markup=False)
    if note:
        errors.print(f"note: {note}", markup=False)


@click.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; kept in the history.")
@project_option
@json_option
def rollback(name: str, reason: str, project_dir: str, as_json: bool) -> None:
    """Make the champion before the last promotion of NAME the champion again."""
    from tiercel.project import Project, login_name

    with Project(project_dir) as project:
        champion = project.registry.rollback(name, actor=login_name(), reason=reason)
    _say(champion, f"{name} is back on version {champion.version}.", as_json=as_json)


@click.command()
@click.argument("name", required=False)
@project_option
@json_option
def history(name: str | None, project_dir: str, as_json: bool) -> None:
    """Who changed what, when and why."""
    from tiercel.project import Project

    with Project(project_dir) as project:
        events = project.registry.history(name)
    if as_json:
        print_json([event.to_json() for event in events])
        return
    rows = [
        (
            event.seq,
            time_text(event.ts_us),
            event.actor,
            event.action,
            event.model,
            event.version,
            event.alias,
            event.from_version,
            event.to_version,
            event.reason,
        )
        for event in events
    ]
    print_table("History", ["", "time (UTC)", "who", "what", "model", "version", "alias", "from", "to", "why"], rows)


def _say(version: ModelVersion, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(version.to_json())
    else:
        console.print(text)


def pairs(option: str, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """NAME=VALUE arguments, split at the first "="."""
    split = []
    for text in texts:
        key, found, value = text.partition("=")
        if not found or not key:
            raise click.UsageError(f"Expected {option} NAME=VALUE, got {text!r}")
        split.append((key, value))
    return split


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"Expected a number for metric {key}, got {text!r}") from None


def literal(text: str) -> Any:
    """A JSON value where the text is one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
