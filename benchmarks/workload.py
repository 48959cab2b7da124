"""The workload of the HTTP benchmarks: one service of 23 float32 features, one forest of 100 trees x 31 leaves.

Made from a seed, so that every contender serves the same rows and the same model: a tiercel project, a plain LMDB file of
packed float32 rows, and the model as ONNX for the contenders that use onnxruntime.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import lightgbm
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel import Project
from tiercel.settings import Settings

N_FEATURES = 23
NAMES = [f"f{i}" for i in range(N_FEATURES)]
FEATURES_PY = f"""
from tiercel import Entity, FeatureService, FeatureView, Field, Float32, Int64, ParquetSource

user = Entity("user", join_keys=["user_id"], value_type=Int64)
rows = ParquetSource("rows", path="rows.parquet", timestamp_field="event_timestamp")
view = FeatureView("view", entities=[user], source=rows, schema=[Field(f"f{{i}}", Float32) for i in range({N_FEATURES})])
service = FeatureService("bench", features=[view])
"""


@dataclass(frozen=True)
class Workload:
    """Where everything is."""

    directory: Path
    n_rows: int

    @property
    def project(self) -> Path:
        return self.directory / "project"

    @property
    def lmdb(self) -> Path:
        return self.directory / "rows.mdb"

    @property
    def onnx(self) -> Path:
        return self.directory / "model.onnx"


def build(directory: Path, n_rows: int, *, with_onnx: bool, with_challenger: bool = False) -> Workload:
    """Write the rows, train the model, materialize and register it (twice with `with_challenger`)."""
    workload = Workload(directory, n_rows)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_rows, N_FEATURES)).astype(np.float32)
    train = rng.normal(size=(20_000, N_FEATURES)).astype(np.float32)
    target = (train[:, :4].sum(axis=1) + np.sin(3 * train[:, 4]) + rng.normal(size=len(train)) > 0).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=100, num_leaves=31, random_state=0, verbose=-1, n_jobs=1)
    model.fit(train, target, feature_name=NAMES)
    workload.project.mkdir(parents=True)
    (workload.project / "tiercel.toml").write_text('[project]\nname = "bench"\n')
    (workload.project / "features.py").write_text(FEATURES_PY)
    columns = {"user_id": np.arange(n_rows), **{name: rows[:, i] for i, name in enumerate(NAMES)}}
    table = pa.table(columns).append_column(
        "event_timestamp", pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * n_rows, pa.timestamp("us", "UTC"))
    )
    pq.write_table(table, workload.project / "rows.parquet")
    with Project(workload.project) as project:
        project.apply()
        project.materialize()
        for alias in (
            ("champion", "challenger") if with_challenger else ("champion",)
        ):  # twice the same model, so that promoting changes no answer
            project.register(model, name="bench", service="bench", golden_rows=train[:256], alias=alias, reuse=False)
    with lmdb.open(str(workload.lmdb), subdir=False, map_size=1 << 34) as env, env.begin(write=True) as txn:
        for i, row in enumerate(rows):
            txn.put(i.to_bytes(8, "big"), row.tobytes(), append=True)
    if with_onnx:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        kind = [("rows", FloatTensorType([None, N_FEATURES]))]
        converted = onnxmltools.convert_lightgbm(model, initial_types=kind, target_opset=12, zipmap=False)
        workload.onnx.write_bytes(converted.SerializeToString())
    return workload


def without_journal(workload: Workload) -> bool:
    """Make `project_unrecorded`: the same state, journal off. False: this tiercel has no journal to turn off."""
    if "journal" not in {each.name for each in fields(Settings)}:
        return False
    project = workload.directory / "project_unrecorded"
    project.mkdir(exist_ok=True)
    for name in ("features.py", "rows.parquet"):
        if not (project / name).exists():
            (project / name).symlink_to(workload.project / name)
    state = workload.project / ".tiercel"
    text = f'[project]\nname = "bench"\n[state]\npath = {json.dumps(str(state))}\n[journal]\nenabled = false\n'
    (project / "tiercel.toml").write_text(text)
    return True
