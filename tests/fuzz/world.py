"""What the fuzz targets serve: two plans with short names behind routes that never change."""

from __future__ import annotations

import atexit
import ctypes
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tests.support import stores
from tests.support.linear_plans import LinearVersion
from tiercel._hot.explained import Explanations
from tiercel._hot.linear_shap import LinearExplainer
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel.errors import ModelNotFoundError
from tiercel.features.online import OnlineBase
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ServerSettings
from tiercel.types import Signature, Task

JSON, MSGPACK = 0, 1
SETTINGS = ServerSettings(max_rows=40, max_body_bytes=4000, max_head_bytes=9000)
ID_BYTES = 16  # of an id, before its count: random, the same in all replies of one ReplyIds
#: What reading is said to take: shorter deadlines are refused, longer ones kept, however slow a sanitizer makes the machine.
NEEDS_US = (20_000_000, 0, 0)
BODY = b'{"now":1,"features":{"a":1,"b":2}}'
AGE = re.compile(rb'(oldest_age_ms)(?:":\d+(?:\.\d+)?|\xce.{4}|\xcf.{8})', re.DOTALL)
TIMING = re.compile(rb"server-timing: [^\r]*\r\n")
#: Of an infer reply, which tells its times in the JSON: these, and the lengths that follow from how many digits they have.
TIMES = re.compile(rb'"timing_us":\{[^}]*\}|(?<=content-length: )\d+')


class RowScorer:
    """Scores that tell the rows apart, missing values included."""

    def __init__(self, n_features, n_outputs):
        self.n_features, self.n_outputs = n_features, n_outputs

    def score(self, rows):
        weights = np.arange(1, self.n_features + 1, dtype=np.float64)
        base = np.where(np.isnan(rows), -1e-3, rows.astype(np.float64)) @ weights
        return base[:, None] * np.arange(1, self.n_outputs + 1)


class Engine:
    """The part of an engine that the HTTP paths use."""

    watch_problems = ()

    def __init__(self, routes):
        self.routes = routes

    def profile_of(self, _name, _version):
        return None

    def find_plan(self, reference):
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference):
        raise ModelNotFoundError(f"Expected a registered model, got '{reference}'")


class World(NamedTuple):
    plans: tuple[ServingPlan, ...]
    engine: Engine
    no_routes: Engine  # a fast path over this one hands everything on
    queued: Engine  # the same plans in near-realtime
    queued_oracle: Engine  # ... answering at once


@cache
def world():
    """Plans `m` (two numbers, no store), `s` (every dtype, two stored entities) and `k` (the same, strict, classes)."""
    directory = Path(tempfile.mkdtemp(prefix="tiercel-fuzz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    stores.publish(directory)
    stores.publish(directory, stores.schema("error", name="strict"))

    def plan(name, service, task, **kinds):
        base = OnlineBase.open(directory / service)
        classes = ("a", 'b"\n', "é") if task is Task.MULTICLASS else ("0", "1")
        signature = Signature(base.schema.features, task, classes)
        scorer = RowScorer(len(signature.features), signature.n_outputs)
        return ServingPlan(name, 1, signature, scorer, base.schema, base, **kinds)

    def make(**kinds):
        two = Signature(("a", "b"), Task.REGRESSION)
        numbers = ServingPlan("m", 1, two, RowScorer(2, 1), explanations=explanations(two), **kinds)
        return numbers, plan("s", "svc", Task.BINARY, **kinds), plan("k", "strict", Task.MULTICLASS, **kinds)

    def engine(plans):
        models = {each.model: ModelRoutes({1: each}, {"champion": 1}) for each in plans}
        return Engine(Routes.build(models, {}, ()))

    def explanations(signature):
        weights = np.arange(1, 1 + len(signature.features), dtype=np.float64)
        compiled = LinearExplainer(weights=weights[None], intercept=np.zeros(1), mean=np.zeros(len(weights)), steps=[])
        version = LinearVersion(signature, compiled)
        return Explanations(len(weights), 1, version, version.form_of())

    plans = make(needs_us=NEEDS_US)
    return World(
        plans,
        engine(plans),
        engine(()),
        engine(make(tier="near-realtime", is_inline=False)),
        engine(make(tier="near-realtime")),
    )


def exact(data):
    """The bytes in memory of just their size: with PYTHONMALLOC=malloc a sanitizer sees the first byte past the end."""
    # ctypes takes just so many bytes; bytes have a zero behind them, bytearray and array some room to grow.
    return memoryview((ctypes.c_ubyte * len(data)).from_buffer_copy(data)).cast("B") if data else memoryview(b"")


def new_ids():
    """Ids, and the random part of theirs; the first id is spent on finding that out."""
    ids = ReplyIds(SETTINGS.max_rows)
    reply = world().plans[0].answer(BODY, JSON, 0, ids)
    at = reply.index(b'"id":"') + 6
    return ids, reply[at : at + ID_BYTES]


def settled(replies, prefix):
    """Replies without what differs from one run to the next: the random part of ids, ages from the clock, stage times."""
    replies = TIMING.sub(b"", AGE.sub(rb"\1", replies.replace(prefix, b"*" * ID_BYTES)))
    parts = re.split(rb"(?=HTTP/1\.1 )", replies)
    return b"".join(TIMES.sub(b"", part) if b'\r\n\r\n{"model_name":' in part else part for part in parts)
