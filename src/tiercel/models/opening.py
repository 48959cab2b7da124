"""Files and bytes that somebody hands over are opened in a scratch process before this one trusts them.

An estimator in memory has run in this process already; a file has not, and the libraries that read it are native code.
The scratch process (`tiercel.models.canary`) does the whole of `prepare`: reading, comparing, packaging. This process
sees the packaged files only, and checks that the model among them is, byte for byte, the one it handed over.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import UnsupportedModelError
from tiercel.models.formats import FILE_NAME
from tiercel.models.parity import ParityReport
from tiercel.models.preparing import FACTS_FILE, FALLBACK_FILE, GOLDEN_FILE, PreparedModel
from tiercel.models.scratch import MEMORY_BYTES, Limits, ScratchError, run, scratch_directory
from tiercel.models.sources import open_source
from tiercel.types import Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Two libraries score 20,000 rows; the largest forests take minutes.
OPENING_TIMEOUT_S = 600.0
ROWS_FILE, TRAINING_FILE, SCORES_FILE, OUTPUT_DIR = "rows.npy", "training.npy", "scores.npy", "prepared"


def is_file(model: Any) -> bool:
    """Whether a model is a path or bytes, and not an estimator."""
    return isinstance(model, str | Path | bytes | bytearray | memoryview)


def prepare_file(
    model: str | Path | bytes | bytearray | memoryview,
    *,
    feature_names: Sequence[str] | None = None,
    golden_rows: NDArray[np.float32] | None = None,
    training_rows: NDArray[np.float32] | None = None,
    timeout_s: float = OPENING_TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> PreparedModel:
    """`prepare` for a file or bytes, in a scratch process.

    Args:
        model: a path, or the content.
        feature_names: as for `prepare`.
        golden_rows: as for `prepare`.
        training_rows: as for `prepare`.
        timeout_s: of wall clock and of processor time.
        memory_bytes: of address space.

    Raises:
        UnsafeModelError, UnsupportedModelError, ParityError, MissingExtraError: as `prepare`.
        UnsupportedModelError: also when the process crashed, or overran a bound, which is named.
        ModelError: no scratch directory or process can be made.
    """
    source = open_source(model, None)  # tells the format by its first bytes; nothing is parsed
    name = FILE_NAME[source.format]
    files = {name: source.data}
    for file_name, rows in ((ROWS_FILE, golden_rows), (TRAINING_FILE, training_rows)):
        if rows is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(rows, dtype=np.float32), allow_pickle=False)
            files[file_name] = buffer.getvalue()
    with scratch_directory(files) as directory:
        job = {
            "directory": str(directory),
            "model": name,
            "feature_names": None if feature_names is None else [str(each) for each in feature_names],
            "has_rows": golden_rows is not None,
            "has_training_rows": training_rows is not None,
        }
        try:
            told = run("tiercel.models.canary", job, directory, Limits(timeout_s, timeout_s, memory_bytes=memory_bytes))
        except ScratchError as error:
            raise UnsupportedModelError(
                f"Expected a model file that can be opened, but the process that opened it {error}."
            ) from None
        n_rows = None if training_rows is None else len(training_rows)
        return _packaged(source.data, name, directory / OUTPUT_DIR, told, n_rows)


def _packaged(data: bytes, name: str, directory: Path, told: Any, n_rows: int | None) -> PreparedModel:
    """What the process said and left behind, with the model's own bytes from here."""
    artifacts = {name: data}
    try:
        for known in (FALLBACK_FILE, GOLDEN_FILE, FACTS_FILE):
            path = directory / known
            if path.is_file() and not path.is_symlink():
                artifacts[known] = path.read_bytes()
        facts = json.loads(artifacts[FACTS_FILE])
        signature, every = Signature.from_json(facts["signature"]), int(told["scored_every"])
        if every < 1:
            raise ValueError(f"every {every}th row")  # noqa: TRY301 - one handler for everything
        shape = None if n_rows is None else (-(-n_rows // every), signature.n_outputs)
        return PreparedModel(
            artifacts=artifacts,
            signature=signature,
            engine=facts["engine"],
            reason=str(facts["reason"]),
            parity=ParityReport.from_json(facts["parity"]),
            hyperparameters=dict(told["hyperparameters"]),
            scores=None if shape is None else _scores(directory / SCORES_FILE, shape),
            scored_every=every,
        )
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise UnsupportedModelError(
            f"Expected a packaged model from the process that opened it, got something else: {error!r}"
        ) from error


def _scores(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """What the process scored.

    Raises:
        OSError, EOFError, ValueError: it did not, or something else.
    """
    if path.is_symlink():
        raise ValueError(f"a link at {path.name}")
    with path.open("rb") as stream:
        scores = np.load(stream, allow_pickle=False)
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float64 or scores.shape != shape:
        raise ValueError(f"scores that are not float64 of shape {shape}")
    return scores
