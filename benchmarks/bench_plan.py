"""What one prediction costs inside the process: body bytes to reply bytes, on the compiled path and on the general one.

    python -m benchmarks.bench_plan [--rows 20000] [--repeat 20000] [--smoke]

One thread, one row of 23 stored features, a forest of 100 trees x 31 leaves. Parts are timed alone, in turn, over the same
keys; each figure is the median of five runs. `answer` is bytes to bytes; `general` is what the Starlette path does around
the plan. "parse alone" is a body that lacks its last byte, "score alone" the kernel called from NumPy; what remains of
`answer` is reading the row and writing the reply. "One feature computed" is the same plan with its last feature computed
from three stored ones by an on-demand function of ten operations; the last line is what that adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from benchmarks import workload
from tiercel import Project
from tiercel.features.transform_source import canonical_source
from tiercel.features.transforms import compile_transforms
from tiercel.http import payload
from tiercel.http.request import parse_predict
from tiercel.serving.engine import Engine
from tiercel.types import DType, Signature, Task, TransformOutput, TransformSchema


def median_us(call: Callable[[int], object], n: int) -> float:
    """Microseconds per call: the median of five runs of `n`."""
    runs = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for i in range(n):
            call(i)
        runs.append((time.perf_counter_ns() - start) / n / 1000)
    return statistics.median(runs)


def blend(f20: float, f21: float, f22: float) -> float:
    """Ten operations."""
    scaled = (f20 - 0.5) * 2.0 + f21 / 3.0
    return scaled * f22 - f20 * f21 + 1.0 if scaled > f22 else f22 - scaled


def with_transform(plan: ServingPlan, scorer: Any) -> ServingPlan:
    """The plan with its last feature computed by `blend`."""
    output = TransformOutput("blend", DType.FLOAT64)
    transform = TransformSchema("blend", canonical_source(blend).text, ("f20", "f21", "f22"), (output,))
    features = (*plan.signature.features[:-1], "blend")
    schema = replace(plan.schema, features=features, transforms=(transform,))
    signature = replace(plan.signature, features=features)
    return ServingPlan("computed", 1, signature, scorer, schema, plan.base, transforms=compile_transforms(schema, None))


def measure(plan: ServingPlan, scorer: Any, n_rows: int, n: int) -> dict[str, float]:
    """Microseconds per call by contender, the cost of the loop included everywhere (see `empty`)."""
    ids, now_us = ReplyIds(10_000), time.time_ns() // 1000
    keys = np.random.default_rng(1).integers(0, n_rows, 1000).tolist()
    bodies = [[json.dumps({"entities": {"user_id": key}}).encode() for key in keys]]
    bodies.append([msgpack.packb({"entities": {"user_id": key}}) for key in keys])
    cut = [body[:-1] for body in bodies[0]]
    assert all(plan.answer(body, kind, now_us, ids) for kind in (0, 1) for body in bodies[kind])
    row = np.zeros((1, plan.n_features), dtype=np.float32)
    features = {name: 0.1234567 * i for i, name in enumerate(plan.signature.features)}
    sent = ServingPlan("sent", 1, Signature(plan.signature.features, Task.REGRESSION), scorer)
    all_sent = json.dumps({"features": features}).encode()
    all_packed = msgpack.packb({"features": features})
    assert sent.answer(all_sent, 0, now_us, ids)

    computed = with_transform(plan, scorer)
    assert computed.answer(bodies[0][0], 0, now_us, ids)

    def general(body: bytes, kind: int) -> bytes:
        request = parse_predict(payload.decode(body, (payload.JSON, payload.MSGPACK)[kind], 10_000), 10_000)
        return plan.reply(request.entities, request.features, request.now_us, kind, ids)

    contenders: dict[str, Callable[[int], object]] = {
        "empty": lambda i: bodies[0][i % 1000],
        "answer, JSON": lambda i: plan.answer(bodies[0][i % 1000], 0, now_us, ids),
        "answer, JSON, one feature computed": lambda i: computed.answer(bodies[0][i % 1000], 0, now_us, ids),
        "answer, msgpack": lambda i: plan.answer(bodies[1][i % 1000], 1, now_us, ids),
        "general, JSON": lambda i: general(bodies[0][i % 1000], 0),
        "general, msgpack": lambda i: general(bodies[1][i % 1000], 1),
        "predict of dicts": lambda i: plan.predict({"user_id": keys[i % 1000]}, {}, now_us),
        "parse alone (body handed on at its end)": lambda i: plan.answer(cut[i % 1000], 0, now_us, ids),
        "score alone (one row, from NumPy)": lambda _: scorer.score(row),
        "answer, all features sent as JSON": lambda _: sent.answer(all_sent, 0, now_us, ids),
        "answer, all features sent as msgpack": lambda _: sent.answer(all_packed, 1, now_us, ids),
    }
    costs = {name: median_us(call, n) for name, call in contenders.items()}
    # A difference of a few hundredths needs its halves side by side.
    plain, computed_too = contenders["answer, JSON"], contenders["answer, JSON, one feature computed"]
    pairs = [median_us(computed_too, n) - median_us(plain, n) for _ in range(7)]
    return {**costs, "what the on-demand function adds": statistics.median(pairs)}


def main(argv: list[str] | None = None) -> None:
    """Build the workload, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=20_000)
    parser.add_argument("--smoke", action="store_true", help="briefly, to show that it works")
    options = parser.parse_args(argv)
    if options.smoke:
        options.rows, options.repeat = 1000, 200
    with tempfile.TemporaryDirectory() as directory:
        work = workload.build(Path(directory), options.rows, with_onnx=False)
        with Project(work.project) as project:
            engine = Engine(project.settings, project.registry)
            engine.refresh()
            plan = engine.find_plan("bench")
            assert plan is not None
            scorer = next(iter(engine._loaded.values())).model.scorer  # noqa: SLF001 - the kernel alone
            for name, cost in measure(plan, scorer, options.rows, options.repeat).items():
                print(f"{name:44s} {cost:7.2f} us")


if __name__ == "__main__":
    main()
