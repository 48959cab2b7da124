"""How much each version answered and how fast, from stored windows: all versions in one pass.

`WindowStore.merged` reads everything of one version; a page of all models needs little of each. So of every file the few
cells that count are kept, by its name: files never change, and the next look reads only those that are new.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.monitor.counting import MAGNITUDE_BOUNDS, PLAN_CELLS, STAGES
from tiercel.monitor.metrics import quantiles_us
from tiercel.monitor.window_files import UNREADABLE, unpack_places
from tiercel.monitor.windows import WindowStore

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.monitor.window_files import Entry, WindowFile

_N_CELLS = len(MAGNITUDE_BOUNDS)
_TOTAL = STAGES.index("total")
_GENERAL, _FAST, _ROWS_GENERAL, _ROWS_FAST, _SHADOW = (
    PLAN_CELLS.index(name)
    for name in ("requests_general", "requests_fast", "rows_general", "rows_fast", "requests_shadow")
)
#: Quantiles that are shown of a duration.
SHOWN_QUANTILES = (0.5, 0.99, 0.999)


@dataclass(frozen=True, eq=False, slots=True)
class _Few:
    """The cells of one description in one file that count here: sums, and the durations that are not zero.

    A day of minutes of fifty versions is 72,000 of these: arrays are as small as their numbers allow.
    """

    n_requests: int
    n_shadow: int
    n_degraded: int
    places: NDArray[np.uint16]
    values: NDArray[np.unsignedinteger[Any]]


@dataclass(eq=False)
class Traffic:
    """What one version answered in a stretch of time.

    Attributes:
        steps: requests in each step of the stretch, shadows left out; int64.
        n_requests, n_shadow: requests sent, and scored beside an answer and not sent.
        n_degraded: rows that a last score or a default answered.
        durations: uint64 cells of the total time; see `tiercel.monitor.counting`.
        tiers: in which it answered.
        begin_us, end_us: of the windows that were found.
    """

    steps: NDArray[np.int64]
    n_requests: int = 0
    n_shadow: int = 0
    n_degraded: int = 0
    durations: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(_N_CELLS, np.uint64))
    tiers: set[str] = field(default_factory=set)
    begin_us: int = 0
    end_us: int = 0

    @property
    def rate(self) -> float:
        """Requests per second over the windows that were found."""
        return self.n_requests / ((self.end_us - self.begin_us) / 1e6) if self.end_us > self.begin_us else 0.0

    def quantiles_us(self) -> tuple[float, float, float]:
        """p50, p99 and p99.9 in microseconds; NaN without requests."""
        p50, p99, p999 = quantiles_us(self.durations, SHOWN_QUANTILES)
        return p50, p99, p999


class TrafficReader(WindowStore):
    """The windows of a state directory, read for what all versions have in common.

    Args:
        state_dir: the project's state directory.

    Attributes:
        problems: what could not be read, in words.

    Threads: one at a time.
    """

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self._few: dict[str, dict[str, _Few]] = {}

    def traffic(self, begin_us: int, end_us: int, n_steps: int) -> dict[tuple[str, int], Traffic]:
        """What each version answered between two moments, by (model, version).

        A window belongs to the stretch if its middle does. The last step ends with the newest window.
        """
        return self._read(lambda: self._traffic(begin_us, end_us, n_steps))

    def _traffic(self, begin_us: int, end_us: int, n_steps: int) -> dict[tuple[str, int], Traffic]:
        found: dict[tuple[str, int], Traffic] = {}
        files = self._valid_files()
        if len(self._few) > 2 * len(files):  # many were merged since
            names = {file.path.name for file in files}
            self._few = {name: few for name, few in self._few.items() if name in names}
        step_us = max(1, -(-(end_us - begin_us) // n_steps))
        # Steps end with the newest window, not with the moment: otherwise the last one always seems to hold less.
        behind_us = end_us - max((file.end_us for file in files if file.middle_us <= end_us), default=end_us)
        first_us = begin_us - behind_us if 0 < behind_us < step_us else begin_us
        for file in files:
            if not begin_us < file.middle_us <= end_us:
                continue
            step = min(n_steps - 1, (file.middle_us - first_us - 1) // step_us)
            for what, few in self._few_of(file).items():
                description = self._describe(what)
                one = found.get(description.owner)
                if one is None:
                    one = found[description.owner] = Traffic(np.zeros(n_steps, np.int64), begin_us=file.begin_us)
                one.steps[step] += few.n_requests
                one.n_requests += few.n_requests
                one.n_shadow += few.n_shadow
                one.n_degraded += few.n_degraded
                one.durations[few.places] += few.values
                one.tiers.add(description.tier)
                one.begin_us, one.end_us = min(one.begin_us, file.begin_us), max(one.end_us, file.end_us)
        return found

    def _few_of(self, file: WindowFile) -> dict[str, _Few]:
        name = file.path.name
        few = self._few.get(name)
        if few is None:
            data = file.path.read_bytes()
            few = {}
            for what, entry in file.entries.items():
                try:
                    few[what] = self._pick(what, entry, data)
                except FileNotFoundError:
                    raise
                except UNREADABLE as error:  # the others of the file are still good
                    self.problems = tuple(dict.fromkeys((*self.problems, str(error))))
            self._few[name] = few
        return few

    def _pick(self, what: str, entry: Entry, data: bytes) -> _Few:
        blob = data[entry.first_byte : entry.first_byte + entry.n_bytes]
        if zlib.crc32(blob) != entry.crc32:
            raise ValueError(f"a window of {what}: its bytes are not those that were written")
        places, values = unpack_places(blob)
        sections = self._describe(what).what["sections"]
        plan_at, scores_at, (durations_at, shape) = sections["plan"][0], sections["scores"], sections["durations_ns"]
        total_at = durations_at + _TOTAL * int(shape[1])
        bounds = np.searchsorted(
            places,
            [plan_at, plan_at + len(PLAN_CELLS), scores_at[0], scores_at[0] + int(scores_at[1][1]), total_at, total_at + _N_CELLS],
        )  # fmt: skip
        plan = dict(zip(places[bounds[0] : bounds[1]].tolist(), values[bounds[0] : bounds[1]].tolist(), strict=True))
        shadow = plan.get(plan_at + _SHADOW, 0)
        rows = plan.get(plan_at + _ROWS_GENERAL, 0) + plan.get(plan_at + _ROWS_FAST, 0)
        return _Few(
            # Read while it was counted, a request may be among the shadows and not yet among all.
            max(0, plan.get(plan_at + _GENERAL, 0) + plan.get(plan_at + _FAST, 0) - shadow),
            shadow,
            max(0, rows - int(values[bounds[2] : bounds[3]].sum(dtype=np.uint64))),
            (places[bounds[4] : bounds[5]] - total_at).astype(np.uint16),
            values[bounds[4] : bounds[5]].copy(),  # or the whole file would be kept
        )
