"""`tiercel explain --global`: what moves a model over many rows, whom it decides for, and what a challenger would change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.cli.console import console, errors, print_json, print_table
from tiercel.cli.durations import shown_moment
from tiercel.cli.freshness import bring_up_to_date
from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.explain.global_view import GlobalView, Importance
    from tiercel.insight.global_views import ComparedViews
    from tiercel.monitor.fairness import FairnessReport
    from tiercel.project import Project
    from tiercel.registry import ModelVersion

_WEEK_US = 7 * 86_400_000_000
#: Features that people are shown; programs get all.
_MOST_SHOWN = 15


@dataclass(frozen=True)
class GlobalReport:
    """All that is said.

    Attributes:
        model: registered name.
        compared: the views; the champion's, or the asked one's, first.
        fairness: rates by segment; None where they cannot be read.
        problems: what could not be said, in sentences.
    """

    model: str
    compared: ComparedViews
    fairness: FairnessReport | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            **self.compared.to_json(),
            "fairness": None if self.fairness is None else self.fairness.to_json(),
            "problems": list(self.problems),
        }


def explain_globally(
    project_dir: str,
    target: str,
    length_us: int | None,
    rows: int | None,
    output: str | None,
    html_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Look, and print or write.

    Args:
        project_dir: of the project.
        target: NAME, NAME@ALIAS or NAME:VERSION.
        length_us: how far back rows are looked for; None: a week.
        rows: to explain; None: as by default.
        output: the class that is explained; None: the only one, or the first.
        html_file: of a page; None: none.
        as_json: instead of tables.

    Raises:
        TiercelError: no such version, it cannot be explained, or there are no rows.
    """
    from tiercel.priority import stand_back
    from tiercel.project import Project

    stand_back()  # before DuckDB starts its threads, which take after this one
    with Project(project_dir) as project:
        report = _look(project, target, length_us or _WEEK_US, rows, output)
    if html_file is not None:
        from tiercel.cli.explain_page import write_page

        write_page(html_file, report)
    if as_json:
        print_json(report.to_json())
        return
    for problem in report.problems:
        errors.print(f"note: {problem}", markup=False)
    _print(report)
    if html_file is not None:
        console.print(f"Report with plots: {html_file}")


def _look(project: Project, target: str, length_us: int, rows: int | None, output: str | None) -> GlobalReport:
    from tiercel.insight.global_views import MOST_ROWS, find_global_views
    from tiercel.insight.versions import open_version

    settings, registry = project.settings, project.registry
    records = _chosen(project, target)
    problems: list[str] = []
    try:
        bring_up_to_date(settings, labels=False)
    except TiercelError as error:  # what was converted before is still there to be looked at
        problems.append(str(error))
    end_us = time.time_ns() // 1000
    first = open_version(settings, registry, records[0], output=output)
    other = None
    if len(records) > 1:
        try:
            other = open_version(settings, registry, records[1], output=output)
        except TiercelError as error:
            problems.append(f"Version {records[1].version} cannot be explained: {error}")
    compared = find_global_views(
        settings, first, other, begin_us=end_us - length_us, end_us=end_us, most_rows=rows or MOST_ROWS
    )
    fairness = None
    try:
        fairness = _fairness(project, records[0], end_us, length_us)
    except TiercelError as error:
        problems.append(f"Selection and error rates cannot be read: {error}")
    return GlobalReport(records[0].name, compared, fairness, tuple(problems))


def _chosen(project: Project, target: str) -> list[ModelVersion]:
    """The version that was asked for; of a name alone the champion (else the newest), and its challenger."""
    from tiercel.registry import parse_reference

    name, selector = parse_reference(target)
    if selector is not None:
        return [project.registry.get(name, selector)]
    versions = project.registry.list_versions(name)
    found = {alias: version for version in versions for alias in version.aliases}
    first = found.get("champion", versions[-1])
    challenger = found.get("challenger")
    return [first] if challenger is None or challenger.version == first.version else [first, challenger]


def _fairness(project: Project, record: ModelVersion, end_us: int, length_us: int) -> FairnessReport:
    from tiercel.monitor.fairness import fairness_report
    from tiercel.monitor.outcomes import open_outcomes
    from tiercel.monitor.performance import choose_cohort

    value, task = project.settings.model(record.name).value, record.facts.signature.task
    maturity_us = None if value.label_maturity_s is None else round(value.label_maturity_s * 1e6)
    with open_outcomes(project.settings.state_dir, project.settings.monitor, model=record.name) as connection:
        cohort, _ = choose_cohort(
            connection, record.name, task, as_of_us=end_us, maturity_us=maturity_us, span_us=length_us
        )
        return fairness_report(connection, record.name, task, cohort, value, as_of_us=end_us)


# -- for people


def _print(report: GlobalReport) -> None:
    views = report.compared.views
    for view in views:
        _print_head(view)
    _print_importances("Features", views, [view.features for view in views])
    if any(view.reasons for view in views):
        _print_importances("Reasons", views, [view.reasons for view in views])
    for view in views:
        how = "mean size of what they do together" if view.is_exact else "estimated from how attributions spread"
        who = f" of version {view.version}" if len(views) > 1 else ""
        print_table(
            f"Features that act together{who} ({how})", ("first", "second", "strength"),
            [(each.first, each.second, f"{each.strength:.3g}") for each in view.interactions[:5]],
        )  # fmt: skip
    churn = report.compared.churn
    if report.compared.note:
        console.print(report.compared.note, markup=False)
    if churn is not None:
        console.print(f"Version {churn.challenger} instead of {churn.champion}: {churn.describe()}", markup=False)
        for change in churn.changes:
            console.print(f"  {change.code}: {change.n_gained:,} rows gain it, {change.n_lost:,} lose it", markup=False)
    _print_fairness(report.fairness)


def _print_head(view: GlobalView) -> None:
    of = "" if view.output is None else f" of {view.output!r}"
    when = (
        f"asked {shown_moment(view.begin_us)} to {shown_moment(view.end_us)} UTC"
        if view.end_us
        else "of the training set"
    )
    console.print(
        f"{view.model} version {view.version}: {view.n_rows:,} of {view.n_available:,} rows {when}, {view.method} {view.kind} "
        f"contributions to the {view.scale}{of}, from {view.expected:.4g} to {view.mean_margin:.4g} on average",
        markup=False,
    )
    for note in view.notes:
        console.print(f"  note: {note}", markup=False)


def _print_importances(title: str, views: tuple[GlobalView, ...], found: list[tuple[Importance, ...]]) -> None:
    names = [each.name for each in found[0]]
    names += [each.name for others in found[1:] for each in others if each.name not in names]
    has_text = any(each.text for importances in found for each in importances)
    columns = [title.lower()[:-1], *(["text"] if has_text else [])]
    for view in views:
        of = f" v{view.version}" if len(views) > 1 else ""
        columns += [f"mean size{of}", "share", *([] if has_text else ["direction"])]
    rows = []
    for name in names[:_MOST_SHOWN]:
        known = [next((each for each in importances if each.name == name), None) for importances in found]
        cells: list[Any] = [name, *([next(each.text for each in known if each is not None)] if has_text else [])]
        for each in known:
            if each is None:
                cells += [None, None, *([] if has_text else [None])]
                continue
            cells += [f"{each.mean_abs:.3g}", f"{each.share:.1%}"]
            cells += [] if has_text else [_direction(each.direction)]
        rows.append(cells)
    print_table(title, columns, rows)
    if len(names) > _MOST_SHOWN:
        console.print(f"[dim]and {len(names) - _MOST_SHOWN} more; --json has all[/]")


def _direction(value: float | None) -> str:
    if value is None:
        return "-"
    word = "more raises it" if value > 0.5 else "more lowers it" if value < -0.5 else "neither way"
    return f"{value:+.2f} {word}"


def _print_fairness(report: FairnessReport | None) -> None:
    if report is None:
        return
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if not report.groups:
        return
    from tiercel.cli.performance_tables import shown
    from tiercel.monitor.fairness import FOUR_FIFTHS, MIN_DECISIONS

    rows = []
    for each in report.groups:
        who = f"version {each.key.version}" + ("" if each.key.arm == "champion" else f" ({each.key.arm})")
        rates = [shown(rate) for rate in each.rates.values()]
        ratio = "too few" if each.is_small else None if each.ratio is None else f"{each.ratio:.2f}"
        differs = ", ".join(name.replace("_", " ") for name in each.differs) or "-"
        rows.append((f"{each.key.segment} = {each.key.value}", who, f"{each.tally.n_scored:,}", *rates, ratio, differs))
    columns = (
        "segment",
        "version",
        "decided",
        "selected",
        "of positives",
        "of negatives",
        "precision",
        "by the highest",
        "differs in",
    )
    print_table(f"Decisions at {report.threshold:g}", columns, rows)
    console.print(
        f"[dim]intervals: {report.confidence:.4g} confidence; differs: from all others of the segment, beyond chance. "
        f"Below {FOUR_FIFTHS:g} by the highest is what the four-fifths rule asks about; too few: less than {MIN_DECISIONS} "
        f"decisions, compared with nothing[/]"
    )
