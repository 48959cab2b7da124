"""Labels of predictions: accepting, collecting and joining them, and converting the journal that the predictions come from.

One million rows go through the journal and its conversion; copies of them under other ids make the prediction table as large as
asked. A label for each arrives in random order through the label store, some twice, some corrected, some of unknown ids, in as
many rounds as there are millions. The question is then what a report asks: rows, labels and the sum of score x label per version.

Everyone gives the same answer, which NumPy knew beforehand. Plain DuckDB is the floor: the join alone, of files that have each
label once and are known not to need more. pandas reads the same files.

    python -m benchmarks label_join [--smoke] [--rows 10000000] [--threads 2] [--repeat 3] [--directory DIR]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds

from benchmarks.machine import describe
from tiercel.monitor.labels import LabelStore
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.recording import Recorder
from tiercel.settings import JournalSettings, MonitorSettings
from tiercel.types import Signature, Task

N_FEATURES = 23
BATCH = 10_000
DAY_US = 86_400_000_000
SETTINGS = MonitorSettings(predictions_max_bytes=1 << 50, retention_days=36_500)
Answer = dict[int, tuple[int, int, float]]


def prefix(copy: int) -> str:
    """What the ids of a copy begin with."""
    return f"{copy:016x}"


def write_predictions(state: Path, n_rows: int, now_us: int) -> np.ndarray:
    """Answer requests of one row; returns the scores. The journal is converted on the way, as a control process would."""
    random = np.random.default_rng(1)
    signature = Signature(tuple(f"f{i}" for i in range(N_FEATURES)), Task.BINARY, ("0", "1"))
    recorder = Recorder(state, 0, prefix(0), JournalSettings(max_bytes=1 << 40))
    plans = [recorder.for_plan("late", version, signature) for version in (1, 2)]
    rows = random.normal(size=(1000, N_FEATURES)).astype(np.float32)
    scores = random.random((n_rows, 1))
    table, seconds = PredictionTable(state, SETTINGS), 0.0
    for number in range(n_rows):
        if number % 200 == 0:
            while recorder._journal.wants_segment:  # noqa: SLF001 - faster than any load would be
                time.sleep(0.001)
        at = number % len(rows)
        plans[number % 2].add(
            rows[at : at + 1], scores[number : number + 1], number=number, received_us=now_us - number % 3 * DAY_US
        )
    recorder.close()
    if recorder.counters.get("journal_dropped"):
        raise RuntimeError("The journal could not keep up")
    start = time.perf_counter()
    converted = table.convert(now_us)
    seconds = time.perf_counter() - start
    print(
        f"converting {converted:,} journaled rows of {N_FEATURES} features: {seconds:.2f} s, {converted / seconds:,.0f} rows/s"
    )
    return scores[:, 0]


def copy_predictions(state: Path, n_copies: int, threads: int) -> None:
    """The same rows under other ids, in files of the same size."""
    connection = duckdb.connect(config={"threads": threads})
    for path in sorted((state / "predictions").rglob("*.parquet")):
        for copy in range(1, n_copies):
            target = path.with_name(f"copy-{copy}-{path.name}")
            connection.execute(
                f"COPY (SELECT * REPLACE ('{prefix(copy)}' || substr(id, 17) AS id) "
                f"FROM read_parquet('{path}', hive_partitioning = false)) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
            )


def tell_labels(state: Path, labels: list[np.ndarray], now_us: int) -> None:
    """A label for every row, a copy's at a time; 5 % wrong at first, 2 % twice, 1 % more of unknown ids."""
    random = np.random.default_rng(2)
    store = LabelStore(state)
    told_s = collected_s = 0.0
    n_events = 0
    for copy, truth in enumerate(labels):
        order = random.permutation(len(truth))
        wrong, twice = order[: len(order) // 20], order[: len(order) // 50]
        events = [{"id": f"{prefix(copy)}{number:x}", "label": 1 - int(truth[number])} for number in wrong.tolist()]
        events += [{"id": f"{prefix(copy)}{number:x}", "label": int(truth[number])} for number in order.tolist()]
        events += [{"id": f"{prefix(copy)}{number:x}", "label": int(truth[number])} for number in twice.tolist()]
        events += [{"id": f"{'f' * 16}1{copy:04x}{number:06x}", "label": 1} for number in range(len(order) // 100)]
        start = time.perf_counter()
        for at in range(0, len(events), BATCH):
            if store.append(events[at : at + BATCH], now_us).refused:
                raise RuntimeError("An event was refused")
        told_s += time.perf_counter() - start
        start = time.perf_counter()
        n_events += store.collect(SETTINGS, now_us)
        collected_s += time.perf_counter() - start
    store.close()
    ledger = store.ledger()
    print(f"accepting {n_events:,} events, {BATCH:,} with one sync: {told_s:.2f} s, {n_events / told_s:,.0f} events/s")
    print(
        f"collecting them in {ledger.round} rounds: {collected_s:.2f} s, {n_events / collected_s:,.0f} events/s; "
        f"{len(ledger.parts)} files\n  {ledger.totals}"
    )


def run_tiercel(state: Path, threads: int) -> Answer:
    with PredictionTable(state, SETTINGS).connect(threads=threads) as connection:
        return _answer(
            connection.execute(
                "SELECT version, count(*), count(label), sum(score * label) FROM outcomes WHERE NOT is_shadow GROUP BY version"
            ).fetchall()
        )


def run_duckdb(state: Path, threads: int) -> Answer:
    connection = duckdb.connect(config={"threads": threads})
    return _answer(
        connection.execute(
            f"SELECT version, count(*), count(l.label), sum(score * l.label) "
            f"FROM read_parquet('{state}/predictions/*/*/*.parquet') p LEFT JOIN '{state}/labels.parquet' l "
            f'ON p.id = l.id AND p."row" = l."row" WHERE NOT is_shadow GROUP BY version'
        ).fetchall()
    )


def run_pandas(state: Path, _threads: int) -> Answer:
    columns = ["id", "row", "version", "score", "is_shadow"]
    predictions = ds.dataset(state / "predictions" / "model=late", partitioning="hive").to_table(columns).to_pandas()
    labels = ds.dataset(state / "labels.parquet").to_table(["id", "row", "label"]).to_pandas()
    joined = predictions[~predictions.is_shadow].merge(labels, on=["id", "row"], how="left")
    joined["product"] = joined.score * joined.label
    grouped = joined.groupby("version").agg(n=("id", "size"), labelled=("label", "count"), total=("product", "sum"))
    return _answer(grouped.itertuples())


def _answer(rows: object) -> Answer:
    return {int(version): (int(n), int(labelled), float(total)) for version, n, labelled, total in rows}  # type: ignore[attr-defined]


def _check(name: str, answer: Answer, expected: Answer) -> None:
    for version, (n, labelled, total) in expected.items():
        found = answer[version]
        if found[:2] != (n, labelled) or abs(found[2] - total) > 1e-9 * abs(total):
            raise RuntimeError(f"{name} answers {found} for version {version}, expected {(n, labelled, total)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--directory", help="where the workload goes; default: the system's temporary directory")
    options = parser.parse_args(arguments)
    n_base = 1_000_000
    if options.smoke:
        options.rows, options.repeat, n_base = 20_000, 1, 10_000
    n_copies = max(1, options.rows // n_base)
    n_base = options.rows // n_copies
    print(describe("duckdb", "pyarrow", "pandas"))
    print(f"{n_copies * n_base:,} predictions of {N_FEATURES} features, {options.threads} threads")
    now_us = time.time_ns() // 1000
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        state = Path(temporary)
        scores = write_predictions(state, n_base, now_us)
        copy_predictions(state, n_copies, options.threads)
        labels = [np.random.default_rng(100 + copy).random(n_base) < 0.3 for copy in range(n_copies)]
        tell_labels(state, labels, now_us)
        product = sum(np.where(each, scores, 0.0) for each in labels)
        expected = {
            version: (n_copies * len(product[version - 1 :: 2]), n_copies * len(product[version - 1 :: 2]), float(product[version - 1 :: 2].sum()))
            for version in (1, 2)
        }  # fmt: skip
        duckdb.execute(f"COPY ({LabelStore(state).query()}) TO '{state}/labels.parquet' (FORMAT parquet)")
        contenders = {"tiercel outcomes": run_tiercel, "duckdb, join alone": run_duckdb, "pandas merge": run_pandas}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.repeat):  # interleaved, so that a noisy minute hits everyone
            for name, run in contenders.items():
                start = time.perf_counter()
                answer = run(state, options.threads)
                seconds[name].append(time.perf_counter() - start)
                _check(name, answer, expected)
    print("all answers equal")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:20s} median {median:7.2f} s   min {min(taken):7.2f}   max {max(taken):7.2f}")


if __name__ == "__main__":
    main()
