"""Evidently's and NannyML's side of bench_delay, each run by its own interpreter.

    python delay_chunk_peer.py census RESULT.npz N_NULL N_CHANGED N_ROWS      NannyML's data as streams
    python delay_chunk_peer.py evidently|nannyml STREAMS.npz RESULT.json CHUNK

STREAMS.npz holds X, score and y of each stream and of `<set>/reference`. The result holds, per way of looking, the statistic
of each chunk: the larger, the more it looks like a change. Which is an alarm is for bench_delay to say, for all alike.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import numpy as np
import pandas as pd

N_REFERENCE = 5_000


def census(path: str, n_null: int, n_changed: int, n_rows: int) -> None:
    """Employment in Massachusetts, from NannyML's wheel: 2015, in whose streams nothing changes, and then 2016 to 2018."""
    import nannyml

    before, after, targets = nannyml.load_us_census_ma_employment_data()
    after = after.merge(targets, on="id")
    names = [name for name in before if name not in {"id", "employed", "year", "prediction", "predicted_probability"}]
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}

    def keep(name: str, rows: pd.DataFrame) -> None:
        codes = [rows[n].astype("float32") if n == "AGEP" else rows[n].astype("category").cat.codes for n in names]
        found[f"{name}/X"] = np.stack([np.asarray(each, np.float32) for each in codes], axis=1)
        found[f"{name}/score"] = rows["predicted_probability"].to_numpy(float)
        found[f"{name}/y"] = rows["employed"].to_numpy(float)

    both = pd.concat([before, after])
    for name in names:  # the same codes in every stream
        if name != "AGEP":
            kinds = pd.CategoricalDtype(sorted(both[name].astype(str).unique()))
            before[name], after[name] = before[name].astype(str).astype(kinds), after[name].astype(str).astype(kinds)
    order = rng.permutation(len(before))
    keep("Census/reference", before.iloc[order[:N_REFERENCE]])
    rest = order[N_REFERENCE:]
    for i in range(n_null):
        keep(f"Census/null/{i}", before.iloc[rng.choice(rest, n_rows)])
    for i in range(n_changed):
        begin = int(rng.integers(0, len(after) - n_rows))
        first = before.iloc[rng.choice(rest, n_rows // 2)]
        keep(f"Census/change/{i}", pd.concat([first, after.iloc[begin : begin + n_rows - n_rows // 2]]))
    np.savez(path, **found)


def chunks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[at : at + size] for at in range(0, len(values) - size + 1, size)]


def columns_of(streams: object, name: str) -> np.ndarray:
    """Features, score, label and error of a stream's rows."""
    score, y = streams[f"{name}/score"], streams[f"{name}/y"]
    return np.column_stack([streams[f"{name}/X"], score, y, (score >= 0.5) != (y > 0.5)])


class Evidently:
    """Its default tests for references beyond 1,000 rows, largest score over the columns; and of the column of errors."""

    def __init__(self, reference: np.ndarray) -> None:
        from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
        from evidently.legacy.core import ColumnType

        self._columns = [pd.Series(column) for column in reference.T]
        few, many = (jensenshannon_stat_test, ColumnType.Categorical), (wasserstein_stat_test, ColumnType.Numerical)
        self._tests = [few if column.nunique() <= 5 else many for column in self._columns]

    def look(self, now: np.ndarray) -> dict[str, float]:
        scores = [
            float(test(column, pd.Series(values), kind, None).drift_score)
            for column, values, (test, kind) in zip(self._columns, now.T, self._tests, strict=True)
        ]
        return {"any column": max(scores), "the errors": scores[-1]}


class NannyML:
    """Jensen-Shannon per column as its defaults choose it, the largest; and realized accuracy and AUC by its calculator."""

    def __init__(self, reference: np.ndarray) -> None:
        from nannyml.chunk import SizeBasedChunker
        from nannyml.drift.univariate.methods import CategoricalJensenShannonDistance, ContinuousJensenShannonDistance
        from nannyml.performance_calculation.metrics.binary_classification import (
            BinaryClassificationAccuracy,
            BinaryClassificationAUROC,
        )
        from nannyml.thresholds import StandardDeviationThreshold

        threshold = StandardDeviationThreshold()
        self._methods = []
        for column in reference[:, :-1].T:
            is_few = len(np.unique(column)) <= 10
            kind = CategoricalJensenShannonDistance if is_few else ContinuousJensenShannonDistance
            method = kind(chunker=SizeBasedChunker(500), threshold=threshold)
            self._methods.append((method.fit(self._series(column, is_few)), is_few))
        self._figures = []
        for kind in (BinaryClassificationAccuracy, BinaryClassificationAUROC):
            figure = kind(y_true="y", y_pred="decision", y_pred_proba="score", threshold=threshold)
            self._figures.append((figure, figure.calculate(self._frame(reference))))

    def look(self, now: np.ndarray) -> dict[str, float]:
        apart = [method.calculate(self._series(c, few)) for (method, few), c in zip(self._methods, now.T, strict=False)]
        frame = self._frame(now)
        (accuracy, usual), (auc, usual_auc) = self._figures
        return {
            "any column": float(np.nanmax(apart)),
            "realized accuracy": abs(accuracy.calculate(frame) - usual),
            "realized AUC": abs(auc.calculate(frame) - usual_auc),
        }

    @staticmethod
    def _series(column: np.ndarray, is_few: bool) -> pd.Series:
        series = pd.Series(column, name="column")
        return series.astype("category") if is_few else series

    @staticmethod
    def _frame(rows: np.ndarray) -> pd.DataFrame:
        score, y = rows[:, -3], rows[:, -2]
        return pd.DataFrame({"score": score, "y": y.astype(int), "decision": (score >= 0.5).astype(int)})


def main() -> None:
    warnings.simplefilter("ignore")
    what = sys.argv[1]
    if what == "census":
        census(sys.argv[2], *map(int, sys.argv[3:6]))
        return
    streams, size = np.load(sys.argv[2]), int(sys.argv[4])
    make = {"evidently": Evidently, "nannyml": NannyML}[what]
    found: dict[str, object] = {"version": metadata.version(what)}
    names = sorted({name.rpartition("/")[0] for name in streams.files})
    for kind in dict.fromkeys(name.partition("/")[0] for name in names):
        detector = make(columns_of(streams, f"{kind}/reference"))
        for name in names:
            if name.startswith(f"{kind}/") and name != f"{kind}/reference":
                for chunk in chunks(columns_of(streams, name), size):
                    for way, statistic in detector.look(chunk).items():
                        found.setdefault(way, {}).setdefault(name, []).append(statistic)
    Path(sys.argv[3]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
