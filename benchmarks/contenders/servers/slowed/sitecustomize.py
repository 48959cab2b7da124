"""On the path of a server's processes, this makes its onnxruntime models slower on demand, by doing their work again.

While the file that BENCH_SLOW_FILE names exists, each batch is scored BENCH_SLOW_TIMES times. Nothing tells the server.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

SLOWED = "tiercel.models.onnx_scorer"


class _Finder(MetaPathFinder):
    """Changes the module when it is imported: importing it here would make every process of the server load onnxruntime."""

    def find_spec(self, name, _path=None, _target=None):
        if name != SLOWED:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            slow(module.OnnxScorer)

        spec.loader.exec_module = exec_module
        return spec


def slow(scorer):
    score, path, times = scorer.score, os.environ["BENCH_SLOW_FILE"], int(os.environ["BENCH_SLOW_TIMES"])

    def score_slowly(self, rows):
        for _ in range(times - 1 if os.path.exists(path) else 0):  # noqa: PTH110 - a microsecond, before every batch
            score(self, rows)
        return score(self, rows)

    scorer.score = score_slowly


if "BENCH_SLOW_FILE" in os.environ:
    sys.meta_path.insert(0, _Finder())
