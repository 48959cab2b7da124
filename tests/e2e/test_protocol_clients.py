"""Clients that nobody here wrote, against a real server: tritonclient, MLflow's scoring client, Feast's remote store.

MLflow and Feast run in processes of their own, because importing them starts more than a test should have around, and with
their telemetry off. Neither is light, and both want other versions of what we use: each gets an environment of its own, made
once for a session, unless the variable TIERCEL_MLFLOW_PYTHON or TIERCEL_FEAST_PYTHON names the interpreter of one that is
there. Where it cannot be made the test is skipped, but not in CI (the variable CI is "true"): there it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
        from tritonclient import http
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


@contextmanager
def compiled_path(server):
    """What is asked within is answered by the compiled path, all of it."""

    def counts():
        return httpx.get(f"{server[0]}/readyz").json()["fast_path"]

    before = counts()
    yield
    after = counts()
    assert after["answered"] > before["answered"]
    assert after["handed_on"] == before["handed_on"] + 1  # this very question


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_triton_by_keys(server, triton, binary, binary_output):
    """Triton's client gets exactly our scores by entity key, in binary or JSON, both ways."""
    http, client = triton
    outputs = None if binary_output is None else [http.InferRequestedOutput("score", binary_data=binary_output)]
    with compiled_path(server):
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
    with compiled_path(server):
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


#: What is installed for each client; pinned, because what they send is what is tested.
PACKAGES = {"mlflow": ("mlflow-skinny==3.17.2", "pandas>=2.2", "scipy>=1.13"), "feast": ("feast==0.67.0",)}
INSTALL_S = 300  # 30 s on an idle machine


@pytest.fixture(scope="session")
def interpreters():
    """Gives the Python that has a client, by its name. All environments are made at once, the first time one is asked for."""
    made = {}
    # Not pytest's directory, which keeps what the last three sessions left: half a gigabyte each.
    place = tempfile.TemporaryDirectory(prefix="tiercel-clients-", ignore_cleanup_errors=True)
    with place as root, ThreadPoolExecutor(len(PACKAGES)) as pool:

        def find(client):
            if not made:
                for name, packages in PACKAGES.items():
                    if not os.environ.get(variable_of(name)):
                        made[name] = pool.submit(make_environment, Path(root, name), packages)
            named = os.environ.get(variable_of(client))
            return named or outcome_of(client, *made[client].result())

        yield find


def variable_of(client):
    """What may name the interpreter of an environment that is there."""
    return f"TIERCEL_{client.upper()}_PYTHON"


def outcome_of(client, python, why_not):
    """The interpreter; where there is none, the test ends."""
    if python is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"No environment for {client}'s client: {why_not}")
    return python


def make_environment(directory, packages):
    """A virtual environment with these packages; returns (its Python, None), or (None, why there is none)."""
    python = directory / ("Scripts" if os.name == "nt" else "bin") / "python"
    options = ["--quiet", "--no-compile", "--disable-pip-version-check", "--no-input"]
    # Our own pip saves the seconds that giving the new environment one of its own takes.
    commands = [
        [sys.executable, "-m", "venv", "--without-pip", directory],
        [sys.executable, "-m", "pip", "--python", python, "install", *options, *packages],
    ]
    try:
        for command in commands:
            subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=INSTALL_S, check=True)
    except subprocess.CalledProcessError as error:
        return None, (error.stderr or error.stdout).strip()[-500:]
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return python, None


def clean_environ():
    """The environment without what would shadow another interpreter's own packages."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}


def run(python, script, *arguments):
    """What a client printed as JSON."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "FEAST_USAGE": "False"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, arguments)],
        env={**clean_environ(), **quiet},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_cannot_be_installed_fails_in_ci_alone(tmp_path, monkeypatch, ci, outcome):
    """A client that cannot be installed is no reason to skip in CI, where nobody would notice; elsewhere it is."""
    monkeypatch.setenv("CI", ci)
    made = make_environment(tmp_path / "env", ["./no-such-directory"])
    with pytest.raises(outcome, match=r"No environment for nobody's client: .*no-such-directory"):
        outcome_of("nobody", *made)


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


def test_mlflow_scoring_client(tmp_path, interpreters):
    """MLflow's client gets exactly our scores for a data frame, the only model with a champion answering."""
    python = interpreters("mlflow")
    directory = projects.ready_project(tmp_path / "project")
    with projects.running_server(directory) as (url, _process):
        data = {**ENTITIES, **FEATURES}
        found = run(python, MLFLOW, url.removeprefix("http://"), json.dumps(data))
        with Client(url) as client:
            scores = list(client.predict("fraud", entities=ENTITIES, features=FEATURES).scores)
            missing = list(client.predict("fraud", entities=ENTITIES, features={"amount": [0.5, None, 0.125]}).scores)
    assert found["frame"] == found["records"] == found["params"] == scores
    assert found["gap"] == missing
    assert found["version"]


FEAST = """
import json, sys, pathlib
from datetime import timedelta
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32, Int64, String
from feast.value_type import ValueType
root = pathlib.Path(sys.argv[2])
store = FeatureStore(config=RepoConfig(
    project="shop", provider="local", registry=str(root / "registry.db"), entity_key_serialization_version=3,
    online_store={"type": "remote", "path": sys.argv[1]}, offline_store={"type": "file"},
))
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
view = FeatureView(
    name="customer_orders", entities=[customer], ttl=timedelta(0),
    schema=[Field(name="customer_id", dtype=Int64), Field(name="n_orders", dtype=Int64),
            Field(name="mean_amount", dtype=Float32), Field(name="plan", dtype=String)],
    source=FileSource(path=sys.argv[3], timestamp_field="ordered_at"),
)
store.apply([customer, view])
names = ["customer_orders:n_orders", "customer_orders:mean_amount", "customer_orders:plan"]
rows = [{"customer_id": key} for key in (5, 17, 199, 10_000)]
found = store.get_online_features(features=names, entity_rows=rows)
full = store.get_online_features(features=names[:1], entity_rows=rows[:1], full_feature_names=True)
print(json.dumps([found.to_dict(), full.to_dict()]))
"""


def test_feast_remote_store(server, tmp_path, interpreters):
    """A Feast feature store whose online store is this server reads the values that we serve, missing ones as None."""
    python = interpreters("feast")
    url, _ = server
    path = tmp_path / "orders.parquet"
    pq.write_table(
        pa.table({
            "customer_id": pa.array([1]), "n_orders": pa.array([1]), "mean_amount": pa.array([1.0], pa.float32()),
            "plan": pa.array(["pro"]), "ordered_at": pa.array([projects.START], pa.timestamp("us", "UTC")),
        }),
        path,
    )  # fmt: skip
    found, full = run(python, FEAST, url, tmp_path, path)
    with Client(url) as client:
        rows = client.features(
            "checkout", {"customer_id": [5, 17, 199], "shop": "a", "country": "nl"},
            features=["n_orders", "mean_amount", "plan"],
        ).to_dicts()  # fmt: skip
    for name in ("n_orders", "mean_amount", "plan"):
        assert found[name] == [*(row[name] for row in rows), None]
    assert found["n_orders"] == [5, None, 199, None]
    assert full["customer_orders__n_orders"] == [5]


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
