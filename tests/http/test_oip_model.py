"""What a model looks like to Open Inference Protocol clients where the server computes some of its vector."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.ext.test_vector import AGE, MIX, make_plan
from tests.support import stores
from tests.support.protocols import FixedEngine, Wire

from tiercel.features.online import OnlineBase
from tiercel.serving.routes import ModelRoutes, Routes

FEATURES = ["rain", "delay_half", "seats"]
INFER = "/v2/models/late/infer"


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    directory = tmp_path_factory.mktemp("features")
    engine = FixedEngine(directory)
    stores.publish(directory, replace(stores.schema(name="computed"), transforms=(MIX, AGE)))
    plan, _, _ = make_plan(OnlineBase.open(directory / "computed"), FEATURES)
    engine.routes = Routes.build({"late": ModelRoutes({1: plan}, {"champion": 1})}, {}, ())
    return Wire(engine)


def test_a_vector_that_cannot_be_sent_is_not_offered(wire):
    """Metadata and configuration list inputs by name, and the configuration says what of the vector is computed."""
    listed = [each["name"] for each in wire.get("/v2/models/late").json()["inputs"]]
    assert listed == ["tailnum", "rain"]  # what is stored need not be sent
    parameters = wire.get("/v2/models/late/config").json()["parameters"]
    assert parameters["features"]["string_value"] == ",".join(FEATURES)
    assert parameters["computed_features"]["string_value"] == "delay_half"


@pytest.mark.parametrize("as_raw", [True, False])
def test_a_vector_with_computed_features_is_refused(wire, as_raw):
    """The refusal says which of its values cannot be sent, and the inputs that bring them."""
    row = np.zeros((1, 3), "<f4")
    entry = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": row.tolist()}
    reply = (
        wire.post(INFER, row.tobytes(), inference_header_content_length="0")
        if as_raw
        else wire.post(INFER, {"inputs": [entry]})
    )
    assert (reply.status_code, reply.json()["code"]) == (400, "computed_feature")
    assert "delay_half" in reply.json()["error"]
    assert "tailnum, rain" in reply.json()["error"]


def test_its_inputs_by_name_are_answered(wire):
    """What the refusal and the metadata say to send is enough."""
    inputs = [
        {"name": "tailnum", "datatype": "BYTES", "shape": [1], "data": ["N1"]},
        {"name": "rain", "datatype": "FP32", "shape": [1], "data": [0.5]},
    ]
    reply = wire.post(INFER, json.dumps({"inputs": inputs}).encode())
    assert reply.status_code == 200, reply.text
