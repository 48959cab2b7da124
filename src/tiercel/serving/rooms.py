"""The partitions of a worker's near-realtime and batch tiers, as the models it serves give them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tiercel.serving.limits import Partition, TierProfile, derive_limits
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.models.profile import CostProfile
    from tiercel.serving.engine import Engine
    from tiercel.serving.limits import Limits, Stay
    from tiercel.serving.routes import Routes
    from tiercel.settings import ModelSettings

#: Of one request where the server does not say; `ServerSettings` has the same.
MAX_BODY_BYTES: Final = 4 << 20


class Rooms:
    """Room for near-realtime requests and for submissions of batch jobs; realtime requests need none.

    Args:
        engine: whose models are served.
        declared: the tables [models.NAME], by name.
        max_body_bytes: of one request.
        n_cores: that this worker's threads may use.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        engine: Engine,
        declared: Mapping[str, ModelSettings],
        max_body_bytes: int = MAX_BODY_BYTES,
        n_cores: int = 1,
    ) -> None:
        self._engine, self._declared = engine, declared
        self._max_body_bytes, self._n_cores = max_body_bytes, n_cores
        self.limits: Limits = derive_limits({}, n_cores, max_body_bytes)
        near = self.limits.near_realtime
        self._near = Partition("the near-realtime tier", near.max_running, near.max_bytes, near.held_us)
        batch = self.limits.batch
        self._batch = Partition("the batch tier", batch.max_running, batch.max_bytes, batch.held_us)

    def follow(self, routes: Routes) -> None:
        """Hold to what the models that are served now give. Who is inside stays."""
        profiles: dict[str, TierProfile] = {}
        for name, model in routes.models.items():
            for version, plan in model.plans.items():
                measured = self._engine.profile_of(name, version)
                if measured is not None:
                    profiles[f"{name}:{version}"] = self._tier_profile(name, Tier(plan.tier), measured)
        self.limits = derive_limits(profiles, self._n_cores, self._max_body_bytes)
        near = self.limits.near_realtime
        self._near.max_running, self._near.max_bytes = near.max_running, near.max_bytes

    def enter(self, tier: str | None, n_bytes: int | None) -> Stay | None:
        """A place for a question in a tier with a body of `n_bytes`, to be left; None: it needs none.

        A body that does not say how long it is counts as an even share of all.

        Raises:
            CapacityError: there is none.
        """
        if tier not in {Tier.NEAR_REALTIME, Tier.BATCH}:
            return None
        room = self._batch if tier == Tier.BATCH else self._near
        return room.enter(room.max_bytes // room.max_running if n_bytes is None else n_bytes)

    def enter_job(self, stay: Stay | None, n_bytes: int) -> Stay | None:
        """A place for submitting a job, to be left; None: the `stay` that its request has already is one. Raises as `enter`."""
        return None if self.is_job(stay) else self._batch.enter(n_bytes)

    def is_job(self, stay: Stay | None) -> bool:
        """Whether a place is one for submitting a job."""
        return stay is not None and stay.is_in(self._batch)

    def _tier_profile(self, name: str, tier: Tier, measured: CostProfile) -> TierProfile:
        declared = self._declared.get(name)
        deadline_us = tier.budget_us or 0
        if declared is not None and declared.deadline_ms is not None:
            deadline_us = int(1000 * declared.deadline_ms)
        rows_per_s = max(1e6 * n_rows / p50_us for n_rows, p50_us, _ in measured.curve)
        return TierProfile(tier, deadline_us, int(measured.total.p99_us), rows_per_s)


def cores_of_worker(n_workers: int, *, is_pinned: bool) -> int:
    """Cores that the threads of each of so many workers may use."""
    if is_pinned:
        return 1
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_cores // n_workers)
