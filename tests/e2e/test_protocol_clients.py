"""Clients that nobody here wrote, against a real server: tritonclient, and MLflow's scoring client.

Both are optional: what is not installed is skipped, by name. MLflow's client runs in a process of its own, because
importing it starts more than a test should have around, and with its telemetry off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import httpx
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.support import projects

from tiercel import Client, Project

ENTITIES = {"customer_id": [5, 17, 199], "shop": ["a", "b", "a"], "country": ["nl", "de", "nl"]}
FEATURES = {"amount": [0.5, 0.25, 0.125]}
PLAIN = ("x", "y", "z")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a model on a feature service and one without; yields (url, what each scores over /predict)."""
    directory = projects.ready_project(tmp_path_factory.mktemp("clients") / "project")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    model = LogisticRegression().fit(rows, rows.sum(axis=1) > 0)
    with Project(directory) as project:
        project.register(model, name="plain", feature_names=PLAIN, golden_rows=rows[:20], alias="champion")
    with projects.running_server(directory) as (url, _process):
        yield url, rows[:7]


@pytest.fixture(scope="module")
def triton(server):
    """The module of Triton's client, and a client of the server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import, which is not ours to mend
        http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(server[0].removeprefix("http://"))
    yield http, client
    client.close()


def keyed(http, *, binary):
    """Inputs of "fraud" as tritonclient makes them from arrays."""
    columns = {
        "customer_id": ("INT64", np.array(ENTITIES["customer_id"], np.int64)),
        "shop": ("BYTES", np.array(ENTITIES["shop"], np.object_)),
        "country": ("BYTES", np.array(ENTITIES["country"], np.object_)),
        "amount": ("FP32", np.array(FEATURES["amount"], np.float32)),
    }
    inputs = []
    for name, (datatype, values) in columns.items():
        made = http.InferInput(name, [3, 1], datatype)
        made.set_data_from_numpy(values.reshape(3, 1), binary_data=binary)
        inputs.append(made)
    return inputs


def expected(server, model, entities=None, features=None):
    with Client(server[0]) as client:
        return client.predict(model, entities=entities, features=features).scores


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_triton_by_keys(server, triton, binary, binary_output):
    """Triton's client gets exactly our scores by entity key, in binary or JSON, both ways."""
    http, client = triton
    outputs = None if binary_output is None else [http.InferRequestedOutput("score", binary_data=binary_output)]
    result = client.infer(
        "fraud", keyed(http, binary=binary), outputs=outputs, request_id="r7", timeout=5_000_000, priority=1
    )
    assert result.as_numpy("score").tolist() == list(expected(server, "fraud", ENTITIES, FEATURES))
    reply = result.get_response()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("r7", "fraud", "1")
    assert reply["parameters"]["tier"] == "realtime"


@pytest.mark.parametrize("datatype", [np.float32, np.float64])
def test_triton_by_vector(server, triton, datatype):
    """One matrix gives exactly our scores of the same values, NaN being a missing one where the model takes it."""
    http, client = triton
    rows = server[1].astype(datatype)
    made = http.InferInput("features", list(rows.shape), "FP32" if datatype is np.float32 else "FP64")
    made.set_data_from_numpy(rows)
    found = client.infer("plain", [made], model_version="1").as_numpy("score")
    columns = {name: rows[:, place].tolist() for place, name in enumerate(PLAIN)}
    assert found.tolist() == list(expected(server, "plain", features=columns))
    rows[2, 1] = np.nan
    made.set_data_from_numpy(rows)
    with pytest.raises(Exception, match="cannot score missing values") as caught:
        client.infer("plain@champion", [made])
    assert caught.value.status() == "400"


def test_triton_reads_what_the_server_says(server, triton):
    """Health, metadata, configuration, statistics and the index are what Triton's client takes them for."""
    http, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fraud")
    assert client.is_model_ready("fraud", "1")
    assert client.is_model_ready("fraud@champion")
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("fraud", "9")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("fraud")
    assert metadata["platform"] == "tiercel_forest"
    assert client.get_model_metadata("plain")["platform"] == "tiercel_linear"
    assert {each["name"] for each in metadata["inputs"]} == {*ENTITIES, *FEATURES}
    assert client.get_model_config("plain")["input"][0]["data_type"] == "TYPE_FP32"
    assert {each["name"] for each in client.get_model_repository_index()} == {"fraud", "plain"}
    before = client.get_inference_statistics("fraud")["model_stats"][0]["inference_count"]
    client.infer("fraud", keyed(http, binary=True))
    assert client.get_inference_statistics("fraud")["model_stats"][0]["inference_count"] == before + 3
    assert {each["name"] for each in client.get_inference_statistics()["model_stats"]} == {"fraud", "plain"}


def test_triton_reads_our_refusals(triton):
    """What the server refuses reaches Triton's client as its own exception, with our text."""
    http, client = triton
    inputs = keyed(http, binary=True)
    with pytest.raises(http.InferenceServerException, match="outputs that the model has"):
        client.infer("fraud", inputs, outputs=[http.InferRequestedOutput("label")])
    with pytest.raises(http.InferenceServerException, match="registered model"):
        client.infer("none", inputs)
    with pytest.raises(http.InferenceServerException, match="on its own"):
        client.infer("fraud", inputs, sequence_id=5, sequence_start=True)
    with pytest.raises(http.InferenceServerException, match="uncompressed"):
        client.infer("fraud", inputs, request_compression_algorithm="gzip")
    with pytest.raises(http.InferenceServerException, match="tiercel promote"):
        client.load_model("fraud")
    region = http.InferInput("amount", [3], "FP32")
    region.set_shared_memory("r", 12)
    with pytest.raises(http.InferenceServerException, match="shared memory"):
        client.infer("fraud", [region])


def test_triton_metadata_is_enough_to_ask(server, triton):
    """A client that knows nothing but the metadata can make a request that is answered, as load generators do."""
    http, client = triton
    metadata, config = client.get_model_metadata("plain"), client.get_model_config("plain")
    assert {each["name"] for each in config["input"]} <= {each["name"] for each in metadata["inputs"]}
    inputs = []
    for each in metadata["inputs"]:
        shape = [2 if size == -1 else size for size in each["shape"]]
        made = http.InferInput(each["name"], shape, each["datatype"])
        made.set_data_from_numpy(np.ones(shape, np.float32))
        inputs.append(made)
    result = client.infer("plain", inputs)
    assert result.as_numpy(metadata["outputs"][0]["name"]).shape == (2,)


MLFLOW = """
import json, sys
import numpy as np, pandas as pd
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
host, port = sys.argv[1].rsplit(":", 1)
client = ScoringServerClient(host, port)
client.wait_server_ready(timeout=10)
frame = pd.DataFrame(json.loads(sys.argv[2]))
gap = frame.copy()
gap.loc[1, "amount"] = np.nan
print(json.dumps({
    "version": client.get_version(),
    "frame": client.invoke(frame)["predictions"],
    "gap": client.invoke(gap)["predictions"],
    "records": client.invoke(json.dumps({"dataframe_records": frame.to_dict("records")}))["predictions"],
    "params": client.invoke(frame, params={"deadline_ms": 5000})["predictions"],
}))
"""


def test_mlflow_scoring_client(tmp_path):
    """MLflow's client gets exactly our scores for a data frame, the only model with a champion answering."""
    pytest.importorskip("mlflow")
    directory = projects.ready_project(tmp_path / "project")
    with projects.running_server(directory) as (url, _process):
        data = {**ENTITIES, **FEATURES}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", MLFLOW, url.removeprefix("http://"), json.dumps(data)],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        with Client(url) as client:
            scores = list(client.predict("fraud", entities=ENTITIES, features=FEATURES).scores)
            missing = list(client.predict("fraud", entities=ENTITIES, features={"amount": [0.5, None, 0.125]}).scores)
    assert found["frame"] == found["records"] == found["params"] == scores
    assert found["gap"] == missing
    assert found["version"]


def test_the_other_shapes_over_a_real_port(server):
    """V1, SageMaker's header and Feast's shape are reachable through the server's own HTTP path, beside /predict."""
    url, _ = server
    scores = list(expected(server, "fraud", ENTITIES, FEATURES))
    columns = {**ENTITIES, **FEATURES}
    with httpx.Client(base_url=url) as client:
        v1 = client.post("/v1/models/fraud:predict", json={"inputs": columns})
        sagemaker = client.post(
            "/invocations", json={"inputs": columns}, headers={"X-Amzn-SageMaker-Target-Model": "fraud@champion"}
        )
        feast = client.post("/get-online-features", json={"feature_service": "checkout", "entities": ENTITIES})
        assert client.get("/ping").status_code == 200
        assert client.post("/invocations", json={"inputs": columns}).json()["code"] == "invalid_request"
    assert v1.json() == {"outputs": scores}
    assert sagemaker.json() == {"predictions": scores}
    names, results = feast.json()["metadata"]["feature_names"], feast.json()["results"]
    assert results[names.index("n_orders")]["values"] == [5, None, 199]
    assert results[names.index("staff")]["values"] == [3, 5, 3]
