"""The other side of `tiercel.models.opening`: `python -m tiercel.models.canary` prepares one file within its limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiercel.models.opening import OUTPUT_DIR, ROWS_FILE, SCORES_FILE, TRAINING_FILE
from tiercel.models.scratch import answer

if TYPE_CHECKING:
    from collections.abc import Callable


def open_model(job: dict[str, Any], stage: Callable[[str], None]) -> dict[str, Any]:
    """Prepare the file and leave what was made of it in the directory; returns what is not in files."""
    import numpy as np

    from tiercel.models.preparing import prepare

    directory = Path(job["directory"])
    rows = np.load(directory / ROWS_FILE, allow_pickle=False) if job["has_rows"] else None
    training = np.load(directory / TRAINING_FILE, mmap_mode="r") if job["has_training_rows"] else None
    stage("it was read and compared with the library that defines its answers")
    prepared = prepare(
        directory / job["model"], feature_names=job["feature_names"], golden_rows=rows, training_rows=training
    )
    stage("its files were written")
    output = directory / OUTPUT_DIR
    output.mkdir(mode=0o700)
    for name, content in prepared.artifacts.items():
        if name != job["model"]:
            (output / name).write_bytes(content)
    if prepared.scores is not None:
        np.save(output / SCORES_FILE, prepared.scores, allow_pickle=False)
    return {"hyperparameters": prepared.hyperparameters, "scored_every": prepared.scored_every}


if __name__ == "__main__":
    answer(open_model)
