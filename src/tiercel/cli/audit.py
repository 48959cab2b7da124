"""`tiercel audit`: receipts exported so that anybody can check that none was changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiercel.cli.console import TiercelGroup, console, json_option, print_json, project_option
from tiercel.cli.durations import MOMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.settings import Settings

FILE = click.Path(dir_okay=False, path_type=Path)
root_option = click.option(
    "--root", help="The Merkle root as it was noted elsewhere; default: the file's own is believed."
)


@click.group(cls=TiercelGroup)
def audit() -> None:
    """Export receipts with their Merkle root; check an export, or prove one line of it, without this project."""


@audit.command()
@click.argument("file", type=FILE)
@click.option("--since", "since_us", type=MOMENT, help="Only what was asked from then on.")
@click.option("--until", "until_us", type=MOMENT, help="Only what was asked before then.")
@click.option("--model", help="Only this model's.")
@project_option
@json_option
def export(
    file: Path, since_us: int | None, until_us: int | None, model: str | None, project_dir: str, as_json: bool
) -> None:
    """Write every receipt that is kept to FILE, one line of canonical JSON each, with its manifest and leaves beside it.

    Note the root elsewhere: whoever has it can tell whether a line was changed, added or removed.
    """
    from tiercel.explain.audit_file import write_export
    from tiercel.project import Project

    with Project(project_dir) as project:
        head = project.registry.head()
        about = {
            "project": project.settings.name,
            "model": model,
            "since_us": since_us,
            "until_us": until_us,
            "ledger": {"seq": head.seq, "hash": head.hash},
        }
        lines = _lines(project.settings, model=model, since_us=since_us, until_us=until_us)
        manifest = write_export(file, lines, about)
    if as_json:
        print_json(manifest)
    else:
        console.print(f"{manifest['n_receipts']:,} receipts in {file}. Root, to be noted elsewhere:")
        console.print(f"[bold]{manifest['root']}[/]")


@audit.command()
@click.argument("file", type=FILE)
@root_option
@json_option
def verify(file: Path, root: str | None, as_json: bool) -> None:
    """Check an export, or a proof made by `tiercel audit prove`. Needs nothing but the file and what stands beside it."""
    from tiercel.explain.audit_file import verify_export, verify_proof

    proof = _proof_in(file)
    found = verify_export(file, root=root) if proof is None else verify_proof(proof, root=root)
    if as_json:
        print_json({"n_receipts": found.n_receipts, "root": found.root, "id": found.id, "is_noted": root is not None})
        return
    n_receipts = found.n_receipts
    if found.id is None:
        told = f"{n_receipts:,} receipts are"
    else:
        told = f"The receipt of prediction {found.id} is"
        told += "" if n_receipts is None else f", with {n_receipts - 1:,} others,"
    console.print(f"[bold green]Unchanged.[/] {told} under the root {found.root}.")
    if n_receipts is None:
        console.print(
            "Of how many receipts it is one is not proved: the export is of format 1. One written by now proves that too."
        )
    if root is None:
        console.print("That root is the file's own. Pass --root with the one that was noted when it was exported.")


@audit.command()
@click.argument("prediction_id")
@click.argument("file", type=FILE)
@click.option("--output", type=FILE, help="Where to write the proof; default: standard output.")
def prove(prediction_id: str, file: Path, output: Path | None) -> None:
    """Prove with a few hashes that the receipt of PREDICTION_ID is in the export FILE, for who has its root alone."""
    from tiercel.explain.audit_file import prove as make_proof

    proof = make_proof(file, prediction_id)
    if output is None:
        print_json(proof)
        return
    output.write_text(json.dumps(proof, indent=1) + "\n")
    console.print(f"{output}: {len(proof['path'])} hashes lead from the receipt to {proof['root']}.")


def _lines(settings: Settings, *, model: str | None, since_us: int | None, until_us: int | None) -> Iterator[bytes]:
    from tiercel.errors import ReceiptNotFoundError
    from tiercel.serving.receipts import read_all

    is_empty = True
    for receipts in read_all(settings, model=model, since_us=since_us, until_us=until_us):
        is_empty = False
        for receipt in receipts:
            yield receipt.to_line()
    if is_empty:  # an export of nothing verifies: a misspelt model must not look like a proof
        raise ReceiptNotFoundError(
            "Expected receipts to export, got none: nothing is kept of what was chosen. Look at --model, --since and --until"
        )


def _proof_in(file: Path) -> dict[str, object] | None:
    """The proof that a file holds; None: it is something else."""
    from tiercel.explain.audit_file import PROOF_FORMAT, PROOF_FORMAT_1

    try:
        with file.open("rb") as stream:
            if stream.read(2) != b"{\n":  # a line of an export goes on
                return None
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and data.get("format") in {PROOF_FORMAT, PROOF_FORMAT_1} else None
