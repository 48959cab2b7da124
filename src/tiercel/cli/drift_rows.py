"""`tiercel drift --test`: rows as wholes, drawn from the prediction table."""

from __future__ import annotations

import shlex
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.markup import escape

from tiercel.cli.console import console, print_json, print_table, progress
from tiercel.cli.durations import shown_moment
from tiercel.cli.freshness import bring_up_to_date
from tiercel.errors import OutcomesError, TiercelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import duckdb

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.leaf_occupancy import Leaves
    from tiercel.monitor.multivariate import MultivariateReport
    from tiercel.project import Project
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

_STYLES = {"drift": "bold red", "stable": "green"}
_STAGES = {"classifier": "Train on exchanged labels", "mmd": "Compare rows", "leaves": "Count leaves"}
_TESTS = {"classifier": "domain classifier", "mmd": "maximum mean discrepancy", "leaves": "leaf occupancy"}
_STATISTICS = {"auc": "AUC", "mmd2": "MMD^2", "chi2": "chi-square distance"}


def compare_rows(
    project_dir: str,
    model: str,
    test: str,
    against: str,
    length_us: int,
    end_us: int | None,
    *,
    rows: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Test and print.

    Args:
        project_dir: of the project.
        model: NAME, NAME@ALIAS or NAME:VERSION.
        test: "classifier", "mmd" or "leaves".
        against: "previous", "last-week" or "training".
        length_us: of the window.
        end_us: of the window; None: now.
        rows: drawn of either side; None: as by default.
        seed: of the draw.
        as_json: instead of a table.

    Raises:
        UnsupportedModelError: the leaves of what has none.
        TiercelError: as `multivariate_report`, the registry and the prediction table.
    """
    from tiercel.monitor.multivariate import ROWS, multivariate_report
    from tiercel.monitor.row_samples import declared_plan
    from tiercel.monitor.training_rows import find_training_rows
    from tiercel.priority import stand_back
    from tiercel.project import Project
    from tiercel.registry import parse_reference

    stand_back()  # before DuckDB starts its threads, which take after this one
    end_us = time.time_ns() // 1000 if end_us is None else end_us
    with Project(project_dir) as project:
        version = project.registry.get(*parse_reference(model))
        needs_files = test == "leaves" or against == "training"
        artifacts = project.registry.load_artifacts(version) if needs_files else {}
        training = find_training_rows(artifacts) if against == "training" else None
        if against == "training" and training is None:
            raise OutcomesError(
                f"Expected rows of the training set with {version.name} version {version.version}, got none: it was "
                f"registered without a training set, or before they were kept. Register it again with its training set."
            )
        state_dir = project.settings.state_dir
        categories = _categories(project, version)
        with (
            _connect(project.settings, version.name) as connection,
            progress() as at,
        ):
            report = multivariate_report(
                connection, declared_plan(state_dir, version.name, version.version, version.facts.signature), test,
                begin_us=end_us - length_us, end_us=end_us, against=against,
                most_rows=ROWS if rows is None else rows, seed=seed,
                leaves_of=_leaves_of(artifacts, version) if test == "leaves" else None, training=training,
                categories=categories,
                progress=lambda done, total: at(_STAGES[test], done, total),
            )  # fmt: skip
    if as_json:
        print_json({**report.to_json(), "command": _command(report)})
    else:
        _print(report)


def _connect(settings: Settings, model: str) -> duckdb.DuckDBPyConnection:
    from tiercel.monitor.outcomes import open_outcomes

    bring_up_to_date(settings, labels=False)
    return open_outcomes(settings.state_dir, settings.monitor, model=model)


def _categories(project: Project, version: ModelVersion) -> Mapping[str, CategoryBins]:
    """The bins of features that are categories: for words, so that a reference that cannot be read stops nothing."""
    from tiercel.insight.references import reference_of

    try:
        reference = reference_of(version, project.registry.load_artifacts(version), project.settings)
    except TiercelError:
        return {}
    return {} if reference is None else reference.categories


def _leaves_of(artifacts: Mapping[str, bytes], version: ModelVersion) -> Leaves:
    """Which leaf rows reach.

    Raises:
        UnsupportedModelError: the version is not served by the forest engine.
        ArtifactCorruptError and other errors of loading.
    """
    from tiercel.errors import UnsupportedModelError
    from tiercel.models import load

    if version.facts.engine != "forest":
        raise UnsupportedModelError(
            f"--test leaves: expected a forest, got {version.name} version {version.version} of engine "
            f"{version.facts.engine}. Ask for --test classifier or mmd."
        )
    leaves_of: Leaves = load(artifacts, verify=False).scorer.leaves
    return leaves_of


def _print(report: MultivariateReport) -> None:
    from tiercel.monitor.drift_words import WORDS

    style = _STYLES.get(report.verdict, "yellow")
    what = _TESTS[report.test]
    console.print(
        f"[bold]{escape(report.model)}[/] version [bold]{report.version}[/] against {WORDS[report.against]}, {what}: "
        f"[{style}]{report.verdict}[/]"
    )
    console.print(f"  {report.meaning}", markup=False)
    for name, begin_us, end_us, n, n_requests in (
        ("window", report.begin_us, report.end_us, report.n_rows, report.n_requests),
        (
            "compared with", report.reference_begin_us, report.reference_end_us, report.n_reference,
            report.n_reference_requests,
        ),
    ):  # fmt: skip
        span = f"{shown_moment(begin_us)} to {shown_moment(end_us)} UTC" if end_us else "training set"
        console.print(f"  {name}: {span}, {n:,} rows" + (f" of {n_requests:,} requests" if end_us else ""))
    if report.statistic is not None and report.effect is not None:
        name = _STATISTICS[report.measure]
        limit = "" if report.chance_limit is None else f", chance stays below {report.chance_limit:.4g} 99 times of 100"
        effect = "" if report.measure == "mmd2" else f" (effect {report.effect:+.4f})"
        if report.psi is not None:
            effect += f", PSI {report.psi:.3g} by tree"
        console.print(
            f"  {name} {report.statistic:.4g}{effect}, p = {report.p_value:.4g} "
            f"among {report.n_exchanges:,} exchanges of requests{limit}"
        )
    for note in report.notes:
        console.print(f"  [yellow]note[/]: {escape(note)}")
    if report.features:
        name = f"{_STATISTICS[report.measure]} lost"
        print_table(
            "What tells them apart", ("feature", name, "what changed"),
            [(each.name, f"{each.loss:.2g}", each.change) for each in report.features],
        )  # fmt: skip
        console.print(f"[dim]{name}: when the feature's values are shuffled; features that tell the same share it[/]")
    console.print(f"[dim]again: {escape(_command(report))}[/]")


def _command(report: MultivariateReport) -> str:
    """A command that tests the same rows again."""
    end = datetime.fromtimestamp(report.end_us // 1_000_000, tz=UTC).replace(microsecond=report.end_us % 1_000_000)
    length_us = report.end_us - report.begin_us
    return shlex.join(
        [
            "tiercel", "drift", f"{report.model}:{report.version}", "--test", report.test, "--against", report.against,
            "--window", f"{length_us // 1_000_000}s", "--end", end.isoformat(), "--rows", str(report.most_rows),
            "--seed", str(report.seed),
        ]
    )  # fmt: skip
