"""Composition root of a worker: registry + sealed bases + scorers -> plans, refreshed without stopping.

A refresh builds the next `Routes` beside the current one and swaps a single reference. Whatever cannot be loaded - a
corrupt base, a foreign artifact, a schema that no longer fits - leaves what served before in place and is reported as
a problem (`/readyz`, the log), never as a failed request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tiercel import models
from tiercel._hot.plan import ServingPlan
from tiercel.errors import (
    InvalidNameError,
    ModelUnavailableError,
    NotMaterializedError,
    SchemaMismatchError,
    ServiceNotFoundError,
    TiercelError,
)
from tiercel.features.manifest import MANIFEST_NAME
from tiercel.features.online import ManifestWatcher, OnlineBase
from tiercel.features.transforms import compile_transforms, compiled_dir
from tiercel.models.profile import served_tier
from tiercel.monitor.reference import find_reference
from tiercel.priority import stand_back
from tiercel.registry import Registry, parse_reference
from tiercel.registry.names import CHAMPION, LATEST
from tiercel.serving.bindings import bindings_of
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.serving.version_explainer import bound_by, make_explanations
from tiercel.types import Tier, categories_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tiercel._hot.explained import Explanations
    from tiercel.features.transforms import CompiledTransform
    from tiercel.models.profile import CostProfile
    from tiercel.monitor.recording import Recorder
    from tiercel.monitor.reference import Reference
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

    ProfileOf = Callable[[Settings, ModelVersion, Callable[[], Mapping[str, bytes]]], CostProfile | None]

log = logging.getLogger("tiercel.serving")

#: Versions without an alias that were asked for by number and stay loaded.
MAX_PINNED = 8
#: How often what could not be loaded is tried again.
RETRY_INTERVAL_S = 2.0
#: How long the watch waits at most between looks while looking fails.
MAX_BACKOFF_S = 5.0
#: A warm scorer has answered this many rows at a time: one, and enough for the kernel of many.
WARM_ROWS = (1, 128)


@dataclass(frozen=True, slots=True)
class _Loaded:
    record: ModelVersion
    model: models.LoadedModel
    reference: Reference | None
    profile: CostProfile | None
    tier: Tier
    explanations: Explanations


class Engine:
    """Answers "which plan?" at once and keeps the answer current.

    Args:
        settings: the project.
        registry: of its models; stays the caller's.
        recorder: where its plans leave what they answered; None: nowhere.
        profile_of: what a version costs on this host (`serving/profiles.py`); None: every version counts as realtime.

    Threads: `find_plan` and `routes` are lock-free reads; `refresh` may run in any thread, one at a time.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        recorder: Recorder | None = None,
        profile_of: ProfileOf | None = None,
    ) -> None:
        self._settings = settings
        self._profile_of = profile_of
        self._registry = registry
        self._recorder = recorder
        self._transforms: dict[str, tuple[CompiledTransform, ...]] = {}  # by fingerprint of the service's schema
        self._refresh_lock = threading.Lock()
        self._watchers: dict[str, ManifestWatcher] = {}
        self._republished: set[str] = set()  # services whose MANIFEST changed since they were opened
        self._loaded: dict[tuple[str, int], _Loaded] = {}
        self._pinned: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._generation = -1
        self._planning_seq = 0  # the registry's generation that plans are made at
        self._refreshed_s = 0.0
        self.watch_problems: tuple[str, ...] = ()  # why the watch itself cannot look, if so
        self._failed: dict[str, str] = {}  # what could not be loaded -> why, so that it is logged once
        self.routes = Routes()

    def find_plan(self, reference: str) -> ServingPlan | None:
        """The plan of "name", "name@alias" or "name:version" if it is loaded."""
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference: str) -> ServingPlan:
        """The plan of a reference that is not indexed: another spelling, or a version without an alias.

        Raises:
            RequestError: not a reference (`invalid_name`).
            NotFoundError, TiercelError: no such model, alias or version; or it cannot be loaded.
        """
        name, selector = parse_reference(reference)
        routes = self.routes
        if name not in routes.models or not isinstance(selector, int | None):
            if selector == LATEST and name in routes.models:
                selector = (await asyncio.to_thread(self._registry.get, name, LATEST)).version
            else:
                selector = routes.version_of(name, str(selector))
        elif selector is None:
            selector = routes.version_of(name, CHAMPION)
        plan = routes.models[name].plans.get(selector)
        if plan is None:
            plan = await asyncio.to_thread(self._pin, name, selector)
        return plan

    def profile_of(self, name: str, version: int) -> CostProfile | None:
        """What a loaded version costs on this host; None: not measured, or not loaded."""
        loaded = self._loaded.get((name, version))
        return None if loaded is None else loaded.profile

    def service(self, name: str) -> OnlineBase:
        """The live base of a feature service.

        Raises:
            ServiceNotFoundError: nothing of this name is published, or it cannot be opened; the message says why.
        """
        base = self.routes.services.get(name)
        if base is None:
            known = ", ".join(sorted(self.routes.services)) or "none"
            why = self._failed.get(f"service {name}")
            if why is not None:
                raise ServiceNotFoundError(f"Expected a feature service that can be read ({known}), got {why}")
            raise ServiceNotFoundError(
                f"Expected a materialized feature service, got '{name}'. Materialized: {known}. "
                f"Run `tiercel materialize` to publish one."
            )
        return base

    def kernel_of(self, plan: ServingPlan) -> str:
        """What scores a plan: "forest", "linear" or "onnxruntime"; "" for a version that is no longer loaded."""
        loaded = self._loaded.get((plan.model, plan.version))
        return "" if loaded is None else loaded.model.engine

    def stale(self) -> bool:
        """Whether something on disk or in the registry changed since the last refresh. A few system calls."""
        with self._refresh_lock:
            self._republished.update(name for name, watcher in self._watchers.items() if watcher.changed())
            return (
                bool(self._republished)
                or self._published() != self._watchers.keys()
                or self._registry.generation() != self._generation
                # What failed may be mended without anything announcing it: a restored file, a remounted disk.
                or (bool(self._failed) and time.monotonic() - self._refreshed_s > RETRY_INTERVAL_S)
            )

    def refresh(self) -> Routes:
        """Bring routes up to date with the disk and the registry. Slow; call it in a thread while serving."""
        with self._refresh_lock:
            problems: list[str] = []
            self._planning_seq = generation = self._registry.generation()
            services = self._open_services(problems)
            routed = self._route_models(services, problems)
            self._generation = generation
            self._refreshed_s = time.monotonic()
            self.routes = Routes.build(routed, services, tuple(problems))
            return self.routes

    def warm(self) -> None:
        """Make the first request as quick as the thousandth: every scorer run (bases are read when they are opened)."""
        for loaded in self._loaded.values():
            scorer = loaded.model.scorer
            for n_rows in WARM_ROWS:
                scorer.score(np.zeros((n_rows, scorer.n_features), np.float32))

    def _published(self) -> set[str]:
        directory = self._settings.features_dir
        if not directory.is_dir():
            return set()
        return {path.name for path in directory.iterdir() if (path / MANIFEST_NAME).exists()}

    def _open_services(self, problems: list[str]) -> dict[str, OnlineBase]:
        current = self.routes.services
        services: dict[str, OnlineBase] = {}
        for name in sorted(self._published()):
            directory = self._settings.features_dir / name
            known = name in self._watchers
            # The watcher is made before the base is opened, so that no publish can fall between the two.
            watcher = self._watchers.setdefault(name, ManifestWatcher(directory))
            failed = f"service {name}" in self._failed
            changed = watcher.changed() or name in self._republished or not known or failed
            live = current.get(name)
            if not changed:
                if live is not None:
                    services[name] = live
                continue
            self._republished.discard(name)
            try:
                base = OnlineBase.open(directory, verify=self._settings.server.verify_bases)
                base.touch()  # a new base's first reads are as quick as its last
                self._compile(base)
                services[name] = base
                self._recover(f"service {name}")
            except (TiercelError, OSError) as error:
                # A worker that just started has no live base, and may find an older one intact.
                older = self._open_older(directory) if live is None else live
                kept = "" if older is None else f"The one before, {older.manifest.base_name}, keeps serving."
                self._report(f"service {name}", error, problems, kept)
                if older is not None:
                    services[name] = older
        for name in self._watchers.keys() - self._published():
            del self._watchers[name]
            self._failed.pop(f"service {name}", None)
        return services

    def _open_older(self, directory: Path) -> OnlineBase | None:
        """An older base to serve while the current one cannot be opened, if one is kept and intact."""
        try:
            base = OnlineBase.open_older(directory)
            if base is not None:
                base.touch()
                self._compile(base)
        except (TiercelError, OSError):  # the current base's error is the one to tell
            return None
        return base

    def _route_models(self, services: dict[str, OnlineBase], problems: list[str]) -> dict[str, ModelRoutes]:
        routed: dict[str, ModelRoutes] = {}
        stand_ins = self._stand_ins()
        for registered in self._registry.list_models():
            name = registered.name
            before = self.routes.models.get(name, ModelRoutes({}, {}))
            wanted = self._registry.aliases(name)
            plans: dict[int, ServingPlan] = {}
            aliases: dict[str, int] = {}
            unavailable: dict[str, str] = {}
            for version in sorted({*wanted.values(), *stand_ins.get(name, ())}):
                plan = self._plan(name, version, services, before.plans.get(version), problems)
                if plan is not None:
                    plans[version] = plan
            for version in [v for n, v in self._pinned if n == name and v not in plans]:
                # Nobody but a caller's number asks for these: one that no longer fits is dropped, not a problem.
                try:
                    plans[version] = self._current_plan(name, version, services, before.plans.get(version))
                except (TiercelError, OSError):
                    del self._pinned[name, version]
            for alias, version in wanted.items():
                if version in plans:
                    aliases[alias] = version
                elif alias in before.aliases and before.aliases[alias] in before.plans:
                    # The alias moved to something that cannot be served: who served before goes on.
                    kept = before.aliases[alias]
                    aliases[alias] = kept
                    plans[kept] = self._plan(name, kept, services, before.plans[kept], problems) or before.plans[kept]
                else:
                    unavailable[alias] = self._failed.get(f"model {name}:{version}", "it could not be loaded")
            routed[name] = ModelRoutes(plans, aliases, unavailable)
        live = {(name, version) for name, routes in routed.items() for version in routes.plans}
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key in live}
        return routed

    def _stand_ins(self) -> dict[str, set[int]]:
        """Versions that are declared as fallbacks by number: they must be there before they are needed."""
        found: dict[str, set[int]] = {}
        for declared in self._settings.models:
            if declared.fallback is not None:
                with contextlib.suppress(InvalidNameError):  # `ladder_check` says it
                    name, selector = parse_reference(declared.fallback)
                    if isinstance(selector, int):
                        found.setdefault(name, set()).add(selector)
        return found

    def _plan(
        self,
        name: str,
        version: int,
        services: dict[str, OnlineBase],
        before: ServingPlan | None,
        problems: list[str],
    ) -> ServingPlan | None:
        """The version's plan on the live base; what served before where that fails, which is reported."""
        what = f"model {name}:{version}"
        try:
            plan = self._current_plan(name, version, services, before)
        except (TiercelError, OSError) as error:
            self._report(what, error, problems, "" if before is None else "The one before keeps serving.")
            return before
        self._recover(what)
        return plan

    def _current_plan(
        self, name: str, version: int, services: dict[str, OnlineBase], before: ServingPlan | None
    ) -> ServingPlan:
        loaded = self._load(name, version)
        base = self._base_of(loaded.record, services)
        return before if before is not None and before.base is base else self._wire(loaded, base)

    def _load(self, name: str, version: int) -> _Loaded:
        loaded = self._loaded.get((name, version))
        if loaded is None:
            record = self._registry.get(name, version)
            artifacts = self._registry.load_artifacts(record)
            try:
                reference = find_reference(artifacts)
            except TiercelError as error:  # nobody's prediction depends on it
                log.warning("model %s:%s: %s Its features are counted without it.", name, version, error)
                reference = None
            profile, tier = None, Tier.REALTIME
            if self._profile_of is not None:
                profile = self._profile_of(self._settings, record, lambda: artifacts)
                requested = None if record.facts.tier is None else Tier(record.facts.tier)
                decision = served_tier(profile, precomputed=True, requested=requested)
                tier = decision.tier
                log.info("model %s:%s: %s: %s", name, version, tier, decision.reason)
            model = models.load(artifacts)
            declared = self._settings.model(name)
            explanations = make_explanations(
                model, artifacts, declared, profile, label=f"{name}:{version}", measures=self._profile_of is not None
            )
            model = replace(model, body=None)
            loaded = _Loaded(record, model, reference, profile, tier, explanations)
            self._loaded[name, version] = loaded
        return loaded

    def _base_of(self, record: ModelVersion, services: dict[str, OnlineBase]) -> OnlineBase | None:
        service = record.facts.service
        if service is None:
            return None
        base = services.get(service)
        if base is None and (why := self._failed.get(f"service {service}")) is not None:
            raise ModelUnavailableError(
                f"Model '{record.name}' version {record.version} reads a feature service that cannot be served: {why}"
            )
        if base is None:
            raise NotMaterializedError(
                f"Model '{record.name}' version {record.version} reads feature service '{service}', which is not "
                f"materialized. Run `tiercel materialize`."
            )
        if base.schema.fingerprint != record.facts.service_fingerprint:
            raise SchemaMismatchError(
                f"Model '{record.name}' version {record.version} was registered against feature service '{service}' "
                f"{(record.facts.service_fingerprint or '')[:12]}, the published base is {base.schema.fingerprint[:12]}. "
                f"Publish features with the model's definitions, or register a model trained on the new ones."
            )
        for feature, n_categories, digest in record.facts.snapshot.dictionaries:
            known = base.categories.get(feature, ())
            if len(known) < n_categories or categories_digest(known[:n_categories]) != digest:
                raise SchemaMismatchError(
                    f"Model '{record.name}' version {record.version} learned feature '{feature}' from {n_categories} "
                    f"categories, of which the published base of service '{service}' has others or in another order: the "
                    f"dictionaries in the state directory were lost or replaced. Restore them, or train the model again."
                )
        return base

    def _compile(self, base: OnlineBase) -> None:
        """The service's transforms, from the cache that `tiercel apply` filled."""
        schema = base.schema
        if schema.fingerprint not in self._transforms:
            directory = compiled_dir(self._settings.state_dir)
            self._transforms[schema.fingerprint] = compile_transforms(schema, directory)

    def _wire(self, loaded: _Loaded, base: OnlineBase | None) -> ServingPlan:
        record, model = loaded.record, loaded.model
        schema = None if base is None else base.schema
        declared = self._settings.model(record.name)
        recorder = None
        if self._recorder is not None:
            base_name = None if base is None else base.manifest.base_name
            recorder = self._recorder.for_plan(
                record.name,
                record.version,
                model.signature,
                schema,
                base_name,
                loaded.reference,
                loaded.tier,
                bindings_of(record, base, self._planning_seq, declared, bound_by(loaded.explanations)),
            )
        transforms = () if schema is None else self._transforms[schema.fingerprint]
        return ServingPlan(
            record.name,
            record.version,
            model.signature,
            model.scorer,
            schema,
            base,
            transforms=transforms,
            recorder=recorder,
            tier=loaded.tier.value,
            is_inline=loaded.tier is Tier.REALTIME,
            # Who answers these is the router's to say, or it must see every score.
            is_plain=declared.challenger_weight == 0 and declared.shadow is None and declared.last_score_max_age_s == 0,
            needs_us=None if loaded.profile is None else needs_us(loaded.profile),
            default_budget_us=None if declared.deadline_ms is None else int(1000 * declared.deadline_ms),
            has_stand_in=declared.has_stand_in,
            explanations=loaded.explanations,
            is_strict=declared.is_strict,
        )

    def _pin(self, name: str, version: int) -> ServingPlan:
        """Load a version that no alias names, and keep it (with at most MAX_PINNED - 1 others)."""
        with self._refresh_lock:
            routes = self.routes
            loaded = self._load(name, version)
            plan = self._wire(loaded, self._base_of(loaded.record, dict(routes.services)))
            self._pinned[name, version] = None
            self._pinned.move_to_end((name, version))
            dropped = self._pinned.popitem(last=False)[0] if len(self._pinned) > MAX_PINNED else None
            routed = dict(routes.models)
            for changed in {name, *(() if dropped is None else (dropped[0],))}:
                current = routed[changed]
                plans = {**current.plans, **({version: plan} if changed == name else {})}
                if dropped is not None and dropped[0] == changed and dropped[1] not in current.aliases.values():
                    plans.pop(dropped[1], None)
                    self._loaded.pop(dropped, None)
                routed[changed] = ModelRoutes(plans, current.aliases, current.unavailable)
            self.routes = Routes.build(routed, routes.services, routes.problems)
            return plan

    def _report(self, what: str, error: Exception, problems: list[str], kept: str) -> None:
        """Log once and list what could not be loaded; `kept` says what serves in its place, if anything does."""
        text = f"{what}: {error}{'' if str(error).endswith('.') else '.'} {kept}".rstrip()
        if self._failed.get(what) != text:
            log.error("%s", text)
        self._failed[what] = text
        problems.append(text)

    def _recover(self, what: str) -> None:
        if self._failed.pop(what, None) is not None:
            log.info("%s: serves again", what)


def needs_us(profile: CostProfile) -> tuple[float, float, float]:
    """(reading, scoring, scoring of each row) at the 99th percentile, for a plan; a line above the measured curve."""
    _, _, one_us = profile.curve[0]
    row_us = max(((us - one_us) / (n_rows - 1) for n_rows, _, us in profile.curve[1:]), default=one_us)
    row_us = min(max(row_us, 0.0), one_us)
    return max(profile.total.p99_us - profile.score.p99_us, 0.0), one_us - row_us, row_us


async def keep_current(engine: Engine, *, interval_s: float = 0.1) -> None:
    """Refresh whenever something changed, until cancelled. A failure to look is logged and tried again."""
    wait_s = interval_s
    loop = asyncio.get_running_loop()
    beside = ThreadPoolExecutor(1, "tiercel-refresh", stand_back)
    while True:
        await asyncio.sleep(wait_s)
        try:
            if await loop.run_in_executor(beside, engine.stale):
                await loop.run_in_executor(beside, engine.refresh)
        except Exception as error:  # the watch must outlive a locked database or a full disk
            text = f"cannot look for changes, what is live keeps serving: {error}"
            if engine.watch_problems != (text,):
                log.error("%s", text, exc_info=None if isinstance(error, TiercelError) else error)  # noqa: TRY400
            engine.watch_problems = (text,)
            wait_s = min(2 * wait_s, MAX_BACKOFF_S)
        else:
            engine.watch_problems = ()
            wait_s = interval_s
