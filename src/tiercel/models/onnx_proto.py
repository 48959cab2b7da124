"""ONNX files without the `onnx` package: a bounded walk of the protobuf that also refuses what is not self-contained.

Refused as unsafe: tensors whose data lies in other files, sparse initialisers, functions defined in the file, operators
from domains other than ai.onnx and ai.onnx.ml, training graphs, and sizes no tabular model has. Offsets were read off the
published schema (onnx.proto); unknown fields are skipped, as protobuf demands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel._hot.wire import scan, unpack_varints
from tiercel.errors import UnsafeModelError, UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MAX_FIELDS = 1 << 27
MAX_GRAPH_NODES = 20_000
MAX_GRAPHS = 1_000
MAX_TENSOR_ELEMENTS = 1 << 27
_DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
    10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip
FLOAT, INT64, STRING, DOUBLE = 1, 7, 8, 11


@dataclass(frozen=True)
class Tensor:
    """A constant. Strings are objects of `str`."""

    name: str
    dtype: int  # ONNX number
    values: NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One operator."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """A graph's input or output. `dtype` 0: not a tensor. Unknown dimensions are None."""

    name: str
    dtype: int
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxModel:
    """What tiercel needs of an ONNX file."""

    opsets: dict[str, int]
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def class_labels(self) -> tuple[str, ...]:
        """Labels of the last classifier (or ZipMap) in the graph, as text; empty without one."""
        for node in reversed(self.nodes):
            for name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
                labels = node.attributes.get(name)
                if labels is not None and len(labels):
                    return tuple(str(label) for label in labels)
        return ()


class _Message:
    """One level of a message: fields by number."""

    def __init__(self, data: bytes, start: int, end: int, what: str) -> None:
        self.data, self.start, self.end, self.what = data, start, end, what
        try:
            self.numbers, self.wires, self.values, self.lengths = scan(data, start, end, MAX_FIELDS)
        except ValueError as error:
            raise UnsupportedModelError(
                f"Expected an ONNX file, got bytes that cannot be read as {what}. {error}"
            ) from None

    def spans(self, number: int) -> list[tuple[int, int]]:
        """(start, end) of each length-delimited field."""
        at = np.flatnonzero((self.numbers == number) & (self.wires == 2))
        return [(int(self.values[k]), int(self.values[k]) + int(self.lengths[k])) for k in at]

    def children(self, number: int, what: str) -> list[_Message]:
        return [_Message(self.data, start, end, what) for start, end in self.spans(number)]

    def has(self, number: int) -> bool:
        return bool(np.any(self.numbers == number))

    def texts(self, number: int) -> list[str]:
        try:
            return [self.data[start:end].decode() for start, end in self.spans(number)]
        except UnicodeDecodeError as error:
            raise UnsupportedModelError(f"Expected text in {self.what} of an ONNX file: {error}") from None

    def text(self, number: int) -> str:
        return (self.texts(number) or [""])[-1]

    def integer(self, number: int, default: int = 0) -> int:
        found = self.values[(self.numbers == number) & (self.wires == 0)]
        return int(found[-1:].view(np.int64)[0]) if len(found) else default

    def integers(self, number: int) -> NDArray[np.int64]:
        """A repeated integer, packed or one field each."""
        single = self.values[(self.numbers == number) & (self.wires == 0)].view(np.int64)
        try:
            packed = [unpack_varints(self.data, start, end) for start, end in self.spans(number)]
        except ValueError as error:
            raise UnsupportedModelError(f"Expected integers in {self.what} of an ONNX file. {error}") from None
        return np.concatenate([single, *packed]) if packed else single

    def floats(self, number: int) -> NDArray[np.float32]:
        """A repeated float32, packed or one field each."""
        single = self.values[(self.numbers == number) & (self.wires == 5)].astype(np.uint32).view(np.float32)
        packed = [self._packed(start, end, np.float32) for start, end in self.spans(number)]
        return np.concatenate([single, *packed]) if packed else single

    def doubles(self, number: int) -> NDArray[np.float64]:
        """A repeated float64."""
        single = self.values[(self.numbers == number) & (self.wires == 1)].view(np.float64)
        packed = [self._packed(start, end, np.float64) for start, end in self.spans(number)]
        return np.concatenate([single, *packed]) if packed else single

    def _packed(self, start: int, end: int, dtype: Any) -> NDArray[Any]:
        width = np.dtype(dtype).itemsize
        if (end - start) % width:
            raise UnsupportedModelError(f"Expected numbers of {width} bytes in {self.what} of an ONNX file")
        return np.frombuffer(self.data, dtype=dtype, count=(end - start) // width, offset=start)


def read_onnx_proto(data: bytes) -> OnnxModel:
    """Read and check an ONNX file.

    Raises:
        UnsafeModelError: it refers to other files, defines its own functions or needs operators from unknown domains.
        UnsupportedModelError: not an ONNX file, or cut short.
    """
    model = _Message(data, 0, len(data), "a model")
    if model.has(25):
        raise UnsafeModelError("ONNX files that define their own functions are refused; export the model without them")
    if model.has(20):
        raise UnsafeModelError("ONNX files with training graphs are refused; export the model for inference")
    graphs = model.children(7, "a graph")
    if len(graphs) != 1:
        raise UnsupportedModelError(f"Expected an ONNX file with one graph, got {len(graphs)}; the file is cut short")
    opsets: dict[str, int] = {}
    for opset in model.children(8, "an opset"):
        domain = opset.text(1)
        _check_domain(domain)
        opsets["" if domain == "ai.onnx" else domain] = opset.integer(2)
    if not opsets:
        raise UnsupportedModelError("Expected opset versions in an ONNX file, got none; the file is cut short")
    top: tuple[list[Node], dict[str, Tensor]] | None = None
    work, n_graphs, n_nodes = graphs, 0, 0
    while work:  # subgraphs of If, Loop and Scan are checked like the top one; a list, not recursion
        graph = work.pop()
        n_graphs += 1
        if graph.has(15):
            raise UnsafeModelError("ONNX files with sparse initialisers are refused; save them as dense tensors")
        messages = graph.children(1, "a node")
        n_nodes += len(messages)
        if n_nodes > MAX_GRAPH_NODES or n_graphs > MAX_GRAPHS:
            raise UnsafeModelError(f"Expected at most {MAX_GRAPH_NODES} nodes and {MAX_GRAPHS} graphs in an ONNX file")
        nodes = [_node(message, work) for message in messages]
        tensors = [_tensor(message) for message in graph.children(5, "an initialiser")]
        if top is None:
            top = nodes, {tensor.name: tensor for tensor in tensors}
    if top is None:  # pragma: no cover - the loop ran once
        raise UnsupportedModelError("Expected a graph in an ONNX file")
    nodes, constants = top
    inputs = tuple(port for port in map(_port, graphs_ports(model, 11)) if port.name not in constants)
    outputs = tuple(map(_port, graphs_ports(model, 12)))
    return OnnxModel(opsets, tuple(nodes), constants, inputs, outputs)


def graphs_ports(model: _Message, number: int) -> list[_Message]:
    """Inputs (11) or outputs (12) of the top graph."""
    return model.children(7, "a graph")[0].children(number, "a port")


def _node(message: _Message, work: list[_Message]) -> Node:
    domain = message.text(7)
    _check_domain(domain)
    attributes: dict[str, Any] = {}
    for item in message.children(5, "an attribute"):
        work.extend(item.children(6, "a graph"))
        work.extend(item.children(11, "a graph"))
        attributes[item.text(1)] = _attribute(item)
    return Node(
        message.text(4),
        "" if domain == "ai.onnx" else domain,
        tuple(message.texts(1)),
        tuple(message.texts(2)),
        attributes,
    )


def _attribute(item: _Message) -> Any:
    """The attribute's value. Types are read from what is there: old files leave out the type field."""
    if item.has(22) or item.has(23):
        raise UnsafeModelError("ONNX files with sparse tensors are refused; save them as dense tensors")
    kind = item.integer(20)
    if kind == 1:
        return float(item.floats(2)[-1]) if item.has(2) else 0.0
    if kind == 2:
        return item.integer(3)
    if kind == 3:
        return item.text(4)
    if kind == 4:
        tensors = [_tensor(message) for message in item.children(5, "a tensor")]
        if len(tensors) != 1:
            raise UnsupportedModelError("Expected a tensor in an attribute of an ONNX file; the file is cut short")
        return tensors[0]
    if kind == 6:
        return item.floats(7)
    if kind == 7:
        return item.integers(8)
    if kind == 8:
        return item.texts(9)
    if kind == 9:
        return [_tensor(message) for message in item.children(10, "a tensor")]
    if kind in (5, 10, 13, 14):  # graphs are checked by the caller; types do not matter here
        return None
    raise UnsupportedModelError(f"Expected a known kind of attribute in an ONNX file, got {kind}")


def _tensor(message: _Message) -> Tensor:
    name = message.text(8)
    if message.has(13) or message.integer(14) != 0:
        raise UnsafeModelError(
            f"Tensor {name!r} keeps its data in another file, which is refused. Save the model as one file."
        )
    dims = message.integers(1)
    if np.any(dims < 0) or len(dims) > 8:
        raise UnsupportedModelError(f"Expected dimensions of tensor {name!r}, got {dims.tolist()[:8]}")
    size = 1
    for dim in dims.tolist():
        size *= dim
        if size > MAX_TENSOR_ELEMENTS:
            raise UnsafeModelError(f"Expected at most {MAX_TENSOR_ELEMENTS} elements in tensor {name!r}")
    dtype = message.integer(2)
    values: NDArray[Any]
    if dtype == STRING:
        values = np.array(message.texts(6), dtype=object)
    elif dtype not in _DTYPES:
        values = np.zeros(0)
        size = 0  # a type no reader uses; onnxruntime will judge it
        dims = np.zeros(1, np.int64)
    elif message.has(9):
        ((start, end),) = message.spans(9) or [(0, 0)]
        values = message._packed(start, end, _DTYPES[dtype])  # noqa: SLF001 - same module
    elif dtype == FLOAT:
        values = message.floats(4)
    elif dtype == DOUBLE:
        values = message.doubles(10)
    elif dtype == INT64:
        values = message.integers(7)
    elif dtype in (12, 13):
        values = message.integers(11).astype(_DTYPES[dtype])
    elif dtype == 10:
        values = message.integers(5).astype(np.uint16).view(np.float16)
    else:
        values = message.integers(5).astype(_DTYPES[dtype])
    if len(values) != size:
        raise UnsupportedModelError(
            f"Expected {size} elements in tensor {name!r}, got {len(values)}; the file is cut short"
        )
    return Tensor(name, dtype, values.reshape(dims.tolist()))


def _port(message: _Message) -> Port:
    for kind in message.children(2, "a type"):
        for tensor in kind.children(1, "a tensor type"):
            shape: list[int | None] = []
            for dimensions in tensor.children(2, "a shape"):
                shape += [dim.integer(1) if dim.has(1) else None for dim in dimensions.children(1, "a dimension")]
            return Port(message.text(1), tensor.integer(1), tuple(shape))
    return Port(message.text(1), 0, ())


def _check_domain(domain: str) -> None:
    if domain not in DOMAINS:
        raise UnsafeModelError(
            f"Expected operators of ai.onnx and ai.onnx.ml only, got domain {domain!r}. Export the model without it."
        )
