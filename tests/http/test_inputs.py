"""What a model takes by name: which keys and features, which of them a request must bring."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

from tests.support import stores

from tiercel.http.inputs import InputCatalog, list_inputs
from tiercel.types import (
    NOW_US,
    Float32,
    Int64,
    RequestField,
    ServiceSchema,
    Signature,
    String,
    Task,
    TransformOutput,
    TransformSchema,
)


@dataclass(eq=False)
class Plan:
    """As much of a plan as the catalog reads."""

    signature: Any
    schema: Any


def signature(*features):
    return Signature(features, Task.BINARY, ("0", "1"))


def required(inputs):
    return [each.name for each in inputs.values() if each.is_required]


def test_a_model_without_a_service_takes_its_features():
    """Without a service every feature comes with the request, as any number, in the signature's order."""
    inputs = list_inputs(signature("b", "a"), None)
    assert list(inputs) == required(inputs) == ["b", "a"]
    assert {each.dtype for each in inputs.values()} == {None}


def test_only_what_the_model_reads_is_required():
    """Keys of an entity that no feature comes from, and unused request features, may be left out."""
    inputs = list_inputs(signature("miles", "rain"), stores.schema())
    assert required(inputs) == ["origin", "gate", "rain"]
    assert {name for name, each in inputs.items() if each.is_key} == {"tailnum", "origin", "gate"}
    assert inputs["seats"].dtype is Int64
    assert inputs["cabin"].categories == ("first", "coach")
    assert not inputs["tailnum"].is_required


def test_inputs_of_transforms_are_required():
    """What a model's on-demand features are computed from is needed; the features themselves are no inputs."""
    plain = stores.schema()
    transform = TransformSchema("t", "source", ("rain", "miles", NOW_US), (TransformOutput("wetness", Float32),))
    schema = ServiceSchema(
        "svc", plain.groups, (*plain.request_fields, RequestField("wind", Float32)), (*plain.features, "wetness"),
        transforms=(transform,),
    )  # fmt: skip
    inputs = list_inputs(signature("wetness"), schema)
    assert required(inputs) == ["origin", "gate", "rain"]
    assert "wetness" not in inputs
    assert NOW_US not in inputs
    assert required(list_inputs(signature("wind"), schema)) == ["wind"]


def test_a_key_that_is_a_features_name_is_the_key():
    """A request gives such a name one value, and it is the key."""
    group = stores.schema().groups[0]
    schema = ServiceSchema("svc", (group,), (RequestField("tailnum", Float32),), ("seats",))
    assert list_inputs(signature("seats"), schema)["tailnum"].dtype is String


def test_remembered_by_what_the_plan_is_made_of():
    """The same signature and schema give the same answer; a republished schema a new one, and the plan is not kept."""
    catalog, schema, one = InputCatalog(), stores.schema(), signature("miles")
    plan = Plan(signature=one, schema=schema)
    first = catalog.of(plan)
    assert catalog.of(Plan(signature=one, schema=schema)) is first
    assert catalog.of(Plan(signature=one, schema=stores.schema())) is not first
    gone = weakref.ref(plan)
    del plan
    gc.collect()
    assert gone() is None


def test_memory_is_bounded():
    """However often a service is republished, only so many schemas are kept."""
    catalog = InputCatalog()
    for _ in range(300):
        catalog.of(Plan(signature=signature("miles"), schema=stores.schema()))
    assert len(catalog._known) <= 64
