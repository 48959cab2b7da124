"""ONNX tree ensembles, built by hand for every mode, aggregate and transform, score as onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.errors import ModelError, UnsafeModelError, UnsupportedModelError
from tiercel.models.ir import NotCompiledError
from tiercel.models.onnx_graph import read_onnx
from tiercel.models.onnx_proto import read_onnx_proto
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.parity import probe_rows

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402 - after the skip

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]


def trees(
    modes=("BRANCH_LEQ",),
    *,
    n_trees=4,
    seed=0,
    missing=True,
    n_targets=1,
    labels=None,
    ids=None,
    positive=False,
    **attributes,
):
    """Depth-two trees over three features; each inner node takes the next of `modes`."""
    rng = np.random.default_rng(seed)
    rows, weights, k = [], [], 0
    for tree in range(n_trees):
        for node in range(7):
            inner = node < 3
            mode = modes[k % len(modes)] if inner else "LEAF"
            k += inner
            cut = float(rng.choice([-1.5, -0.5, 0.0, 0.25, 1.0, 2.0])) if inner else 0.0
            yes, no = (2 * node + 1, 2 * node + 2) if inner else (0, 0)
            rows.append(
                (tree, node, mode, int(rng.integers(3)) if inner else 0, cut, yes, no, int(missing and rng.integers(2)))
            )
            if not inner:
                chosen = ids if ids is not None else range(n_targets)
                weights += [
                    (tree, node, target, float(abs(rng.normal()) if positive else rng.normal())) for target in chosen
                ]
    columns = list(zip(*rows, strict=True))
    names = (
        "treeids",
        "nodeids",
        "modes",
        "featureids",
        "values",
        "truenodeids",
        "falsenodeids",
        "missing_value_tracks_true",
    )
    values = {f"nodes_{name}": list(column) for name, column in zip(names, columns, strict=True)}
    op, prefix = ("TreeEnsembleClassifier", "class") if labels else ("TreeEnsembleRegressor", "target")
    for name, column in zip(("treeids", "nodeids", "ids", "weights"), zip(*weights, strict=True), strict=True):
        values[f"{prefix}_{name}"] = list(column)
    if labels:
        values["classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"] = list(labels)
    else:
        values["n_targets"] = n_targets
    outputs = ["label", "scores"] if labels else ["scores"]
    return helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml", **values, **attributes)


def model(*nodes, outputs=None, initializers=(), inputs=None):
    outputs = outputs or [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, None])]
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, initializer=list(initializers))
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def classifier(node, label_type=TensorProto.INT64):
    return model(
        node,
        outputs=[
            helper.make_tensor_value_info("label", label_type, [None]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, None]),
        ],
    )


def assert_equal_to_onnxruntime(data, *, maxulp=0):
    parsed = read_onnx(data)
    rows = probe_rows(parsed, 3, 1500, np.random.default_rng(0))
    expected = OnnxScorer(data, task=parsed.task).score(rows)
    scorer = parsed.body.compile()
    got = scorer.score(rows)
    np.testing.assert_array_max_ulp(got.astype(np.float32), expected.astype(np.float32), maxulp=maxulp)
    alone = np.concatenate([scorer.score(row[None]) for row in rows[:50]])
    np.testing.assert_array_equal(alone, got[:50])
    return parsed


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_branch_mode_routes_as_onnxruntime(mode, missing):
    """Each comparison, with and without tracked missing values, folds to the same route for every input."""
    assert_equal_to_onnxruntime(model(trees([mode], missing=missing)))


@pytest.mark.parametrize("seed", range(4))
def test_mixed_branch_modes_route_as_onnxruntime(seed):
    """Trees may mix comparisons from node to node."""
    modes = list(np.random.default_rng(seed).permutation(MODES))
    assert_equal_to_onnxruntime(model(trees(modes, seed=seed, n_trees=9)))


@pytest.mark.parametrize("base", [None, [0.75]])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_every_aggregate_equals_onnxruntime(aggregate, base):
    """Sums, averages, minima and maxima, with and without a base value."""
    extra = {"base_values": base} if base else {}
    assert_equal_to_onnxruntime(model(trees(aggregate_function=aggregate, n_trees=9, **extra)))


@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("base", [None, [0.1, -0.2, 0.3]])
def test_transforms_of_three_classes_equal_onnxruntime(post, base):
    """Every transform over three classes, each leaf weighing all of them."""
    extra = {"base_values": base} if base else {}
    parsed = assert_equal_to_onnxruntime(
        classifier(trees(labels=[3, 5, 8], n_targets=3, post_transform=post, **extra)), maxulp=4
    )
    assert parsed.classes == ("3", "5", "8")


@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("ids", [[0], [1], [0, 1]])
@pytest.mark.parametrize("positive", [False, True])
def test_two_classes_equal_onnxruntime(post, ids, positive):
    """Two classes: weights on one of them or on both, negative or not."""
    assert_equal_to_onnxruntime(
        classifier(trees(labels=[0, 1], ids=ids, n_targets=2, positive=positive, post_transform=post)), maxulp=4
    )


def test_string_labels_are_kept():
    """Class labels may be text."""
    data = classifier(trees(labels=["no", "yes"], ids=[0], n_targets=2), TensorProto.STRING)
    assert read_onnx(data).classes == ("no", "yes")


def test_double_tensors_are_left_to_onnxruntime():
    """`_as_tensor` attributes of float64 are recognised, and computed in float64 by onnxruntime only."""
    tensor = helper.make_tensor("w", TensorProto.DOUBLE, [1], [0.5])
    with pytest.raises(NotCompiledError, match="float64"):
        read_onnx(model(trees(base_values_as_tensor=tensor)))


def test_unknown_operators_are_named():
    """A graph with an operator that is not compiled says which."""
    data = model(trees(), helper.make_node("Sin", ["scores"], ["sine"]))
    with pytest.raises(NotCompiledError, match="Sin"):
        read_onnx(data)


def altered(**changes):
    node = trees()
    for attribute in node.attribute:
        if attribute.name in changes:
            attribute.CopyFrom(helper.make_attribute(attribute.name, changes[attribute.name]))
    return model(node)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(altered(nodes_truenodeids=[0] * 28), id="a cycle"),
        pytest.param(altered(nodes_truenodeids=[99] * 28), id="a node that is not there"),
        pytest.param(altered(nodes_falsenodeids=[-1] * 28), id="a negative node"),
        pytest.param(altered(nodes_featureids=[3] * 28), id="a feature too many"),
        pytest.param(altered(nodes_nodeids=[0] * 28), id="one id twice"),
        pytest.param(altered(nodes_values=[0.0]), id="too few thresholds"),
        pytest.param(altered(target_ids=[7] * 16), id="a target too many"),
        pytest.param(altered(target_nodeids=[0] * 16), id="weights on inner nodes"),
        pytest.param(altered(nodes_values=[1] * 28), id="integers for thresholds"),
    ],
)
def test_altered_trees_are_refused(data):
    """Ids and lengths that do not fit each other are errors of the file, found before the kernel sees them."""
    with pytest.raises(UnsupportedModelError):
        read_onnx(data).body.compile()


def external():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def sparse_graph():
    message = onnx.ModelProto.FromString(model(trees()))
    message.graph.sparse_initializer.add().values.name = "s"
    return message.SerializeToString()


def with_function():
    message = onnx.ModelProto.FromString(model(trees()))
    message.functions.add().name = "f"
    return message.SerializeToString()


def in_subgraph():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["b"])], "b", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])], initializer=[external()],
    )  # fmt: skip
    return model(trees(), helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(model(trees(), initializers=[external()]), id="external data"),
        pytest.param(model(trees(), helper.make_node("Constant", [], ["c"], value=external())), id="in an attribute"),
        pytest.param(in_subgraph(), id="in a subgraph"),
        pytest.param(sparse_graph(), id="sparse initialiser"),
        pytest.param(with_function(), id="local function"),
        pytest.param(model(helper.make_node("Gelu", ["x"], ["scores"], domain="com.microsoft")), id="foreign domain"),
        pytest.param(model(*[helper.make_node("Identity", ["x"], ["scores"])] * 20_001), id="too many nodes"),
    ],
)
def test_files_that_are_not_self_contained_are_refused(data):
    """Whatever could read another file or run foreign operators is refused before onnxruntime sees it."""
    with pytest.raises(UnsafeModelError):
        read_onnx_proto(data)
    with pytest.raises(UnsafeModelError):
        OnnxScorer(data)


def test_walk_agrees_with_onnx():
    """The bounded walk reads names, attributes and constants as the onnx package does."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 1], [1.0, 2.0, 3.0])
    data = model(helper.make_node("MatMul", ["x", "w"], ["scores"]), initializers=[weights])
    read = read_onnx_proto(data)
    assert [node.op for node in read.nodes] == ["MatMul"]
    np.testing.assert_array_equal(read.constants["w"].values, [[1.0], [2.0], [3.0]])
    assert (read.inputs[0].name, read.inputs[0].shape) == ("x", (None, 3))
    node = onnx.ModelProto.FromString(model(trees())).graph.node[0]
    attributes = read_onnx_proto(model(trees())).nodes[0].attributes
    for attribute in node.attribute:
        expected = helper.get_attribute_value(attribute)
        found = attributes[attribute.name]
        if isinstance(expected, list):
            expected = [item.decode() if isinstance(item, bytes) else item for item in expected]
            assert list(found) == expected
        else:
            assert found == expected


@settings(max_examples=80, deadline=None)
@given(at=st.floats(0, 1), value=st.binary(min_size=1, max_size=4))
def test_damaged_bytes_never_crash(at, value):
    """Any overwritten bytes give a model or a ModelError, and a model that compiles can score."""
    data = bytearray(classifier(trees(MODES, labels=[0, 1, 2], n_targets=3)))
    where = int(at * (len(data) - 1))
    data[where : where + len(value)] = value
    try:
        scorer = read_onnx(bytes(data)).body.compile()
    except ModelError:
        return
    if scorer.n_features < 1000:
        scorer.score(np.zeros((9, scorer.n_features), dtype=np.float32))


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_cut_files_are_refused(kept):
    """A file without its last bytes is never served."""
    data = classifier(trees(labels=[0, 1, 2], n_targets=3))
    with pytest.raises(UnsupportedModelError):
        read_onnx(data[: int(kept * len(data))])


@given(data=st.binary(max_size=200))
def test_garbage_is_refused(data):
    """Random bytes are never an ONNX model."""
    with pytest.raises(ModelError):
        read_onnx(data)
