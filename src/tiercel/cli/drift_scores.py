"""Which features moved the mean score: what `tiercel drift` adds to what has drifted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tiercel.cli.console import console, print_table
from tiercel.cli.freshness import bring_up_to_date
from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.monitor.drift import Compared
    from tiercel.monitor.score_shift import ScoreShift
    from tiercel.project import Project

#: Features that people are shown; programs get all.
_MOST_SHOWN = 10


def find_shifts(
    project: Project, found: Sequence[Compared], against: str, problems: list[str]
) -> dict[tuple[str, int], ScoreShift]:
    """What moved the scores of versions that were asked for something.

    Args:
        project: theirs.
        found: the windows.
        against: what they are compared with.
        problems: where something cannot be said, why is added here.
    """
    from tiercel.insight.shifts import find_score_shift
    from tiercel.insight.versions import open_version
    from tiercel.priority import stand_back

    served = [each.window for each in found if each.window.n_counted]
    if not served:
        return {}
    stand_back()  # before DuckDB starts its threads, which take after this one
    try:
        bring_up_to_date(project.settings, labels=False)
    except TiercelError as error:  # what was converted before is still there to be looked at
        problems.append(str(error))
    shifts = {}
    for window in served:
        try:
            record = project.registry.get(window.model, window.version)
            explained = open_version(project.settings, project.registry, record)
            shifts[window.model, window.version] = find_score_shift(
                project.settings, explained, begin_us=window.begin_us, end_us=window.end_us, against=against
            )
        except TiercelError as error:
            problems.append(f"{window.model} version {window.version}: what moved its score cannot be said: {error}")
    return shifts


def print_shift(shift: ScoreShift) -> None:
    """A sentence, and a table of the largest parts."""
    console.print(f"  {shift.meaning}", markup=False)
    for note in shift.notes:
        console.print(f"  [dim]{escape(note)}[/]")
    if not shift.features:
        console.print()
        return
    of = "margin" if shift.scale == "margin" else "score"
    print_table(
        "What moved the score", ("feature", f"moved the mean {of} by", "+-", "part before", "now", "its values"),
        [
            (
                each.name, f"{each.shift:+.3g}", f"{each.standard_error:.2g}", f"{each.reference_mean:+.3g}",
                f"{each.mean:+.3g}", each.change,
            )
            for each in shift.features[:_MOST_SHOWN]
        ],
    )  # fmt: skip
    rest = shift.features[_MOST_SHOWN:]
    if rest:
        console.print(f"[dim]and {len(rest)} more, together {sum(each.shift for each in rest):+.3g}[/]")
    console.print(f"[dim]+-: standard error; parts by {shift.kind} attributions, which add up to the whole move[/]\n")
