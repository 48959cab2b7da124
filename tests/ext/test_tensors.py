"""Infer requests answered in the compiled plan: what it accepts it answers as the general path does, byte for byte."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.ext.test_payload import RowScorer, make_plan
from tests.ext.test_vector import AGE, MIX, Compiled, mix
from tests.reference import infer
from tests.support import stores
from tests.support.guarded import guarded
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds
from tiercel._hot.tensors import TensorForm, json_numbers

from tiercel.errors import TiercelError
from tiercel.features.online import OnlineBase
from tiercel.http.tensors import DTYPES
from tiercel.types import Signature, Task

TENSORS = 2
MAX_ROWS = 40
NOW_US = stores.NOW_US
ORDER = stores.schema().features
NAN = float("nan")


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    stores.publish(path)
    stores.publish(path, stores.schema("error", name="strict"))
    other = tmp_path_factory.mktemp("computed")
    stores.publish(other, replace(stores.schema(), transforms=(MIX, AGE)))
    base = OnlineBase.open(other / "svc")
    computing = Signature((*ORDER, "weight_by_hour", "seats_seen", "delay_half"), Task.REGRESSION)
    transforms = [Compiled(MIX, mix), Compiled(AGE, lambda delay: delay / 2)]
    numbers = Signature(("a", "b"), Task.REGRESSION)
    whole = Signature(("a", "b"), Task.BINARY, accepts_missing=False)
    return {
        "lenient": make_plan(path),
        "strict": make_plan(path, "strict", Task.MULTICLASS),
        "part": make_plan(path, features=["rain", "miles"], accepts_missing=False),
        "numbers": ServingPlan("numbers", 1, numbers, RowScorer(2, 1)),
        "whole": ServingPlan("whole", 12, whole, RowScorer(2, 1)),
        "computed": ServingPlan("c", 1, computing, RowScorer(13, 1), base.schema, base, transforms=transforms),
        "features": ServingPlan("own", 1, Signature(("features", "b"), Task.REGRESSION), RowScorer(2, 1)),
    }


def general(plan, body, header_length=-1):
    """The general path's settled reply, or None where it refuses."""
    ids = ReplyIds(MAX_ROWS)
    try:
        return infer.settled(infer.answer(plan, body, header_length, NOW_US, ids)[0], ids.prefix)
    except TiercelError:
        return None


def compiled(plan, body, header_length=-1):
    """The compiled path's settled reply, or None where it hands on."""
    ids = ReplyIds(MAX_ROWS)
    reply = plan.answer(body, TENSORS, NOW_US, ids, header_length=header_length)
    return infer.settled(reply, ids.prefix)


def check(plan, body, header_length=-1):
    """Answered means answered as the general path does; returns the reply or None."""
    reply = compiled(plan, body, header_length)
    if reply is not None:
        assert reply == general(plan, body, header_length)
    return reply


def packed(datatype, values):
    """Binary values; of BYTES each behind its length."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return np.array([NAN if value is None else value for value in values], DTYPES[datatype]).tobytes()


def tensor(name, datatype, values, shape=None, *, binary=False, nested=False, **extra):
    """(an input, its binary part): JSON, or binary."""
    shape = [len(values)] if shape is None else shape
    entry = {"name": name, "shape": shape, "datatype": datatype}
    if binary:
        data = packed(datatype, values)
        return {**entry, "parameters": {"binary_data_size": len(data)}, **extra}, data
    data = [values[at : at + shape[1]] for at in range(0, len(values), shape[1])] if nested else values
    return {**entry, "data": data, **extra}, b""


def request(*tensors, **rest):
    """(body, header length) of tensors and the request's other fields."""
    text = json.dumps({"inputs": [entry for entry, _ in tensors], **rest}, ensure_ascii=False).encode()
    return text + b"".join(data for _, data in tensors), len(text)


USUAL = {
    "tailnum": ("BYTES", ["N1", "N2", "é\U0001f6eb"]),
    "origin": ("BYTES", ["EWR", "EWR", "JFK"]),
    "gate": ("INT64", [3, -4, 2**63 - 1]),
    "rain": ("FP32", [0.25, None, 1.5]),
    "hour": ("INT64", [7, 8, 9]),
    "night": ("BOOL", [True, False, True]),
    "cabin": ("BYTES", ["coach", "first", "coach"]),
}


def usual(*, binary=False, column=False, **changes):
    """The usual request of three rows by name; changes are (datatype, values) or None."""
    named = {**USUAL, **changes}
    return [
        tensor(name, *each, [len(each[1]), 1] if column else None, binary=binary)
        for name, each in named.items()
        if each is not None
    ]


MATRIX = [0.25, 180, 12.5, 7, 1, 719.0, 1, NAN, 0, 1, NAN, 4, -3.0, 8, 0, NAN, 0, 2.5, 1, NAN]

NULLABLE = [None if np.isnan(value) else value for value in MATRIX]


def vector(values, width, datatype="FP32", **options):
    """One input of whole rows."""
    return tensor("features", datatype, values, [len(values) // width, width], **options)


ANSWERED = {
    "by name, JSON": request(*usual()),
    "by name, JSON columns": request(*usual(column=True)),
    "by name, binary": request(*usual(binary=True)),
    "by name, binary columns": request(*usual(binary=True, column=True)),
    "mixed": request(*usual(binary=True)[:3], *usual()[3:]),
    "mixed the other way": request(*usual()[:3], *usual(binary=True)[3:]),
    "nested": request(*usual(rain=None), tensor("rain", "FP64", [1, 2.5, None], [3, 1], nested=True)),
    "stored features too": request(*usual(binary=True, seats=("INT16", [1, 2, 3]), engine=("BYTES", ["jet"] * 3))),
    "an unknown key": request(*usual(tailnum=("BYTES", ["N9"] * 3))),
    "a vector": request(vector(MATRIX, 10, binary=True)),
    "a vector of FP64": request(vector(MATRIX, 10, "FP64", binary=True)),
    "a vector as JSON": request(vector(NULLABLE, 10)),
    "a nested vector": request(vector(NULLABLE, 10, "FP64", nested=True)),
    "an id": request(*usual(), id="é/\x7f-1"),
    "no id": request(*usual(), id=None, parameters=None, outputs=None),
    "an empty id": request(*usual(), id=""),
    "nothing asked": request(*usual(), outputs=[], parameters={}),
    "binary scores": request(*usual(), outputs=[{"name": "score", "parameters": {"binary_data": True}}]),
    "binary by default": request(*usual(), parameters={"binary_data_output": True}),
    "the output decides": request(
        *usual(), parameters={"binary_data_output": True}, outputs=[{"parameters": {"binary_data": False}, "name": "score"}]
    ),
    "the default decides": request(
        *usual(), outputs=[{"name": "score", "parameters": {"binary_data": None}}], parameters={"binary_data_output": True}
    ),
    "no parameters of the output": request(*usual(), outputs=[{"name": "score", "parameters": None}]),
    "a timeout": request(*usual(), parameters={"timeout": 5_000_000, "priority": 3}),
    "a fractional timeout": request(*usual(), parameters={"timeout": 5_000_000.75}),
    "no timeout": request(*usual(), parameters={"timeout": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERED)
@pytest.mark.parametrize("name", ["lenient", "strict"])
def test_ordinary_requests_are_answered_here(plans, case, name):
    """What clients send is answered by the compiled path, as the general path answers it."""
    if name == "strict" and case == "an unknown key":
        assert compiled(plans[name], *ANSWERED[case]) is None
        return
    assert check(plans[name], *ANSWERED[case]) is not None


def test_all_json_needs_no_header_length(plans):
    """Without the header the whole body is JSON; with it the JSON may be all there is."""
    body, length = ANSWERED["by name, JSON"]
    assert check(plans["lenient"], body, -1) == check(plans["lenient"], body, length) is not None
    assert check(plans["lenient"], b" \n" + body + b"\t ", -1) is not None
    assert check(plans["lenient"], ANSWERED["by name, binary"][0], -1) is None


@pytest.mark.parametrize("fields", [("data", "shape", "name", "datatype"), ("datatype", "data", "name", "shape")])
def test_fields_in_any_order(plans, fields):
    """Data that come before what says how to read them are read all the same."""
    made = [
        {name: entry[name] for name in fields} for entry, _ in [*usual(column=True), tensor("seats", "INT8", [1] * 3)]
    ]
    body = json.dumps({"outputs": None, "inputs": made}).encode()
    assert check(plans["lenient"], body) is not None
    tricky = [{**made[0], "data": ['"[]]', "\\", "]"]}, *made[1:]]
    assert check(plans["lenient"], json.dumps({"inputs": tricky}).encode()) is not None


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name[0] in "IU"])
@pytest.mark.parametrize("binary", [True, False])
def test_integers_of_every_width(plans, datatype, binary):
    """Keys and features take integers of any width and sign, to the ends of their ranges where these fit."""
    bounds = np.iinfo(DTYPES[datatype])
    values = [int(bounds.min), 3, min(int(bounds.max), 2**63 - 1)]
    body = request(*usual(gate=(datatype, values), hour=(datatype, values), rain=(datatype, values), binary=binary))
    assert check(plans["lenient"], *body) is not None
    if not binary:
        for wrong in (int(bounds.max) + 1, int(bounds.min) - 1, 1.0, True, None, "1"):
            assert check(plans["lenient"], *request(*usual(hour=(datatype, [1, wrong, 3])))) is None


def test_unsigned_integers_past_63_bits(plans):
    """A float feature takes them, rounded once; neither a key nor an integer does."""
    for value in (2**63, 2**64 - 1, 2**63 + 2**39 + 1):
        big = ("UINT64", [1, value, 3])
        assert check(plans["lenient"], *request(*usual(rain=big, binary=True))) is not None
        assert check(plans["lenient"], *request(*usual(hour=big, binary=True))) is None
        assert check(plans["lenient"], *request(*usual(gate=big, binary=True))) is None


NUMBERS = [
    "0", "-0", "-0.0", "1", "1.0", "1e-5", "0.1", "16777217", "1.00000005960464477539", "1.000000059604644775390625",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551617", "3.4028234663852886e38",
    "3.4028235677973366e38", "3.4028235677973365e38", "3.40282357e38", "1e39", "-1e39", "1e308", "1e309", "7e-46", "5e-324", "1" + "0" * 38,
    "1" + "0" * 39, "1" + "0" * 400, "1e-400",
]  # fmt: skip


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_of_json_round_as_arrays_do(plans, datatype, text):
    """A number of JSON is rounded to the tensor's datatype first, then to the feature's; what overflows is handed on."""
    for shape, name in (("[1]", "a"), ("[1,2]", "features")):
        data = f"[{text}]" if name == "a" else f"[0,{text}]"
        first = f'{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":{data}}}'
        other = "" if name == "features" else ',{"name":"b","datatype":"INT8","shape":[1,1],"data":[1]}'
        body = f'{{"inputs":[{first}{other}]}}'.encode()
        assert (check(plans["numbers"], body) is None) == (general(plans["numbers"], body) is None)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64"])
def test_inputs_of_a_transform_are_the_tensors_numbers(plans, datatype, binary):
    """The same decimal in FP32 and FP64 differs in an input that is wide; each is what its array holds."""
    values = [7, 16777217, 2**60 + 1] if datatype == "INT64" else [0.1, 16777217, None]
    for name in ("weight", "rain"):
        assert check(plans["computed"], *request(*usual(binary=binary, **{name: (datatype, values)}))) is not None


def test_what_a_transform_computes_cannot_be_sent(plans):
    """Neither by name nor as a part of the whole vector."""
    for body in (
        request(*usual(delay_half=("FP32", [1, 2, 3]))),
        request(vector([0.0] * 13, 13, binary=True)),
        request(vector([0.0] * 10, 10, binary=True)),
    ):
        assert compiled(plans["computed"], *body) is None
        assert general(plans["computed"], *body) is None


def test_a_missing_value_is_one_nan(plans):
    """Whatever bits a client's NaN has, the model sees one, and it counts as missing."""
    rows = np.array([[1.0, 2.0]], "<f4")
    for bits in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF):
        rows.view("<u4")[0, 1] = bits
        data = rows.tobytes()
        made = {"name": "features", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(data)}}
        assert check(plans["numbers"], *request((made, data))) is not None
        assert compiled(plans["whole"], *request((made, data))) is None


def test_a_raw_body_is_one_vector(plans):
    """No JSON at all: one row of FP32, answered in binary; of any other size it is handed on."""
    row = np.array([1.5, NAN], "<f4").tobytes()
    reply = check(plans["numbers"], row, 0)
    assert reply is not None
    assert reply.endswith(struct.pack("<d", 1.5 - 2e-3))
    for wrong in (row[:-1], row + b"\0", row * 2):
        assert check(plans["numbers"], wrong, 0) is None
    assert check(plans["whole"], row, 0) is None  # that model takes no missing values
    assert check(plans["features"], row, 0) is None


def test_a_models_own_features(plans):
    """A model with an input called "features" takes one value of it in each row, and no vector."""
    own = [tensor("features", "FP32", [1.5], binary=True), tensor("b", "BOOL", [True])]
    assert check(plans["features"], *request(*own)) is not None
    assert check(plans["features"], *request(vector([1, 2], 2))) is None
    form = TensorForm("m", 1, plans["features"].vectors, 1)
    assert (form.takes_vectors, TensorForm("m", 1, plans["numbers"].vectors, 1).takes_vectors) == (False, True)


@pytest.mark.parametrize(
    ("feature", "value"),
    [("engine", 2), ("engine", -1), ("engine", 0.5), ("cabin", 1e300), ("night", 2), ("night", 0.5), ("is_leased", -1),
     ("hour", 0.5), ("hour", 2.0**63), ("rain", 1e39), ("rain", float("inf")), ("night", float("-inf"))],
)  # fmt: skip
def test_numbers_of_a_vector_that_mean_nothing(plans, feature, value):
    """What is no category's code, no truth, no integer or no float32 is handed on with the whole vector."""
    row = [0.0] * len(ORDER)
    assert check(plans["lenient"], *request(vector(row, len(ORDER), "FP64", binary=True))) is not None
    row[ORDER.index(feature)] = value
    assert compiled(plans["lenient"], *request(vector(row, len(ORDER), "FP64", binary=True))) is None
    assert general(plans["lenient"], *request(vector(row, len(ORDER), "FP64", binary=True))) is None


def entry(**fields):
    """A request for "numbers" whose input has these fields, over right ones; None leaves one out."""
    made = {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **fields}
    return json.dumps({"inputs": [{name: value for name, value in made.items() if value is not None}]}).encode(), -1


def whole(**fields):
    """A right request for "numbers" with these fields of its own."""
    return request(vector([1, 2], 2), **fields)


def said(size, data=b"\0" * 8, header=None, shape=(1, 2), datatype="FP32"):
    """A binary vector for "numbers" of `data`, which says `size`; `header`: what is said of the JSON."""
    made = {"name": "features", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [made]}).encode()
    return text + data, len(text) if header is None else header


REFUSED = {
    "not JSON": (b"{", -1), "a list": (b"[]", -1), "null": (b"null", -1), "nothing": (b" ", -1), "empty": (b"{}", -1),
    "a second value": (entry()[0] + b"{}", -1), "a comma at the end": (entry()[0][:-1] + b",}", -1),
    "no inputs": request(), "inputs twice": (b'{"inputs":[],' + entry()[0][1:], -1), "misspelled": whole(output=[]),
    "id is a number": whole(id=7), "parameters is a list": whole(parameters=[]), "outputs is an object": whole(outputs={}),
    "an output is text": whole(outputs=["score"]), "unknown output": whole(outputs=[{"name": "scores"}]),
    "nameless output": whole(outputs=[{}]), "output twice": whole(outputs=[{"name": "score"}] * 2),
    "classes": whole(outputs=[{"name": "score", "parameters": {"classification": 2}}]),
    "binary is text": whole(outputs=[{"name": "score", "parameters": {"binary_data": "yes"}}]),
    "field of an output": whole(outputs=[{"name": "score", "x": 1}]),
    "negative timeout": whole(parameters={"timeout": -1}), "timeout is text": whole(parameters={"timeout": "9"}),
    "timeout is a truth": whole(parameters={"timeout": False}),
    "timeout is 0.0": whole(parameters={"timeout": 0.0}), "timeout of an age": whole(parameters={"timeout": 3_600_000_001}),
    "negative priority": whole(parameters={"priority": -1}), "priority is 1.0": whole(parameters={"priority": 1.0}),
    "a sequence": whole(parameters={"sequence_id": 1}), "flag is a number": whole(parameters={"binary_data_output": 1}),
    "no name": entry(name=None), "an empty name": entry(name=""), "name is a number": entry(name=1),
    "unknown name": entry(name="c"), "no datatype": entry(datatype=None), "unknown datatype": entry(datatype="FP31"),
    "a datatype cut": entry(datatype="FP3"), "a datatype too long": entry(datatype="FP321"), "small letters": entry(datatype="fp32"),
    "integer vector": entry(datatype="INT64"), "FP16 as JSON": entry(datatype="FP16"), "text": entry(datatype="BYTES"),
    "no shape": entry(shape=None), "shape is a number": entry(shape=2), "no dimensions": entry(shape=[]),
    "one dimension": entry(shape=[2]), "three dimensions": entry(shape=[1, 2, 1]), "no rows": entry(shape=[0, 2], data=[]),
    "a negative dimension": entry(shape=[-1, -2]), "a dimension is 1.0": entry(shape=[1.0, 2]),
    "a dimension is a truth": entry(shape=[True, 2]), "a narrow vector": entry(shape=[1, 1], data=[1]),
    "a wide vector": entry(shape=[1, 3], data=[1, 2, 3]), "more rows than data": entry(shape=[2, 2]),
    "huge rows": entry(shape=[2**62, 2]), "huge rank 1": entry(shape=[2**63]), "overflow": entry(shape=[2**32, 2**32]),
    "overflow to zero": entry(shape=[2**62, 4, 0]), "huge columns": entry(shape=[1, 2**62]), "too many digits": entry(shape=[10**30, 2]),
    "no data": entry(data=None), "data is null": (entry(data="x")[0].replace(b'"x"', b"null"), -1),
    "data is a number": entry(data=1), "data is text": entry(data="ab"), "too few": entry(data=[1]), "too many": entry(data=[1, 2, 3]),
    "a truth": entry(data=[1, True]), "a text": entry(data=[1, "2"]), "an object": entry(data=[1, {}]),
    "nested too deep": entry(data=[[[1, 2]]]), "nested too little": entry(data=[[1], [2]]), "nested unevenly": entry(data=[[1, 2], []]),
    "half nested": entry(data=[1, [2]]), "nested and more": entry(data=[[1, 2], 3]), "no end": (entry()[0].replace(b"]}]", b"}]"), -1),
    "infinite": (entry()[0].replace(b"[1, 2]}", b"[1, 1e39]}"), -1), "NaN": (entry()[0].replace(b"[1, 2]}", b"[1, NaN]}"), -1),
    "shared memory": entry(parameters={"shared_memory_region": "x"}), "unknown field": entry(x=1),
    "both data and size": entry(parameters={"binary_data_size": 0}), "negative size": said(-1), "size is 8.0": said(8.0),
    "size is text": said("8"), "size is a truth": said(True), "size too small": said(4), "size too large": said(12),
    "size beyond the body": said(2**63 - 1), "size past 64 bits": said(2**64 + 8), "size of nothing": said(0, b""),
    "bytes left over": said(8, b"\0" * 9), "bytes missing": said(8, b"\0" * 7), "header too short": said(8, header=10),
    "header too long": said(8, header=10_000), "header past everything": said(8, header=2**62), "header over all": said(8, header=len(said(8)[0])),
    "size for two": said(16, b"\0" * 16), "binary FP16": said(4, b"\0" * 4, datatype="FP16"), "rows too many": said(8, shape=[2, 2]),
    "shape overflows": said(8, shape=[2**62, 2]), "a name twice": request(tensor("a", "INT8", [1]), tensor("a", "INT8", [1])),
    "one name": request(tensor("a", "INT8", [1])), "other rows": request(tensor("a", "INT8", [1]), tensor("b", "INT8", [1, 2])),
    "a vector and more": request(vector([1, 2], 2), tensor("a", "INT8", [1])),
    "more and a vector": request(tensor("a", "INT8", [1]), vector([1, 2], 2)), "two vectors": request(vector([1, 2], 2), vector([1, 2], 2)),
    "a row vector by name": request(tensor("a", "INT8", [1, 2], [1, 2]), tensor("b", "INT8", [1])),
    "too many rows": request(vector([1] * 2 * (MAX_ROWS + 1), 2, binary=True)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_right_is_handed_on(plans, case):
    """Whatever the general path refuses - shapes, sizes, bytes, types, names, outputs - is never answered here."""
    assert compiled(plans["numbers"], *REFUSED[case]) is None
    assert general(plans["numbers"], *REFUSED[case]) is None


@pytest.mark.parametrize("name", ["timeout", "priority"])
def test_what_only_the_general_path_takes_is_handed_on(plans, name):
    """An option that is null is as good as left out, there; here it is not known."""
    asked = whole(parameters={name: None})
    assert compiled(plans["numbers"], *asked) is None
    assert general(plans["numbers"], *asked) == general(plans["numbers"], *whole())


def test_the_right_request_of_the_refused_ones(plans):
    """The refused requests are refused for what they change."""
    for body in (entry(), whole(), said(8), request(vector([1] * 2 * MAX_ROWS, 2, binary=True))):
        assert check(plans["numbers"], *body) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": ("FP64", [3, 3, 3])}, {"gate": ("BYTES", ["3"] * 3)}, {"gate": ("BOOL", [True] * 3)}, {"tailnum": ("INT64", [1] * 3)},
        {"night": ("INT8", [1, 0, 1])}, {"hour": ("FP32", [7, 8, 9])}, {"rain": ("BOOL", [True] * 3)}, {"rain": ("BYTES", ["1"] * 3)},
        {"cabin": ("INT8", [1, 0, 1])}, {"cabin": ("BYTES", ["coach", "roof", "coach"])}, {"cabin": ("BYTES", ["coach", "", "coach"])},
        {"tailnum": None}, {"gate": None}, {"rain": None}, {"speed": ("FP32", [1, 2, 3])}, {"gate": ("INT64", [3, 4])},
        {"tailnum": ("BYTES", ["x" * 600] * 3)}, {"hour": ("FP32", [7.5, 8, 9])}, {"seats": ("FP64", [1.0] * 3)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("binary", [True, False])
def test_inputs_of_another_type_are_handed_on(plans, changes, binary):
    """A key or feature in a datatype that is not its own, an unknown or absent one, another number of rows."""
    body = request(*usual(binary=binary, **changes))
    assert compiled(plans["lenient"], *body) is None
    assert general(plans["lenient"], *body) is None


@pytest.mark.parametrize(
    "data",
    [b"\x02\0\0\0N1\x02\0\0\0N2\xff\xff\xff\xffN3", b"\x02\0\0\0N1\x02\0\0\0N2\x02\0\0\0N", b"\x02\0\0\0N1\x02\0\0\0N2",
     b"\x02\0\0\0N1\x02\0\0\0N2\x02\0\0\0N3\0", b"\x02\0\0\0N1\x02\0\0\0N2\x02\0\0", b"\x02\0\0\0N1\x02\0\0\0\xff\xfe\x02\0\0\0N3",
     b"\x02\0\0\0N1\x03\0\0\0\xed\xa0\x80\x02\0\0\0N3", b"\x02\0\0\0N1\0\0\0\x80N2\x02\0\0\0N3", b""],
)  # fmt: skip
def test_bytes_elements_are_never_believed(plans, data):
    """Lengths past the end, elements too many or too few, and text that is not UTF-8 are handed on."""
    made = {"name": "tailnum", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(data)}}
    body = request((made, data), *usual(tailnum=None))
    assert compiled(plans["lenient"], *body) is None
    assert general(plans["lenient"], *body) is None


def test_a_bool_is_0_or_1(plans):
    """Any other octet is handed on."""
    made = {"name": "night", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}
    assert check(plans["lenient"], *request((made, b"\0\1\1"), *usual(night=None))) is not None
    assert check(plans["lenient"], *request((made, b"\0\1\2"), *usual(night=None))) is None


@pytest.mark.parametrize(
    "case", ["by name, binary", "mixed", "nested", "a vector", "a nested vector", "the output decides"]
)
def test_a_body_cut_anywhere_is_handed_on(plans, case):
    """No prefix is answered, or read past its end, whatever is said of its JSON; the whole is."""
    body, length = ANSWERED[case]
    plan = plans["lenient"]
    with guarded() as place:
        for size in range(1, len(body)):
            for header in {length, min(length, size), -1}:
                assert compiled(plan, place(body[:size]), header) is None
        for header in range(1, len(body) + 2):
            assert (compiled(plan, place(body), header) is not None) == (header == length)


@pytest.mark.parametrize("timeout", [None, 0, 5_000_000, 5_000_000.75, 3_600_000_000])
def test_a_timeout_is_told(plans, timeout):
    """The reply says the deadline that the request named, in whole microseconds; zero is none."""
    body = whole(parameters={} if timeout is None else {"timeout": timeout})
    assert check(plans["numbers"], *body) is not None
    told = json.loads(plans["numbers"].answer(body[0], TENSORS, NOW_US, ReplyIds(MAX_ROWS)))["parameters"]
    expected = {"budget_us": int(timeout), "budget_from": "timeout"} if timeout else {}
    assert {name: told[name] for name in told if name.startswith("budget")} == expected


def test_times_of_a_reply(plans):
    """Every stage and the total are told in microseconds with one decimal, and add up."""
    reply = json.loads(plans["lenient"].answer(ANSWERED["by name, JSON"][0], TENSORS, NOW_US, ReplyIds(MAX_ROWS)))
    times = reply["parameters"]["timing_us"]
    assert list(times) == ["parse", "read", "compute", "score", "reply", "total"]
    assert all(round(us, 1) == us >= 0 for us in times.values())
    assert sum(times.values()) - times["total"] <= times["total"] + 1


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.floats() | st.floats(width=32), max_size=5))
@example(values=[])
@example(values=[1e16, 1e-5, 1e-7, 5e-324, -0.0, NAN, float("inf")])
def test_json_numbers(values):
    """Numbers read back as they were; what is not finite is null."""
    text = json_numbers(np.array(values, np.float64))
    read = json.loads(text)
    assert [NAN if value is None else value for value in read] == pytest.approx(
        [value if np.isfinite(value) else NAN for value in values], rel=0, abs=0, nan_ok=True
    )
    assert [str(value) for value in read] == [str(value) if np.isfinite(value) else "None" for value in values]


# -- properties -------------------------------------------------------------------------------------------------------

WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 200)
FLOATS = (
    st.none()
    | st.floats(allow_infinity=False, allow_nan=False)
    | st.floats(allow_infinity=False, allow_nan=False, width=32)
)
#: By input: what it may hold, in its datatypes.
COLUMNS = {
    "tailnum": (["BYTES"], st.sampled_from([row[0] for row in stores.AIRCRAFT] + ["N9"]) | st.text(max_size=3)),
    "origin": (["BYTES"], st.sampled_from(["EWR", "JFK"])),
    "gate": (["INT64", "INT8", "UINT32"], st.sampled_from([3, -4, 2**63 - 1]) | WHOLE),
    "rain": (["FP32", "FP64", "INT32", "UINT64", "FP16"], FLOATS | WHOLE),
    "hour": (["INT64", "UINT8", "INT16", "FP32"], WHOLE),
    "night": (["BOOL", "INT8"], st.booleans()),
    "cabin": (["BYTES"], st.sampled_from(["first", "coach", "cargo"])),
    "seats": (["INT64", "UINT16"], WHOLE),
    "engine": (["BYTES"], st.sampled_from(stores.ENGINES)),
    "weight": (["FP32", "FP64", "INT64"], FLOATS),
}


def fitted(datatype, value):
    """The value, or one near it that the datatype has."""
    if datatype == "BYTES":
        return str(value)
    if datatype == "BOOL":
        return bool(value)
    if datatype.startswith("FP"):
        if value is None:
            return None
        with np.errstate(over="ignore"):
            narrow = DTYPES[datatype].type(value)
        return float(narrow) if np.isfinite(narrow) else 0.5
    bounds = np.iinfo(DTYPES[datatype])
    return min(max(int(value or 0), int(bounds.min)), int(bounds.max))


@st.composite
def requests(draw):
    """Mostly right requests by name: (body, header length, whether the compiled path may hand it on)."""
    n_rows = draw(st.integers(1, 4))
    needed = draw(st.permutations(["tailnum", "origin", "gate", "rain", "hour", "night", "cabin"]))
    tensors, odd = [], False
    for name in [*needed, *draw(st.lists(st.sampled_from(["seats", "engine", "weight"]), unique=True))]:
        datatypes, values = COLUMNS[name]
        datatype = datatypes[0] if draw(st.integers(0, 2)) else draw(st.sampled_from(datatypes))
        column = [fitted(datatype, draw(values)) for _ in range(n_rows)]
        shape = draw(st.sampled_from([[n_rows], [n_rows, 1]]))
        binary = draw(st.booleans())
        odd |= datatype == "FP16" or (not binary and datatype == "UINT64" and max(column) >= 2**63)
        made, data = tensor(
            name, datatype, column, shape, binary=binary, nested=not binary and len(shape) == 2 and draw(st.booleans())
        )
        tensors.append(({key: made[key] for key in draw(st.permutations(list(made)))}, data))
    rest = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.none() | st.text(max_size=4),
                "parameters": st.fixed_dictionaries({}, optional={"binary_data_output": st.none() | st.booleans()}),
                "outputs": st.sampled_from([[], None, [{"name": "score"}], [{"name": "score", "parameters": {"binary_data": True}}]]),
            },
        )
    )  # fmt: skip
    fields = {"inputs": [made for made, _ in tensors], **rest}
    text = json.dumps(
        {name: fields[name] for name in draw(st.permutations(list(fields)))}, ensure_ascii=False,
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])),
    ).encode()  # fmt: skip
    odd |= any(character < " " or character in '"\\' for character in rest.get("id") or "")
    return text + b"".join(data for _, data in tensors), len(text), odd


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(made=requests(), name=st.sampled_from(["lenient", "strict", "part", "computed"]))
def test_requests_by_name(plans, made, name):
    """Keys and features in every datatype, JSON or binary, are answered as the general path does, and answered here."""
    body, length, odd = made
    reply = check(plans[name], body, length)
    assert odd or (reply is None) == (general(plans[name], body, length) is None)


VALUES = {
    "engine": st.sampled_from([0.0, 1.0, NAN]), "cabin": st.sampled_from([0.0, 1.0, NAN]), "night": st.sampled_from([0.0, 1.0, NAN]),
    "is_leased": st.sampled_from([0.0, 1.0, NAN]), "hour": st.integers(-100, 100).map(float), "seats": st.integers(-100, 100).map(float),
}  # fmt: skip
CELL = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, NAN])


@settings(max_examples=250, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(["FP32", "FP64"]), binary=st.booleans(), wrong=st.integers(0, 5))
def test_vectors(plans, data, datatype, binary, wrong):
    """Whole vectors with codes, truths and missing values are answered as the general path does, and answered here."""
    rows = [
        data.draw(CELL if name not in VALUES or wrong == 0 else VALUES[name])
        for _ in range(data.draw(st.integers(1, 3)))
        for name in ORDER
    ]
    if not binary:
        rows = [value if np.isfinite(value) else None for value in rows]
    body = request(vector(rows, len(ORDER), datatype, binary=binary, nested=not binary and data.draw(st.booleans())))
    plan = plans[data.draw(st.sampled_from(["lenient", "strict"]))]
    assert (check(plan, *body) is None) == (general(plan, *body) is None)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), case=st.sampled_from(sorted(ANSWERED)), shift=st.integers(-3, 3))
def test_mutated_requests(plans, data, case, shift):
    """A request with bytes changed, removed, doubled or inserted is read as the general path reads it, or handed on."""
    body, length = ANSWERED[case]
    raw = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at, width = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 6))
        new = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b'"', b"\\u0041", b"1e400", b" ", b",", b"\xc0\x80", b"]", b"[", b"{}", b"null", b"\0\0\0\0", bytes(raw[:9])])
        )  # fmt: skip
        raw[at : at + width] = new
        length += (len(new) - width) if at < length else 0
    check(plans["lenient"], bytes(raw) or b" ", max(-1, length + (0 if data.draw(st.booleans()) else shift)))


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(min_size=1, max_size=60), length=st.integers(-1, 70))
def test_random_bytes(plans, raw, length):
    """Noise is handed on, whatever is said of it; eight bytes without JSON are a vector of two."""
    if length != 0:
        assert compiled(plans["numbers"], raw, length) is None
    else:
        check(plans["numbers"], raw, length)
