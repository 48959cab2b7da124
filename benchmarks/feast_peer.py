"""Feast's side of bench_feature_read, run by Feast's own interpreter: load rows into its SQLite online store, time reads.

    python feast_peer.py ROWS.parquet SCRATCH_DIRECTORY N_CALLS

The last line printed is JSON: version, load_s, one_us, many_us (samples), checked ([row number, 23 values] pairs).
"""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
import time
from importlib import metadata
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32
from feast.value_type import ValueType

BATCH = 100


def main() -> None:
    rows, scratch, n_calls = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    scratch.mkdir(parents=True, exist_ok=True)
    frame = pd.read_parquet(rows)
    names = [name for name in frame.columns if name != "id"]
    frame["event_timestamp"] = pd.Timestamp.now(tz="UTC").floor("s")
    source_path = scratch / "source.parquet"
    frame.to_parquet(source_path)
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=str(scratch / "registry.db"),
            online_store={"type": "sqlite", "path": str(scratch / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="view",
        entities=[entity],
        ttl=dt.timedelta(days=3650),
        schema=[Field(name=name, dtype=Float32) for name in names],
        source=FileSource(path=str(source_path), timestamp_field="event_timestamp"),
    )
    store.apply([entity, view])
    start = time.perf_counter()
    store.write_to_online_store("view", frame)
    load_s = time.perf_counter() - start
    features = [f"view:{name}" for name in names]
    ids = frame["id"].tolist()
    pick = random.Random(3)

    def read(keys: list[int]) -> object:
        return store.get_online_features(features=features, entity_rows=[{"id": key} for key in keys])

    checked = []
    for row in pick.sample(range(len(ids)), min(20, len(ids))):
        got = read([ids[row]]).to_dict()
        checked.append([row, [got[name][0] for name in names]])

    def timed(batches: list[list[int]]) -> list[float]:
        samples = []
        for batch in batches:
            begin = time.perf_counter_ns()
            read(batch)
            samples.append((time.perf_counter_ns() - begin) / 1e3)
        return samples

    one = [[pick.choice(ids)] for _ in range(n_calls)]
    many = [[pick.choice(ids) for _ in range(BATCH)] for _ in range(max(n_calls // 10, 5))]
    timed(one[:20])
    print(
        json.dumps(
            {
                "version": metadata.version("feast"),
                "load_s": load_s,
                "one_us": timed(one),
                "many_us": timed(many),
                "checked": checked,
            }
        )
    )


if __name__ == "__main__":
    main()
