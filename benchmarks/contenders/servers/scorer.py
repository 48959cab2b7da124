"""What every hand-written server and every peer does for a request: entity key -> LMDB row -> onnxruntime -> score.

Runs in the peers' own environments, so it imports nothing of tiercel or of this package.
"""

from pathlib import Path

import lmdb
import numpy as np
import onnxruntime


def session_options() -> onnxruntime.SessionOptions:
    """One thread that does not spin: what gives the lowest latency for few small rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_rows(directory: str) -> lmdb.Transaction:
    """A transaction over the rows: 8 bytes of a user's number -> packed float32."""
    env = lmdb.open(str(Path(directory) / "rows.mdb"), subdir=False, readonly=True, lock=False)
    return env.begin(buffers=True)


class Scorer:
    """One thread's model and rows."""

    def __init__(self, directory: str) -> None:
        model = str(Path(directory) / "model.onnx")
        self._session = onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
        self._outputs = [self._session.get_outputs()[1].name]
        self._txn = open_rows(directory)

    def score(self, user_id: int) -> float:
        """Probability of the second class.

        Raises:
            KeyError: no such row.
        """
        stored = self._txn.get(user_id.to_bytes(8, "big"))
        if stored is None:
            raise KeyError(user_id)
        row = np.frombuffer(stored, dtype=np.float32).reshape(1, -1)
        return float(self._session.run(self._outputs, {"rows": row})[0][0, 1])


class BatchScorer:
    """Rows and a network `name`.onnx of the directory (x -> y), for the servers that put requests together."""

    def __init__(self, directory: str, name: str) -> None:
        self._session = onnxruntime.InferenceSession(
            str(Path(directory) / f"{name}.onnx"), session_options(), providers=["CPUExecutionProvider"]
        )
        self._txn = open_rows(directory)

    def score(self, user_ids: "list[int]") -> np.ndarray:
        """float32 (n,): one score for each.

        Raises:
            KeyError: no such row.
        """
        rows = np.empty((len(user_ids), self._session.get_inputs()[0].shape[1]), np.float32)
        for i, user_id in enumerate(user_ids):
            stored = self._txn.get(user_id.to_bytes(8, "big"))
            if stored is None:
                raise KeyError(user_id)
            rows[i] = np.frombuffer(stored, np.float32)
        return self._session.run(["y"], {"x": rows})[0][:, 0]
