"""tiercel: feature store, model registry and low-latency server for tabular models.

The names below are the public surface. They load when first used, so that importing tiercel (and `tiercel --help`)
does not wait for DuckDB or the registry.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from tiercel.client import AsyncClient, Client
    from tiercel.features.definitions import (
        CSVSource,
        Entity,
        FeatureService,
        FeatureView,
        Field,
        OnDemandFeatureView,
        ParquetSource,
        RequestSource,
        on_demand_feature_view,
    )
    from tiercel.project import Project
    from tiercel.types import Bool, Float32, Float64, Int64, String

_HOME = {
    "AsyncClient": "tiercel.client",
    "Bool": "tiercel.types",
    "CSVSource": "tiercel.features.definitions",
    "Client": "tiercel.client",
    "Entity": "tiercel.features.definitions",
    "FeatureService": "tiercel.features.definitions",
    "FeatureView": "tiercel.features.definitions",
    "Field": "tiercel.features.definitions",
    "Float32": "tiercel.types",
    "Float64": "tiercel.types",
    "Int64": "tiercel.types",
    "OnDemandFeatureView": "tiercel.features.definitions",
    "ParquetSource": "tiercel.features.definitions",
    "Project": "tiercel.project",
    "RequestSource": "tiercel.features.definitions",
    "String": "tiercel.types",
    "on_demand_feature_view": "tiercel.features.definitions",
}

__all__ = [
    "AsyncClient",
    "Bool",
    "CSVSource",
    "Client",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Int64",
    "OnDemandFeatureView",
    "ParquetSource",
    "Project",
    "RequestSource",
    "String",
    "on_demand_feature_view",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tiercel' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
