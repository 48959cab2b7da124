"""Feature reads in process: one row and 100 rows of 23 float32 out of a million, random keys, warm page cache.

    python -m benchmarks.bench_feature_read [--rows N] [--feast] [--feast-rows N] [--smoke]

Contenders: the compiled reader called from Python (`read_one`, `read_many`), the same through `OnlineBase.read_vectors`,
and py-lmdb `get` + `numpy.frombuffer` per row over the same file. With `--feast`, Feast's Python SDK on its SQLite online
store, in a virtual environment of its own made on demand, with the same rows. Every contender's answers are compared
with the source table before anything is timed. Closed loop, one thread; the time of an empty call is not subtracted.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe, percentiles
from tiercel.features.base import write_base
from tiercel.features.layout import RowLayout
from tiercel.features.online import OnlineBase, ReadStatus
from tiercel.types import Column, DType, GroupSchema, KeyColumn, ServiceSchema, ViewSchema

N_FEATURES = 23
BATCH = 100
NAMES = tuple(f"f{i:02d}" for i in range(N_FEATURES))
NOW_US = 1_700_000_000_000_000
PEER = Path(__file__).with_name("feast_peer.py")


def service() -> ServiceSchema:
    group = GroupSchema(
        "entity",
        (KeyColumn("id", DType.INT64),),
        (ViewSchema("view", 10**15, "benchmark"),),
        tuple(Column(name, DType.FLOAT32, 0) for name in NAMES),
    )
    return ServiceSchema("bench", (group,), (), NAMES)


def make_rows(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    ids = rng.permutation(np.unique(rng.integers(0, 2**62, n_rows + n_rows // 100))[:n_rows])
    return ids, rng.normal(size=(len(ids), N_FEATURES)).astype(np.float32)


def timed(call, arguments) -> list[float]:
    """Microseconds of each `call(argument)`."""
    clock, samples = time.perf_counter_ns, []
    for argument in arguments:
        start = clock()
        call(argument)
        samples.append((clock() - start) / 1e3)
    return samples


def rss_mb() -> tuple[float, float]:
    """(private, shared file) resident megabytes; Linux only."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    except (FileNotFoundError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0.0


def report(name: str, samples: list[float], baseline: float | None = None) -> float:
    p50 = sorted(samples)[len(samples) // 2]
    ratio = "" if baseline is None else f"  x{p50 / baseline:.2f}"
    print(f"  {name:<34} {percentiles(samples)}{ratio}", flush=True)
    return p50


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Feature reads in process")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--feast", action="store_true", help="also measure Feast's Python SDK, in its own environment")
    parser.add_argument("--feast-rows", type=int, default=100_000, help="rows loaded into Feast (loading is slow)")
    parser.add_argument("--feast-venv", type=Path, help="where Feast is, or is to be, installed")
    parser.add_argument("--smoke", action="store_true", help="a few rows, to show that it runs")
    options = parser.parse_args(arguments)
    n_rows, n_calls = (2_000, 300) if options.smoke else (options.rows, 100_000)
    print(describe("lmdb", "numpy", "pyarrow"))
    with tempfile.TemporaryDirectory() as scratch:
        ids, values = make_rows(n_rows)
        directory = Path(scratch) / "bench"
        table = pa.table(
            {"id": ids, **dict(zip(NAMES, values.T, strict=True)), "__event_us_0": np.full(n_rows, NOW_US)}
        )
        start = time.perf_counter()
        manifest = write_base(directory, service(), [table], categories={}, as_of_us=NOW_US, catalog="bench")
        wrote_s = time.perf_counter() - start
        start = time.perf_counter()
        base = OnlineBase.open(directory)
        opened_s = time.perf_counter() - start
        print(
            f"{n_rows:,} rows x {N_FEATURES} float32: written, verified and published in {wrote_s:.2f} s "
            f"({manifest.size_bytes / 1e6:.0f} MB); opened with digest check in {opened_s:.2f} s"
        )
        del table
        measure(base, directory, ids, values, n_calls)
        if options.feast:
            measure_feast(base, ids, values, options, Path(scratch))


def measure(base: OnlineBase, directory: Path, ids: np.ndarray, values: np.ndarray, n_calls: int) -> None:
    rng = np.random.default_rng(11)
    picks = rng.integers(0, len(ids), n_calls)
    batches = rng.integers(0, len(ids), (max(n_calls // 50, 20), BATCH))
    keys = [(int(i) + 2**63).to_bytes(8, "big") for i in ids]
    reader = base.group_reader(0, NAMES, range(N_FEATURES))
    out, many = np.empty(N_FEATURES, np.float32), np.empty((BATCH, N_FEATURES), np.float32)

    # py-lmdb reads a copy: one process must not open one file through two bindings.
    copy = directory / "copy"
    shutil.copy(directory / base.manifest.base_name, copy)
    layout = RowLayout.of(base.schema.groups[0])
    with (
        lmdb.open(str(copy), subdir=False, readonly=True, lock=False, readahead=False) as env,
        env.begin(buffers=True) as txn,
    ):

        def plain_one(key: bytes) -> np.ndarray:
            return np.frombuffer(txn.get(b"\0" + key), "<f4", N_FEATURES, layout.offsets[0])

        def plain_many(batch: list[bytes]) -> np.ndarray:
            for i, key in enumerate(batch):
                many[i] = np.frombuffer(txn.get(b"\0" + key), "<f4", N_FEATURES, layout.offsets[0])
            return many

        for row in picks[:1000]:
            assert reader.read_one(keys[row], NOW_US, out) == ReadStatus.OK
            assert np.array_equal(out, values[row])
            assert np.array_equal(plain_one(keys[row]), values[row])
        for rows in batches[:20]:
            batch = [keys[row] for row in rows]
            assert set(reader.read_many(batch, NOW_US, many)) == {ReadStatus.OK}
            assert np.array_equal(many, values[rows])
            assert np.array_equal(plain_many(batch), values[rows])
            assert np.array_equal(base.read_vectors({"id": ids[rows].tolist()}, NOW_US).values, values[rows])

        key_batches = [[keys[row] for row in rows] for rows in batches]
        one_keys = [keys[row] for row in picks]
        print("one row")
        ours = report("tiercel read_one", timed(lambda key: reader.read_one(key, NOW_US, out), one_keys))
        report("py-lmdb get + frombuffer", timed(plain_one, one_keys), ours)
        entities = [{"id": [int(ids[row])]} for row in picks[: n_calls // 5]]
        report("tiercel read_vectors (general)", timed(lambda e: base.read_vectors(e, NOW_US), entities), ours)
        report("tiercel read_values (typed)", timed(lambda e: base.read_values(e, NOW_US), entities), ours)
        print(f"{BATCH} rows")
        ours = report("tiercel read_many", timed(lambda batch: reader.read_many(batch, NOW_US, many), key_batches))
        sorted_batches = [sorted(batch) for batch in key_batches]
        report(
            "tiercel read_many, keys sorted", timed(lambda b: reader.read_many(b, NOW_US, many), sorted_batches), ours
        )
        report("py-lmdb get + frombuffer", timed(plain_many, key_batches), ours)
        entities = [{"id": ids[rows].tolist()} for rows in batches]
        report("tiercel read_vectors (general)", timed(lambda e: base.read_vectors(e, NOW_US), entities), ours)

    before = rss_mb()
    for key in keys:
        reader.read_one(key, NOW_US, out)
    after = rss_mb()
    print(
        f"memory: reading all {len(keys):,} rows of a {base.manifest.size_bytes / 1e6:.0f} MB base changed private memory by "
        f"{after[0] - before[0]:+.1f} MB (page cache mapped: {after[1]:.0f} MB)"
    )


def measure_feast(
    base: OnlineBase, ids: np.ndarray, values: np.ndarray, options: argparse.Namespace, scratch: Path
) -> None:
    """Feast's figures and their ratios to ours on the same rows, read with the same keys."""
    venv = options.feast_venv or scratch / "feast-venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "feast", "pandas"], check=True)
    n = min(20 if options.smoke else options.feast_rows, len(ids))
    columns = {"id": ids[:n], **dict(zip(NAMES, values[:n].T, strict=True))}
    pq.write_table(pa.table(columns), scratch / "rows.parquet")
    done = subprocess.run(
        [str(python), str(PEER), str(scratch / "rows.parquet"), str(scratch / "feast"), "30" if options.smoke else "2000"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peer = json.loads(done.stdout.splitlines()[-1])
    reader = base.group_reader(0, NAMES, range(N_FEATURES))
    keys = [(int(i) + 2**63).to_bytes(8, "big") for i in ids[:n]]
    out, many = np.empty(N_FEATURES, np.float32), np.empty((BATCH, N_FEATURES), np.float32)
    rows = [row for row, _ in peer["checked"]]
    for row, got in peer["checked"]:
        reader.read_one(keys[row], NOW_US, out)
        assert np.array_equal(out, np.array(got, np.float32)), f"Feast and tiercel differ in row {row}"
    rng = np.random.default_rng(13)
    print(
        f"Feast {peer['version']} Python SDK, SQLite online store, {n:,} rows (loaded in {peer['load_s']:.0f} s), same values in {len(rows)} rows"
    )
    for name, samples, call, arguments in (
        (
            "1 row",
            peer["one_us"],
            lambda key: reader.read_one(key, NOW_US, out),
            [keys[i] for i in rng.integers(0, n, 20_000)],
        ),
        (
            f"{BATCH} rows",
            peer["many_us"],
            lambda batch: reader.read_many(batch, NOW_US, many),
            [[keys[i] for i in batch] for batch in rng.integers(0, n, (2_000, BATCH))],
        ),
    ):
        ours = report(f"tiercel, {name}", timed(call, arguments))
        report(f"feast, {name}", samples, ours)


if __name__ == "__main__":
    main()
