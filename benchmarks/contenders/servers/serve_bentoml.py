"""A BentoML service: one worker, an `async` API, no batching, no access log, no metrics.

Started with `bentoml serve serve_bentoml:Bench`; the directory is in BENCH_DIRECTORY. A synchronous API would go through a
thread pool.
"""

import os

import bentoml
from scorer import Scorer


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Bench:
    def __init__(self) -> None:
        self._scorer = Scorer(os.environ["BENCH_DIRECTORY"])

    @bentoml.api(route="/predict")
    async def predict(self, user_id: int) -> dict:
        return {"score": self._scorer.score(user_id)}
