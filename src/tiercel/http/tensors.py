"""Tensors of the Open Inference Protocol: from a request's JSON and binary parts, and back to a reply's.

A body is one JSON object, then (with `Inference-Header-Content-Length`, the length of that object) the raw values of the
tensors that name a `binary_data_size`, in the order of the JSON: little-endian, row-major, without padding. BOOL is one
byte, 0 or 1; a BYTES element is its length in four bytes and then itself.

In JSON, `data` is row-major, flat or nested like the shape. BYTES are text there, and FP16 does not exist. A null is a
missing value: NaN among FP32 or FP64, None among the others, which have no number for it. Binary data has none for those.

Everything here is pure. Whatever disagrees - shape, datatype, size, bytes - is a RequestError (`invalid_tensor`) that
names the tensor, what was expected and what came; nothing is read past an end, and no memory is taken because a shape
says so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from tiercel._hot.tensors import json_numbers
from tiercel.errors import RequestError
from tiercel.http.request import show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Values = NDArray[Any] | list[bytes]

#: Request and reply header: bytes of the JSON part.
HEADER_LENGTH: Final = b"inference-header-content-length"
#: Datatype -> numpy's name of it; BYTES has none.
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: Final = (*DTYPES, "BYTES")
MAX_RANK: Final = 8
MAX_ELEMENTS: Final = 2**63 - 1
_LENGTH = struct.Struct("<I")
_NULL = type(None)
_INPUT_FIELDS = ("name", "shape", "datatype", "parameters", "data")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor.

    `values` has one item per element, row-major: a flat array of the datatype (lent by the body it came from where that
    was binary), or a list of bytes for BYTES. Where JSON had a null among what are
    no floats it is an array of objects, None among them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON part and what follows it.

    Args:
        body: all of it.
        header_length: the header's text; None: no such header, and all is JSON. "0": no JSON, all is one raw tensor.

    Raises:
        RequestError: the header is no length, or more than there is.
    """
    if header_length is None:
        return body, memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 20):
        raise _invalid(f"Expected header Inference-Header-Content-Length to be a number, got {show(header_length)}")
    length = int(header_length)
    if length > len(body):
        raise _invalid(
            f"Expected at least the {length} bytes of JSON that Inference-Header-Content-Length says, got a body of "
            f"{len(body)}"
        )
    return body[:length], memoryview(body)[length:]


def read_tensors(inputs: Any, rest: memoryview) -> list[Tensor]:
    """The tensors of a request.

    Args:
        inputs: the JSON value of "inputs".
        rest: what followed the JSON.

    Raises:
        RequestError: `invalid_tensor`.
    """
    if type(inputs) is not list or not inputs:
        raise _invalid(f"Expected $.inputs to be a list of at least one tensor, got {show(inputs)}")
    tensors: dict[str, Tensor] = {}
    taken = 0
    for index, item in enumerate(inputs):
        name, datatype, shape, count = _read_head(item, index)
        if name in tensors:
            raise _invalid(f"Expected tensor {show(name)} once, got it again at $.inputs[{index}]")
        size = _binary_size(item, name)
        if size is None:
            if item.get("data") is None:
                raise _invalid(f"Tensor {show(name)}: expected data or a binary_data_size, got neither")
            values = parse_json(name, datatype, shape, count, item["data"])
        else:
            if item.get("data") is not None:
                raise _invalid(f"Tensor {show(name)}: expected data or a binary_data_size, got both")
            if size > len(rest) - taken:
                raise _invalid(
                    f"Tensor {show(name)}: expected {size} bytes after the JSON, got {len(rest) - taken}. "
                    f"Inference-Header-Content-Length says where the JSON ends."
                )
            values = unpack(name, datatype, count, rest[taken : taken + size])
            taken += size
        tensors[name] = Tensor(name, datatype, shape, values)
    if taken != len(rest):
        raise _invalid(
            f"Expected the body to end after its tensors, got {len(rest) - taken} more bytes after {show(name)}"
        )
    return list(tensors.values())


def count_elements(shape: Sequence[int], name: str) -> int:
    """The product of a shape, multiplied from the left.

    Raises:
        RequestError: it overflows 63 bits on the way.
    """
    count = 1
    for size in shape:
        count *= size
        if count > MAX_ELEMENTS:
            raise _invalid(
                f"Tensor {show(name)}: expected at most {MAX_ELEMENTS} elements, got shape {show(list(shape))}"
            )
    return count


def unpack(name: str, datatype: str, count: int, data: memoryview) -> Values:
    """`count` binary values that take up all of `data`; an array lent by it.

    Raises:
        RequestError: more or fewer bytes, or a BOOL that is neither 0 nor 1.
    """
    if datatype == "BYTES":
        return _unpack_bytes(name, count, data)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise _invalid(
            f"Tensor {show(name)}: expected {count * dtype.itemsize} bytes ({count} of {datatype}), got {len(data)}"
        )
    if datatype == "BOOL":
        octets = np.frombuffer(data, np.uint8)
        if octets.size and octets.max() > 1:
            where = int(np.argmax(octets > 1))
            raise _invalid(
                f"Tensor {show(name)}: expected 0 or 1 for each BOOL, got {octets[where]} at element {where}"
            )
    return np.frombuffer(data, dtype)


def pack(datatype: str, values: Values) -> bytes:
    """The binary form of values; the inverse of `unpack`."""
    if datatype == "BYTES":
        return b"".join(chain.from_iterable((_LENGTH.pack(len(value)), value) for value in values))
    return np.ascontiguousarray(values, DTYPES[datatype]).tobytes()


def parse_json(name: str, datatype: str, shape: tuple[int, ...], count: int, data: Any) -> Values:
    """The values of a JSON `data`, flat or nested.

    Raises:
        RequestError: another number of values than the shape says, another nesting, a value that is not of the datatype.
    """
    values = _flatten(name, shape, count, data)
    kinds = set(map(type, values))
    if datatype == "BYTES":
        _require(kinds <= {str, _NULL}, name, datatype, values, (str, _NULL))
        if _NULL not in kinds:
            return [_encoded(name, index, value) for index, value in enumerate(values)]
        texts = [None if value is None else _encoded(name, index, value) for index, value in enumerate(values)]
        return np.array(texts, object)
    if datatype == "BOOL":
        _require(kinds <= {bool, _NULL}, name, datatype, values, (bool, _NULL))
        return np.array(values, object if _NULL in kinds else DTYPES[datatype])
    if datatype == "FP16":
        raise _invalid(f"Tensor {show(name)}: expected FP16 as binary data, got JSON, which has no such numbers")
    if datatype in {"FP32", "FP64"}:
        _require(kinds <= {int, float, _NULL}, name, datatype, values, (int, float, _NULL))
        return _floats(name, datatype, values)
    _require(kinds <= {int, _NULL}, name, datatype, values, (int, _NULL))
    bounds = np.iinfo(DTYPES[datatype])
    known = values if _NULL not in kinds else [value for value in values if value is not None]
    for index, value in enumerate(values if known and not bounds.min <= min(known) <= max(known) <= bounds.max else ()):
        if value is not None and not bounds.min <= value <= bounds.max:
            raise _invalid(
                f"Tensor {show(name)}: expected {datatype} ({bounds.min} to {bounds.max}), got {show(value)} at element "
                f"{index}"
            )
    return np.array(values, object if _NULL in kinds else DTYPES[datatype])


def to_json(datatype: str, values: Values) -> list[Any]:
    """Flat JSON `data`. NaN becomes null when it is written.

    Raises:
        RequestError: BYTES that are not UTF-8; ask for binary output.
    """
    if datatype != "BYTES":
        flat: list[Any] = np.asarray(values, DTYPES[datatype]).tolist()
        return flat
    return [text_of("output", index, value) for index, value in enumerate(values)]


def text_of(name: str, index: int, value: bytes) -> str:
    """One BYTES element as text.

    Raises:
        RequestError: it is not UTF-8.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _invalid(f"Tensor {show(name)}: expected UTF-8 text at element {index}, got {show(value)}") from None


def encode_reply(head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """A reply's body and the length of its JSON part, None where all of it is JSON.

    Args:
        head: the reply without its outputs; they are put last.
        outputs: each tensor, and whether it goes as binary.
    """
    listed: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            parts.append(pack(tensor.datatype, tensor.values))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = (
                _fragment(tensor.values) if tensor.datatype == "FP64" else to_json(tensor.datatype, tensor.values)
            )
        listed.append(entry)
    text = orjson.dumps({**head, "outputs": listed})
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def _fragment(values: Values) -> orjson.Fragment:
    """Numbers as the compiled path writes them: what is shortest has more than one spelling."""
    return orjson.Fragment(json_numbers(np.ascontiguousarray(values, np.float64)))


def _read_head(item: Any, index: int) -> tuple[str, str, tuple[int, ...], int]:
    """Name, datatype, shape and number of elements."""
    where = f"$.inputs[{index}]"
    if type(item) is not dict:
        raise _invalid(f"Expected a tensor object at {where}, got {show(item)}")
    for key in item:
        if key not in _INPUT_FIELDS:
            raise _invalid(f"Expected the fields {', '.join(_INPUT_FIELDS)} at {where}, got {show(key)}")
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    if type(name) is not str or not name:
        raise _invalid(f"Expected a name at {where}.name, got {show(name)}")
    if type(datatype) is not str or datatype not in DATATYPES:
        raise _invalid(f"Tensor {show(name)}: expected a datatype among {', '.join(DATATYPES)}, got {show(datatype)}")
    if type(shape) is not list or not all(type(size) is int for size in shape):
        raise _invalid(f"Tensor {show(name)}: expected a shape (a list of integers), got {show(shape)}")
    if not 1 <= len(shape) <= MAX_RANK:
        raise _invalid(f"Tensor {show(name)}: expected 1 to {MAX_RANK} dimensions, got {len(shape)}")
    if min(shape) < 0:
        raise _invalid(f"Tensor {show(name)}: expected no negative dimension in a request, got shape {show(shape)}")
    return name, datatype, tuple(shape), count_elements(shape, name)


def _binary_size(item: dict[str, Any], name: str) -> int | None:
    parameters = item.get("parameters")
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise _invalid(f"Tensor {show(name)}: expected parameters to be an object, got {show(parameters)}")
    if any(key.startswith("shared_memory") for key in parameters):
        raise _invalid(f"Tensor {show(name)}: expected its values in the request, got a shared memory region")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise _invalid(f"Tensor {show(name)}: expected binary_data_size to be a number of bytes, got {show(size)}")
    return size


def _flatten(name: str, shape: tuple[int, ...], count: int, data: Any) -> list[Any]:
    if type(data) is not list:
        raise _invalid(f"Tensor {show(name)}: expected data to be a list, got {show(data)}")
    if len(shape) == 1 or not data or type(data[0]) is not list:
        if len(data) != count:
            raise _invalid(
                f"Tensor {show(name)}: expected {count} values (shape {list(shape)}), got {len(data)} in data"
            )
        return data
    parts: list[Any] = [data]
    for axis, size in enumerate(shape):
        for part in parts:
            if type(part) is not list or len(part) != size:
                raise _invalid(
                    f"Tensor {show(name)}: expected lists of {size} along axis {axis} (shape {list(shape)}), got "
                    f"{f'{len(part)} items' if type(part) is list else show(part)}"
                )
        parts = list(chain.from_iterable(parts))
    return parts


def _floats(name: str, datatype: str, values: list[Any]) -> NDArray[Any]:
    """float32 or float64 of numbers and nulls, none of which overflows."""
    try:
        wide = np.array(values, np.float64)
    except OverflowError:  # an integer beyond float64
        wide = np.array([_nearest(value) for value in values], np.float64)
    with np.errstate(over="ignore"):
        result = wide.astype(DTYPES[datatype])
    if np.isinf(result).any():
        where = int(np.argmax(np.isinf(result)))
        raise _invalid(
            f"Tensor {show(name)}: expected a finite {datatype}, got {show(values[where])} at element {where}"
        )
    return result


def _nearest(value: float | None) -> float:
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.inf


def _unpack_bytes(name: str, count: int, data: memoryview) -> list[bytes]:
    values: list[bytes] = []
    at = 0
    while at < len(data):
        if len(values) == count:
            raise _invalid(
                f"Tensor {show(name)}: expected {count} BYTES elements, got {len(data) - at} bytes after them"
            )
        if len(data) - at < _LENGTH.size:
            raise _invalid(
                f"Tensor {show(name)}: expected four bytes of length of element {len(values)}, got {len(data) - at}"
            )
        size = _LENGTH.unpack_from(data, at)[0]
        at += _LENGTH.size
        if size > len(data) - at:
            raise _invalid(
                f"Tensor {show(name)}: expected the {size} bytes of element {len(values)}, got {len(data) - at}"
            )
        values.append(bytes(data[at : at + size]))
        at += size
    if len(values) != count:
        raise _invalid(f"Tensor {show(name)}: expected {count} BYTES elements, got {len(values)}")
    return values


def _encoded(name: str, index: int, value: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid(f"Tensor {show(name)}: expected text at element {index}, got an unpaired surrogate") from None


def _require(fits: bool, name: str, datatype: str, values: list[Any], kinds: tuple[type, ...]) -> None:
    if fits:
        return
    index = next(index for index, value in enumerate(values) if type(value) not in kinds)
    raise _invalid(f"Tensor {show(name)}: expected {datatype} at element {index}, got {show(values[index])}")


def _invalid(message: str) -> RequestError:
    return RequestError(message, code="invalid_tensor")
