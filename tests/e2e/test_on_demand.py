"""On-demand features from project to prediction: the vector that is served is the vector that was trained on, bit for bit."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from tests.features.projects import applied, times, us
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.features.training import get_historical_features
from tiercel.features.transforms import compile_transforms, compiled_dir
from tiercel.types import Signature, Task

TEXT = """
import math
import numpy as np
user = Entity('uid')
v = FeatureView('v', [user], [Field('x', Float64), Field('big', Int64), Field('f', Float32), Field('b', Bool)],
                ttl=timedelta(days=1), source=ParquetSource('events', 'events.parquet', timestamp_field='ts'))
r = RequestSource('r', [Field('amount', Float32), Field('exact', Float64), Field('flag', Bool), Field('count', Int64)])
DAY = 86_400_000_000

def share(a, b):
    return a / (a + b)

@on_demand_feature_view(sources=[v, r], schema=[Field(name, Float64) for name in ('p', 'q', 'hour', 'w')])
def mix(big, x, f, b, amount, exact, flag, count, now_us):
    hour = now_us % DAY / 3.6e9
    if math.isnan(x):
        w = -1.0
    elif flag and count > 3:
        w = math.sin(2 * math.pi * hour / 24) ** 2
    else:
        w = min(share(x, exact), np.floor(f * 1e6), 1e9)
    return big - 2 ** 53 + b, share(amount, f) * exact, hour, w

@on_demand_feature_view(sources=[r], schema=[Field('twice', Float32)])
def twice(exact):
    return exact * 2

s = FeatureService('s', [mix[['w', 'p', 'hour']], v[['f']], twice, r], on_missing_entity="null")
"""
NAMES = [f"u{i}" for i in range(40)]


class Scorer:
    """Keeps the rows it is given."""

    def __init__(self, n_features):
        self.n_features, self.n_outputs = n_features, 1

    def score(self, rows):
        self.rows = rows.copy()
        return np.zeros((len(rows), 1))


def some(rng, values):
    """The values with some missing."""
    return [None if rng.random() < 0.2 else value for value in values]


@pytest.mark.parametrize("path", ["python", "json"])
def test_served_vectors_are_the_training_vectors(tmp_path, path):
    """Random stored and sent values, some missing, stale or unknown: both sides give the same float32 bits."""
    rng = np.random.default_rng(3)
    n = len(NAMES)
    events = pa.table(
        {
            "uid": NAMES,
            "ts": times([us(2) if rng.random() < 0.7 else us(1) - 1 for _ in NAMES]),
            "x": some(rng, (rng.normal(size=n) * 1e3).tolist()),
            "big": some(rng, (2**53 + rng.integers(-9, 2**54, n)).tolist()),
            "f": pa.array(some(rng, rng.normal(size=n).tolist()), pa.float32()),
            "b": some(rng, (rng.random(n) < 0.5).tolist()),
        }
    )
    catalog, state = applied(tmp_path, TEXT, events=events)
    asked = [*NAMES, "nobody"]
    sent = {
        "amount": some(rng, rng.normal(size=n + 1).tolist()),
        "exact": some(rng, (rng.normal(size=n + 1) * 1e5).tolist()),
        "flag": some(rng, (rng.random(n + 1) < 0.5).tolist()),
        "count": some(rng, rng.integers(-9, 9, n + 1).tolist()),
    }
    now_us = us(2) + 12_345_678_901
    labels = pa.table({"uid": asked, "event_timestamp": times([now_us] * (n + 1)), **sent})
    trained = get_historical_features(catalog, state, labels, "s")
    materialize(state, catalog, ["s"], as_of_us=now_us)
    base = OnlineBase.open(state / "features" / "s")
    scorer = Scorer(len(trained.feature_names))
    signature = Signature(trained.feature_names, Task.BINARY, ("0", "1"))
    transforms = compile_transforms(base.schema, compiled_dir(state))
    plan = ServingPlan("m", 1, signature, scorer, base.schema, base, transforms=transforms)
    if path == "python":
        plan.predict({"uid": asked}, sent, now_us)
    else:
        rows = []
        for index, name in enumerate(asked):
            features = {field: column[index] for field, column in sent.items()}
            body = json.dumps({"entities": {"uid": name}, "features": features}).encode()
            assert plan.answer(body, 0, now_us, ReplyIds(100)) is not None
            rows.append(scorer.rows)
        scorer.rows = np.concatenate(rows)
    assert scorer.rows.tobytes() == np.ascontiguousarray(trained.X).tobytes()
    assert np.isfinite(trained.X).mean() > 0.5
    assert datetime.fromtimestamp(now_us / 1e6, tz=UTC).hour == int(trained.X[0, 2])
