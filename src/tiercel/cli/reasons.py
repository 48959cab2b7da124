"""`tiercel reasons`: whether a reason policy fits a model, and what would have changed a decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option

if TYPE_CHECKING:
    from tiercel.explain.policy import ReasonPolicy
    from tiercel.project import Project
    from tiercel.types import Signature


@click.group()
def reasons() -> None:
    """Reason policies: features to reasons, in words."""


@reasons.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model",
    metavar="NAME",
    help="A registered model it must fit: NAME (every version that an alias points at), NAME@ALIAS or NAME:VERSION.",
)
@click.option("--service", metavar="NAME", help="A feature service whose every feature must have its place.")
@click.option("--locale", help="Print texts in this language. Default: the policy's own.")
@project_option
@json_option
def check(
    file: Path | None, model: str | None, service: str | None, locale: str | None, project_dir: str, as_json: bool
) -> None:
    """Check a reason policy: FILE, or the one that tiercel.toml names for --model.

    Nothing is registered or changed. A mistake is named with its place, and the exit status is 1.
    """
    from tiercel.explain.policy_file import read_policy
    from tiercel.project import Project

    if file is not None and model is None and service is None:
        policy, _ = read_policy(file)
        _tell(policy, locale, str(file), "", as_json=as_json)
        return
    if file is None and model is None:
        raise click.UsageError("Expected a FILE, or --model NAME to check what tiercel.toml names for it")
    with Project(project_dir) as project:
        path = _policy_of(project, str(model)) if file is None else file
        policy, _ = read_policy(path)
        asked = _what(project, model, service)
        for signature, known, _ in asked:
            policy.check(signature, also_known=known, where=str(path))
    _tell(policy, locale, str(path), " and ".join(name for _, _, name in asked), as_json=as_json)


@reasons.command()
@click.argument("prediction", metavar="ID")
@click.option(
    "--threshold",
    type=float,
    help="Score from which a decision is positive. Default: that of [models.NAME.value], or 0.5.",
)
@click.option("--row", default=0, show_default=True, type=click.IntRange(0), help="Which row of a request of many.")
@click.option("--locale", help="Language of the sentences. Default: the policy's own.")
@project_option
@json_option
def change(
    prediction: str, threshold: float | None, row: int, locale: str | None, project_dir: str, as_json: bool
) -> None:
    """Say what would have changed the decision on the prediction with ID: the smallest changes that its policy allows."""
    from tiercel.project import Project
    from tiercel.serving.what_if import what_if

    with Project(project_dir) as project:
        told = what_if(project.settings, project.registry, prediction, threshold=threshold, row=row)
    if as_json:
        print_json(told.to_json(locale))
        return
    found = told.found
    console.print(
        f"{told.model} version {told.version}: {found.score:.6g}, "
        f"{'at or above' if found.score >= found.threshold else 'below'} {found.threshold:g}",
        markup=False,
    )
    for each, text in zip(found.found, told.sentences(locale), strict=True):
        console.print(f"  {text} (score {each.score:.6g}, distance {each.distance:.3g})", markup=False)
    if found.why:
        console.print(f"  Nothing: {found.why}.", markup=False)
    if told.masked:
        console.print(
            f"  Left as they are, because [monitor] masks their values: {', '.join(told.masked)}.", markup=False
        )
    if not found.is_exhaustive:
        console.print("  There are more changes of two features than were looked at.", markup=False)


def _policy_of(project: Project, model: str) -> Path:
    """The file that tiercel.toml names for a model."""
    from tiercel.registry import parse_reference

    name = parse_reference(model)[0]
    named = project.settings.model(name).explain.policy
    if named is None:
        raise click.UsageError(
            f"tiercel.toml names no reason policy for '{name}'. Give a FILE, or set [models.{name}.explain] policy"
        )
    return project.settings.project_dir / named


def _what(project: Project, model: str | None, service: str | None) -> list[tuple[Signature, tuple[str, ...], str]]:
    """Everything the policy must fit: (signature, features it may speak of, a name for people)."""
    from tiercel.registry import parse_reference
    from tiercel.types import Signature, Task

    if model is None:
        features = project.service(str(service)).features
        # Of a service no classes are known: with two that `adverse` can only name, everything else is looked at.
        return [(Signature(features, Task.BINARY, ("0", "1")), (), f"service {service}")]
    name, selector = parse_reference(model)
    # Without one named, those that serve: every version that an alias points at, else the newest.
    numbers = sorted(set(project.registry.aliases(name).values())) if selector is None else [selector]
    asked = []
    for number in numbers or ["latest"]:
        version = project.registry.get(name, number)
        read = version.facts.service if service is None else service
        known = () if read is None else project.service(read).features
        asked.append((version.facts.signature, known, f"{name} version {version.version}"))
    return asked


def _tell(policy: ReasonPolicy, locale: str | None, file: str, fits: str, *, as_json: bool) -> None:
    from tiercel.explain.policy import UNTOLD

    locale = policy.choose_locale(locale)
    if as_json:
        print_json({"file": file, "digest": policy.digest, "fits": fits or None, "policy": policy.to_json()})
        return
    rows = []
    for reason in policy.reasons:
        rows.append((reason.wording.code, reason.wording.text(locale), ", ".join(reason.features)))
        if reason.missing is not None:
            rows.append((reason.missing.code, reason.missing.text(locale), "... where they are missing"))
    if policy.missing is not None:
        rows.append((policy.missing.code, policy.missing.text(locale), "any other that is missing"))
    rows.append((policy.insufficient.code, policy.insufficient.text(locale), "where there is no reason"))
    rows += [(kind, "never told", ", ".join(names)) for kind in UNTOLD if (names := getattr(policy, kind))]
    print_table(f"Reasons ({locale})", ["code", "text", "features"], rows)
    if policy.changes:
        print_table(
            "\nChanges that are suggested",
            ["feature", "called", "direction", "min", "max", "step"],
            [(c.feature, dict(c.names)[locale], c.direction, c.minimum, c.maximum, c.step) for c in policy.changes],
        )
    console.print(
        f"\n{file} is a reason policy ({policy.digest[:12]}) in {', '.join(policy.locales)}"
        f"{f' and fits {fits}' if fits else ''}.",
        markup=False,
    )
