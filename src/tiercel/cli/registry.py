"""Commands about models: `register`, `models`, `promote`, `rollback`, `history`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option
from tiercel.types import Tier

if TYPE_CHECKING:
    from tiercel.models import CostProfile
    from tiercel.project import Project
    from tiercel.registry import ModelVersion


@click.command()
@click.argument("name")
@click.argument("model_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--service", help="The feature service the model reads. Default: every feature comes with the request.")
@click.option("--features", "feature_names", help="The model's inputs in order, separated by commas.")
@click.option("--training-data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Parquet file.")
@click.option("--timestamp-field", default="event_timestamp", show_default=True, help="Its time column.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="An evaluation result; repeatable.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="A hyperparameter; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=TEXT", help="A free label; repeatable.")
@click.option("--description", default="", help="Free text.")
@click.option("--author", help="Default: your login name.")
@click.option("--alias", help='Point this alias at the new version, e.g. "champion".')
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="Default: what its measured cost gives.")
@click.option("--no-measure", is_flag=True, help="Leave measuring to the first server.")
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
            measure=not no_measure,
        )
        cost = _Cost.of(project, version)
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
    """List registered models, or the versions of NAME."""
    from tiercel.project import Project

    with Project(project_dir) as project:
        names = [model.name for model in project.registry.list_models()] if name is None else [name]
        versions = [version for each in names for version in project.registry.list_versions(each)]
        costs = [_Cost.of(project, version) for version in versions]
    if as_json:
        print_json([{**version.to_json(), **cost.to_json()} for version, cost in zip(versions, costs, strict=True)])
    elif name is not None and len(versions) == 1:
        _print_version(versions[0], costs[0])
    else:
        print_table(
            "Models",
            [
                "model",
                "version",
                "aliases",
                "served by",
                "tier",
                "p50 / p99 / p99.9",
                "load",
                "memory",
                "reads",
                "metrics",
                "trained on",
                "registered (UTC)",
            ],
            [_row(version, cost) for version, cost in zip(versions, costs, strict=True)],
        )


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--alias", default="champion", show_default=True)
@click.option("--reason", default="", help="Kept in the history.")
@project_option
@json_option
def promote(name: str, version: str, alias: str, reason: str, project_dir: str, as_json: bool) -> None:
    """Make VERSION (a number or an alias) of model NAME the champion, or what --alias says."""
    from tiercel.project import Project

    with Project(project_dir) as project:
        promoted = project.promote(name, version, alias=alias, reason=reason)
    _say(promoted, f"{name} version {promoted.version} is now {alias}.", as_json=as_json)


@click.command()
@click.argument("name")
@click.option("--reason", default="", help="Kept in the history.")
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
            _time(event.ts_us),
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


@dataclass(frozen=True)
class _Cost:
    """What a version costs on this host, and the tier that follows."""

    profile: CostProfile | None
    tier: str | None  # None: not measured, and none was asked for
    reason: str

    @classmethod
    def of(cls, project: Project, version: ModelVersion) -> _Cost:
        profile, decision = project.profile(version), project.tier(version)
        return cls(profile, version.facts.tier if profile is None else decision.tier.value, decision.reason)

    @property
    def cells(self) -> tuple[str | None, ...]:
        """Tier, quantiles of one row, load time and memory."""
        if self.profile is None:
            return self.tier, "not measured here", None, None
        profile = self.profile
        return self.tier, str(profile.total), f"{profile.load_ms:.1f} ms", f"{profile.memory_mb:.1f} MiB"

    def to_json(self) -> dict[str, Any]:
        profile = None if self.profile is None else self.profile.to_json()
        return {"tier": self.tier, "tier_reason": self.reason, "profile": profile}


def _row(version: ModelVersion, cost: _Cost) -> tuple[Any, ...]:
    facts = version.facts
    n_features = len(facts.signature.features)
    return (
        version.name,
        version.version,
        ", ".join(version.aliases),
        facts.engine,
        *cost.cells,
        f"{facts.service}: {n_features} features" if facts.service else f"{n_features} features",
        ", ".join(f"{name} {value:.4g}" for name, value in sorted(facts.metrics.items())),
        f"{facts.snapshot.n_rows:,} rows",
        _time(version.created_us)[:16],
    )


def _print_version(version: ModelVersion, cost: _Cost) -> None:
    rows = [
        (key, json.dumps(value) if isinstance(value, dict | list) else value)
        for key, value in version.to_json().items()
        if key != "tier"
    ]
    names = ("tier", "p50 / p99 / p99.9", "load time", "memory")
    rows += zip(names, cost.cells, strict=True)
    rows.append(("why this tier", cost.reason))
    if cost.profile is not None:
        rows += [
            ("scoring one row", str(cost.profile.score)),
            ("reading its features", None if cost.profile.read is None else str(cost.profile.read)),
            ("per row in batches", ", ".join(f"{n}: {p50 / n:.2f} us" for n, p50, _ in cost.profile.curve)),
            ("measured", f"{_time(cost.profile.measured_us)} UTC on {cost.profile.host}"),
        ]
    print_table(f"{version.name} version {version.version}", ["", ""], rows)


def _time(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


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
