"""What one worker answered over the Open Inference Protocol, in the shape of Triton's statistics extension."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from tiercel._hot.tensors import TensorTallies

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STAGES", "Statistics", "TensorTallies"]

#: Triton's stages, and what of ours each one holds (names of `Answer.stage_us`, and what the endpoint measures itself).
STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "queue": ("queue",),
    "compute_input": ("parse", "read", "compute"),
    "compute_infer": ("score",),
    "compute_output": ("explain", "reply"),
}
_HEADER_LENGTH: Final = b"inference-header-content-length:"


@dataclass(slots=True)
class _Total:
    count: int = 0
    ns: int = 0

    def add(self, us: float) -> None:
        self.add_many(1, round(1000 * us))

    def add_many(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": max(0, self.ns)}  # what was withdrawn was known to a tenth of a microsecond


@dataclass(slots=True)
class _Model:
    rows: int = 0
    last_ms: int = 0
    success: _Total = field(default_factory=_Total)
    fail: _Total = field(default_factory=_Total)
    stages: dict[str, _Total] = field(default_factory=lambda: {name: _Total() for name in STAGES})


class Statistics:
    """Sums since the worker started, by model version.

    Args:
        tallies: what the compiled path answered; None: nothing.

    Threads: the event loop's only.
    """

    def __init__(self, tallies: TensorTallies | None = None) -> None:
        self._models: dict[tuple[str, int], _Model] = {}
        self._tallies = TensorTallies() if tallies is None else tallies

    def succeeded(self, model: str, version: int, n_rows: int, total_us: float, stage_us: Mapping[str, float]) -> None:
        """One answered request. What no stage accounts for counts as inference."""
        counted = self._models.setdefault((model, version), _Model())
        counted.rows += n_rows
        counted.last_ms = time.time_ns() // 1_000_000
        counted.success.add(total_us)
        spent = {stage: sum(stage_us.get(name, 0.0) for name in names) for stage, names in STAGES.items()}
        if "score" not in stage_us:
            spent["compute_infer"] = max(0.0, total_us - sum(spent.values()))
        for stage, us in spent.items():
            counted.stages[stage].add(us)

    def failed(self, model: str, version: int, total_us: float) -> None:
        """One request that a model was found for, and that was answered with an error."""
        self._models.setdefault((model, version), _Model()).fail.add(total_us)

    def withdrawn(self, held: bytes, total_us: float) -> None:
        """One request that the compiled path has counted as answered, and that was answered with an error instead.

        Args:
            held: the whole reply that was not sent; it says whose it was and what it took, but for writing it.
            total_us: until the error.
        """
        head, _, body = held.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(_HEADER_LENGTH)]
        told = orjson.loads(body[: int(lengths[0])] if lengths else body)
        spent = told["parameters"]["timing_us"]
        counted = self._models.setdefault((told["model_name"], int(told["model_version"])), _Model())
        counted.rows -= told["outputs"][0]["shape"][0]
        counted.success.add_many(-1, -round(1000 * spent["total"]))
        for stage, names in STAGES.items():
            counted.stages[stage].add_many(-1, -round(1000 * sum(spent.get(name, 0.0) for name in names)))
        counted.fail.add(total_us)

    def of(self, model: str, version: int) -> dict[str, Any]:
        """One entry of "model_stats"; zeros for a version that nobody asked."""
        counted = self._whole(model, version)
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": str(version),
            "last_inference": counted.last_ms,
            "inference_count": counted.rows,
            "execution_count": counted.success.count,
            "inference_stats": {
                "success": counted.success.to_json(),
                "fail": counted.fail.to_json(),
                **{name: total.to_json() for name, total in counted.stages.items()},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
        }

    def _whole(self, model: str, version: int) -> _Model:
        """What both paths answered of a version."""
        counted = deepcopy(self._models.get((model, version))) or _Model()
        tally = self._tallies.get(model, version)
        if tally is not None:
            counted.rows += tally.n_rows
            counted.last_ms = max(counted.last_ms, tally.last_ms)
            counted.success.add_many(tally.n_requests, tally.total_ns)
            spent_ns = tally.stage_ns()
            for stage, names in STAGES.items():
                counted.stages[stage].add_many(tally.n_requests, sum(spent_ns.get(name, 0) for name in names))
        return counted
