"""MLServer with a custom runtime and adaptive batching, in the server's own process; no metrics endpoint, no access log.

python serve_mlserver_batched.py PORT DIRECTORY NETWORK BATCH_ROWS BATCH_MS
"""

import asyncio
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from scorer import BatchScorer


class Bench(MLModel):
    async def load(self) -> bool:
        self._scorer = BatchScorer(sys.argv[2], sys.argv[3])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        scores = self._scorer.score([int(user) for user in payload.inputs[0].data])
        output = ResponseOutput(name="score", shape=[len(scores)], datatype="FP32", data=scores.tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    port, rows, ms = int(sys.argv[1]), int(sys.argv[4]), float(sys.argv[5])
    settings = Settings(
        debug=False, host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_endpoint=None, parallel_workers=0,
        use_structured_logging=False, logging_settings={"version": 1, "loggers": {"": {"level": "WARNING"}}},
    )  # fmt: skip
    model = ModelSettings(name="bench", implementation=Bench, max_batch_size=rows, max_batch_time=ms / 1000)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
