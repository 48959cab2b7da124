"""How commands speak: tables for people, `--json` for programs, one line for an error."""

from __future__ import annotations

import errno
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ADVICE = {
    errno.ENOSPC: "Free space on that disk",
    errno.EDQUOT: "Free space in your quota",
    errno.EROFS: "That file system is read-only: name another place",
    errno.EACCES: "Run this as a user who may, or change the permissions",
    errno.EPERM: "Run this as a user who may, or change the permissions",
    errno.ENOENT: "Make its directory, or name another place",
    errno.EMFILE: "Raise this process's limit of open files (ulimit -n)",
}
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
            fail(str(error), error.code)
        except RuntimeError as error:
            if str(error) != "Query interrupted":  # what DuckDB makes of Ctrl-C
                raise
            raise click.Abort from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # who read our output has gone: click ends quietly
                raise
            fail(_in_words(error), "os_error")


def fail(text: str, code: str) -> NoReturn:
    """Say what is wrong, in one line, and end."""
    errors.print(f"[bold red]error[/]: {_escape(text)} [dim]({code})[/]")
    sys.exit(1)


def _in_words(error: OSError) -> str:
    """What the system refused, of which file, and what to look at."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(names) or "The system refused"
    what = error.strerror or str(error) or type(error).__name__
    return f"{where}: {what}. {_ADVICE.get(error.errno or 0, 'Check the file, its directory and the disk')}"


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
