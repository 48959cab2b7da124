"""NannyML's side of bench_estimation, run by NannyML's own interpreter.

    python nannyml_peer.py DIRECTORY CHUNK

`DIRECTORY/*.npz` hold cases: reference_scores, reference_labels, scores, labels. The data sets in NannyML's wheel are written
beside them as more cases. `DIRECTORY/nannyml.json` gets, per case and metric, [estimated, realized] of each chunk, and seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import nannyml
import numpy as np
import pandas as pd

METRICS = ["roc_auc", "f1", "precision", "recall", "accuracy"]


def bundled(directory: Path) -> None:
    """The wheel's data: real employment in Massachusetts (2014 model, 2015 reference, 2016-18), and made-up car loans."""
    for name, load, score, label in (
        ("census", nannyml.load_us_census_ma_employment_data, "predicted_probability", "employed"),
        ("car loan", nannyml.load_synthetic_car_loan_dataset, "y_pred_proba", "repaid"),
    ):
        reference, analysis, targets = load()
        np.savez(
            directory / f"{name}.npz",
            reference_scores=reference[score].to_numpy(float),
            reference_labels=reference[label].to_numpy(float),
            scores=analysis[score].to_numpy(float),
            labels=analysis[["id"]].merge(targets, on="id")[label].to_numpy(float),
        )


def frame(scores: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"proba": scores, "decision": (scores >= 0.5).astype(int), "label": labels.astype(int)})


def main() -> None:
    warnings.simplefilter("ignore")
    directory, chunk = Path(sys.argv[1]), int(sys.argv[2])
    bundled(directory)
    found: dict[str, object] = {"version": metadata.version("nannyml")}
    for path in sorted(directory.glob("*.npz")):
        case = np.load(path)
        reference = frame(case["reference_scores"], case["reference_labels"])
        analysis = frame(case["scores"], case["labels"])
        start = time.perf_counter()
        estimator = nannyml.CBPE(
            y_pred_proba="proba", y_pred="decision", y_true="label", metrics=METRICS, chunk_size=chunk,
            problem_type="classification_binary",
        )  # fmt: skip
        estimator.fit(reference)
        result = estimator.estimate(analysis.drop(columns="label")).filter(period="analysis").to_df()
        seconds = time.perf_counter() - start
        found[path.stem] = {
            "seconds": seconds,
            **{name: [None if pd.isna(v) else float(v) for v in result[(name, "value")]] for name in METRICS},
        }
    (directory / "nannyml.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
