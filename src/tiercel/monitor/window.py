"""What one model version answered between two moments, as histograms that can be added up."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.monitor.counting import PLAN_CELLS, STAGES, Counts
from tiercel.monitor.reference import CELLS, EDGE_SLOTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.monitor.reference import Reference

_REQUESTS = [PLAN_CELLS.index(name) for name in ("requests_general", "requests_fast")]
_ROWS = [PLAN_CELLS.index(name) for name in ("rows_general", "rows_fast")]
_SHADOW, _BEGUN, _DONE = (PLAN_CELLS.index(name) for name in ("requests_shadow", "begun", "done"))
_DURATION_CELLS = 1032


def requests_in(plan: NDArray[np.uint64]) -> int:
    """Requests among the cells of a plan, which begin with those named in `PLAN_CELLS`."""
    return int(plan[_REQUESTS].sum())


@dataclass(frozen=True, eq=False)
class Window:
    """What one model version answered between two moments. Windows of the same version and edges may be added.

    Attributes:
        model, version: registered name and number.
        begin_us, end_us: microseconds since the epoch; of what was counted, not of what was asked for.
        n_requests: answered or scored, `n_shadow` included.
        n_rows: rows of these requests.
        n_degraded: rows that a last score or a default answered: they have no features and are in no histogram. (A fallback
            model's answers are counted as its own.)
        n_shadow: requests that were scored beside an answer and not sent.
        feature_counts: uint64 (n_features, 28); cells as in `tiercel.monitor.reference`.
        score_counts: uint64 (n_outputs, 28).
        features: names in vector order.
        feature_edges: float32 (n_features, 24), unused places +inf.
        score_edges: float64 (n_outputs, 24).
        durations: uint64 (stages and total, 1032) in ns; see `tiercel.monitor.counting`.
        ages: uint64 (1032): age of the oldest stored value in ms.
        reference: digest of the reference whose edges these are; None: the version had none.
        tiers: in which it answered.
        n_interrupted: requests in whose counting a worker was killed, or was at the moment: some of their cells are absent.
        n_clock_jumps: how often the clock was found to have been set.
        n_elsewhere: requests of the same version and time that were counted on other edges and are not in here.
        problems: what is uncertain about the counts, in words.
    """

    model: str
    version: int
    begin_us: int
    end_us: int
    n_requests: int
    n_rows: int
    n_degraded: int
    n_shadow: int
    feature_counts: NDArray[np.uint64]
    score_counts: NDArray[np.uint64]
    features: tuple[str, ...]
    feature_edges: NDArray[np.float32]
    score_edges: NDArray[np.float64]
    durations: NDArray[np.uint64]
    ages: NDArray[np.uint64]
    reference: str | None = None
    tiers: tuple[str, ...] = ()
    n_interrupted: int = 0
    n_clock_jumps: int = 0
    n_elsewhere: int = 0
    problems: tuple[str, ...] = ()

    def __add__(self, other: Window) -> Window:
        """Both together.

        Raises:
            ValueError: another version, or counted on other edges.
        """
        if not isinstance(other, Window):
            return NotImplemented
        if (self.model, self.version) != (other.model, other.version) or not self.has_edges_of(other):
            raise ValueError(
                f"Expected windows of one version on the same edges, got {self.model}:{self.version} and "
                f"{other.model}:{other.version}{'' if self.has_edges_of(other) else ' on other edges'}"
            )
        return replace(
            self,
            begin_us=min(self.begin_us, other.begin_us),
            end_us=max(self.end_us, other.end_us),
            n_requests=self.n_requests + other.n_requests,
            n_rows=self.n_rows + other.n_rows,
            n_degraded=self.n_degraded + other.n_degraded,
            n_shadow=self.n_shadow + other.n_shadow,
            feature_counts=self.feature_counts + other.feature_counts,
            score_counts=self.score_counts + other.score_counts,
            durations=self.durations + other.durations,
            ages=self.ages + other.ages,
            tiers=tuple(sorted({*self.tiers, *other.tiers})),
            n_interrupted=self.n_interrupted + other.n_interrupted,
            n_clock_jumps=self.n_clock_jumps + other.n_clock_jumps,
            n_elsewhere=self.n_elsewhere + other.n_elsewhere,
            problems=tuple(dict.fromkeys((*self.problems, *other.problems))),
        )

    def has_edges_of(self, other: Any) -> bool:
        """Whether counts of both mean the same; `other` is a window or a `Reference`."""
        return (
            self.features == other.features
            and np.array_equal(self.feature_edges, other.feature_edges)
            and np.array_equal(self.score_edges, other.score_edges)
        )

    @property
    def n_counted(self) -> int:
        """Rows in the histograms."""
        return int(self.score_counts[0].sum()) if len(self.score_counts) else 0


class Description:
    """What the cells of one version in one tier are; parsed once."""

    def __init__(self, text: str) -> None:
        self.what: dict[str, Any] = json.loads(text)
        self.owner = str(self.what["model"]), int(self.what["version"])
        self.reference: str | None = self.what["reference"]
        self.tier = str(self.what.get("tier", "realtime"))
        self.features = tuple(map(str, self.what["features"]))
        self.n_cells = max(first + int(np.prod(shape)) for first, shape in self.what["sections"].values())

    @cached_property
    def edges(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Of the features and of the scores, padded."""
        return _padded(self.what["feature_edges"], np.float32), _padded(self.what["score_edges"], np.float64)

    @cached_property
    def edges_key(self) -> str:
        """Equal where histograms may be added."""
        edges = [self.what["features"], self.what["feature_edges"], self.what["score_edges"]]
        return json.dumps(edges, separators=(",", ":"))

    def window(self, cells: NDArray[np.uint64], begin_us: int, end_us: int) -> Window:
        """Cells as a window."""
        counts = Counts(self.what, cells)
        plan = counts.section("plan")
        features, scores = counts.section("features"), counts.section("scores")
        n_rows = int(plan[_ROWS].sum())
        return Window(
            model=self.owner[0],
            version=self.owner[1],
            begin_us=begin_us,
            end_us=end_us,
            n_requests=requests_in(plan),
            n_rows=n_rows,
            n_degraded=max(0, n_rows - int(scores[0].sum())),
            n_shadow=int(plan[_SHADOW]),
            feature_counts=features,
            score_counts=scores,
            features=self.features,
            feature_edges=self.edges[0],
            score_edges=self.edges[1],
            durations=counts.section("durations_ns"),
            ages=counts.section("oldest_age_ms"),
            reference=self.reference,
            tiers=(self.tier,),
            n_interrupted=max(0, int(plan[_BEGUN]) - int(plan[_DONE])),
        )


def empty_window(model: str, version: int, reference: Reference | Window, begin_us: int, end_us: int) -> Window:
    """A window without counts on the edges of a reference, or of another window: what a version that answered nothing looks like."""
    n_features, n_outputs = len(reference.feature_edges), len(reference.score_edges)
    return Window(
        model=model,
        version=version,
        begin_us=begin_us,
        end_us=end_us,
        n_requests=0,
        n_rows=0,
        n_degraded=0,
        n_shadow=0,
        feature_counts=np.zeros((n_features, CELLS), np.uint64),
        score_counts=np.zeros((n_outputs, CELLS), np.uint64),
        features=tuple(reference.features),
        feature_edges=reference.feature_edges,
        score_edges=reference.score_edges,
        durations=np.zeros((len(STAGES), _DURATION_CELLS), np.uint64),
        ages=np.zeros(_DURATION_CELLS, np.uint64),
    )


def _padded(edges: list[list[float]], dtype: Any) -> NDArray[Any]:
    padded = np.full((len(edges), EDGE_SLOTS), np.inf, dtype=dtype)
    for row, finite in zip(padded, edges, strict=True):
        row[: len(finite)] = finite
    return padded
