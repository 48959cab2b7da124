"""What the scratch process measures is what a server does, on rows a server would see."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
import pytest
from tests.features.projects import applied, times, us
from tests.models.trained import finite_table, gemm, lightgbm_bytes
from tests.support import stores
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel import models
from tiercel.errors import ArtifactCorruptError, UnsupportedModelError
from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.models import StoredFeatures, measure, scratch
from tiercel.models.golden import Golden
from tiercel.models.measuring import READING
from tiercel.serving.measure import Effort, body_of, representative, sample
from tiercel.types import Signature, Task

FEATURES = ("rain", "seats", "delay", "hour", "night", "cabin")


@pytest.fixture(scope="module")
def mlp():
    """Artifacts of a network that onnxruntime serves."""
    sklearn_network = pytest.importorskip("sklearn.neural_network")
    X, y, *_ = finite_table()
    fitted = sklearn_network.MLPClassifier((32, 32), max_iter=30, tol=1e9, random_state=0).fit(X[:300] / 10, y[:300])
    return models.prepare(fitted, golden_rows=X[:64] / 10).artifacts


@pytest.fixture(scope="module")
def forest():
    """Artifacts of a forest over six of the features that `stores` publishes or a request brings."""
    rows = np.abs(np.random.default_rng(0).normal(size=(32, 6))).astype(np.float32)
    return models.prepare(lightgbm_bytes(), feature_names=FEATURES, golden_rows=rows).artifacts


def stored(state_dir, name="svc", fingerprint=None):
    return StoredFeatures(state_dir, name, fingerprint or stores.schema(name=name).fingerprint)


def test_a_network_costs_less_per_row_in_batches(mlp):
    """A model served by onnxruntime gets a whole profile, and its curve falls per row: batching it pays."""
    found = measure(mlp)
    assert [rows for rows, _, _ in found.curve] == [1 << k for k in range(10)]
    per_row = [p50 / rows for rows, p50, _ in found.curve]
    assert per_row[-1] < per_row[0] / 4
    assert per_row[3] < per_row[0]
    assert found.n_samples >= 2000
    assert found.read is None
    assert not found.quick
    assert found.host == models.this_host()
    assert abs(found.measured_us / 1e6 - time.time()) < 60
    assert found.load_ms > 0
    assert 0 < found.memory_mb < 500
    assert found.score.p50_us > 0
    assert 0 < found.total.p50_us < 10_000


def test_a_service_is_read_from_its_live_base(tmp_path, forest):
    """With a published base the read of one entity is measured, and stored features are not sent."""
    stores.publish(tmp_path / "features")
    found = measure(forest, stored=stored(tmp_path), quick=True)
    assert found.read is not None
    assert 0 < found.read.p50_us < 100
    assert found.quick


ON_DEMAND = """
user = Entity('uid')
v = FeatureView('v', [user], [Field('x', Float64)], source=ParquetSource('events', 'events.parquet', timestamp_field='ts'))
r = RequestSource('r', [Field('amount', Float32)])

@on_demand_feature_view(sources=[v, r], schema=[Field('share', Float64)])
def mix(x, amount):
    return x / (x + amount)

s = FeatureService('s', [mix, r])
"""


def test_on_demand_features_are_computed_while_measuring(tmp_path):
    """A service with compiled transforms is measured with them, from the keys and what only the transform needs."""
    events = pa.table({"uid": ["a", "b"], "ts": times([us(2)] * 2), "x": [1.0, 2.0]})
    catalog, state = applied(tmp_path, ON_DEMAND, events=events)
    materialize(state, catalog, ["s"], as_of_us=us(3))
    schema = catalog.service("s")
    artifacts = models.prepare(gemm(1, 1), feature_names=("share",)).artifacts
    found = measure(artifacts, stored=StoredFeatures(state, "s", schema.fingerprint), quick=True)
    assert found.read is not None


@pytest.mark.parametrize("what", ["nothing published", "another schema", "no such service"])
def test_without_a_base_every_feature_comes_with_the_request(tmp_path, forest, what):
    """A version can be registered before its service is materialized: it is measured without reading."""
    if what == "another schema":
        stores.publish(tmp_path / "features", stores.schema("error"))
    found = measure(forest, stored=stored(tmp_path, "none" if what == "no such service" else "svc"), quick=True)
    assert found.read is None
    assert found.total.p50_us > 0


def test_a_damaged_base_is_not_the_models_fault(tmp_path, forest):
    """A base that cannot be read leaves the model measured without it."""
    manifest = stores.publish(tmp_path / "features")
    path = tmp_path / "features" / "svc" / manifest.base_name
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert measure(forest, stored=stored(tmp_path), quick=True).read is None


def test_a_crash_while_reading_is_measured_again_without(tmp_path, forest, monkeypatch):
    """Whatever brings the process down while it reads the base, the second try does without; elsewhere it is refused."""
    jobs = []
    real = scratch.run

    def run(module, job, *rest):
        jobs.append(job)
        if job["stored"] is not None:
            raise scratch.ScratchError("crashed with SIGBUS", READING)
        return real(module, job, *rest)

    monkeypatch.setattr("tiercel.models.measuring.run", run)
    assert measure(forest, stored=stored(tmp_path), quick=True).read is None
    assert [job["stored"] is None for job in jobs] == [False, True]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the process that measured it crashed with SIGSEGV"),
        ("import time; time.sleep(60)", r"took longer than its 1 s"),
        ("import sys; sys.stderr.write('std::bad_alloc'); sys.exit(1)", "8 GiB of memory"),
        ('print(\'{"result": {"n_samples": 1}}\')', "figures of a measurement"),
        ("print('{\"result\": 7}')", "figures of a measurement"),
    ],
)
def test_a_model_that_takes_its_process_down_is_refused(forest, monkeypatch, script, message):
    """A crash, a hang, hunger and nonsense are errors of the model that name the bound; this process goes on."""
    monkeypatch.setattr(scratch, "command", lambda _: [scratch.sys.executable, "-P", "-c", script])
    with pytest.raises(UnsupportedModelError, match=message):
        measure(forest, timeout_s=1)


def test_memory_of_the_real_measurement_is_bounded(mlp):
    """The process that measures obeys the bound on its memory: with too little of it the bound is what is named."""
    with pytest.raises(UnsupportedModelError, match=r"more than its 0\.0625 GiB of memory"):
        measure(mlp, memory_bytes=64 << 20)


def test_foreign_artifacts_are_their_own_error(forest):
    """What `load` refuses is refused as itself."""
    with pytest.raises(ArtifactCorruptError):
        measure({**forest, "model.json": b"{}"})
    with pytest.raises(ArtifactCorruptError):
        measure({name: data for name, data in forest.items() if name != "golden.msgpack"})


def test_nothing_but_the_model_is_written_to_the_scratch_directory(forest, monkeypatch):
    """Files of a version that loading does not need, whatever they are called, stay where they are."""
    seen = {}

    def run(_module, job, directory, _limits):
        seen.update({path.name: path.read_bytes() for path in directory.iterdir()})
        assert job["files"] == sorted(seen)
        raise scratch.ScratchError("stopped", "here")

    monkeypatch.setattr("tiercel.models.measuring.run", run)
    with pytest.raises(UnsupportedModelError, match="stopped while here"):
        measure({**forest, "../escape": b"x", "reference.msgpack": b"y"})
    assert seen == forest


def test_bodies_lead_to_the_rows_they_were_made_of(tmp_path):
    """A body brings what the service does not store, in the field's own type, and the plan answers it the compiled way."""
    stores.publish(tmp_path)
    base = OnlineBase.open(tmp_path / "svc")
    signature = Signature(FEATURES, Task.REGRESSION)
    keys = {"tailnum": "N1", "origin": "EWR", "gate": 3}
    row = np.float32([0.1, 9, 9, 7.6, 1, 1])
    body = json.loads(body_of(signature, row, base.schema, keys))
    assert body == {"entities": keys, "features": {"hour": 7, "rain": 0.1, "night": True, "cabin": "coach"}}
    missing = json.loads(body_of(signature, np.full(6, np.nan, np.float32), base.schema, keys))
    assert missing["features"] == dict.fromkeys(("hour", "rain", "night", "cabin"))
    scorer = models.load(models.prepare(lightgbm_bytes()).artifacts).scorer
    plan = ServingPlan("m", 1, signature, scorer, base.schema, base)
    ids = ReplyIds(1)
    for values in (row, np.full(6, np.nan, np.float32), np.float32([1e30, 0, 0, 1e30, -5, 99])):
        assert plan.answer(body_of(signature, values, base.schema, keys), 0, stores.NOW_US, ids) is not None
    alone = ServingPlan("m", 1, signature, scorer)
    assert alone.answer(body_of(signature, row, None, {}), 0, stores.NOW_US, ids) is not None
    assert json.loads(body_of(signature, row, None, {}))["features"]["rain"] == 0.1


def test_representative_rows_hold_what_callers_send():
    """Infinities and denormals of generated rows become 0, and missing values only where the model refuses them."""
    rows = np.float32([[np.inf, -np.inf, 1e-40, -1e-45, np.nan, 1.5, -0.0]])
    np.testing.assert_array_equal(
        representative(rows, accepts_missing=True), np.float32([[0, 0, 0, 0, np.nan, 1.5, 0]])
    )
    assert not np.isnan(representative(rows, accepts_missing=False)).any()


def test_models_that_refuse_missing_values_are_measured():
    """Golden rows with missing values of a model that cannot score them do not stop its measurement."""
    linear = pytest.importorskip("sklearn.linear_model")
    X, y, *_ = finite_table()
    artifacts = models.prepare(linear.LogisticRegression().fit(X, y)).artifacts
    assert np.isnan(Golden.from_bytes(artifacts["golden.msgpack"]).rows).any()
    assert measure(artifacts, quick=True).total.p50_us > 0


def test_sampling_is_bounded_by_time_and_by_number():
    """Quick calls are sampled for the soft time, slower ones until there are enough, slow ones until the hard time."""
    assert len(sample([lambda: None], Effort(enough=10, soft_s=0.01, hard_s=1.0))) > 100
    assert len(sample([lambda: time.sleep(0.002)], Effort(enough=10, soft_s=0.005, hard_s=5.0))) == 10
    assert len(sample([lambda: time.sleep(0.01)], Effort(enough=1000, soft_s=0.001, hard_s=0.02))) == 5
    found = sample([lambda: time.sleep(0.002)], Effort(enough=5, soft_s=0.001, hard_s=1.0))
    assert found.min() >= 2_000_000
