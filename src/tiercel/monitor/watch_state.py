"""What the watch must not forget between turns, and how its steps are doing; in one small file.

    <state>/alerts/watch.json

Lost or damaged, it begins anew: the next windows are whole ones again, and nothing is found in the meantime.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.errors import MonitorStorageError, TiercelError
from tiercel.monitor.alerts import ALERTS
from tiercel.monitor.durable import make_directory, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("tiercel.monitor")

_FILE = "watch.json"
_FORMAT = "tiercel-watch-1"
_MAX_BYTES = 1 << 26
#: Publications of a service that its usual pace is known from, and that are remembered.
LEAST_GAPS, MAX_GAPS = 4, 20


@dataclass
class StepStatus:
    """One step of a turn.

    Attributes:
        runs, failures: since the state directory was made.
        last_error: in words; empty when the last run went well.
        last_ok_us: when it last went well; None: never.
        last_ms: how long the last run took.
    """

    runs: int = 0
    failures: int = 0
    last_error: str = ""
    last_ok_us: int | None = None
    last_ms: float = 0.0


@dataclass
class BaseState:
    """A service's live base, and how long those before it were live.

    Attributes:
        base, published_us: of the live one.
        live_us: it was seen for so long, by a clock that cannot be set, while somebody watched.
        gaps_us: of those before it, oldest first.
    """

    base: str
    published_us: int
    live_us: int = 0
    gaps_us: list[int] = field(default_factory=list)

    def replaced_by(self, base: str, published_us: int) -> BaseState:
        """The state when another base is live."""
        gap_us = max(self.live_us, published_us - self.published_us)
        return BaseState(base, published_us, 0, [*self.gaps_us, gap_us][-MAX_GAPS:])

    @property
    def usual_us(self) -> int | None:
        """The longest that a base was live; None while too few are known."""
        return max(self.gaps_us) if len(self.gaps_us) >= LEAST_GAPS else None


@dataclass
class OutcomeState:
    """Of one version and arm: begin of the newest judged window, and of the first bad one of those that are bad until now."""

    judged_us: int
    bad_since_us: int | None = None


@dataclass
class WatchState:
    """All of it.

    Attributes:
        turns, last_turn_us: how often it has looked, and when last.
        steps: by name.
        looks: name -> end of the last one.
        bases: by service.
        outcomes: by "model:version:arm".
        stuck: by "model:version": features that stood still, and the end of the newest window in which they did.
        webhook: as of `RouterStatus`.
        clock_jumps: how often the clock was found to have been set.
    """

    turns: int = 0
    last_turn_us: int = 0
    steps: dict[str, StepStatus] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    bases: dict[str, BaseState] = field(default_factory=dict)
    outcomes: dict[str, OutcomeState] = field(default_factory=dict)
    stuck: dict[str, dict[str, int]] = field(default_factory=dict)
    webhook: dict[str, Any] = field(default_factory=dict)
    clock_jumps: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run a step: whatever it raises is counted, said once, and contained."""
        status = self.steps.setdefault(name, StepStatus())
        status.runs += 1
        began_ns = time.perf_counter_ns()
        try:
            yield
        except Exception as error:  # the other steps go on, and this one again in the next turn
            status.failures += 1
            text = str(error) or type(error).__name__
            if text != status.last_error:
                known = isinstance(error, (TiercelError, OSError))
                log.error("Watching, step %s: %s", name, text, exc_info=None if known else error)  # noqa: TRY400
            status.last_error = text
        else:
            status.last_error = ""
            status.last_ok_us = time.time_ns() // 1000
        status.last_ms = (time.perf_counter_ns() - began_ns) / 1e6

    @property
    def problems(self) -> list[str]:
        """What does not work at the moment, in words."""
        found = [f"{name}: {step.last_error}" for name, step in self.steps.items() if step.last_error]
        return found + ([f"webhook: {self.webhook['problem']}"] if self.webhook.get("problem") else [])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "problems": self.problems}

    def save(self, state_dir: Path) -> None:
        """Replace the file.

        Raises:
            MonitorStorageError: the disk refuses; what was there stays.
        """
        path = state_dir / ALERTS / _FILE
        try:
            make_directory(path.parent)
            write_file(path, json.dumps({"format": _FORMAT, **self.to_json()}, separators=(",", ":")).encode())
        except OSError as error:
            raise MonitorStorageError(f"{path}: expected room, got: {error.strerror or error}") from error

    @classmethod
    def load(cls, state_dir: Path) -> WatchState:
        """What was saved last; a new one where there is none, or none that can be read (logged)."""
        path = state_dir / ALERTS / _FILE
        try:
            with path.open("rb") as stream:
                found = json.loads(stream.read(_MAX_BYTES))
            if found["format"] != _FORMAT:
                raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
            return cls(
                turns=int(found["turns"]),
                last_turn_us=int(found["last_turn_us"]),
                steps={name: StepStatus(**each) for name, each in found["steps"].items()},
                looks={name: int(end_us) for name, end_us in found["looks"].items()},
                bases={name: BaseState(**each) for name, each in found["bases"].items()},
                outcomes={name: OutcomeState(**each) for name, each in found["outcomes"].items()},
                stuck={
                    name: {str(feature): int(end_us) for feature, end_us in each.items()}
                    for name, each in found.get("stuck", {}).items()  # not there before it was looked for
                },
                webhook=dict(found["webhook"]),
                clock_jumps=int(found["clock_jumps"]),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s: expected the watch's state, got: %r. It begins anew", path, error)
            return cls()
