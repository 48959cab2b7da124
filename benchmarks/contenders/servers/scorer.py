"""What every hand-written server and every peer does for a request: entity key -> LMDB row -> onnxruntime -> score.

Runs in the peers' own environments, so it imports nothing of tiercel or of this package.
"""

from pathlib import Path

import lmdb
import numpy as np
import onnxruntime


class Scorer:
    """One thread's model and rows. The options are those that give the lowest latency for one small row."""

    def __init__(self, directory: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = str(Path(directory) / "model.onnx")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._outputs = [self._session.get_outputs()[1].name]
        env = lmdb.open(str(Path(directory) / "rows.mdb"), subdir=False, readonly=True, lock=False)
        self._txn = env.begin(buffers=True)

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
