"""Triton through nvidia-pytriton: the Python backend's callable, no batching, no metrics.

python serve_pytriton.py PORT DIRECTORY
"""

import sys

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from scorer import Scorer

scorer = Scorer(sys.argv[2])


def infer(requests):
    return [{"score": np.array([scorer.score(int(request.data["user_id"][0]))])} for request in requests]


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_port=port + 1, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="bench",
            infer_func=infer,
            inputs=[Tensor(name="user_id", dtype=np.int64, shape=(1,))],
            outputs=[Tensor(name="score", dtype=np.float64, shape=(1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()
