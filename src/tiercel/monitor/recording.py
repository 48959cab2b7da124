"""What a worker keeps of the predictions it made: counters and journal, made ready for each of its plans."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from tiercel._hot.recorder import PlanRecorder
from tiercel.errors import CounterFileError
from tiercel.monitor import counting
from tiercel.monitor.directories import WorkerDirectory, worker_name
from tiercel.monitor.group_commit import GroupCommit
from tiercel.monitor.reference import default_edges
from tiercel.monitor.segments import Journal, SegmentKeeper
from tiercel.monitor.totals import fold
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tiercel.monitor.reference import Reference
    from tiercel.settings import JournalSettings
    from tiercel.types import ServiceSchema, Signature

__all__ = ["PlanRecorder", "Recorder"]

log = logging.getLogger("tiercel.monitor")

#: Where below the state directory.
COUNTERS, JOURNAL = "counters", "journal"


class Recorder:
    """Counters and journal of one worker start. A disk that refuses never stops a worker: it counts in its own memory then.

    Args:
        state_dir: the project's state directory.
        worker: its number among the workers.
        prefix: what the ids of this worker's replies begin with; 16 characters.
        settings: of the journal.
        keeps_requests: whether records have the request; `Settings.keeps_requests`.

    Attributes:
        counters: the worker's own counts (`WorkerCounters`).
        problems: what could not be made, in words.
        commit: makes records durable on demand; None without a journal.

    Threads: `for_plan` in any; `close` once, after the event loop's last record.
    """

    def __init__(
        self, state_dir: Path, worker: int, prefix: str, settings: JournalSettings, *, keeps_requests: bool = True
    ) -> None:
        self._keeps_requests = keeps_requests
        name = worker_name(worker)
        self._who: dict[str, Any] = {"worker": worker, "pid": os.getpid(), "started_us": time.time_ns() // 1000}
        self._lock = threading.Lock()
        self._counters: weakref.WeakValueDictionary[tuple[Any, ...], counting.PlanCounters] = (
            weakref.WeakValueDictionary()
        )
        self._recorders: weakref.WeakValueDictionary[tuple[Any, ...], PlanRecorder] = weakref.WeakValueDictionary()
        self._n_files = self._n_plans = 0
        self.problems: tuple[str, ...] = ()
        self._directory: WorkerDirectory | None = None
        self._no_journal = ""
        self._journal: Journal | None = None
        self._keeper: SegmentKeeper | None = None
        self.commit: GroupCommit | None = None
        self.counters = counting.WorkerCounters()
        try:
            self._directory = WorkerDirectory(state_dir / COUNTERS, name)
            self.counters = counting.make_worker_counters(self._directory.path, self._who)
        except OSError as error:
            self._report(f"counters are not visible outside the worker: {error}")
        else:
            self._fold(state_dir / COUNTERS)
        if settings.enabled:
            try:
                home = WorkerDirectory(state_dir / JOURNAL, name)
            except OSError as error:
                self._no_journal = f"no journal: {error}"
                self._report(self._no_journal)
                return
            self._journal = Journal()
            self._keeper = SegmentKeeper(
                self._journal,
                home,
                settings,
                worker=worker,
                prefix=prefix.encode("ascii")[:16],
                count=self.counters.add,
            )
            self._keeper.touched.append(self.counters)
            self.commit = GroupCommit(self._journal, self._keeper)
            self._keeper.abandon = self.commit.abandon
            self._keeper.start()

    def for_plan(
        self,
        model: str,
        version: int,
        signature: Signature,
        schema: ServiceSchema | None = None,
        base_name: str | None = None,
        reference: Reference | None = None,
        tier: Tier = Tier.REALTIME,
        bindings: Mapping[str, str | int | float | None] | None = None,
    ) -> PlanRecorder:
        """Where a plan leaves its predictions.

        Plans of one (model, version, tier) share their counters, and one recorder while schema and base stay the same.

        Args:
            model: registered name.
            version: registered number.
            signature: the version's.
            schema: of the feature service it reads, if any.
            base_name: the sealed base's file, if any; another one is declared in the journal.
            reference: the version's, if it has one of these features; without it features are counted as present, missing
                or infinite only.
            tier: the one it answers in.
            bindings: what else its answers follow from, for the declaration; others are declared anew.
        """
        with self._lock:
            bound = dict(sorted((bindings or {}).items()))
            key = (
                model, version, None if schema is None else schema.fingerprint, base_name, tier, tuple(bound.items())
            )  # fmt: skip
            recorder = self._recorders.get(key)
            if recorder is None:
                counters = self._plan_counters(model, version, signature, reference, tier)
                groups = () if schema is None else schema.groups
                join_keys = {key.name: key.dtype.value for group in groups for key in group.keys}
                self._n_plans += 1
                declaration = {
                    "model": model,
                    "version": version,
                    "tier": tier.value,
                    "service": None if schema is None else schema.name,
                    "service_fingerprint": None if schema is None else schema.fingerprint,
                    "base": base_name,
                    "features": list(signature.features),
                    "join_keys": sorted([name, dtype] for name, dtype in join_keys.items()),
                    "n_outputs": signature.n_outputs,
                    "task": signature.task.value,
                    "classes": list(signature.classes),
                    "bindings": bound,
                }
                recorder = PlanRecorder(
                    counters,
                    self.counters,
                    self._journal,
                    self._n_plans,
                    json.dumps(declaration, separators=(",", ":")).encode(),
                    len(join_keys),
                    self._keeps_requests,
                )
                self._recorders[key] = recorder
            return recorder

    @property
    def troubles(self) -> list[str]:
        """Why predictions go unrecorded, or records are not made durable, at the moment."""
        told = [
            self._no_journal,
            self._keeper.problem if self._keeper else "",
            self.commit.problem if self.commit else "",
        ]
        return [each for each in told if each]

    def close(self) -> None:
        """Seal the journal and let go of the files. What was counted stays readable."""
        if self.commit is not None:
            self.commit.close()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _fold(self, directory: Path) -> None:
        """Add up the workers that are gone, or every start would leave its files behind for good."""
        try:
            fold(directory)
        except (OSError, CounterFileError) as error:
            self._report(f"counters of workers that are gone stay in files of their own: {error}")

    def _plan_counters(
        self, model: str, version: int, signature: Signature, reference: Reference | None, tier: Tier
    ) -> counting.PlanCounters:
        if reference is not None and (
            reference.features != signature.features or len(reference.score_edges) != signature.n_outputs
        ):
            self._report(f"model {model}:{version}: its reference is of other features and is not used")
            reference = None
        digest = None if reference is None else reference.digest
        counters = self._counters.get((model, version, digest, tier))
        if counters is not None:
            return counters
        features, scores = default_edges(signature)
        if reference is not None:
            features, scores = reference.feature_edges, reference.score_edges
        what = {
            "model": model,
            "version": version,
            "tier": tier.value,
            "features": list(signature.features),
            "n_outputs": signature.n_outputs,
            "reference": digest,
        }
        try:
            if self._directory is None:
                counters = counting.PlanCounters(len(features), len(scores), features, scores)
            else:
                self._n_files += 1
                path = self._directory.path / f"plan-{self._n_files:06d}.counters"
                counters = counting.make_plan_counters(path, self._who, what, features, scores)
        except OSError as error:
            self._report(f"model {model}:{version}: counters are not visible outside the worker: {error}")
            counters = counting.PlanCounters(len(features), len(scores), features, scores)
        self._counters[model, version, digest, tier] = counters
        if self._keeper is not None:
            self._keeper.touched[:] = [self.counters, *self._counters.values()]
        return counters

    def _report(self, problem: str) -> None:
        log.error("monitoring: %s", problem)
        self.problems = (*self.problems, problem)
