"""How commands speak: tables for people, `--json` for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: A pipe or a file has no width to fit into: tables are as wide as what they hold.
WIDE = 10_000
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def project_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--project DIRECTORY`, the current directory by default."""
    return click.option(
        "--project",
        "project_dir",
        default=".",
        show_default=True,
        envvar="TIERCEL_PROJECT",
        show_envvar=True,
        type=click.Path(file_okay=False),
        help="The project's directory.",
    )(command)


class TiercelGroup(click.Group):
    """Turns tiercel's own errors into one readable line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TiercelError as error:
            errors.print(f"[bold red]error[/]: {_escape(str(error))} [dim]({error.code})[/]")
            sys.exit(1)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people; an empty one says so."""
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else _escape(str(cell)) for cell in row))
    console.print(table)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, default=str))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress display; the yielded function takes (stage, done, total)."""
    tasks: dict[str, Any] = {}
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
    ) as display:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield report


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
