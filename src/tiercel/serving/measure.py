"""The scratch process that measures a version: `python -m tiercel.serving.measure`, started by `tiercel.models.measuring`.

It loads the version as a server does, wires the same plan, and times three things on representative rows: the read of one
entity's stored features, the scorer, and the whole way from a request's body to the bytes of its reply. What is not here
is what all requests share: the socket, the head parser, the journal. The tier's headroom pays for those.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel import models
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds
from tiercel.errors import NotFoundError, RequestError, TiercelError
from tiercel.models.golden import Golden
from tiercel.models.measuring import READING
from tiercel.models.preparing import FACTS_FILE, GOLDEN_FILE
from tiercel.models.profile import Quantiles
from tiercel.models.scratch import answer
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.explaining import explain_here
from tiercel.serving.version_explainer import make_explanations
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tiercel._hot.explained import Explanations
    from tiercel.features.online import OnlineBase
    from tiercel.types import RequestField, ServiceSchema, Signature

log = logging.getLogger("tiercel.serving")

_JSON: Final = 0  # format number of `ServingPlan.answer`
#: Different requests that are asked in turn.
_N_BODIES: Final = 64
_CURVE_ROWS: Final = tuple(1 << power for power in range(10))
#: A batch that takes longer ends the curve.
_SLOW_BATCH_NS: Final = 1_000_000_000
_FEWEST: Final = 5
_DENORMAL: Final = 1e-30


@dataclass(frozen=True)
class Effort:
    """How long a series is sampled: `soft_s` once it has `enough` samples, `hard_s` in any case (but for a few)."""

    enough: int
    soft_s: float
    hard_s: float


_FULL, _QUICK = Effort(2000, 0.1, 1.0), Effort(500, 0.03, 0.15)
_FULL_POINT, _QUICK_POINT = Effort(20, 0.01, 0.1), Effort(10, 0.003, 0.02)


def measure(job: dict[str, Any], stage: Callable[[str], None]) -> dict[str, Any]:
    """Do one job of `tiercel.models.measuring.measure`; returns what `CostProfile.from_json` needs, less the host."""
    directory = Path(job["directory"])
    artifacts = {name: (directory / name).read_bytes() for name in job["files"]}
    series, point = (_QUICK, _QUICK_POINT) if job["quick"] else (_FULL, _FULL_POINT)
    if b'"engine": "onnxruntime"' in artifacts.get(FACTS_FILE, b""):
        import onnxruntime  # noqa: F401 - a server has the library loaded; its time and memory are not the model's

    stage("the model was loaded")
    before_bytes = _resident_bytes()
    begin = time.perf_counter_ns()
    model = models.load(artifacts)
    load_ns = time.perf_counter_ns() - begin
    rows = representative(
        Golden.from_bytes(artifacts[GOLDEN_FILE]).rows, accepts_missing=model.signature.accepts_missing
    )
    for n_rows in (1, 128):  # what a server's own warm-up asks
        model.scorer.score(_rows_of(rows, n_rows))
    memory_bytes = max(0, _resident_bytes() - before_bytes)

    asked = read = None
    if job["stored"] is not None:
        stage(READING)
        asked, read = _with_store(job["stored"], model, rows, series)
    stage("the model was asked for one row at a time")
    if asked is None:
        asked = _without_store(model, rows)
    gc.collect()
    gc.freeze()
    plan, bodies = asked
    ids = ReplyIds(1)
    total = sample(_cycled([partial(_ask, plan, body, ids) for body in bodies]), series)
    singles = [rows[at : at + 1] for at in range(min(len(rows), _N_BODIES))]
    score_one = model.scorer.score
    score = sample(_cycled([partial(score_one, row) for row in singles]), series)
    curve = []
    for n_rows in _CURVE_ROWS:
        stage(f"the model was asked for {n_rows} rows at a time")
        batch = _rows_of(rows, n_rows)
        found = sample(_cycled([partial(score_one, batch)]), point)
        quantiles = Quantiles.of(found)
        curve.append((n_rows, quantiles.p50_us, quantiles.p99_us))
        if found.max() > _SLOW_BATCH_NS:
            break
    explain = None
    explanations = make_explanations(model, artifacts, label="measured")
    if explanations.explainer is not None:
        stage("the model's scores were explained one at a time")
        try:
            explain = sample(_cycled(_explain_calls(model, explanations, singles)), series)
        except Exception as error:  # noqa: BLE001 - whatever it is, the version is served, and says so when it is asked
            log.warning("measured without explanations: %r", error)
    return {
        "n_samples": len(total),
        "read": None if read is None else asdict(Quantiles.of(read)),
        "score": asdict(Quantiles.of(score)),
        "total": asdict(Quantiles.of(total)),
        "explain": None if explain is None else asdict(Quantiles.of(explain)),
        "curve": curve,
        "load_ms": load_ns / 1e6,
        "memory_mb": memory_bytes / (1 << 20),
    }


def sample(calls: Sequence[Callable[[], object]], effort: Effort) -> NDArray[np.int64]:
    """Nanoseconds of each call, after a round to warm up (of slow calls: the first); the calls are made in turn."""
    clock = time.perf_counter_ns
    soft_ns, hard_ns = int(effort.soft_s * 1e9), int(effort.hard_s * 1e9)
    started = clock()
    for call in calls[:_N_BODIES]:
        call()
        if clock() - started > soft_ns:
            break
    samples: list[int] = []
    started = clock()
    while True:
        for call in calls:
            begin = clock()
            call()
            end = clock()
            samples.append(end - begin)
            spent_ns = end - started
            if spent_ns > soft_ns and (
                len(samples) >= effort.enough or (spent_ns > hard_ns and len(samples) >= _FEWEST)
            ):
                return np.array(samples, dtype=np.int64)


def representative(rows: NDArray[np.float32], *, accepts_missing: bool) -> NDArray[np.float32]:
    """Golden rows without what no caller sends: infinities and denormals become 0; so do missing values a model refuses."""
    strange = np.isinf(rows) | ((rows != 0) & (np.abs(rows) < _DENORMAL))
    if not accepts_missing:
        strange |= np.isnan(rows)
    return np.ascontiguousarray(np.where(strange, np.float32(0), rows))


def body_of(
    signature: Signature, row: NDArray[np.float32], schema: ServiceSchema | None, keys: dict[str, Any]
) -> bytes:
    """A request's body that leads to `row`: the keys, and what the service does not store."""
    sent: dict[str, Any]
    if schema is None:
        sent = {name: _number(value) for name, value in zip(signature.features, row, strict=True)}
        return json.dumps({"features": sent}, allow_nan=False).encode()
    places = {name: at for at, name in enumerate(signature.features)}
    sent = {
        field.name: _request_value(field, row[places[field.name]] if field.name in places else np.float32(0))
        for field in schema.request_fields
    }
    return json.dumps({"entities": keys, "features": sent}, allow_nan=False).encode()


def _with_store(
    stored: dict[str, Any], model: models.LoadedModel, rows: NDArray[np.float32], effort: Effort
) -> tuple[tuple[ServingPlan, list[bytes]] | None, NDArray[np.int64] | None]:
    """(the plan on the live base and bodies it answers, nanoseconds of reads); None where the base is not to be had."""
    import lmdb

    from tiercel.features.online import OnlineBase
    from tiercel.features.sample import sample_entities
    from tiercel.features.transforms import compile_transforms, compiled_dir

    state_dir = Path(stored["state_dir"])
    directory = state_dir / "features" / stored["service"]
    try:
        entities = sample_entities(directory, _N_BODIES)
        # Not hashed: that takes a second per GB, and whoever publishes and whoever serves does it. A damaged file can
        # crash this process; the caller then measures without it.
        base = OnlineBase.open(directory, expected_fingerprint=stored["fingerprint"], verify=False)
        schema = base.schema
        transforms = compile_transforms(schema, compiled_dir(state_dir)) if schema.transforms else ()
        plan = ServingPlan("measured", 1, model.signature, model.scorer, schema, base, transforms=transforms)
        ids, bodies = ReplyIds(1), []
        for at, keys in enumerate(entities or [{}]):
            body = body_of(model.signature, rows[at % len(rows)], schema, keys)
            # An entity whose values are missing is refused where the model, or the service, cannot do without them.
            with contextlib.suppress(RequestError, NotFoundError):
                _ask(plan, body, ids)
                bodies.append(body)
        calls = _read_calls(base, entities)
        found = sample(_cycled(calls), effort) if calls else None
    except (TiercelError, OSError, ValueError, lmdb.Error) as error:
        log.warning("measured without the base: %s", error)
        return None, None
    return ((plan, bodies) if bodies else None), found


def _without_store(model: models.LoadedModel, rows: NDArray[np.float32]) -> tuple[ServingPlan, list[bytes]]:
    """A plan for which every feature comes with the request, and bodies."""
    plan = ServingPlan("measured", 1, model.signature, model.scorer)
    return plan, [body_of(model.signature, row, None, {}) for row in rows[:_N_BODIES]]


def _ask(plan: ServingPlan, body: bytes, ids: ReplyIds) -> bytes:
    """What a server does with a body: the compiled way, else the general one."""
    now_us = time.time_ns() // 1000
    reply = plan.answer(body, _JSON, now_us, ids)
    if reply is None:
        request = json.loads(body)
        reply = plan.reply(request.get("entities", {}), request["features"], now_us, _JSON, ids)
    return reply


def _read_calls(base: OnlineBase, entities: list[dict[str, Any]]) -> list[Callable[[], object]]:
    """Reads of everything stored about one entity each, by the readers that a plan has."""
    readers = []
    for index, group in enumerate(base.schema.groups):
        names = [column.name for column in group.columns]
        readers.append((base.group_reader(index, names, range(len(names))), np.empty(max(1, len(names)), np.float32)))
    now_us = time.time_ns() // 1000
    calls: list[Callable[[], object]] = []
    for keys in entities:
        known = {key.name: [keys.get(key.name)] for group in base.schema.groups for key in group.keys}
        encoded = [each[0] for each in base.encode_keys(known)]
        steps = [
            partial(reader.read_one, key, now_us, out) for (reader, out), key in zip(readers, encoded, strict=True)
        ]
        calls.append(steps[0] if len(steps) == 1 else partial(_each, steps))
    return calls if readers else []


def _each(steps: Sequence[Callable[[], object]]) -> None:
    for step in steps:
        step()


def _explain_calls(
    model: models.LoadedModel, explanations: Explanations, singles: list[NDArray[np.float32]]
) -> list[Callable[[], object]]:
    """What a server does for a scored row whose reasons are asked for, contributions among them."""
    plan = ServingPlan("measured", 1, model.signature, model.scorer, explanations=explanations)
    asked = ExplainRequest(is_full=True)

    def explain(row: NDArray[np.float32], scores: NDArray[np.float64]) -> bytes:
        prepared = plan.recall(row, scores, is_single=True)
        explain_here(prepared, asked)
        return prepared.explanation("0")

    return [partial(explain, row, model.scorer.score(row)) for row in singles]


def _cycled(calls: list[Callable[[], object]]) -> list[Callable[[], object]]:
    """The calls over and over, so that going back to the first costs a series nothing."""
    return calls * -(-_N_BODIES // len(calls)) if calls else calls


def _rows_of(rows: NDArray[np.float32], n_rows: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[np.arange(n_rows) % len(rows)])


def _number(value: np.float32) -> float | None:
    """The shortest decimal that is this float32, as callers send it; None for a missing value."""
    return None if np.isnan(value) else float(str(value))


def _request_value(field: RequestField, value: np.float32) -> Any:
    if np.isnan(value):
        return None
    if field.dtype is DType.STRING:
        categories = field.categories or ()
        return categories[int(np.clip(value, 0, len(categories) - 1))] if categories else None
    if field.dtype is DType.BOOL:
        return bool(value > 0.5)
    if field.dtype is DType.INT64:
        return int(np.clip(value, -(2.0**53), 2.0**53))
    return _number(value)


def _resident_bytes() -> int:
    """Of this process now; where the system does not tell, its highest so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    answer(measure)
