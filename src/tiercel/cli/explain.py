"""`tiercel explain`: why a prediction comes out as it does, of a new one or of one that was answered before."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option
from tiercel.cli.durations import DURATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.client import Explanation, Prediction, Predictions, Reason

_ID = re.compile(r"[0-9a-f]{16}(?:0|[1-9a-f][0-9a-f]{0,15})")
#: Contributions that people are shown; programs get all.
_MOST_SHOWN = 15


@click.command()
@click.argument("target", metavar="MODEL|ID")
@click.option("--entity", "entities", multiple=True, metavar="KEY=VALUE", help="A join key; repeatable.")
@click.option("--feature", "features", multiple=True, metavar="NAME=VALUE", help="A request-time feature; repeatable.")
@click.option("--now", help="Read features as of this time (ISO 8601).")
@click.option("--locale", help="Language of the reasons' texts. Default: the model's own.")
@click.option(
    "-k",
    "k",
    type=click.IntRange(1, 16),
    help="How many reasons at most. Default: as the model's policy says.",
)
@click.option("--global", "is_global", is_flag=True, help="Say what moves MODEL over many rows, not in one prediction.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --global: write a page with plots to this file.",
)
@click.option(
    "--window", "length_us", type=DURATION, help="With --global: how far back rows are looked for. Default: 7d."
)
@click.option("--rows", type=click.IntRange(10, 20_000), help="With --global: rows to explain. Default: 2000.")
@click.option("--output", help="With --global: the class that is explained, of a model of several. Default: the first.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server, for a new prediction.")
@project_option
@json_option
def explain(
    target: str,
    entities: tuple[str, ...],
    features: tuple[str, ...],
    now: str | None,
    locale: str | None,
    k: int | None,
    is_global: bool,
    html_file: Path | None,
    length_us: int | None,
    rows: int | None,
    output: str | None,
    url: str,
    project_dir: str,
    as_json: bool,
) -> None:
    """Say why MODEL scores what --entity and --feature say as it does; or why the prediction with ID came out so.

    A new prediction is asked of a running server, which waits for its explanation however long it takes. An earlier one
    (ID is a reply's "id") is explained from its receipt (the journal, then what is kept of it), without a server.

    With --global: what moves MODEL (NAME, NAME@ALIAS or NAME:VERSION) over the rows that it was asked for, or was trained on.
    NAME alone compares champion and challenger, where it has both, on the same rows.
    """
    if is_global:
        from tiercel.cli.explain_global import explain_globally

        if entities or features or now is not None or k is not None or locale is not None:
            raise click.UsageError(
                "--entity, --feature, --now, --locale and -k are of one prediction: leave them or --global out."
            )
        explain_globally(project_dir, target, length_us, rows, output, html_file, as_json=as_json)
        return
    if html_file is not None or length_us is not None or rows is not None or output is not None:
        raise click.UsageError("--html, --window, --rows and --output are of --global.")
    if not entities and not features and _ID.fullmatch(target):
        told = _recorded(target, project_dir, locale, k)
        if as_json:
            print_json(told)
            return
        _print(*_read(told))
        if told["explained_by"]["settings"] == "now":
            console.print(
                f"  [models.{told['model']}.explain] was changed since and cannot be undone: this is by today's settings.",
                markup=False,
            )
        return
    from tiercel.cli.registry import literal, pairs
    from tiercel.client import Client

    with Client(url) as client:
        made = client.explain(
            target,
            entities={key: literal(text) for key, text in pairs("--entity", entities)} or None,
            features={key: literal(text) for key, text in pairs("--feature", features)} or None,
            now=now,
            locale=locale,
            k=k,
        )
    if as_json:
        print_json(asdict(made))
        return
    _print(f"{made.model} version {made.version}", _score(made), made.explanation)


def _recorded(prediction_id: str, project_dir: str, locale: str | None, k: int | None) -> dict[str, Any]:
    from tiercel.project import Project
    from tiercel.serving.explain_request import FULL, ExplainRequest, parse_explain
    from tiercel.serving.receipts import find_receipt
    from tiercel.serving.recorded import explain_receipt, plan_of_then
    from tiercel.serving.version_shelf import VersionShelf

    options = {"explain": FULL, "locale": locale, "k": k}
    asked = parse_explain({name: value for name, value in options.items() if value is not None}, "--")
    with Project(project_dir) as project:
        receipts = find_receipt(project.settings, prediction_id)
        shelf = VersionShelf(project.settings, project.registry)
        plan = plan_of_then(shelf.find(f"{receipts[0].model}:{receipts[0].version}"), receipts[0], shelf)
        return explain_receipt(plan, receipts, asked or ExplainRequest(is_full=True))


def _read(told: dict[str, Any]) -> tuple[str, Any, Explanation | None]:
    from tiercel.client.explanations import read_explanation

    score = told["score"] if "score" in told else told["scores"]
    return f"{told['model']} version {told['version']}", score, read_explanation(told)


def _score(made: Prediction | Predictions) -> Any:
    from tiercel.client import Prediction

    return made.score if isinstance(made, Prediction) else made.scores


def _print(who: str, score: Any, told: Explanation | None) -> None:
    console.print(f"[bold]{who}[/]: [bold]{score}[/]", highlight=False)
    if told is None:
        console.print("  The server says nothing of an explanation: it is older than `tiercel explain`.")
        return
    if told.method in {"none", "later"}:
        console.print(f"  no explanation: {told.why or 'there was no time; ask again by its id'}", markup=False)
        return
    of = "" if told.output is None else f" of {told.output!r}"
    against = "" if told.reference is None else f", against reference {told.reference[:12]}"
    console.print(
        f"  {told.method} {told.kind} contributions to the {told.scale}{of}, from {told.expected:.6g}{against}",
        markup=False,
        highlight=False,
    )
    for title, reasons, contributions in _rows(told):
        if reasons is not None:
            rows = [(each.code, each.text, f"{each.contribution:+.4g}", ", ".join(each.features)) for each in reasons]
            print_table(f"Reasons{title}", ["code", "reason", "contribution", "features"], rows)
        if contributions is not None:
            known = {name: value for name, value in contributions.items() if value is not None}
            largest = sorted(known.items(), key=lambda item: (-abs(item[1]), item[0]))
            print_table(
                f"Contributions{title}",
                ["feature", "contribution"],
                [(name, f"{value:+.4g}") for name, value in largest[:_MOST_SHOWN]],
            )


def _rows(told: Explanation) -> Iterator[tuple[str, tuple[Reason, ...] | None, Any]]:
    """(title, reasons, contributions) of each row."""
    reasons: Any = told.reasons
    contributions: Any = told.contributions
    if not isinstance(contributions, tuple):
        yield "", reasons, contributions
        return
    for row, values in enumerate(contributions):
        yield f" of row {row}", None if reasons is None else reasons[row], values
