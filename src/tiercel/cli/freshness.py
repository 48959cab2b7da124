"""Brings what commands show up to date, and says so where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tiercel.cli.console import errors

if TYPE_CHECKING:
    from tiercel.settings import Settings

#: How long a command waits for another process that converts: a server's watch takes well under a second as a rule, minutes
#: only after it was away for long.
PATIENCE_S = 30.0


def bring_up_to_date(settings: Settings, *, labels: bool = True) -> None:
    """Convert what was predicted and collect what was told; what another process keeps from it is said on standard error.

    Args:
        settings: of the project.
        labels: collect them too.

    Raises:
        MonitorStorageError: the disk refuses. TableError: a ledger is damaged.
    """
    from tiercel.monitor.outcomes import catch_up

    for note in catch_up(settings.state_dir, settings.monitor, patience_s=PATIENCE_S, labels=labels):
        errors.print(f"[yellow]note[/]: {escape(note)}")
