"""ONNX models that tiercel leaves to onnxruntime: neural networks, and a forest too large to be answered in an instant."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

#: Features and outputs of layers.
NARROW = (23, 128, 64, 1)
WIDE = (23, 512, 256, 1)


def network(widths: Sequence[int]) -> bytes:
    """The ONNX file of a network with ReLU between and a sigmoid after its layers: x (n, widths[0]) -> y (n, widths[-1])."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        last = k == len(widths) - 2
        weights.append(
            numpy_helper.from_array((rng.normal(size=(n_in, n_out)) / n_in**0.5).astype(np.float32), f"w{k}")
        )
        weights.append(numpy_helper.from_array(rng.normal(size=n_out).astype(np.float32), f"b{k}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"sum{k}"]))
        name = "y" if last else f"x{k}"
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"sum{k}"], [name]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, widths[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, widths[-1]])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def forest(n_trees: int, n_leaves: int, n_features: int) -> bytes:
    """The ONNX file of a LightGBM forest that onnxruntime scores: tiercel compiles trees, but not the `Abs` behind them.

    A probability is its own absolute value, so the scores stay what they are.
    """
    import lightgbm
    import onnxmltools
    from onnx import helper
    from onnxmltools.convert.common.data_types import FloatTensorType

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(20_000, n_features)).astype(np.float32)
    target = rows[:, :4].sum(axis=1) + np.sin(3 * rows[:, 4]) + rng.normal(size=len(rows)) > 0
    model = lightgbm.LGBMClassifier(n_estimators=n_trees, num_leaves=n_leaves, random_state=0, verbose=-1, n_jobs=1)
    model.fit(rows, target.astype(int), feature_name=[f"f{i}" for i in range(n_features)])
    converted: onnx.ModelProto = onnxmltools.convert_lightgbm(
        model, initial_types=[("rows", FloatTensorType([None, n_features]))], target_opset=12, zipmap=False
    )
    graph = converted.graph
    scores = graph.output[1].name
    for node in graph.node:
        node.output[:] = ["inner_scores" if name == scores else name for name in node.output]
    graph.node.append(helper.make_node("Abs", ["inner_scores"], [scores]))
    return converted.SerializeToString()
