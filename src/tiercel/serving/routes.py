"""An immutable picture of what is being served. The engine replaces it whole; requests read it without a lock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiercel.errors import AliasNotFoundError, ModelNotFoundError, ModelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel._hot.plan import ServingPlan
    from tiercel.features.online import OnlineBase

CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """One registered model: its loaded versions, where each live alias points, and why others are not live."""

    plans: Mapping[int, ServingPlan]
    aliases: Mapping[str, int]
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routes:
    """Everything a worker serves at one moment.

    `by_reference` maps the text of a request's path ("flights", "flights@challenger", "flights:3") to its plan: one
    look-up per request, no parsing.
    """

    models: Mapping[str, ModelRoutes] = field(default_factory=dict)
    services: Mapping[str, OnlineBase] = field(default_factory=dict)
    by_reference: Mapping[str, ServingPlan] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Something can be served, and every model with a champion has one that is live."""
        waiting = any(CHAMPION in model.unavailable for model in self.models.values())
        return bool(self.by_reference or self.services) and not waiting

    @classmethod
    def build(
        cls, models: Mapping[str, ModelRoutes], services: Mapping[str, OnlineBase], problems: tuple[str, ...]
    ) -> Routes:
        """Index the models by every reference a request may use."""
        by_reference: dict[str, ServingPlan] = {}
        for name, routes in models.items():
            for version, plan in routes.plans.items():
                by_reference[f"{name}:{version}"] = plan
            for alias, version in routes.aliases.items():
                if version in routes.plans:
                    by_reference[f"{name}@{alias}"] = routes.plans[version]
                    if alias == CHAMPION:
                        by_reference[name] = routes.plans[version]
        return cls(models, services, by_reference, problems)

    def version_of(self, name: str, alias: str) -> int:
        """Where an alias points.

        Raises:
            ModelNotFoundError, AliasNotFoundError: with what exists instead.
            ModelUnavailableError: the alias exists, its version could not be loaded.
        """
        routes = self.models.get(name)
        if routes is None:
            known = ", ".join(sorted(self.models)) or "none"
            raise ModelNotFoundError(f"Expected a registered model, got '{name}'. Registered: {known}")
        if alias.lower() in routes.unavailable:
            raise ModelUnavailableError(
                f"Model '{name}' has a {alias.lower()} that cannot be served: {routes.unavailable[alias.lower()]}"
            )
        version = routes.aliases.get(alias.lower())
        if version is None:
            known = ", ".join(sorted(routes.aliases)) or "none"
            hint = f" Run `tiercel promote {name} VERSION`." if alias.lower() == CHAMPION else ""
            raise AliasNotFoundError(f"Expected an alias of model '{name}' ({known}), got '{alias}'.{hint}")
        return version
