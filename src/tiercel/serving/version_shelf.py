"""Versions as plans that need no base: for whoever explains or scores recorded vectors outside of a worker."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tiercel import models
from tiercel._hot.plan import ServingPlan
from tiercel.errors import VersionNotFoundError
from tiercel.registry import Registry, parse_reference
from tiercel.serving.version_explainer import make_explanations, settings_that_bind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.settings import Settings

#: Plans that are kept. Each holds its model in memory.
MOST_KEPT: Final = 4


class VersionShelf:
    """The last few versions that were asked for, loaded from the registry.

    Args:
        settings: the project.
        registry: of its models; None: opened when first needed, and closed with the shelf.
        most: plans that are kept.

    Threads: safe; one version is loaded at a time.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None, most: int = MOST_KEPT) -> None:
        self._settings, self._most = settings, most
        self._registry, self._owns = registry, registry is None
        self._lock = threading.Lock()
        self._plans: OrderedDict[tuple[str, tuple[object, ...]], ServingPlan] = OrderedDict()

    def find(self, reference: str, bound: Mapping[str, str | None] | None = None) -> ServingPlan:
        """The plan of "name:version". Slow where it is loaded: never call it on an event loop.

        Args:
            reference: of the version.
            bound: what its explanations are to follow from, as `bound_by` had it when it answered, as far as the version's
                files still give it; None: what they follow from by today's settings.

        Raises:
            NotFoundError, TiercelError: no such version, or it cannot be loaded.
        """
        key = (reference, () if bound is None else tuple(sorted(bound.items())))
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                plan = self._load(reference, bound)
                self._plans[key] = plan
                if len(self._plans) > self._most:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return plan

    async def find_beside(self, reference: str) -> ServingPlan:
        """As `find`, in a thread."""
        return await asyncio.to_thread(self.find, reference)

    def close(self) -> None:
        """Let go of the registry."""
        with self._lock:
            if self._owns and self._registry is not None:
                self._registry.close()
                self._registry = None

    def _load(self, reference: str, bound: Mapping[str, str | None] | None) -> ServingPlan:
        if self._registry is None:
            self._registry = Registry.for_state(self._settings.state_dir, url=self._settings.registry_url)
        name, version = parse_reference(reference)
        if not isinstance(version, int):
            raise VersionNotFoundError(f"Expected a version such as '{name}:3', got '{reference}'")
        record = self._registry.get(name, version)
        artifacts = self._registry.load_artifacts(record)
        model = models.load(artifacts)
        declared = self._settings.model(name)
        if bound is not None:
            explain = settings_that_bind(bound, artifacts, model.signature, declared.explain)
            declared = replace(declared, explain=explain)
        explanations = make_explanations(model, artifacts, declared, label=reference)
        return ServingPlan(name, version, model.signature, model.scorer, explanations=explanations)
