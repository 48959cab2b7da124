"""Small trained models and rows, shared by the model tests."""

from __future__ import annotations

import functools

import numpy as np

N_FEATURES = 6


@functools.cache
def table(n_rows=1500, seed=0):
    """(X float32 with NaN and a category in column 5, binary y, three-class y, real y)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, N_FEATURES)).astype(np.float32)
    X[:, 4] = np.round(X[:, 4])
    X[:, 5] = rng.integers(0, 40, n_rows)
    chosen = np.isin(X[:, 5], [1, 4, 9, 20, 33])
    signal = X[:, 0] + X[:, 1] * X[:, 2] + 0.3 * X[:, 4] + chosen
    X[rng.random(X.shape) < 0.05] = np.nan
    return X, (signal > 0.3).astype(int), np.digitize(signal, [-0.5, 0.8]), signal.astype(np.float64)


def finite_table():
    X, y, y3, r = table()
    return np.nan_to_num(X), y, y3, r


@functools.cache
def lightgbm_bytes(objective="binary", categorical=False, n_trees=12, **params):
    import lightgbm

    X, y, y3, r = table()
    labels = {"binary": y, "multiclass": y3, "multiclassova": y3, "cross_entropy": y, "cross_entropy_lambda": y}
    target = labels.get(objective, np.abs(r) + 0.1)
    if objective in ("multiclass", "multiclassova"):
        params["num_class"] = 3
    settings = {
        "objective": objective,
        "num_leaves": 15,
        "verbose": -1,
        "num_threads": 1,
        "min_data_per_group": 5,
        **params,
    }
    data = lightgbm.Dataset(X, target, categorical_feature=[5] if categorical else "auto", params={"verbose": -1})
    return lightgbm.train(settings, data, n_trees).model_to_string().encode()


@functools.cache
def xgboost_booster(objective="binary:logistic", categorical=False, n_trees=12, **params):
    import xgboost

    X, y, y3, r = table()
    target = (
        y3 if objective.startswith("multi") else y if "logi" in objective or "rank" in objective else np.abs(r) + 0.1
    )
    if objective.startswith("multi"):
        params["num_class"] = 3
    if categorical:
        params["max_cat_to_onehot"] = 4
    types = ["q"] * 5 + ["c"] if categorical else None
    data = xgboost.DMatrix(X, target, feature_types=types, enable_categorical=categorical)
    return xgboost.train({"objective": objective, "max_depth": 4, "nthread": 1, **params}, data, n_trees)


def xgboost_bytes(objective="binary:logistic", categorical=False, raw_format="ubj", **params):
    return bytes(xgboost_booster(objective, categorical, **params).save_raw(raw_format))


def gemm(n_in, n_out, *, n_shape=None, op="Gemm", domain=""):
    """An ONNX model of one matrix product, a kilobyte of file whatever its shape says."""
    from onnx import TensorProto, helper

    constant = helper.make_node("ConstantOfShape", ["shape"], ["w"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [n_in, n_out])
    graph = helper.make_graph(
        [constant, helper.make_node(op, ["x", "w"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n_shape or n_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n_out])],
        initializer=[shape],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
