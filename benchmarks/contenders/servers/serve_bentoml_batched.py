"""A BentoML service with adaptive batching: one worker, no access log, no metrics.

Started with `bentoml serve serve_bentoml_batched:Bench`; BENCH_DIRECTORY and BENCH_NETWORK say what is served, BENCH_ROWS and
BENCH_MS the largest batch and the latency it may cost.
"""

import os

import bentoml
import numpy as np
from scorer import BatchScorer


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Bench:
    def __init__(self) -> None:
        self._scorer = BatchScorer(os.environ["BENCH_DIRECTORY"], os.environ["BENCH_NETWORK"])

    @bentoml.api(
        route="/predict", batchable=True, max_batch_size=int(os.environ["BENCH_ROWS"]),
        max_latency_ms=int(os.environ["BENCH_MS"]),
    )  # fmt: skip
    async def predict(self, user_ids: list[int]) -> np.ndarray:
        return self._scorer.score(user_ids)
