"""MLServer with a custom runtime in the server's own process, no metrics endpoint, no access log.

    python serve_mlserver.py PORT DIRECTORY

`parallel_workers` is 0: its documentation says that for light models the pool costs more than it brings.
"""

import asyncio
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from scorer import Scorer


class Bench(MLModel):
    async def load(self) -> bool:
        self._scorer = Scorer(sys.argv[2])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        score = self._scorer.score(int(payload.inputs[0].data[0]))
        output = ResponseOutput(name="score", shape=[1], datatype="FP64", data=[score])
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    port = int(sys.argv[1])
    settings = Settings(
        debug=False, host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_endpoint=None, parallel_workers=0,
        use_structured_logging=False, logging_settings={"version": 1, "loggers": {"": {"level": "WARNING"}}},
    )  # fmt: skip
    server = MLServer(settings)
    await server.start([ModelSettings(name="bench", implementation=Bench)])


if __name__ == "__main__":
    asyncio.run(main())
