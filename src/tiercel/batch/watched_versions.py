"""What monitoring must know of versions, from the registry and the catalog: references, and what features are made of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tiercel.errors import TiercelError
from tiercel.features.catalog import load_catalog
from tiercel.insight.references import reference_of
from tiercel.monitor.causes import Origin
from tiercel.monitor.watch import Watched

if TYPE_CHECKING:
    from tiercel.features.catalog import Catalog
    from tiercel.monitor.score_moves import Explained
    from tiercel.registry import ModelVersion, Registry
    from tiercel.settings import Settings
    from tiercel.types import ServiceSchema

log = logging.getLogger("tiercel.monitor")

#: Aliases that get traffic.
SERVED = ("champion", "challenger", "shadow")
_REQUEST = Origin("request", "the request")


class RegistryVersions:
    """Versions of a project's registry; what does not change of them is read once.

    Args:
        settings: the project.
        registry: its models; stays the caller's.

    Threads: one.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._generation: int | None = None
        self._served: set[tuple[str, int]] = set()
        self._found: dict[tuple[str, int], Watched] = {}
        self._explains: tuple[tuple[str, int], Explained | None] | None = None

    def served(self) -> set[tuple[str, int]]:
        """(model, version) of every alias that gets traffic, and of shadows the settings name.

        Raises:
            TiercelError: the registry cannot be read.
        """
        generation = self._registry.generation()
        if generation != self._generation:
            shadows = {each.shadow for each in self._settings.models if each.shadow is not None}
            names = {*SERVED, *shadows}
            self._served = {
                (model.name, version)
                for model in self._registry.list_models()
                for alias, version in model.aliases.items()
                if alias in names
            }
            self._generation = generation
        return self._served

    def find(self, model: str, version: int) -> Watched:
        """One version.

        Raises:
            TiercelError: there is none, or its files are damaged.
        """
        known = self._found.get((model, version))
        if known is None:
            record = self._registry.get(model, version)
            known = self._found[model, version] = Watched(
                model,
                version,
                record.facts.signature.task,
                reference_of(record, self._registry.load_artifacts(record), self._settings),
                self._origins(record.facts.service, record.facts.signature.features),
                self._settings.model(model).value,
                lambda: self._explained(record),
            )
        return known

    def _explained(self, record: ModelVersion) -> Explained | None:
        """How a version's rows are explained; None where they cannot be, which is logged once.

        One version is held at a time: an explainer takes as much memory as its model, and few populations move at once.
        """
        key = record.name, record.version
        if self._explains is None or self._explains[0] != key:
            from tiercel.insight.shifts import watched  # with it come the model formats: only for who needs them
            from tiercel.insight.versions import open_version

            try:
                found = watched(open_version(self._settings, self._registry, record))
            except TiercelError as error:
                log.warning("%s version %d: what moves its score cannot be said: %s", *key, error)
                found = None
            self._explains = key, found
        return self._explains[1]

    def _origins(self, service: str | None, features: tuple[str, ...]) -> dict[str, tuple[Origin, ...]]:
        if service is None:
            return {}
        try:
            catalog = load_catalog(self._settings.state_dir)
            found = feature_origins(catalog, catalog.service(service))
        except TiercelError as error:  # the alert names the service then, not its source
            log.warning("What features of service %s are made of is not known: %s", service, error)
            return dict.fromkeys(features, (Origin(f"service:{service}", f"service {service}"),))
        return {name: found[name] for name in features if name in found}


def feature_origins(catalog: Catalog, schema: ServiceSchema) -> dict[str, tuple[Origin, ...]]:
    """What each feature of a service is made of: the source of its view, or the view where it has several; the request."""
    origins: dict[str, tuple[Origin, ...]] = {each.name: (_REQUEST,) for each in schema.request_fields}
    for group in schema.groups:
        for column in group.columns:
            view = group.views[column.view].name
            record = catalog.views.get(view)
            sources = [] if record is None else [source.name for source in record.sources]
            if len(sources) == 1:
                origin = Origin(f"source:{sources[0]}", f"source {sources[0]}", view)
            else:
                origin = Origin(f"view:{view}", f"view {view}", view)
            origins[column.name] = (origin,)
    for transform in schema.transforms:
        made_of = tuple(dict.fromkeys(o for name in transform.inputs for o in origins.get(name, ())))
        # Stored values first: a request seldom breaks, a feed does.
        ranked = tuple(sorted(made_of, key=lambda origin: origin == _REQUEST))
        for output in transform.outputs:
            origins[output.name] = ranked or (_REQUEST,)
    return origins
