"""Ray Serve: one replica of one CPU, its HTTP proxy in front, no dashboard, no access log.

python serve_ray.py PORT DIRECTORY
"""

import signal
import sys
import threading

import ray
from ray import serve
from starlette.requests import Request

DIRECTORY = sys.argv[2]
HERE = sys.path[0]


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False},
)
class Bench:
    def __init__(self, directory: str, here: str) -> None:
        sys.path.insert(0, here)
        from scorer import Scorer

        self._scorer = Scorer(directory)

    async def __call__(self, request: Request) -> dict:
        body = await request.json()
        return {"score": self._scorer.score(body["entities"]["user_id"])}


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False}
    )
    serve.run(Bench.bind(DIRECTORY, HERE), route_prefix="/predict")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
