"""`tiercel replay`: predictions made again from their receipts, and whether they came out the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, project_option
from tiercel.cli.durations import MOMENT, shown_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.errors import TiercelError
    from tiercel.explain.receipts import Receipt
    from tiercel.explain.replay import Part, Replay
    from tiercel.project import Project
    from tiercel.serving.replaying import Replayer

#: Of many replays, those that are shown one by one; the rest are counted.
MOST_SHOWN = 20


@click.command()
@click.argument("prediction_id", required=False)
@click.option(
    "--file",
    "ids_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replay the ids in this file, one a line.",
)
@click.option("--all", "is_all", is_flag=True, help="Replay everything that is kept.")
@click.option("--since", "since_us", type=MOMENT, help="With --all: only what was asked from then on.")
@click.option("--until", "until_us", type=MOMENT, help="With --all: only what was asked before then.")
@click.option("--model", help="With --all: only this model's.")
@project_option
@json_option
def replay(
    prediction_id: str | None,
    ids_file: Path | None,
    is_all: bool,
    since_us: int | None,
    until_us: int | None,
    model: str | None,
    project_dir: str,
    as_json: bool,
) -> None:
    """Make the prediction with PREDICTION_ID (a reply's "id") again and say whether anything differs.

    The same version and feature base are asked the same request at the same time. Vector, score and reasons are compared bit
    for bit; what is not kept any more is named. Of many, one that is corrupt or cannot be replayed is named and counted, and
    the rest are replayed. Exit status 1: something differs, is corrupt, or could not be replayed at all.
    """
    from tiercel.project import Project
    from tiercel.serving.recorded import explain_again
    from tiercel.serving.replaying import Replayer

    if (prediction_id is not None) + (ids_file is not None) + is_all != 1:
        raise click.UsageError("Expected a prediction's id, --file or --all: one of them.")
    if not is_all and not (since_us is None and until_us is None and model is None):
        raise click.UsageError("--since, --until and --model go with --all.")
    with Project(project_dir) as project:
        replayer = Replayer(project.settings, project.registry, explain_again(project.settings))
        if prediction_id is not None:
            from tiercel.serving.receipts import find_receipt

            receipts = find_receipt(project.settings, prediction_id)
            found = replayer.replay(receipts)
            if as_json:
                print_json(found.to_json())
            else:
                print_replay(found, receipts[0])
            is_same = found.verdict != "differs"
        else:
            chosen = _chosen(project, ids_file, since_us=since_us, until_us=until_us, model=model)
            is_same = _replay_many(replayer, chosen, as_json=as_json)
    if not is_same:
        raise SystemExit(1)


def _chosen(
    project: Project, ids_file: Path | None, *, since_us: int | None, until_us: int | None, model: str | None
) -> Iterator[list[Receipt] | tuple[str, TiercelError]]:
    """The receipts of each prediction, or why there are none."""
    from tiercel.errors import TiercelError
    from tiercel.monitor.receipt_files import DamagedReceipt
    from tiercel.serving.receipts import corrupt_receipt, find_receipt, scan_all

    if ids_file is None:
        for found in scan_all(project.settings, model=model, since_us=since_us, until_us=until_us):
            if isinstance(found, DamagedReceipt):
                yield found.id or found.where, corrupt_receipt(found)
            else:
                yield found
        return
    with ids_file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            prediction_id = line.strip()
            if prediction_id:
                try:
                    yield find_receipt(project.settings, prediction_id)
                except TiercelError as error:
                    yield prediction_id, error


def _replay_many(
    replayer: Replayer, chosen: Iterator[list[Receipt] | tuple[str, TiercelError]], *, as_json: bool
) -> bool:
    """Replay each; returns whether nothing differs and everything could be replayed."""
    from tiercel.errors import JournalError, ReceiptCorruptError, ReceiptNotFoundError, TiercelError

    counts = {"equal": 0, "differs": 0, "not_replayed": 0, "failed": 0}
    from_vector = corrupt = 0
    shown: list[dict[str, Any]] = []
    for each in chosen:
        found = each[1] if isinstance(each, tuple) else _replayed(replayer, each)
        if isinstance(found, TiercelError):
            counts["failed"] += 1
            corrupt += isinstance(found, (ReceiptCorruptError, JournalError))
            named = each[0] if isinstance(each, tuple) else each[0].id
            told = {"id": named, "verdict": "failed", "error": str(found), "code": found.code}
        else:
            counts[found.verdict.value] += 1
            from_vector += found.source == "vector"
            told = {} if found.verdict == "equal" else found.to_json()
        if told and len(shown) < MOST_SHOWN:
            shown.append(told)
    if not any(counts.values()):  # nothing differs in nothing: a misspelt model must not look like a proof
        raise ReceiptNotFoundError(
            "Expected predictions to replay, got none: nothing is kept of what was chosen. Look at --model, --since and --until, "
            "or at the file of ids"
        )
    if as_json:
        print_json({**counts, "corrupt": corrupt, "from_vector": from_vector, "first": shown})
    else:
        for told in shown:
            console.print(f"{told['id']}: {told['verdict']}. {_why(told)}", markup=False)
        n = sum(counts.values()) - corrupt
        console.print(
            f"{n:,} predictions replayed: [bold]{counts['equal']:,} equal[/] bit for bit ({from_vector:,} of the recorded "
            f"vector), [bold]{counts['differs']:,} differ[/], {counts['not_replayed']:,} were not made by a model, "
            f"{counts['failed'] - corrupt:,} could not be replayed."
        )
        if corrupt:
            console.print(f"[bold red]{corrupt:,} corrupt[/]: receipts that were changed or cannot be read.")
    return not counts["differs"] and not counts["failed"]


def _replayed(replayer: Replayer, receipts: list[Receipt]) -> Replay | TiercelError:
    from tiercel.errors import TiercelError

    try:
        return replayer.replay(receipts)
    except TiercelError as error:
        return error
    except Exception as error:  # noqa: BLE001 - one prediction must not end a run over many; it is told and counted
        return TiercelError(f"Prediction {receipts[0].id}: expected to replay it, got {error!r}")


def _why(told: dict[str, Any]) -> str:
    if "error" in told:
        return f"{told['error']} ({told['code']})"
    parts = [f"{name}: {told[name].get('why', told[name]['verdict'])}" for name in ("vector", "score", "reasons")]
    return "; ".join(parts)


def print_replay(found: Replay, receipt: Receipt) -> None:
    """What became of each part of one prediction."""
    base = "" if found.base is None else f", {found.base}"
    console.print(f"[bold]{found.model}[/] version [bold]{found.version}[/], {receipt.tier}{base}")
    ledger = receipt.bindings.get("ledger_seq")
    console.print(
        f"  received {shown_moment(receipt.received_us, seconds=True)} UTC on the {receipt.path} path, "
        f"{receipt.request_rows} row{'' if receipt.request_rows == 1 else 's'}, request as "
        f"{receipt.request_kind or 'nothing that is kept'}"
        + ("" if ledger is None else f", registry at event {ledger}")
    )
    for name, part in (("vector", found.vector), ("score", found.score), ("reasons", found.reasons)):
        console.print(f"  {name:8} {_told(part)}")
    verdict = {"equal": "[bold green]equal[/]", "differs": "[bold red]differs[/]"}.get(
        found.verdict.value, "not replayed"
    )
    what = "the same request, asked again" if found.source == "request" else "the recorded vector, scored again"
    console.print(f"{verdict}: {what}." if found.verdict != "not_replayed" else f"{verdict}: {found.score.why}.")


def _told(part: Part) -> str:
    text = {"equal": "equal bit for bit", "not_replayed": "not replayed"}.get(part.verdict.value, "")
    if part.n_differences:
        text = f"{part.n_differences} value{'' if part.n_differences == 1 else 's'} differ"
    text += "" if part.why is None else f" ({part.why})"
    for each in part.differences:
        by = "" if each.by is None else f", by {each.by:g}"
        text += f"\n           row {each.row} {each.name}: recorded {each.recorded!r}, now {each.replayed!r}{by}"
    return text.replace("[", r"\[")
