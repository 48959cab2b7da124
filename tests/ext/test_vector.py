"""On-demand transforms inside the plan: the inputs they see and the vector they leave equal a slow, obvious assembly."""

from __future__ import annotations

import ctypes
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import stores
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds
from tiercel._hot.vector import VectorProgram

from tiercel.errors import RequestError, SchemaMismatchError
from tiercel.features.online import OnlineBase
from tiercel.types import NOW_US, DType, RequestField, Signature, Task, TransformOutput, TransformSchema

C_TRANSFORM = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double))
#: What `mix` computes from its inputs; the test knows it as Python.
MIX = TransformSchema(
    "mix",
    "def mix(weight, hour, rain, seats, now_us): ...",
    ("weight", "hour", "rain", "seats", NOW_US),
    (TransformOutput("weight_by_hour", DType.FLOAT64), TransformOutput("seats_seen", DType.FLOAT64)),
)
AGE = TransformSchema("age", "def age(delay): ...", ("delay",), (TransformOutput("delay_half", DType.FLOAT32),))


def mix(weight, hour, rain, seats, now_us):
    return weight / 3 + hour * 7 - rain, seats - 2.0**53 + now_us % 1000


@dataclass
class Compiled:
    """What `features.transforms` gives the plan, made of a Python function."""

    schema: TransformSchema
    function: Any

    def __post_init__(self):
        self.seen = []

        def call(inputs, outputs):
            values = [inputs[i] for i in range(len(self.schema.inputs))]
            self.seen.append(values)
            results = self.function(*values)
            for i, value in enumerate(results if isinstance(results, tuple) else (results,)):
                outputs[i] = value

        self.callback = C_TRANSFORM(call)
        self.address = ctypes.cast(self.callback, ctypes.c_void_p).value


class Scorer:
    """Keeps the rows it is given."""

    def __init__(self, n_features):
        self.n_features, self.n_outputs = n_features, 1

    def score(self, rows):
        self.rows = rows.copy()
        return np.zeros((len(rows), 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("features")
    plain = stores.schema()
    stores.publish(directory, replace(plain, transforms=(MIX, AGE)))
    return OnlineBase.open(directory / "svc")


def make_plan(base, features, *, transforms=None, accepts_missing=True):
    transforms = [Compiled(MIX, mix), Compiled(AGE, lambda delay: delay / 2)] if transforms is None else transforms
    scorer = Scorer(len(features))
    signature = Signature(tuple(features), Task.BINARY, ("0", "1"), accepts_missing)
    return ServingPlan("late", 1, signature, scorer, base.schema, base, transforms=transforms), scorer, transforms


def expected(features, tailnum, hour, rain, now_us, sent):
    """One row's vector from the Python rows that were published; `sent` overrides stored values."""
    row = next((r for r in stores.AIRCRAFT if r[0] == tailnum), None)
    nan = math.nan
    stored = {"seats": nan, "weight": nan, "delay": nan}
    if row is not None:
        stored["seats"] = nan if row[1] is None else float(row[1])
        alive = row[7] != stores.NO_EVENT_US and now_us - row[7] <= stores.HOUR_US
        stored["delay"] = nan if not alive or row[4] is None else float(np.float32(row[4]))
        stored["weight"] = nan if not alive or row[5] is None else row[5]
    stored.update({name: nan if value is None else value for name, value in sent.items()})
    hour = nan if hour is None else float(hour)
    rain = nan if rain is None else float(np.float32(rain))
    first, second = mix(stored["weight"], hour, rain, stored["seats"], float(now_us))
    values = {**stored, "hour": hour, "rain": rain, "weight_by_hour": first, "seats_seen": second}
    values["delay_half"] = stored["delay"] / 2
    return np.array([np.float32(values[name]) for name in features], dtype=np.float32)


@given(
    tailnums=st.lists(st.sampled_from([row[0] for row in stores.AIRCRAFT] + ["N9", None]), min_size=1, max_size=4),
    hour=st.none() | st.integers(-(2**62), 2**62),
    rain=st.none() | st.floats(-1e30, 1e30),
    sent=st.dictionaries(st.sampled_from(["seats", "weight"]), st.none() | st.integers(-(2**60), 2**60), max_size=2),
    features=st.permutations(["weight_by_hour", "delay_half", "seats_seen", "seats", "rain"]),
    n_features=st.integers(1, 5),
    kind=st.sampled_from(["json", "msgpack", "python"]),
    now_us=st.sampled_from([stores.NOW_US, stores.NOW_US + 7]),
)
def test_a_vector_with_transforms_equals_the_obvious_one(
    base, tailnums, hour, rain, sent, features, n_features, kind, now_us
):
    """Stored, sent and missing inputs reach a transform as float64 and its outputs the vector as float32, on every path."""
    features = features[:n_features]
    plan, scorer, _ = make_plan(base, features)
    request = {"hour": hour, "rain": rain, **sent}
    needed = {"rain"} if "rain" in features else set()
    if {"weight_by_hour", "seats_seen"} & set(features):
        needed |= {"hour", "rain"}
    request = {name: value for name, value in request.items() if name in needed | sent.keys()}
    body = {"entities": {"tailnum": tailnums}, "features": request}
    if kind == "python":
        plan.predict(body["entities"], request, now_us)
    else:
        encoded = json.dumps(body, ensure_ascii=False).encode() if kind == "json" else msgpack.packb(body)
        assert plan.answer(encoded, int(kind == "msgpack"), now_us, ReplyIds(100)) is not None
    want = np.stack([expected(features, tailnum, hour, rain, now_us, sent) for tailnum in tailnums])
    np.testing.assert_array_equal(scorer.rows, want)


def test_inputs_outside_the_vector_are_read_and_required(base):
    """A transform's stored input needs no place in the vector; its request input must be sent."""
    plan, scorer, transforms = make_plan(base, ["seats_seen"])
    plan.predict({"tailnum": "N4"}, {"hour": 1, "rain": 0.1}, stores.NOW_US)
    assert transforms[0].seen[0][3] == 2.0**53  # 2**53 + 1 rounds once, to float64
    assert transforms[0].seen[0][2] == np.float64(np.float32(0.1))  # Float32 by declaration
    assert scorer.rows.shape == (1, 1)
    with pytest.raises(RequestError, match="hour") as caught:
        plan.predict({"tailnum": "N4"}, {"rain": 0.5}, stores.NOW_US)
    assert caught.value.code == "missing_feature"
    assert plan.answer(b'{"entities":{"tailnum":"N4"},"features":{"rain":1}}', 0, stores.NOW_US, ReplyIds(9)) is None


def test_a_transform_that_no_feature_needs_is_not_called(base):
    """Neither is it run nor are its inputs asked for."""
    plan, _, transforms = make_plan(base, ["delay_half"])
    plan.predict({"tailnum": ["N1", "N2"]}, {}, stores.NOW_US)
    assert [len(each.seen) for each in transforms] == [0, 2]


def test_a_computed_feature_cannot_be_sent(base):
    """What a transform computes is not for the request to say; the error names the transform."""
    plan, _, _ = make_plan(base, ["delay_half"])
    with pytest.raises(RequestError, match="'age' computes") as caught:
        plan.predict({"tailnum": "N1"}, {"delay_half": 1.0}, stores.NOW_US)
    assert caught.value.code == "computed_feature"


def test_a_missing_output_is_reported_and_refused_where_the_model_cannot_take_it(base):
    """A transform's NaN counts as a missing value under the feature's name."""
    plan, _, _ = make_plan(base, ["delay_half"])
    assert plan.predict({"tailnum": "N2"}, {}, stores.NOW_US)[3] == [("delay_half", 1)]
    strict, _, _ = make_plan(base, ["delay_half"], accepts_missing=False)
    with pytest.raises(RequestError, match="delay_half") as caught:
        strict.predict({"tailnum": ["N1", "N2"]}, {}, stores.NOW_US)
    assert (caught.value.code, caught.value.row) == ("missing_not_allowed", 1)


def test_the_age_counts_what_a_transform_read(base):
    """The oldest value is reported even when only a transform saw it."""
    plan, _, _ = make_plan(base, ["delay_half"])
    assert plan.predict({"tailnum": "N1"}, {}, stores.NOW_US)[2] == stores.HOUR_US // 2


@pytest.mark.parametrize("given_transforms", [[], [Compiled(replace(AGE, source="def age(delay): other"), abs)]])
def test_a_transform_that_is_absent_or_another_is_refused(base, given_transforms):
    """A plan is not wired without the very transforms its service was applied with."""
    with pytest.raises(SchemaMismatchError, match="on-demand feature view 'age'"):
        make_plan(base, ["delay_half"], transforms=given_transforms)


def test_too_many_inputs_are_refused(base):
    """The stack buffers of a transform have a size, and more is refused when the plan is wired."""
    wide = TransformSchema("wide", "...", ("delay",) * 300, (TransformOutput("delay_half", DType.FLOAT32),))
    schema = replace(base.schema, transforms=(wide,))
    signature = Signature(("delay_half",), Task.BINARY, ("0", "1"))
    with pytest.raises(SchemaMismatchError, match="at most 256"):
        VectorProgram("Model 'm'", signature, schema, base, (Compiled(wide, abs),))


@pytest.mark.parametrize("name", ["tailnum_text", "delay_half", "nowhere"])
def test_an_input_that_nothing_writes_is_refused(base, name):
    """A schema whose transform reads text, another's output or nothing known is refused when the plan is wired."""
    view = TransformSchema("view", "...", (name,), (TransformOutput("made", DType.FLOAT64),))
    half = replace(AGE, inputs=("delay",))
    schema = replace(
        base.schema,
        transforms=(view, half),
        request_fields=(*base.schema.request_fields, RequestField("tailnum_text", DType.STRING, ("a", "b"))),
    )
    signature = Signature(("made", "delay_half"), Task.BINARY, ("0", "1"))
    with pytest.raises(SchemaMismatchError, match=f"got '{name}'"):
        VectorProgram("Model 'm'", signature, schema, base, (Compiled(view, abs), Compiled(half, abs)))


def test_a_feature_named_twice_is_refused(base):
    """Only one of two places of one name would be written, so there is never but one."""
    with pytest.raises(SchemaMismatchError, match="every feature once"):
        make_plan(base, ["seats", "seats"])
