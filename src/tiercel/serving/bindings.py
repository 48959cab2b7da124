"""What a prediction follows from beside its request, as its plan's declaration in the journal says it.

    model_digest        of the version's manifest: every file of it, by sha256
    ledger_seq          the registry's last event when the plan was made; with it the ledger says where every alias pointed
    base_digest         sha256 of the sealed base's file
    base_published_us   when it was published
    transforms_digest   sha256 of the service's on-demand transforms as they were applied
    default_score       what the model is declared to answer when nobody else can
    tiercel             the version that answered

and what the explanation of a reply follows from, where there is one: explainer_kind, reference_digest, policy_digest.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.features.online import OnlineBase
    from tiercel.registry import ModelVersion
    from tiercel.settings import ModelSettings
    from tiercel.types import ServiceSchema

Bindings = dict[str, "str | int | float | None"]


def bindings_of(
    record: ModelVersion,
    base: OnlineBase | None,
    ledger_seq: int,
    declared: ModelSettings,
    explained: Mapping[str, str | int | float | None] | None = None,
) -> Bindings:
    """The bindings of a version's plan on a base; `explained` is what its explanations follow from."""
    bound: Bindings = {
        "model_digest": record.manifest_digest,
        "ledger_seq": ledger_seq,
        "tiercel": version("tiercel"),
    }
    if base is not None:
        bound["base_digest"] = base.manifest.sha256
        bound["base_published_us"] = base.manifest.published_us
        if base.schema.transforms:
            bound["transforms_digest"] = transforms_digest(base.schema)
    if declared.default_score is not None:
        bound["default_score"] = declared.default_score
    return bound | dict(explained or {})


def transforms_digest(schema: ServiceSchema) -> str:
    """sha256 hex over the texts, inputs and outputs of a service's on-demand transforms, in order."""
    text = json.dumps([each.to_json() for each in schema.transforms], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
