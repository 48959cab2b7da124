"""Replay: predictions over swaps of models and bases, made again from their receipts and compared bit for bit.

    python -m benchmarks.bench_replay [--predictions N] [--swaps N] [--smoke]

Like the flights of the demo: a stored row and three features of the request, an on-demand transform of both, a forest of
100 x 31, missing values. --predictions are made while the champion and the base are swapped --swaps times each: JSON and
msgpack bodies through the compiled path, some with many rows, some through the general path. Then the journal is converted
to receipts and all of them are replayed, with their explanations. Anything but 0 differences ends it with an error.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import lightgbm
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiercel._hot.reply import ReplyIds

from benchmarks.machine import describe
from tiercel import Project
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.recording import Recorder
from tiercel.serving.engine import Engine
from tiercel.serving.receipts import read_all
from tiercel.serving.recorded import explain_again
from tiercel.serving.replaying import Replayer
from tiercel.types import TrainingSnapshot

N_STORED, N_PLANES = 18, 2000
NOW_US = 1_767_400_000_000_000
FEATURES_PY = f"""
from tiercel import (
    Entity, FeatureService, FeatureView, Field, Float32, Int64, ParquetSource, RequestSource, on_demand_feature_view
)

plane = Entity("plane", join_keys=["plane_id"], value_type=Int64)
rows = ParquetSource("rows", path="rows.parquet", timestamp_field="event_timestamp")
view = FeatureView("view", entities=[plane], source=rows, schema=[Field(f"f{{i}}", Float32) for i in range({N_STORED})])
flight = RequestSource("flight", schema=[Field("distance", Float32), Field("hour", Int64), Field("wind", Float32)])

@on_demand_feature_view(sources=[view, flight], schema=[Field("pace", Float32), Field("rush", Float32)])
def derived(f0: float, f1: float, distance: float, hour: float) -> tuple[float, float]:
    return distance / (1.0 + f0 * f0), hour * f1

service = FeatureService("flights", features=[view, flight, derived])
"""
NAMES = [*(f"f{i}" for i in range(N_STORED)), "distance", "hour", "wind", "pace", "rush"]


def write_rows(directory: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(N_PLANES, N_STORED)).astype(np.float32)
    missing = rng.random(rows.shape) < 0.05
    columns = {f"f{i}": pa.array(rows[:, i], mask=missing[:, i]) for i in range(N_STORED)}
    times = pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * N_PLANES, pa.timestamp("us", "UTC"))
    pq.write_table(
        pa.table({"plane_id": np.arange(N_PLANES), **columns, "event_timestamp": times}), directory / "rows.parquet"
    )


def register(project: Project, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(5000, len(NAMES))).astype(np.float32)
    target = (train[:, :4].sum(axis=1) + np.sin(3 * train[:, 4]) + rng.normal(size=len(train)) > 0).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=100, num_leaves=31, random_state=seed, verbose=-1, n_jobs=1)
    model.fit(train, target, feature_name=NAMES)
    project.register(
        model, name="late", service="flights", feature_names=NAMES, golden_rows=train[:64], alias="champion", measure=False,
        snapshot=TrainingSnapshot(source="bench", n_rows=len(train), digest=f"{seed:064x}"),
    )  # fmt: skip


def predict(engine: Engine, ids: ReplyIds, n: int, rng: np.random.Generator) -> int:
    """About `n` predictions of what serves now; returns how many requests they were."""
    plan = engine.find_plan("late")
    assert plan is not None
    for i in range(n):
        n_rows = int(rng.integers(2, 20)) if i % 50 == 0 else 0
        shape = n_rows or None
        entities = {"plane_id": rng.integers(0, N_PLANES, shape).tolist() if n_rows else int(rng.integers(0, N_PLANES))}
        wind = None if i % 7 == 0 and not n_rows else rng.normal(size=shape)
        features = {"distance": rng.normal(size=shape), "hour": rng.integers(0, 24, shape), "wind": wind}
        plain = {name: None if value is None else np.asarray(value).tolist() for name, value in features.items()}
        question = {"entities": entities, "features": plain}
        if i % 10 == 9:
            plan.reply(entities, plain, NOW_US + i, 0, ids)
            continue
        body = msgpack.packb(question) if i % 3 == 0 else json.dumps(question).encode()
        if plan.answer(body, 1 if i % 3 == 0 else 0, NOW_US + i, ids) is None:
            raise SystemExit(f"Expected the compiled path to answer {question}, it handed it on")
    return n


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    n, swaps = (200, 1) if options.smoke else (options.predictions, options.swaps)
    print(describe("lightgbm", "numba"))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "tiercel.toml").write_text(f'[project]\nname = "flights"\n[state]\nkeep_bases = {swaps + 1}\n')
        (directory / "features.py").write_text(FEATURES_PY)
        write_rows(directory, 0)
        with Project(directory) as project:
            project.apply()
            project.materialize()
            register(project, 0)
            settings, ids = project.settings, ReplyIds(10_000)
            recorder = Recorder(settings.state_dir, 0, ids.prefix, settings.journal)
            engine = Engine(settings, project.registry, recorder)
            made, parts = 0, 2 * swaps + 1
            for part in range(parts):
                if part % 2:
                    write_rows(directory, part)
                    project.materialize()
                elif part:
                    register(project, part)
                engine.refresh()
                made += predict(engine, ids, n // parts + (part < n % parts), rng)
            dropped = recorder.counters.get("journal_dropped")
            recorder.close()
            began_s = time.perf_counter()
            PredictionTable(settings.state_dir, settings.monitor).convert()
            converted_s = time.perf_counter() - began_s
            n_bytes = sum(path.stat().st_size for path in (settings.state_dir / "receipts").rglob("*.parquet"))
            replayer = Replayer(settings, project.registry, explain_again(settings))
            counts: Counter[str] = Counter()
            bound = set()
            began_s = time.perf_counter()
            for receipts in read_all(settings):
                found = replayer.replay(receipts)
                counts[f"{found.verdict} from the {found.source}"] += 1
                counts[f"reasons {found.reasons.verdict}"] += 1
                bound.add((found.version, found.base))
            took_s = time.perf_counter() - began_s
    print(
        f"  {made:,} predictions, {len({v for v, _ in bound})} versions, {len({b for _, b in bound})} bases, {dropped} dropped"
    )
    print(
        f"  receipts: {n_bytes / max(1, made):.0f} bytes each; conversion, the prediction table with it, {converted_s:.1f} s"
    )
    print(f"  replayed in {took_s:.1f} s, {1e6 * took_s / max(1, made):.0f} us each: {dict(counts)}")
    if counts["equal from the request"] != made - dropped or counts["reasons equal"] != made - dropped:
        raise SystemExit("Expected every prediction to be equal from its request, reasons with it")


if __name__ == "__main__":
    main()
