"""Where one prediction's time went, beside where the time of its version's predictions goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.counting import MAGNITUDE_BOUNDS, STAGES
from tiercel.monitor.metrics import quantiles_us

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from tiercel.monitor.journal import Record
    from tiercel.monitor.totals import VersionCounts

#: Time that no stage took: waiting behind requests that were read from the socket together with this one.
OUTSIDE = "outside"
TOTAL = "total"
#: What an explanation is made in.
REPLY = "reply"
#: A p99 of fewer requests is hardly more than their maximum, and this request may be it.
LEAST_REQUESTS = 200
#: Quantiles are right within 1.6 %.
_TOLERANCE = 1.02
#: What is not worth a name, whatever its ratio.
_LEAST_EXCESS_US = 1.0


@dataclass(frozen=True)
class Quantiles:
    """What a stage usually takes, in microseconds."""

    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class StageTime:
    """One stage of one prediction.

    Attributes:
        stage: one of `STAGES`, `OUTSIDE` or `TOTAL`.
        counted: of all requests that the version answered in this tier; None: none were counted, or this one was explained,
            which most are not: its reply and total are no such times.
        measured: of the version's profile on this host; None: not measured, or likewise.
    """

    stage: str
    time_us: float
    counted: Quantiles | None = None
    measured: Quantiles | None = None


@dataclass(frozen=True)
class OutOfLine:
    """The stage that took most of the time beyond what stages usually take.

    Attributes:
        against: "counted" or "measured": whose p99 it is.
        p99_us: of the stage; of `OUTSIDE`, which is not counted by itself, what is usually left over.
        excess_us: the time beyond it.
        share: of the excess of all stages, 0 to 1.
    """

    stage: str
    against: str
    time_us: float
    p99_us: float
    excess_us: float
    share: float

    @property
    def ratio(self) -> float:
        """Times its p99; infinite where that is nothing."""
        return self.time_us / self.p99_us if self.p99_us > 0 else float("inf")


@dataclass(frozen=True)
class StageTimes:
    """A prediction's stages in order, `OUTSIDE` where there is any, then `TOTAL`.

    Attributes:
        n_counted: requests behind `counted`; below `LEAST_REQUESTS` nothing is judged by it.
        is_explained: the time of `REPLY` has that of an explanation in it; None: the record cannot tell.
    """

    stages: tuple[StageTime, ...]
    n_counted: int = 0
    out_of_line: OutOfLine | None = field(default=None)
    is_explained: bool | None = None


def stage_times(
    record: Record, counts: VersionCounts | None = None, measured: Mapping[str, Quantiles] | None = None
) -> StageTimes:
    """Lay a record's stage times beside its version's.

    Args:
        record: of the prediction.
        counts: of its model version in its tier.
        measured: quantiles by stage name, of the version's profile; stages may be absent.
    """
    times = {name: ns / 1e3 for name, ns in zip(STAGES, record.stage_ns, strict=False)}
    outside_us = record.total_ns / 1e3 - sum(times.values())
    if outside_us >= 0.5:  # below, it is the rounding of clocks
        times[OUTSIDE] = outside_us
    times[TOTAL] = record.total_ns / 1e3
    counted, n_counted = _counted(counts)
    measured = measured or {}
    stages = tuple(StageTime(name, us, counted.get(name), measured.get(name)) for name, us in times.items())
    is_explained = record.is_explained
    without = {REPLY} if is_explained else set()
    by_traffic = _worst(stages, "counted", without) if n_counted >= LEAST_REQUESTS else None
    worst = by_traffic or _worst(stages, "measured", without)
    if is_explained:
        stages = tuple(StageTime(s.stage, s.time_us) if s.stage in {REPLY, TOTAL} else s for s in stages)
    return StageTimes(stages, n_counted, worst, is_explained)


def _counted(counts: VersionCounts | None) -> tuple[dict[str, Quantiles], int]:
    if counts is None:
        return {}, 0
    cells = counts.sections["durations_ns"]
    n = int(np.sum(cells[STAGES.index(TOTAL), : len(MAGNITUDE_BOUNDS)]))
    if not n:
        return {}, 0
    return {name: Quantiles(*quantiles_us(row, (0.5, 0.99))) for name, row in zip(STAGES, cells, strict=True)}, n


def _worst(stages: tuple[StageTime, ...], against: str, without: AbstractSet[str]) -> OutOfLine | None:
    """The stage with the largest excess over its own p99, if any has one; those of `without` are out of the question."""
    known: dict[str, tuple[float, Quantiles]] = {}
    for each in stages:
        quantiles: Quantiles | None = getattr(each, against)
        if quantiles is not None:
            known[each.stage] = each.time_us, quantiles
    total = known.pop(TOTAL, None)
    excesses = {
        stage: (time_us, usual.p99_us)
        for stage, (time_us, usual) in known.items()
        if stage not in without and time_us > _TOLERANCE * usual.p99_us and time_us - usual.p99_us >= _LEAST_EXCESS_US
    }
    outside_us = next((each.time_us for each in stages if each.stage == OUTSIDE), None)
    left_out_us = sum(each.time_us for each in stages if each.stage in without)
    if outside_us is not None and total is not None and total[0] - left_out_us > _TOLERANCE * total[1].p99_us:
        usual_us = max(0.0, total[1].p99_us - sum(usual.p50_us for _, usual in known.values()))
        if outside_us - usual_us >= _LEAST_EXCESS_US:
            excesses[OUTSIDE] = outside_us, usual_us
    if not excesses:
        return None
    stage = max(excesses, key=lambda name: excesses[name][0] - excesses[name][1])
    time_us, p99_us = excesses[stage]
    whole_us = sum(time_us - p99_us for time_us, p99_us in excesses.values())
    return OutOfLine(stage, against, time_us, p99_us, time_us - p99_us, (time_us - p99_us) / whole_us)
