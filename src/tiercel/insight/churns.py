"""How many decisions a version would explain otherwise than the champion: on what was served, as replies would say it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.errors import OutcomesError
from tiercel.explain.churn import K, ReasonChurn, chosen_codes, compare_reasons
from tiercel.insight.rows import find_rows, matching
from tiercel.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.insight.versions import ExplainedVersion
    from tiercel.settings import Settings

#: How far back rows are looked for, how many are compared, and what explaining them may take of each version.
SPAN_US: Final = 7 * 86_400_000_000
MOST_ROWS: Final = 1_000
WITHIN_US: Final = 5_000_000.0


def find_churn(
    settings: Settings, champion: ExplainedVersion, challenger: ExplainedVersion, *, now_us: int
) -> ReasonChurn:
    """Compare the reasons of two versions on rows of the last week, or of the champion's training set.

    Raises:
        OutcomesError: the challenger takes features that those rows lack, or there are no rows.
        ModelError: rows cannot be explained.
    """
    most = min(each.rows.most_rows(WITHIN_US, MOST_ROWS) for each in (champion, challenger))
    rows = find_rows(settings, champion, begin_us=now_us - SPAN_US, end_us=now_us, most=most)
    same = matching(rows, champion.features, challenger.features)
    if same is None:
        lacking = ", ".join(name for name in challenger.features if name not in champion.features)
        raise OutcomesError(
            f"Expected rows that {challenger.record.name} version {challenger.record.version} can be asked, got those of "
            f"version {champion.record.version}, which has no {lacking}: their reasons cannot be compared on the same rows"
        )
    threshold = settings.model(champion.record.name).value.threshold
    return churn_of_rows(champion, challenger, rows.values, same, rows.source, threshold)


def churn_of_rows(
    champion: ExplainedVersion,
    challenger: ExplainedVersion,
    rows: NDArray[np.float32],
    same: NDArray[np.float32],
    source: str,
    threshold: float,
) -> ReasonChurn:
    """Compare reasons on given rows.

    Args:
        champion: takes `rows`.
        challenger: takes `same`, the same rows with its own columns.
        rows: float32 (n, n_features).
        same: float32 (n, its n_features).
        source: what they are.
        threshold: of decisions, where scores are probabilities of one class.

    Raises:
        ModelError: rows cannot be explained.
    """
    codes = [(each.record.version, _codes(each, values)) for each, values in ((champion, rows), (challenger, same))]
    decisions = None
    if champion.rows.signature.task is challenger.rows.signature.task is Task.BINARY:
        first, second = champion.score(rows), challenger.score(same)
        decisions = first[:, 0] >= threshold, second[:, 0] >= threshold
    return compare_reasons(champion.record.name, *codes, source=source, decisions=decisions)


def _codes(version: ExplainedVersion, rows: NDArray[np.float32]) -> list[tuple[str, ...]]:
    """The reasons that a reply to each row alone names: of several classes those of the likeliest."""
    explained, form = version.rows, version.rows.form(K)
    if explained.signature.task is not Task.MULTICLASS:
        return chosen_codes(form, rows, explained.explain(rows), explained.output)
    found: list[tuple[str, ...]] = [()] * len(rows)
    likeliest = version.score(rows).argmax(axis=1)
    for output in np.unique(likeliest).tolist():
        places = np.flatnonzero(likeliest == output)
        chosen = replace(explained, output=output)
        codes = chosen_codes(form, rows[places], chosen.explain(rows[places]), output)
        for place, each in zip(places.tolist(), codes, strict=True):
            found[place] = each
    return found
