"""Model registry: versions with their facts, aliases, and the ledger of who changed what."""

from tiercel.registry.facts import VersionFacts
from tiercel.registry.ledger import LedgerHead
from tiercel.registry.names import format_reference, parse_reference
from tiercel.registry.records import ArtifactFile, Event, ModelVersion, RegisteredModel
from tiercel.registry.registry import UNSET, Registry

__all__ = [
    "UNSET",
    "ArtifactFile",
    "Event",
    "LedgerHead",
    "ModelVersion",
    "RegisteredModel",
    "Registry",
    "VersionFacts",
    "format_reference",
    "parse_reference",
]
