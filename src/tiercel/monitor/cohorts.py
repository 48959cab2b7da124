"""The relation `outcomes` as one model's figures need it: what was known at a moment, of predictions of equal age.

    outcomes(id, row, model, version, arm, time, score, label, label_time, degraded, is_shadow, ... keys and features)

Two rules keep fresh predictions from bending a figure. Only predictions of at least the cohort's maturity are judged, and
only by labels that came within it: a window of last week and one of yesterday are then looked at with the same eyes.
Everything that is left out is counted, and the counts add up to the predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np

from tiercel.errors import DefinitionError, OutcomesError
from tiercel.monitor.label_delay import AGE_CLASS_SQL, DelayCurve
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ARMS: Final = ("champion", "challenger", "shadow")
#: Values of one segment that are told apart; the others are one group.
MAX_SEGMENT_VALUES: Final = 20
OTHER, MISSING_VALUE = "(other)", "(missing)"
#: Windows of one report.
MAX_WINDOWS: Final = 1000
#: Rows that figures are computed from. Beyond it every k-th request is taken, by a hash of its id, and that is said.
MAX_ROWS: Final = 5_000_000
#: What `outcomes` must have.
REQUIRED: Final = (
    "id",
    "row",
    "model",
    "version",
    "arm",
    "time",
    "score",
    "label",
    "label_time",
    "degraded",
    "is_shadow",
)
_NEVER_US: Final = 2**62
_SLACK_US: Final = 1_000_000
#: Of a row of `outcomes o`, an index into ARMS.
_ROLE: Final = "CASE WHEN coalesce(o.is_shadow, false) THEN 2 WHEN o.arm = 'challenger' THEN 1 ELSE 0 END"


@dataclass(frozen=True)
class Cohort:
    """Which predictions are judged, and by which labels.

    Attributes:
        maturity_us: least age of a prediction, and most delay of a label; None: all predictions, by whatever has come.
        begin_us, end_us: the predictions' times, from and before; None: open.
        window_us: length of windows, aligned to the epoch; None: no windows.
    """

    maturity_us: int | None = None
    begin_us: int | None = None
    end_us: int | None = None
    window_us: int | None = None


@dataclass(frozen=True)
class GroupKey:
    """Whom a figure is of: a version and an arm, in all, in one window or in one segment.

    `begin_us` of a window; `segment` and `value` of a segment; the others are None.
    """

    version: int
    arm: str
    begin_us: int | None = None
    segment: str | None = None
    value: str | None = None

    @property
    def is_whole(self) -> bool:
        """Neither of a window nor of a segment."""
        return self.begin_us is None and self.segment is None

    @property
    def order(self) -> tuple[Any, ...]:
        """What reports sort by: segments and times, then versions, the champion first; "(other)" last of its segment."""
        value = self.value or ""
        when = -1 if self.begin_us is None else self.begin_us
        return self.segment or "", value.startswith("("), value, when, self.version, ARMS.index(self.arm)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without what is None."""
        data = {
            "version": self.version, "arm": self.arm, "begin_us": self.begin_us,
            "segment": self.segment, "segment_value": self.value,
        }  # fmt: skip
        return {name: value for name, value in data.items() if value is not None}


@dataclass(frozen=True)
class Counts:
    """What became of a group's predictions.

    n_predictions = n_degraded + n_fresh + n_cohort; n_cohort = n_labelled + n_late + those without a label;
    n_labelled = n_used + n_bad_label + n_bad_score.

    Attributes:
        n_predictions: rows.
        n_degraded: answered by something else than the model, and left out for that.
        n_fresh: younger than the cohort's maturity.
        n_cohort: judged, were they labelled.
        n_labelled: of the cohort, with a label that came in time.
        n_late: of the cohort, with a label that came later than the maturity.
        n_bad_label: labelled with what cannot be one: not finite, or for a binary model neither 0 nor 1.
        n_bad_score: labelled well, of a score that is null or not finite.
        n_used: what figures are of.
    """

    n_predictions: int = 0
    n_degraded: int = 0
    n_fresh: int = 0
    n_cohort: int = 0
    n_labelled: int = 0
    n_late: int = 0
    n_bad_label: int = 0
    n_bad_score: int = 0
    n_used: int = 0

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Rows:
    """Scores and labels that figures are of, and their groups.

    Attributes:
        scores, labels: finite, float64 (n,).
        times_us: int64 (n,), of the predictions.
        members: group -> indices, int64.
        class_scores: of a multiclass model float64 (n, class columns), NaN where a version has no such class; None of others.
        one_in: rows stand for so many requests each; 1: none was left out.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    times_us: NDArray[np.int64]
    members: dict[GroupKey, NDArray[np.int64]]
    one_in: int
    class_scores: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Predictions with a sound score, in order of time, labelled or not.

    Attributes:
        versions, roles: int64 (n,); a role is an index into `ARMS`.
        times_us: int64 (n,), ascending.
        scores: finite, float64 (n,).
        labels: float64 (n,), NaN where none came in time or it cannot be one.
        known_us: int64 (n,), when a label was there; without one, the prediction's time.
        one_in: as of `Rows`.
    """

    versions: NDArray[np.int64]
    roles: NDArray[np.int64]
    times_us: NDArray[np.int64]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    known_us: NDArray[np.int64]
    one_in: int


@dataclass
class Outcomes:
    """One model's part of `outcomes`, as it was known at `as_of_us`.

    Not safe to use from several threads: it uses the connection it was given.

    Args:
        connection: to a database with a table or view `outcomes`.
        model: its name.
        task: what its labels are.
        as_of_us: predictions and labels of later do not exist yet.
        version: only this one.
        with_degraded: count and take what the model did not answer itself, too.
        segments: (name, SQL expression over `outcomes`).

    Raises:
        OutcomesError: there is no such relation, or a column is missing.
        DefinitionError: a segment is not an expression over it.
    """

    connection: duckdb.DuckDBPyConnection
    model: str
    task: Task
    as_of_us: int
    version: int | None = None
    with_degraded: bool = False
    segments: Sequence[tuple[str, str]] = ()
    _columns: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            found = self.connection.execute("DESCRIBE outcomes").fetchall()
        except duckdb.Error as error:
            raise OutcomesError(f"Expected a table or view 'outcomes', got: {first_line(error)}") from error
        self._columns = {str(name).casefold(): str(kind) for name, kind, *_ in found}
        missing = [name for name in REQUIRED if name not in self._columns]
        if missing:
            raise OutcomesError(
                f"Expected the columns {', '.join(REQUIRED)} in 'outcomes', missing: {', '.join(missing)}"
            )
        for name, sql in self.segments:
            self.check_sql(f"segments.{name}", f"CAST(({sql}\n) AS VARCHAR)")

    def check_sql(self, setting: str, expression: str) -> None:
        """Refuse an expression that DuckDB cannot read over `outcomes`.

        Raises:
            DefinitionError: with what DuckDB says.
        """
        try:
            self.connection.execute(f"SELECT {expression} FROM outcomes LIMIT 0")
        except duckdb.Error as error:
            raise DefinitionError(
                f"models.{self.model}.value.{setting}: expected SQL over 'outcomes', got: {first_line(error)}"
            ) from error

    @property
    def column_names(self) -> list[str]:
        """Of `outcomes`, in lower case."""
        return list(self._columns)

    def has_column(self, name: str) -> bool:
        """Whether `outcomes` has a column of this name."""
        return name.casefold() in self._columns

    @property
    def class_columns(self) -> list[str]:
        """Of a multiclass model: the columns of its classes' scores, in lower case; of all versions together."""
        return [name for name in self._columns if name.startswith("score.")] if self.task is Task.MULTICLASS else []

    def delays(self) -> DelayCurve:
        """How long labels take, over all predictions of the model and version, shadows left out."""
        age = f"({self.as_of_us} - t)"
        labelled: dict[int, int] = {}
        waiting: dict[int, int] = {}
        oldest = 0
        query = f"""
            SELECT is_labelled,
                   CASE WHEN is_labelled THEN {AGE_CLASS_SQL.format(age="delay")}
                        ELSE {AGE_CLASS_SQL.format(age=age)} END AS class,
                   count(*), max({age})
            FROM ({self.known()}) WHERE role <> 2 GROUP BY 1, 2
        """
        for has_label, place, n, age_us in self.run(query):
            (labelled if has_label else waiting)[int(place)] = int(n)
            oldest = max(oldest, int(age_us))
        return DelayCurve.of(labelled, waiting, oldest)

    def counts(self, cohort: Cohort) -> dict[GroupKey, Counts]:
        """What became of the predictions of each group: in all, per window, per segment."""
        codes = self.codes(cohort)
        names = ", ".join(codes.names)
        sets = ", ".join(["(version, role)", *(f"(version, role, {name})" for name in codes.names)])
        labelled = "in_cohort AND in_time"
        query = f"""
            SELECT version, role, {names + "," if names else ""}
                   count(*), count(*) FILTER (is_out), count(*) FILTER (is_fresh), count(*) FILTER (in_cohort),
                   count(*) FILTER ({labelled}),
                   count(*) FILTER (in_cohort AND is_labelled AND NOT in_time),
                   count(*) FILTER ({labelled} AND NOT good_label),
                   count(*) FILTER ({labelled} AND good_label AND NOT good_score),
                   count(*) FILTER ({labelled} AND good_label AND good_score)
            FROM ({self.judged(cohort, codes)}) GROUP BY GROUPING SETS ({sets})
        """
        found = {}
        for version, role, *rest in self.run(query, codes.parameters):
            key = codes.key(int(version), int(role), rest[: len(codes.names)])
            found[key] = Counts(*map(int, rest[len(codes.names) :]))
        return found

    def rows(self, cohort: Cohort, *, n_used: int, most: int = MAX_ROWS) -> Rows:
        """Scores and labels of the cohort, with their groups.

        Args:
            cohort: as for `counts`.
            n_used: how many rows there are, as counted.
            most: rows to take; each costs some 130 bytes while figures are computed.
        """
        codes = self.codes(cohort)
        one_in = max(1, -(-n_used // most))
        n_classes = len(self.class_columns)
        query = f"""
            SELECT CAST(version AS BIGINT) AS version, role, t, score, y {"".join(f", {name}" for name in codes.names)}
                   {"".join(f", p{i}" for i in range(n_classes))}
            FROM ({self.judged(cohort, codes)})
            WHERE in_cohort AND in_time AND good_label AND good_score
              {f"AND hash(id) % {one_in} = 0" if one_in > 1 else ""}
        """
        found = self.columns(query, codes.parameters)
        columns = [np.ma.filled(np.ma.asarray(found[f"p{i}"], np.float64), np.nan) for i in range(n_classes)]
        arrays = {name: np.asarray(values) for name, values in found.items()}
        return Rows(
            arrays["score"].astype(np.float64),
            arrays["y"].astype(np.float64),
            arrays["t"].astype(np.int64),
            codes.members(arrays),
            one_in,
            np.stack(columns, axis=1) if columns else None,
        )

    def scored(self, cohort: Cohort, *, most: int = MAX_ROWS) -> ScoredRows:
        """Scores of the cohort's times, old enough or not, with the labels that came within its maturity.

        Args:
            cohort: which.
            most: rows to take.
        """
        judged = f"SELECT * FROM ({self.judged(cohort)}) WHERE good_score AND NOT is_out"
        ((n,),) = self.run(f"SELECT count(*) FROM ({judged})")
        one_in = max(1, -(-int(n) // most))
        found = self.columns(
            f"""
            SELECT CAST(version AS BIGINT) AS version, role, t, score, t + delay AS known,
                   CASE WHEN in_time AND good_label THEN y ELSE CAST('NaN' AS DOUBLE) END AS y
            FROM ({judged}) {f"WHERE hash(id) % {one_in} = 0" if one_in > 1 else ""} ORDER BY t, id, row
            """
        )
        return ScoredRows(
            np.asarray(found["version"], np.int64), np.asarray(found["role"], np.int64), np.asarray(found["t"], np.int64),
            np.asarray(found["score"], np.float64), np.asarray(found["y"], np.float64),
            np.asarray(found["known"], np.int64), one_in,
        )  # fmt: skip

    def columns(self, query: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """A query's columns as arrays, masked where they hold nulls.

        Raises:
            OutcomesError: with what DuckDB says.
        """
        try:
            found: dict[str, Any] = self.connection.execute(query, parameters or {}).fetchnumpy()
        except duckdb.Error as error:
            raise OutcomesError(f"'outcomes' cannot be read: {first_line(error)}") from error
        return found

    def known(self, begin_us: int | None = None, end_us: int | None = None) -> str:
        """SQL: the model's predictions at `as_of_us`, with the labels known then.

        Columns: id, row, version, role (an index into `ARMS`), t (microseconds), score, y (null: no label, or none that is one), is_labelled,
        delay (microseconds, 0 where unknown or negative), is_degraded, of a multiclass model p0, p1, ... (the scores of its classes;
        `score` is the largest, null where one is not finite), and the text of each segment as text0, text1, ...
        """
        label_us = "epoch_us(o.label_time)"
        problem = "false"
        if self.has_column("label_problem"):  # a label came that is none of the model's, and is null for that
            problem = f"(o.label IS NULL AND o.label_problem IS NOT NULL AND {self.label_is_known})"
        return f"""
            SELECT o.id, o.row, o.version,
                   {_ROLE} AS role,
                   epoch_us(o.time) AS t, {self._score()},
                   CASE WHEN {self.label_is_known} THEN CAST(o.label AS DOUBLE) END AS y,
                   o.label IS NOT NULL AND {self.label_is_known} OR {problem} AS is_labelled,
                   greatest(0, coalesce({label_us} - epoch_us(o.time), 0)) AS delay,
                   o.degraded IS NOT NULL AS is_degraded{self._texts()}
            FROM outcomes o WHERE {self.is_chosen(begin_us, end_us)}
        """

    def whole_rows(self, cohort: Cohort, codes: Codes) -> str:
        """SQL: the cohort's rows with all columns of `outcomes`, `label` null where none came in time.

        Added are __in_time (of what feedback brought, should it have brought anything), __version, __role, and the columns of `codes` with two underscores before their names.
        """
        maturity = _NEVER_US if cohort.maturity_us is None else cohort.maturity_us
        newest = self.as_of_us if cohort.maturity_us is None else self.as_of_us - cohort.maturity_us
        end_us = newest + 1 if cohort.end_us is None else min(cohort.end_us, newest + 1)
        delay = "coalesce(epoch_us(o.label_time) - epoch_us(o.time), 0)"
        in_time = f"({self.label_is_known} AND {delay} <= {maturity})"
        is_out = "" if self.with_degraded else "AND o.degraded IS NULL"
        return f"""
            SELECT *{codes.select("__")} FROM (
                SELECT o.* REPLACE (CASE WHEN {in_time} THEN o.label END AS label), {in_time} AS __in_time,
                       o.version AS __version, {_ROLE} AS __role, epoch_us(o.time) AS __t {self._texts("__")}
                FROM outcomes o WHERE {self.is_chosen(cohort.begin_us, end_us)} {is_out}
            )
        """

    def _score(self) -> str:
        names = ['CAST(o."' + name.replace('"', '""') + '" AS DOUBLE)' for name in self.class_columns]
        if not names:
            return "CAST(o.score AS DOUBLE) AS score"
        # Columns of classes that another version has are null in this one's rows.
        is_sound = " AND ".join(f"coalesce(isfinite({name}), true)" for name in names)
        columns = "".join(f", {name} AS p{i}" for i, name in enumerate(names))
        return f"CASE WHEN {is_sound} THEN greatest({', '.join(names)}) END AS score{columns}"

    def _texts(self, prefix: str = "") -> str:
        return "".join(
            f", coalesce(CAST(({sql}\n) AS VARCHAR), {quoted(MISSING_VALUE)}) AS {prefix}text{i}"
            for i, (_, sql) in enumerate(self.segments)
        )

    @property
    def label_is_known(self) -> str:
        """SQL over `outcomes o`: whether a row's label, should it have one, was known."""
        return f"(o.label_time IS NULL OR epoch_us(o.label_time) <= {self.as_of_us})"

    def is_chosen(self, begin_us: int | None = None, end_us: int | None = None) -> str:
        """SQL over `outcomes o`: whether a row is one of the model's, from `begin_us` and before `end_us`."""
        last_us = self.as_of_us if end_us is None else min(self.as_of_us, end_us - 1)
        # In microseconds for what is exact, and once more in the column's own type, by which files are skipped.
        bounds = [
            f"o.model = {quoted(self.model)} AND o.version IS NOT NULL",
            f"epoch_us(o.time) <= {last_us}",
            f"o.time <= {self._moment(last_us + _SLACK_US)}",
        ]
        if begin_us is not None:
            bounds += [f"epoch_us(o.time) >= {begin_us}", f"o.time >= {self._moment(begin_us - _SLACK_US)}"]
        if self.version is not None:
            bounds.append(f"o.version = {int(self.version)}")
        return " AND ".join(bounds)

    def judged(self, cohort: Cohort, codes: Codes | None = None) -> str:
        """SQL: `known` within the cohort's times, with what becomes of each row: is_out, is_fresh, in_cohort, in_time, ..."""
        maturity = _NEVER_US if cohort.maturity_us is None else cohort.maturity_us
        newest = self.as_of_us if cohort.maturity_us is None else self.as_of_us - cohort.maturity_us
        is_label = "y IN (0, 1)" if self.task is Task.BINARY else "isfinite(y)"
        is_out = "false" if self.with_degraded else "is_degraded"
        dimensions = "" if codes is None else codes.select()
        return f"""
            SELECT *, {is_out} AS is_out, NOT {is_out} AND t > {newest} AS is_fresh,
                   NOT {is_out} AND t <= {newest} AS in_cohort, is_labelled AND delay <= {maturity} AS in_time,
                   coalesce({is_label}, false) AS good_label, coalesce(isfinite(score), false) AS good_score
                   {dimensions}
            FROM ({self.known(cohort.begin_us, cohort.end_us)})
        """

    def run(self, query: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            OutcomesError: with what DuckDB says.
        """
        try:
            found: list[tuple[Any, ...]] = self.connection.execute(query, parameters or {}).fetchall()
        except duckdb.Error as error:
            raise OutcomesError(f"'outcomes' cannot be read: {first_line(error)}") from error
        return found

    def _moment(self, us: int) -> str:
        """A time in the type of the column `time`, so that files are skipped by their statistics."""
        if self._columns["time"].endswith("WITH TIME ZONE"):
            return f"to_timestamp({us} / 1e6)"
        return f"make_timestamp({us})"

    def codes(self, cohort: Cohort) -> Codes:
        """The dimensions of a cohort's groups: its windows, and the most frequent values of each segment.

        Raises:
            OutcomesError: more than `MAX_WINDOWS` windows.
        """
        codes = Codes(cohort.window_us)
        if cohort.window_us is not None:
            ((least, most),) = self.run(f"SELECT min(t), max(t) FROM ({self.known(cohort.begin_us, cohort.end_us)})")
            n_windows = 0 if least is None else most // cohort.window_us - least // cohort.window_us + 1
            if n_windows > MAX_WINDOWS:
                raise OutcomesError(
                    f"Expected at most {MAX_WINDOWS} windows, got {n_windows}. Choose longer windows or a shorter time"
                )
        for i, (name, _) in enumerate(self.segments):
            values = self.run(
                f"SELECT text{i} FROM ({self.known(cohort.begin_us, cohort.end_us)}) "
                f"GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {MAX_SEGMENT_VALUES}"
            )
            codes.add_segment(name, f"text{i}", [str(value) for (value,) in values])
        return codes


class Codes:
    """The dimensions of groups as columns of whole numbers: windows by number, values of segments by place."""

    def __init__(self, window_us: int | None) -> None:
        self.parameters: dict[str, Any] = {}
        self.columns: list[tuple[str, str]] = []
        self._window_us = window_us
        self._segments: dict[str, tuple[str, list[str]]] = {}
        if window_us is not None:
            self.columns.append(("w", f"{{p}}t // {int(window_us)}"))

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [name for name, _ in self.columns]

    def add_segment(self, segment: str, text: str, values: list[str]) -> None:
        """Tell the rows apart by a column of text; 0 is everything that is not in `values`."""
        name = f"s{len(self._segments)}"
        self._segments[name] = segment, values
        self.parameters[name] = values
        self.columns.append((name, f"coalesce(list_position(CAST(${name} AS VARCHAR[]), {{p}}{text}), 0)"))

    def select(self, prefix: str = "") -> str:
        """SQL: the columns, of rows whose time and texts have a prefix, under names with the same prefix."""
        return "".join(f", {sql.format(p=prefix)} AS {prefix}{name}" for name, sql in self.columns)

    def members(self, arrays: Mapping[str, NDArray[Any]]) -> dict[GroupKey, NDArray[np.int64]]:
        """The rows of each group, of columns `version`, `role` and `names`."""
        who = arrays["version"].astype(np.int64) * len(ARMS) + arrays["role"]
        found: dict[GroupKey, NDArray[np.int64]] = {}
        for place, name in enumerate([None, *self.names]):
            values = None if name is None else arrays[name]
            for first, indices in _split(who, values):
                dimension: list[int | None] = [None] * len(self.names)
                if values is not None:
                    dimension[place - 1] = int(values[first])
                found[self.key(int(arrays["version"][first]), int(arrays["role"][first]), dimension)] = indices
        return found

    def key(self, version: int, role: int, places: Sequence[int | None]) -> GroupKey:
        """The group of a version and arm, in all or where one of the dimensions is given."""
        for name, place in zip(self.names, places, strict=True):
            if place is None:
                continue
            if name == "w":
                assert self._window_us is not None  # noqa: S101 - for the type checker
                return GroupKey(version, ARMS[role], begin_us=int(place) * self._window_us)
            segment, values = self._segments[name]
            return GroupKey(version, ARMS[role], segment=segment, value=values[place - 1] if place else OTHER)
        return GroupKey(version, ARMS[role])


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def first_line(error: Exception) -> str:
    """What DuckDB says, without the drawing below it."""
    return str(error).split("\n", 1)[0]


def _split(who: NDArray[np.int64], values: NDArray[Any] | None) -> list[tuple[int, NDArray[np.int64]]]:
    """Rows of equal `who` (and value): the first of each group, and all."""
    order = np.argsort(who, kind="stable") if values is None else np.lexsort((values, who))
    if not len(order):
        return []
    changes = np.diff(who[order]) != 0
    if values is not None:
        changes |= np.diff(values[order]) != 0
    return [(int(part[0]), part) for part in np.split(order, np.flatnonzero(changes) + 1)]
