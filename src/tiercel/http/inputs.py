"""What a model takes by name, as every foreign protocol needs to know it: keys, request features, stored features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tiercel.types import NOW_US, DType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.features.online import OnlineBase
    from tiercel.types import ServiceSchema, Signature

#: Plans whose inputs are remembered; a republished service makes new ones.
_MAX_REMEMBERED = 64


class Plan(Protocol):
    """What other protocols read of a serving plan. Answers come from the router alone."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def signature(self) -> Signature: ...  # noqa: D102
    @property
    def schema(self) -> ServiceSchema | None: ...  # noqa: D102
    @property
    def base(self) -> OnlineBase | None: ...  # noqa: D102
    @property
    def n_features(self) -> int: ...  # noqa: D102
    @property
    def n_outputs(self) -> int: ...  # noqa: D102
    @property
    def join_keys(self) -> frozenset[str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One name that a request may give a value.

    Attributes:
        name: as in the feature service or the signature.
        dtype: None where any number will do (a model without a feature service).
        is_key: a join key, not a feature.
        is_required: without it nothing can be scored.
        categories: of a request-time text feature, in code order; None where the base has them, or for other types.
    """

    name: str
    dtype: DType | None
    is_key: bool = False
    is_required: bool = False
    categories: tuple[str, ...] | None = None


class InputCatalog:
    """Remembers the inputs of the plans that are being asked for. Threads: the event loop's only."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Signature, ServiceSchema | None, Mapping[str, ModelInput]]] = {}

    def of(self, plan: Plan) -> Mapping[str, ModelInput]:
        """The inputs of a plan by name: keys first, then what the request must bring, then what is stored."""
        # SAFETY: an id cannot be another object's while the value keeps its owner alive. The plan itself is not kept: that
        #   would keep its base mapped.
        key = (id(plan.signature), id(plan.schema))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            found = (plan.signature, plan.schema, list_inputs(plan.signature, plan.schema))
            self._known[key] = found
        return found[2]


def list_inputs(signature: Signature, schema: ServiceSchema | None) -> dict[str, ModelInput]:
    """The inputs of a model with this signature on this service; features that a transform computes are none."""
    if schema is None:
        return {name: ModelInput(name, None, is_required=True) for name in signature.features}
    computing = [
        transform
        for transform in schema.transforms
        if any(output.name in signature.features for output in transform.outputs)
    ]
    used = {*signature.features, *(name for transform in computing for name in transform.inputs)} - {NOW_US}
    keys: dict[str, ModelInput] = {}
    stored: dict[str, ModelInput] = {}
    for group in schema.groups:
        is_read = any(column.name in used for column in group.columns)
        for key in group.keys:
            required = is_read or (key.name in keys and keys[key.name].is_required)
            keys[key.name] = ModelInput(key.name, key.dtype, is_key=True, is_required=required)
        stored.update((column.name, ModelInput(column.name, column.dtype)) for column in group.columns)
    request = {
        item.name: ModelInput(item.name, item.dtype, is_required=item.name in used, categories=item.categories)
        for item in schema.request_fields
    }
    # A key that is also a feature's name is the key.
    return {**keys, **{name: each for name, each in (request | stored).items() if name not in keys}}
