"""The serving plan: the vector it hands to the scorer equals a slow, obvious assembly; every refusal is exact."""

from __future__ import annotations

import contextlib
import gc
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import stores
from tiercel._hot.plan import ServingPlan

from tiercel.errors import EntityNotFoundError, RequestError, SchemaMismatchError
from tiercel.features.online import OnlineBase
from tiercel.types import NO_EVENT_US, Signature, Task

REQUEST = {"rain": 0.25, "hour": 7, "night": True, "cabin": "coach"}
KEYS = {"tailnum": "N1", "origin": "EWR", "gate": 3}


class Recorder:
    """A scorer that keeps the rows it is given and answers with their row numbers."""

    def __init__(self, n_features, n_outputs=1):
        self.n_features, self.n_outputs, self.rows = n_features, n_outputs, None

    def score(self, rows):
        self.rows = rows.copy()
        return np.arange(len(rows) * self.n_outputs, dtype=np.float64).reshape(len(rows), self.n_outputs)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    stores.publish(path)
    stores.publish(path, stores.schema("error", name="strict"))
    return path


def make_plan(directory, *, service="svc", features=None, accepts_missing=True, task=Task.BINARY):
    base = OnlineBase.open(directory / service)
    features = tuple(features or base.schema.features)
    classes = ("a", "b", "c") if task is Task.MULTICLASS else ("0", "1")
    signature = Signature(features, task, classes, accepts_missing)
    recorder = Recorder(len(features), signature.n_outputs)
    return ServingPlan("late", 3, signature, recorder, base.schema, base), recorder


def expected_vector(features, tailnum, origin, gate, request):
    """What one row should be, from the Python rows that were published."""
    values = {}
    row = next((r for r in stores.AIRCRAFT if r[0] == tailnum), None)
    names = ("seats", "engine", "is_leased", "delay", "weight")
    values.update(dict(zip(names, (None,) * 5 if row is None else row[1:6], strict=True)))
    if row is not None and (row[7] == NO_EVENT_US or stores.NOW_US - row[7] > stores.HOUR_US):
        values["delay"] = values["weight"] = None
    values["miles"] = next((r[2] for r in stores.ROUTES if r[:2] == (origin, gate)), None)
    values.update(request)
    values["cabin"] = {"first": 0.0, "coach": 1.0, None: None}.get(values["cabin"])
    return np.array([np.nan if values[f] is None else np.float32(values[f]) for f in features], dtype=np.float32)


@given(
    tailnum=st.sampled_from([row[0] for row in stores.AIRCRAFT] + ["N9", None]),
    route=st.sampled_from([row[:2] for row in stores.ROUTES] + [("EWR", 4), ("JFK", None)]),
    request_values=st.fixed_dictionaries(
        {
            "rain": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
            "hour": st.none() | st.integers(-(2**53), 2**53),
            "night": st.none() | st.booleans(),
            "cabin": st.none() | st.sampled_from(["first", "coach"]),
        }
    ),
    order=st.permutations(list(range(10))),
    n_features=st.integers(1, 10),
)
def test_vector_equals_the_obvious_assembly(directory, tailnum, route, request_values, order, n_features):
    """Any subset of features in any order gets the published and sent values, bit for bit; missing is NaN."""
    features = [stores.schema().features[i] for i in order[:n_features]]
    plan, recorder = make_plan(directory, features=features)
    request = {name: value for name, value in request_values.items() if name in features}
    keys = dict(zip(("tailnum", "origin", "gate"), (tailnum, *route), strict=True))
    keys = {name: value for name, value in keys.items() if name in plan.join_keys}
    single, score, _, missing = plan.predict(keys, request, stores.NOW_US)
    expected = expected_vector(features, tailnum, *route, request_values)
    np.testing.assert_array_equal(recorder.rows[0], expected)
    assert (single, score) == (True, 0.0)
    assert [name for name, _ in missing] == [
        f for f, value in zip(features, expected, strict=True) if math.isnan(value)
    ]


@pytest.mark.parametrize("n_rows", [1, 2, 31, 32, 200])
def test_many_rows_equal_one_by_one(directory, n_rows):
    """Lists give what single requests give, also past the size at which the GIL is released."""
    plan, recorder = make_plan(directory)
    rng = np.random.default_rng(7)
    tails = [[row[0] for row in stores.AIRCRAFT][i] for i in rng.integers(0, len(stores.AIRCRAFT), n_rows)]
    rain = [float(value) for value in rng.random(n_rows, dtype=np.float32)]
    single, scores, _, missing = plan.predict(
        {"tailnum": tails, "origin": "EWR", "gate": [3] * n_rows}, {**REQUEST, "rain": rain}, stores.NOW_US
    )
    many = recorder.rows
    assert (single, scores) == (False, [float(i) for i in range(n_rows)])
    counts = dict.fromkeys(plan.signature.features, 0)
    for i in range(n_rows):
        _, _, _, row_missing = plan.predict(
            {"tailnum": tails[i], "origin": "EWR", "gate": 3}, {**REQUEST, "rain": rain[i]}, stores.NOW_US
        )
        np.testing.assert_array_equal(recorder.rows[0], many[i])
        for name, count in row_missing:
            counts[name] += count
    assert dict(missing) == {name: count for name, count in counts.items() if count}


def test_no_rows(directory):
    """An empty list is zero rows, not an error."""
    plan, _ = make_plan(directory)
    assert plan.predict({"tailnum": [], "origin": [], "gate": []}, REQUEST, stores.NOW_US) == (False, [], None, [])


def test_age_is_that_of_the_oldest_value_used(directory):
    """A value that is missing, stale or brought by the request does not count."""
    plan, _ = make_plan(directory)
    assert plan.predict(KEYS, REQUEST, stores.NOW_US)[2] == 5 * stores.HOUR_US
    assert plan.predict({**KEYS, "tailnum": "N3"}, REQUEST, stores.NOW_US)[2] == 2 * stores.HOUR_US
    override = {"seats": 1, "engine": "jet", "is_leased": False}
    assert plan.predict(KEYS, {**REQUEST, **override}, stores.NOW_US)[2] == 2 * stores.HOUR_US
    assert plan.predict({**KEYS, "tailnum": "N9", "gate": 9}, REQUEST, stores.NOW_US)[2] is None


def test_request_wins_over_store(directory):
    """A stored feature that the request brings is taken from the request; its entity is needed for the others only."""
    plan, recorder = make_plan(directory, features=["seats", "miles", "delay"])
    plan.predict(KEYS, {"seats": 3, "miles": 7.5}, stores.NOW_US)
    np.testing.assert_array_equal(recorder.rows[0], np.float32([3, 7.5, 12.5]))
    plan.predict({"tailnum": "N1"}, {"miles": 7.5}, stores.NOW_US)
    np.testing.assert_array_equal(recorder.rows[0], np.float32([180, 7.5, 12.5]))
    plan.predict({}, {"seats": None, "miles": 1, "delay": 2}, stores.NOW_US)
    np.testing.assert_array_equal(recorder.rows[0], np.float32([np.nan, 1, 2]))


def test_features_and_keys_of_the_service_may_be_sent_unused(directory):
    """One request fits every model of a service; what a model does not use is still checked."""
    plan, recorder = make_plan(directory, features=["rain"])
    plan.predict(KEYS, {**REQUEST, "seats": 4}, stores.NOW_US)
    np.testing.assert_array_equal(recorder.rows, np.float32([[0.25]]))
    with pytest.raises(RequestError, match=r"features\.hour"):
        plan.predict(KEYS, {**REQUEST, "hour": "seven"}, stores.NOW_US)
    with pytest.raises(RequestError, match=r"features\.night\[1\]"):
        plan.predict(KEYS, {**REQUEST, "night": [True, 2]}, stores.NOW_US)


def test_multiclass_scores(directory):
    """One list of class scores per row."""
    plan, _ = make_plan(directory, task=Task.MULTICLASS)
    assert plan.predict(KEYS, REQUEST, stores.NOW_US)[1] == [0.0, 1.0, 2.0]
    assert plan.predict({**KEYS, "gate": [3, -4]}, REQUEST, stores.NOW_US)[1] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_model_without_service():
    """Without a service every feature comes with the request, and no entity is known."""
    recorder = Recorder(2)
    plan = ServingPlan("m", 1, Signature(("a", "b"), Task.REGRESSION), recorder)
    plan.predict({}, {"a": True, "b": 2}, 0)
    np.testing.assert_array_equal(recorder.rows[0], np.float32([1, 2]))
    with pytest.raises(RequestError, match="every feature of this model comes with the request"):
        plan.predict({"id": 1}, {"a": 1, "b": 2}, 0)


@pytest.mark.parametrize(
    ("entities", "features", "code", "row", "message"),
    [
        ({**KEYS, "tail": "N1"}, {}, "unknown_entity_key", None, "'tail'"),
        ({"tailnum": "N1"}, {}, "missing_entity_key", None, "join key 'origin' of entity 'route'"),
        ({**KEYS, "tailnum": 5}, {}, "wrong_type", None, r"string at \$\.entities\.tailnum, got 5"),
        ({**KEYS, "gate": "3"}, {}, "wrong_type", None, r"integer at \$\.entities\.gate, got '3'"),
        ({**KEYS, "gate": True}, {}, "wrong_type", None, "got True"),
        ({**KEYS, "gate": 3.0}, {}, "wrong_type", None, "got 3.0"),
        ({**KEYS, "gate": 2**63}, {}, "not_finite", None, "64-bit"),
        ({**KEYS, "tailnum": "\ud800"}, {}, "wrong_type", None, "surrogate"),
        ({**KEYS, "tailnum": "x" * 511}, {}, "key_too_long", None, "510 bytes"),
        ({**KEYS, "tailnum": ["N1", 5]}, {}, "wrong_type", 1, r"tailnum\[1\]"),
        ({**KEYS, "tailnum": {"a": 1}}, {}, "wrong_type", None, "got {'a': 1}"),
        (KEYS, {"snow": 1}, "unknown_feature", None, "'snow'"),
        (KEYS, {"rain": "wet"}, "wrong_type", None, r"number at \$\.features\.rain, got 'wet'"),
        (KEYS, {"rain": True}, "wrong_type", None, "got True"),
        (KEYS, {"rain": float("nan")}, "not_finite", None, "null for a missing value"),
        (KEYS, {"rain": float("inf")}, "not_finite", None, "inf"),
        (KEYS, {"hour": 2**63}, "not_finite", None, "64-bit integer"),
        (KEYS, {"hour": -1.2e29}, "not_finite", None, "64-bit integer"),
        (KEYS, {"rain": 3.4028235677973366e38}, "not_finite", None, "float32"),
        (KEYS, {"rain": 1e39}, "not_finite", None, "1e\\+39"),
        (KEYS, {"rain": 10**400}, "not_finite", None, "float32"),
        (KEYS, {"hour": 7.5}, "wrong_type", None, r"integer at \$\.features\.hour, got 7.5"),
        (KEYS, {"night": 1}, "wrong_type", None, "true or false"),
        (KEYS, {"cabin": "cargo"}, "unknown_category", None, "'cargo'"),
        (KEYS, {"cabin": 1}, "wrong_type", None, "a string"),
        (KEYS, {"engine": "warp"}, "unknown_category", None, "'warp'"),
        (KEYS, {"rain": [1, None, "x"]}, "wrong_type", 2, r"rain\[2\]"),
        (KEYS, {"rain": [1, [2]]}, "wrong_type", 1, r"got \[2\]"),
        ({**KEYS, "gate": [3, 3]}, {"rain": [1]}, "wrong_length", None, r"got 2 at \$\.entities\.gate and 1"),
    ],
)
def test_refusals(directory, entities, features, code, row, message):
    """What is wrong is refused with a stable code, its place and, among many rows, its index."""
    plan, _ = make_plan(directory)
    with pytest.raises(RequestError, match=message) as caught:
        plan.predict(entities, {**REQUEST, **features}, stores.NOW_US)
    assert (caught.value.code, caught.value.row) == (code, row)


def test_the_largest_float32_is_a_number(directory):
    """The usual decimal of FLT_MAX is a little more than FLT_MAX, and rounds to it."""
    plan, recorder = make_plan(directory, features=["rain"])
    plan.predict(KEYS, {"rain": 3.4028235e38}, stores.NOW_US)
    assert recorder.rows[0, 0] == np.finfo(np.float32).max


def test_absent_request_features_are_named(directory):
    """A request-time feature must be sent, if only as null."""
    plan, _ = make_plan(directory)
    with pytest.raises(RequestError, match="rain, hour") as caught:
        plan.predict(KEYS, {"night": None, "cabin": None}, stores.NOW_US)
    assert caught.value.code == "missing_feature"


def test_unknown_entity(directory):
    """A strict service refuses an entity without a row and says which; a lenient one scores it with missing values."""
    plan, _ = make_plan(directory, service="strict")
    with pytest.raises(EntityNotFoundError, match="entity 'aircraft', got none for tailnum='N9'") as caught:
        plan.predict({**KEYS, "tailnum": "N9"}, REQUEST, stores.NOW_US)
    assert caught.value.row is None
    with pytest.raises(EntityNotFoundError, match=r"origin='EWR', gate=9 \(row 1\)") as caught:
        plan.predict({**KEYS, "gate": [3, 9]}, REQUEST, stores.NOW_US)
    assert caught.value.row == 1
    with pytest.raises(EntityNotFoundError, match="tailnum=None"):
        plan.predict({**KEYS, "tailnum": None}, REQUEST, stores.NOW_US)


def test_models_that_cannot_cope_refuse_missing_values(directory):
    """A model without an imputer gets no NaN: the features and the first row without a value are named."""
    plan, recorder = make_plan(directory, features=["seats", "delay", "rain"], accepts_missing=False)
    plan.predict({"tailnum": "N1"}, {"rain": 1}, stores.NOW_US)
    recorder.rows = None
    with pytest.raises(RequestError, match="delay") as caught:
        plan.predict({"tailnum": "N3"}, {"rain": 1}, stores.NOW_US)
    assert (caught.value.code, caught.value.row) == ("missing_not_allowed", None)
    with pytest.raises(RequestError, match="seats, delay") as caught:
        plan.predict({"tailnum": ["N1", "N2", "N3"]}, {"rain": 1}, stores.NOW_US)
    assert caught.value.row == 1
    with pytest.raises(RequestError, match="rain"):
        plan.predict({"tailnum": "N1"}, {"rain": None}, stores.NOW_US)
    assert recorder.rows is None


def test_foreign_signature_is_refused(directory):
    """A model that takes a feature the service does not have cannot be wired, nor can a scorer of another shape."""
    with pytest.raises(SchemaMismatchError, match="'altitude'"):
        make_plan(directory, features=["seats", "altitude"])
    with pytest.raises(SchemaMismatchError, match="1 features and 1 outputs, got 2 and 1"):
        ServingPlan("m", 1, Signature(("a",), Task.REGRESSION), Recorder(2))


def test_keys_are_encoded_as_the_writer_encodes_them(directory):
    """Every published key is found, whatever its characters, length and sign."""
    plan, recorder = make_plan(directory, features=["seats", "miles"])
    for tailnum, seats, *_ in stores.AIRCRAFT:
        for origin, gate, miles, _ in stores.ROUTES:
            plan.predict({"tailnum": tailnum, "origin": origin, "gate": gate}, {}, stores.NOW_US)
            np.testing.assert_array_equal(recorder.rows[0], np.float32([np.nan if seats is None else seats, miles]))


def test_plans_do_not_leak(directory):
    """Answered and refused requests leave no memory behind."""
    plan, _ = make_plan(directory)

    def answer_and_refuse(n):
        for _ in range(n):
            plan.predict(KEYS, REQUEST, stores.NOW_US)
            with contextlib.suppress(RequestError):
                plan.predict({**KEYS, "gate": "x"}, REQUEST, stores.NOW_US)
        gc.collect()

    tracemalloc.start()
    try:
        answer_and_refuse(100)
        before = tracemalloc.get_traced_memory()[0]
        answer_and_refuse(2000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2000 * 8  # less than a pointer per request
