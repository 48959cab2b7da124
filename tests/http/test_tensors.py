"""Tensors in and out: every datatype there and back, and every way in which shape, size and bytes can disagree."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tiercel.errors import RequestError
from tiercel.http.tensors import (
    DATATYPES,
    DTYPES,
    Tensor,
    encode_reply,
    pack,
    read_tensors,
    split_body,
    to_json,
    unpack,
)

NUMERIC = sorted(DTYPES)
shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw, datatypes=DATATYPES, allow_nan=True, text=False):
    """A tensor of any datatype and shape."""
    datatype, shape = draw(st.sampled_from(datatypes)), draw(shapes)
    count = int(np.prod(shape))
    name = draw(st.text(min_size=1, max_size=5))
    if datatype == "BYTES":
        element = st.text(st.characters(exclude_categories=["Cs"])).map(str.encode) if text else st.binary(max_size=9)
        return Tensor(name, datatype, shape, draw(st.lists(element, min_size=count, max_size=count)))
    dtype = DTYPES[datatype]
    element = arrays.from_dtype(dtype, allow_nan=allow_nan, allow_infinity=False) if dtype.kind == "f" else None
    return Tensor(name, datatype, shape, draw(arrays.arrays(dtype, shape, elements=element)).reshape(-1))


def described(tensor, **rest):
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), **rest}


def binary(tensor):
    """A request's entry for a binary tensor, and its bytes."""
    data = pack(tensor.datatype, tensor.values)
    return described(tensor, parameters={"binary_data_size": len(data)}), data


def nested(values, shape):
    for size in reversed(shape[1:]):
        values = [values[i : i + size] for i in range(0, len(values), size)] if size else [[]] * shape[0]
    return values


def same(one, other):
    """Equal to the bit."""
    assert (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape)
    assert pack(one.datatype, one.values) == pack(other.datatype, other.values)


def refused(inputs, rest=b""):
    with pytest.raises(RequestError) as caught:
        read_tensors(inputs, memoryview(rest))
    assert caught.value.code == "invalid_tensor"
    return str(caught.value)


@given(st.lists(tensors(), min_size=1, max_size=4, unique_by=lambda tensor: tensor.name))
def test_binary_there_and_back(several):
    """Every datatype and shape survives the binary form, several tensors one after another."""
    entries = [binary(tensor) for tensor in several]
    found = read_tensors([entry for entry, _ in entries], memoryview(b"".join(data for _, data in entries)))
    for one, other in zip(found, several, strict=True):
        same(one, other)


@given(tensors([name for name in DATATYPES if name != "FP16"], allow_nan=False, text=True))
def test_json_there_and_back(tensor):
    """Every datatype that JSON has survives it, flat and nested like the shape."""
    flat = json.loads(json.dumps(to_json(tensor.datatype, tensor.values)))
    found = read_tensors([described(tensor, data=flat)], memoryview(b""))
    same(found[0], tensor)
    if all(tensor.shape):
        same(read_tensors([described(tensor, data=nested(flat, tensor.shape))], memoryview(b""))[0], tensor)


@given(tensors(["FP64", "BYTES", "INT8"], allow_nan=False, text=True), st.booleans())
def test_a_reply_is_read_back(tensor, as_binary):
    """What a reply says of a tensor is enough to read it, binary or not, and the JSON part ends where it says."""
    body, length = encode_reply({"id": "1"}, [(tensor, as_binary)])
    assert (length is None) is not as_binary
    text, rest = split_body(body, None if length is None else str(length))
    head = json.loads(bytes(text))
    assert head["id"] == "1"
    same(read_tensors(head["outputs"], rest)[0], tensor)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_truncated_at_every_byte(datatype):
    """Any proper prefix of a tensor's bytes is refused, and so is any byte too many; nothing is read past the end."""
    values = [b"ab", b"", b"\0\0\0\0c"] if datatype == "BYTES" else np.array([1, 0, 1], DTYPES[datatype])
    data = pack(datatype, values)
    tensor = Tensor("x", datatype, (3,), values)
    same(read_tensors([binary(tensor)[0]], memoryview(data))[0], tensor)
    for kept in range(len(data)):
        refused([described(tensor, parameters={"binary_data_size": kept})], data[:kept])
        refused([described(tensor, parameters={"binary_data_size": len(data)})], data[:kept])
        refused([described(tensor, parameters={"binary_data_size": kept})], data)
    refused([binary(tensor)[0]], data + b"\0")
    refused([described(tensor, parameters={"binary_data_size": len(data) + 1})], data + b"\0")


@given(st.sampled_from(DATATYPES), st.integers(0, 5), st.binary(max_size=60))
def test_any_bytes_are_values_or_refused(datatype, count, data):
    """Whatever the bytes are, they are exactly `count` values that pack to them again, or an invalid_tensor."""
    try:
        values = unpack("x", datatype, count, memoryview(data))
    except RequestError as error:
        code = error.code
    else:
        code = None
        assert len(values) == count
        assert pack(datatype, values) == data
    assert code in {None, "invalid_tensor"}


def test_numbers_are_little_endian():
    """The bytes are those of the specification, not of the machine."""
    assert pack("INT32", np.array([1])) == b"\1\0\0\0"
    assert pack("FP16", np.array([1.0])) == b"\0\x3c"
    assert pack("BYTES", [b"abc"]) == struct.pack("<I", 3) + b"abc"


def test_numeric_tensors_are_not_copied():
    """The values of a binary tensor are the body's own bytes."""
    body = bytearray(np.arange(4, dtype="<f4").tobytes())
    tensor = read_tensors(
        [described(Tensor("x", "FP32", (4,), []), parameters={"binary_data_size": 16})], memoryview(body)
    )
    body[:4] = struct.pack("<f", 7.0)
    assert tensor[0].values[0] == 7.0


def entry(**changes):
    """A good tensor, changed."""
    made = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}
    return {name: value for name, value in made.items() if value is not ...}


BAD = [
    pytest.param(None, "at least one tensor", id="no inputs"),
    pytest.param([], "at least one tensor", id="empty inputs"),
    pytest.param([7], "tensor object", id="not an object"),
    pytest.param([entry(name=...)], "a name", id="no name"),
    pytest.param([entry(name="")], "a name", id="empty name"),
    pytest.param([entry(datatype="FP31")], "datatype among", id="unknown datatype"),
    pytest.param([entry(datatype="BF16")], "datatype among", id="bfloat16"),
    pytest.param([entry(datatype=["FP32"])], "datatype among", id="datatype not text"),
    pytest.param([entry(shape=...)], "a shape", id="no shape"),
    pytest.param([entry(shape=[2.0])], "a shape", id="fractional dimension"),
    pytest.param([entry(shape=[True, 2])], "a shape", id="truth as dimension"),
    pytest.param([entry(shape=[])], "dimensions", id="no dimension"),
    pytest.param([entry(shape=[1] * 9)], "dimensions", id="too many dimensions"),
    pytest.param([entry(shape=[-1])], "negative", id="negative dimension"),
    pytest.param([entry(shape=[-1, -2])], "negative", id="negative dimensions with a positive product"),
    pytest.param([entry(shape=[2**32, 2**32])], "elements", id="product overflows"),
    pytest.param([entry(shape=[2**62, 2, 0])], "elements", id="product overflows before a zero"),
    pytest.param([entry(shape=[2**64])], "elements", id="dimension overflows"),
    pytest.param([entry(shape=[3])], "expected 3 values", id="too few values"),
    pytest.param([entry(shape=[1])], "expected 1 values", id="too many values"),
    pytest.param([entry(shape=[2, 1], data=[[1], [2, 3]])], "along axis 1", id="ragged"),
    pytest.param([entry(shape=[2, 1], data=[[1], 2])], "along axis 1", id="half nested"),
    pytest.param([entry(shape=[2, 1], data=[[1]])], "along axis 0", id="nested and too few"),
    pytest.param([entry(shape=[2, 1], data=[[[1]], [[2]]])], "FP32 at element 0", id="nested too deep"),
    pytest.param([entry(data=[1, [2]])], "FP32 at element 1", id="list among values"),
    pytest.param([entry(data="12")], "a list", id="data is text"),
    pytest.param([entry(data=[1, "2"])], "FP32 at element 1, got '2'", id="text among floats"),
    pytest.param([entry(data=[True, 2])], "FP32 at element 0", id="truth among floats"),
    pytest.param([entry(data=[1, 1e39])], "finite FP32", id="float overflows"),
    pytest.param([entry(data=[1, 10**400])], "finite FP32", id="integer overflows a float"),
    pytest.param([entry(datatype="FP16")], "binary", id="half floats in JSON"),
    pytest.param([entry(datatype="INT8", data=[1, 128])], "-128 to 127), got 128 at element 1", id="INT8 overflows"),
    pytest.param([entry(datatype="UINT64", data=[1, -1])], "got -1 at element 1", id="negative UINT64"),
    pytest.param([entry(datatype="UINT64", data=[1, 2**64])], "at element 1", id="UINT64 overflows"),
    pytest.param([entry(datatype="INT64", data=[1.0, 2])], "INT64 at element 0", id="float among integers"),
    pytest.param([entry(datatype="INT64", data=[None, 2.0])], "INT64 at element 1", id="float beside null"),
    pytest.param([entry(datatype="INT8", data=[None, 128])], "got 128 at element 1", id="INT8 overflows beside null"),
    pytest.param([entry(datatype="BOOL", data=[None, 1])], "BOOL at element 1", id="integer beside null"),
    pytest.param([entry(datatype="BYTES", data=[None, 1])], "BYTES at element 1", id="number beside null"),
    pytest.param([entry(datatype="BOOL", data=[True, 1])], "BOOL at element 1", id="integer among truths"),
    pytest.param([entry(datatype="BYTES", data=["a", 1])], "BYTES at element 1", id="number among texts"),
    pytest.param([entry(datatype="BYTES", data=["a", "\ud800"])], "surrogate", id="half a surrogate pair"),
    pytest.param([entry(data=...)], "got neither", id="neither data nor bytes"),
    pytest.param([entry(parameters={"binary_data_size": 0})], "got both", id="data and bytes"),
    pytest.param([entry(parameters=[])], "parameters", id="parameters not an object"),
    pytest.param([entry(data=..., parameters={"binary_data_size": -8})], "number of bytes", id="negative size"),
    pytest.param([entry(data=..., parameters={"binary_data_size": "8"})], "number of bytes", id="size is text"),
    pytest.param([entry(data=..., parameters={"binary_data_size": True})], "number of bytes", id="size is a truth"),
    pytest.param([entry(data=..., parameters={"binary_data_size": 8})], "got 0", id="no bytes"),
    pytest.param([entry(parameters={"shared_memory_region": "r"})], "shared memory", id="shared memory"),
    pytest.param([entry(), entry()], "once", id="the same name twice"),
    pytest.param([entry(dtype="FP32")], "got 'dtype'", id="unknown field"),
]


@pytest.mark.parametrize(("inputs", "says"), BAD)
def test_what_disagrees_is_refused(inputs, says):
    """Each disagreement has its message: what was expected, what came, and in which tensor."""
    assert says in refused(inputs)


def test_refusals_name_the_tensor():
    """With several tensors, the message says which is wrong."""
    assert "'second'" in refused([entry(), entry(name="second", shape=[3])])


def test_a_byte_is_no_bool():
    """A BOOL of 2 would be true to one reader and corrupt to another."""
    tensor = entry(datatype="BOOL", data=..., parameters={"binary_data_size": 2})
    assert "got 2 at element 1" in refused([tensor], b"\1\2")


def test_bytes_lengths_cannot_reach_out():
    """A BYTES element that says it is longer than what is left is refused, however long it says it is."""
    for size in (1, 2**31, 2**32 - 1):
        data = struct.pack("<I", size)
        tensor = entry(datatype="BYTES", shape=[1], data=..., parameters={"binary_data_size": 4})
        assert f"the {size} bytes" in refused([tensor], data)


def test_bytes_left_over_are_refused():
    """Bytes after the last tensor, also where no tensor is binary."""
    assert "3 more bytes" in refused([entry()], b"abc")


def test_a_huge_shape_takes_no_memory():
    """A shape alone makes nothing: it has to agree with the bytes that came first."""
    tensor = entry(shape=[2**40], data=..., parameters={"binary_data_size": 4})
    assert "got 4" in refused([tensor], b"\0\0\0\0")


def test_zero_elements():
    """An empty tensor is one: no bytes, any zero dimension, JSON or not."""
    for shape, data in (([0], []), ([2, 0], [[], []]), ([0, 3], [])):
        assert len(read_tensors([entry(shape=shape, data=data)], memoryview(b""))[0].values) == 0
    tensor = entry(shape=[0], data=..., parameters={"binary_data_size": 0})
    assert len(read_tensors([tensor], memoryview(b""))[0].values) == 0


def test_null_is_nan():
    """JSON has no NaN, so a null among floats is one."""
    values = read_tensors([entry(data=[None, 2])], memoryview(b""))[0].values
    assert np.isnan(values[0])
    assert values[1] == 2


@pytest.mark.parametrize(
    ("datatype", "data", "values"),
    [
        ("INT64", [None, 2**63 - 1], [None, 2**63 - 1]),
        ("UINT64", [2**64 - 1, None], [2**64 - 1, None]),
        ("INT8", [[None], [None]], [None, None]),
        ("BOOL", [None, True], [None, True]),
        ("BYTES", ["", None], [b"", None]),
    ],
)
def test_null_is_a_missing_value(datatype, data, values):
    """What has no NaN keeps its null; the others are what they would be without it, to the bit."""
    shape = [2, 1] if type(data[0]) is list else [2]
    found = read_tensors([entry(datatype=datatype, shape=shape, data=data)], memoryview(b""))[0].values
    assert list(found) == values
    assert [type(each) for each in found] == [type(each) for each in values]


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "+5", "5 5", "٣", "9" * 20])
def test_header_length_is_a_number(length):
    """The header is plain digits; nothing that another reader could take for another number."""
    with pytest.raises(RequestError) as caught:
        split_body(b"{}", length)
    assert caught.value.code == "invalid_tensor"


def test_header_length_beyond_the_body():
    """A JSON part longer than the body is refused."""
    with pytest.raises(RequestError, match="at least the 3 bytes"):
        split_body(b"{}", "3")
    assert bytes(split_body(b"{}", "2")[1]) == b""


def test_output_text_that_is_no_text():
    """BYTES that are not UTF-8 cannot go as JSON, and the reply says so instead of changing them."""
    with pytest.raises(RequestError, match="UTF-8"):
        to_json("BYTES", [b"\xff"])
