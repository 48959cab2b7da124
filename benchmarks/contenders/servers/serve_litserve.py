"""LitServe with one worker and one API server, ZeroMQ between them (`fast_queue`), no access log.

python serve_litserve.py PORT DIRECTORY
"""

import sys

import litserve
from scorer import Scorer


class Bench(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._scorer = Scorer(sys.argv[2])

    def decode_request(self, request: dict) -> int:
        return request["entities"]["user_id"]

    def predict(self, user_id: int) -> float:
        return self._scorer.score(user_id)

    def encode_response(self, score: float) -> dict:
        return {"score": score}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning",
        access_log=False,
    )  # fmt: skip
