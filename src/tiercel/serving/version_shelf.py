"""Versions as plans that need no base: for whoever explains or scores recorded vectors outside of a worker."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from tiercel import models
from tiercel._hot.plan import ServingPlan
from tiercel.errors import VersionNotFoundError
from tiercel.registry import Registry, parse_reference
from tiercel.serving.version_explainer import make_explanations

if TYPE_CHECKING:
    from tiercel.settings import Settings

#: Plans that are kept. Each holds its model in memory.
MOST_KEPT: Final = 4


class VersionShelf:
    """The last few versions that were asked for, loaded from the registry.

    Args:
        settings: the project.
        registry: of its models; None: opened when first needed, and closed with the shelf.

    Threads: safe; one version is loaded at a time.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._settings = settings
        self._registry, self._owns = registry, registry is None
        self._lock = threading.Lock()
        self._plans: OrderedDict[str, ServingPlan] = OrderedDict()

    def find(self, reference: str) -> ServingPlan:
        """The plan of "name:version". Slow where it is loaded: never call it on an event loop.

        Raises:
            NotFoundError, TiercelError: no such version, or it cannot be loaded.
        """
        with self._lock:
            plan = self._plans.get(reference)
            if plan is None:
                plan = self._load(reference)
                self._plans[reference] = plan
                if len(self._plans) > MOST_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(reference)
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

    def _load(self, reference: str) -> ServingPlan:
        if self._registry is None:
            self._registry = Registry.for_state(self._settings.state_dir, url=self._settings.registry_url)
        name, version = parse_reference(reference)
        if not isinstance(version, int):
            raise VersionNotFoundError(f"Expected a version such as '{name}:3', got '{reference}'")
        record = self._registry.get(name, version)
        artifacts = self._registry.load_artifacts(record)
        model = models.load(artifacts)
        explanations = make_explanations(model, artifacts, self._settings.model(name), label=reference)
        return ServingPlan(name, version, model.signature, model.scorer, explanations=explanations)
