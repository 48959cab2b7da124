"""What is known of a stream of errors, and the files that carry it from run to run.

One small file per model, version and arm, replaced in one step: a run goes on where the last one ended, whatever ended it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgpack
import numpy as np

from tiercel.errors import ConceptStateError
from tiercel.monitor.cohorts import ARMS
from tiercel.monitor.detectors import Adwin, Ddm, Detector, Eddm, Kswin, PageHinkley
from tiercel.monitor.error_streams import StreamScale

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.types import Task

#: Where the files are, under the state directory.
CONCEPT: Final = "concept"
#: Judged predictions that streams are standardized by; nothing is watched before.
WARM_UP: Final = 500
#: Kept per version and arm, the newest.
MAX_ALARMS: Final = 100
#: Of which it is known how many predictions joined.
MAX_DAYS: Final = 60
DAY_US: Final = 86_400_000_000
_FORMAT: Final = "tiercel-concept-1"
_SUFFIX: Final = ".msgpack"
_MAX_FILE_BYTES: Final = 1 << 20
#: (stream, kind): which detectors watch which stream.
_WATCHED: Final = (
    ("errors", Adwin), ("errors", Ddm), ("errors", Eddm), ("losses", Adwin), ("losses", Kswin),
    ("calibration", PageHinkley),
)  # fmt: skip
#: Those whose false alarms are rare enough to act on. The others are shown beside them: on a stream without any change DDM
#: and EDDM alarm for having seen a lucky stretch, and KSWIN, which tests at every row, once in about a thousand.
TRUSTED: Final = frozenset({"errors adwin", "losses adwin", "calibration page_hinkley"})


def watching(*, adwin: float | None = None, page_hinkley: float | None = None) -> dict[str, Detector]:
    """One of each, by "stream kind". Page-Hinkley's units are deviations: 75 of them, of shifts beyond a fifth.

    With a threshold of 50, residuals of right probabilities gave a false alarm in 45,000 values, with 75 none in 500,000.

    Args:
        adwin: ADWIN's delta; None: its own.
        page_hinkley: the threshold; None: 75.
    """
    made: dict[str, Detector] = {}
    for stream, kind in _WATCHED:
        if kind is PageHinkley:
            detector: Detector = PageHinkley(delta=0.2, threshold=75.0 if page_hinkley is None else page_hinkley)
        elif kind is Adwin and adwin is not None:
            detector = Adwin(adwin)
        else:
            detector = kind()
        made[f"{stream} {kind.name}"] = detector
    return made


@dataclass(frozen=True)
class Alarm:
    """A change that a detector found.

    Attributes:
        stream, detector: where and by whom.
        time_us: of the prediction that completed it.
        row: how many judged predictions there had been.
        before, after: means of the stream on both sides, where the detector tells.
    """

    stream: str
    detector: str
    time_us: int
    row: int
    before: float | None
    after: float | None

    @property
    def is_trusted(self) -> bool:
        """Whether the detector's false alarms are rare; see `TRUSTED`."""
        return f"{self.stream} {self.detector}" in TRUSTED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "is_trusted": self.is_trusted}


@dataclass
class ConceptState:
    """What is known of one version's stream in one arm.

    Attributes:
        version, arm: whose.
        maturity_us: age at which predictions join; fixed when the stream begins.
        basis: what the streams are computed by (task, threshold); other values begin a new stream.
        until_us: every judged prediction up to this time has joined.
        n_rows: that joined.
        joined: how many by day of the prediction (days since the epoch), of the newest `MAX_DAYS`.
        warm: labels and scores of the first ones, until there are `WARM_UP`.
        scale: what streams are standardized by, once there are.
        detectors: by "stream kind".
        alarms: the newest `MAX_ALARMS`.
        n_alarms: all there were, by "stream kind".
    """

    version: int
    arm: str
    maturity_us: int
    basis: str
    until_us: int = -(2**62)
    n_rows: int = 0
    joined: dict[int, int] = field(default_factory=dict)
    warm: list[tuple[float, float]] = field(default_factory=list)
    scale: StreamScale | None = None
    detectors: dict[str, Detector] = field(default_factory=watching)
    alarms: list[Alarm] = field(default_factory=list)
    n_alarms: dict[str, int] = field(default_factory=dict)

    def add(self, task: Task, threshold: float, times_us: Any, scores: Any, labels: Any) -> None:
        """Let judged predictions join, in order of time: arrays of equal length, finite scores and labels."""
        days, counts = np.unique(times_us // DAY_US, return_counts=True)
        for day, n in zip(days.tolist(), counts.tolist(), strict=True):
            self.joined[day] = self.joined.get(day, 0) + n
        self.joined = dict(sorted(self.joined.items())[-MAX_DAYS:])
        pairs = list(zip(labels.tolist(), scores.tolist(), strict=True))
        n_warm = 0
        if self.scale is None:
            n_warm = min(WARM_UP - len(self.warm), len(pairs))
            self.warm += pairs[:n_warm]
            self.n_rows += n_warm
            if len(self.warm) == WARM_UP:
                self.scale = StreamScale.of(*np.array(self.warm).T)
                self.warm = []
        if self.scale is not None and n_warm < len(pairs):
            self._watch(
                self.scale.streams(task, threshold, scores[n_warm:], labels[n_warm:]), times_us[n_warm:].tolist()
            )

    def _watch(self, streams: dict[str, NDArray[np.float64]], times_us: list[int]) -> None:
        found: list[Alarm] = []
        for key, detector in self.detectors.items():
            stream, _, kind = key.partition(" ")
            for i, value in enumerate(streams[stream].tolist()):
                detector.update(value)
                if detector.has_drifted:
                    before, after = detector.means or (None, None)
                    found.append(Alarm(stream, kind, times_us[i], self.n_rows + i + 1, before, after))
                    self.n_alarms[key] = self.n_alarms.get(key, 0) + 1
        self.n_rows += len(times_us)
        self.alarms = (self.alarms + sorted(found, key=lambda alarm: alarm.row))[-MAX_ALARMS:]

    def to_bytes(self) -> bytes:
        """The file: a few tens of kilobytes, however long the stream."""
        packed: bytes = msgpack.packb(
            {
                "format": _FORMAT, "version": self.version, "arm": self.arm, "maturity_us": self.maturity_us,
                "basis": self.basis, "until_us": self.until_us, "n_rows": self.n_rows,
                "joined": [list(item) for item in self.joined.items()],
                "warm": [list(pair) for pair in self.warm], "scale": None if self.scale is None else self.scale.to_state(),
                "detectors": {key: each.to_state() for key, each in self.detectors.items()},
                "alarms": [
                    [a.stream, a.detector, a.time_us, a.row, a.before, a.after] for a in self.alarms
                ],
                "n_alarms": dict(sorted(self.n_alarms.items())),
            }
        )  # fmt: skip
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> ConceptState:
        """Inverse of `to_bytes`, for bytes nobody vouches for.

        Raises:
            ConceptStateError: anything else.
        """
        try:
            found: dict[str, Any] = msgpack.unpackb(data)
            if found["format"] != _FORMAT or found["arm"] not in ARMS:
                raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
            detectors = watching()
            if set(found["detectors"]) != set(detectors):
                raise ValueError("other detectors")  # noqa: TRY301
            for key, each in detectors.items():
                each.load_state(found["detectors"][key])
            scale = None if found["scale"] is None else StreamScale.from_state(found["scale"])
            return cls(
                version=int(found["version"]),
                arm=found["arm"],
                maturity_us=int(found["maturity_us"]),
                basis=str(found["basis"]),
                until_us=int(found["until_us"]),
                n_rows=int(found["n_rows"]),
                joined={int(day): int(n) for day, n in found["joined"]},
                warm=[(float(label), float(score)) for label, score in found["warm"]],
                scale=scale,
                detectors=detectors,
                alarms=[
                    Alarm(str(s), str(d), int(t), int(r), _optional(b), _optional(a))
                    for s, d, t, r, b, a in found["alarms"]
                ],
                n_alarms={str(key): int(n) for key, n in found["n_alarms"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, msgpack.UnpackException) as error:
            raise ConceptStateError(
                f"Expected a concept monitor's state as tiercel writes it, got: {error!r}"
            ) from error


class ConceptStore:
    """The files of all streams, under `<state>/concept/<model>/`. One process writes them; any may read."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / CONCEPT

    def load(self, model: str, version: int, arm: str) -> ConceptState | None:
        """What was stored last; None when nothing was.

        Raises:
            ConceptStateError: the file is damaged or of another format; `save` replaces it.
            OSError: it cannot be read.
        """
        path = self._path(model, version, arm)
        try:
            n_bytes = path.stat().st_size
            data = path.read_bytes() if n_bytes <= _MAX_FILE_BYTES else b""
        except FileNotFoundError:
            return None
        try:
            state = ConceptState.from_bytes(data)
        except ConceptStateError as error:
            raise ConceptStateError(f"{path} ({n_bytes} bytes): {error}") from error
        if (state.version, state.arm) != (version, arm):
            raise ConceptStateError(f"{path}: expected version {version}, {arm}; got {state.version}, {state.arm}")
        return state

    def save(self, model: str, state: ConceptState) -> None:
        """Replace what was stored, in one step and on disk.

        Raises:
            OSError: the disk refuses; what was stored stays.
        """
        path = self._path(model, state.version, state.arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        try:
            with unfinished.open("wb") as stream:
                stream.write(state.to_bytes())
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _path(self, model: str, version: int, arm: str) -> Path:
        return self._directory / quote(model, safe="") / f"{version}-{arm}{_SUFFIX}"


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
