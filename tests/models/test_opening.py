"""Files are opened in a process of their own: the same result, the same errors, and nobody else's crash."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.models.trained import finite_table, gemm, lightgbm_bytes, table, xgboost_bytes

from tiercel.errors import UnsafeModelError, UnsupportedModelError
from tiercel.models import OnnxScorer, is_file, load, prepare, prepare_file, preparing, scratch
from tiercel.models.formats import detect_format
from tiercel.models.ir import MAX_FEATURES, MAX_OUTPUTS
from tiercel.models.readers import read_model


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost", "onnx"])
def test_a_file_is_prepared_as_in_this_process(tmp_path, kind):
    """Artifacts, signature, reason, parity and parameters are those of `prepare`, byte for byte."""
    rows = table()[0][:50]
    if kind == "onnx":
        skl2onnx = pytest.importorskip("skl2onnx")
        from sklearn.linear_model import LogisticRegression

        X, y, *_ = finite_table()
        rows = X[:50]
        data = skl2onnx.to_onnx(LogisticRegression().fit(X, y), X[:1], options={"zipmap": False}).SerializeToString()
    else:
        data = lightgbm_bytes() if kind == "lightgbm" else xgboost_bytes()
    names = [f"n{k}" for k in range(rows.shape[1])]
    path = tmp_path / "model.any"
    path.write_bytes(data)
    here = prepare(data, feature_names=names, golden_rows=rows)
    there = prepare_file(path, feature_names=names, golden_rows=rows)
    assert there == here
    assert there.parity.to_json() == here.parity.to_json()
    assert load(there.artifacts).signature.features == tuple(names)


@pytest.mark.parametrize("most", [3000, 100])
def test_training_rows_are_scored_where_the_file_was_opened(monkeypatch, most):
    """Their scores are those of the model that is served; of a large network's, every nth row's."""
    X = table()[0]
    data = lightgbm_bytes()
    prepared = prepare_file(data, golden_rows=X[:50], training_rows=X)
    assert prepared.scored_every == 1
    np.testing.assert_array_equal(prepared.scores, load(prepared.artifacts).scorer.score(X))
    assert "scores.npy" not in prepared.artifacts
    # In this process, where it can be made believe that the model is large.
    network = onnx.load_from_string(gemm(6, 1, op="MatMul"))
    network.graph.node[0].CopyFrom(helper.make_node("Identity", ["v"], ["w"]))
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 1), np.float32), "v"))
    data = network.SerializeToString()
    monkeypatch.setattr(preparing, "MAX_PROBE_BYTES", most * len(data))
    monkeypatch.setattr(preparing, "LEAST_TRAINING_ROWS", 100)
    here = prepare(data, training_rows=np.nan_to_num(X))
    assert here.scored_every == max(1, len(X) // most)
    np.testing.assert_array_equal(
        here.scores, load(here.artifacts).scorer.score(np.nan_to_num(X))[:: here.scored_every]
    )


def test_training_rows_of_another_width_are_refused():
    """As golden rows are."""
    with pytest.raises(UnsupportedModelError, match=r"training rows of shape \(n, 6\)"):
        prepare_file(lightgbm_bytes(), training_rows=np.zeros((10, 5), np.float32))


@pytest.mark.parametrize(
    "change",
    [
        "(output / 'scores.npy').unlink()",
        "(output / 'scores.npy').write_bytes(b'')",
        "(output / 'scores.npy').write_bytes((output / 'scores.npy').read_bytes()[:-1])",
        "np.save(output / 'scores.npy', np.zeros((9, 1)))",
        "np.save(output / 'scores.npy', np.zeros((10, 1), np.float32))",
        "np.save(output / 'scores.npy', np.array([object()] * 10), allow_pickle=True)",
        "made['scored_every'] = 2",
        "made['scored_every'] = 0",
        "(output / 'scores.npy').rename(output / 's'); (output / 'scores.npy').symlink_to(output / 's')",
    ],
)
def test_scores_that_are_none_are_refused(monkeypatch, change):
    """What the process says of the training rows is checked like all it says."""
    spoil = (
        "import numpy as np\nfrom pathlib import Path\nfrom tiercel.models import canary, scratch\n"
        "def work(job, stage):\n    made = canary.open_model(job, stage)\n"
        f"    output = Path(job['directory']) / 'prepared'\n    {change}\n    return made\n"
        "scratch.answer(work)"
    )
    monkeypatch.setattr(scratch, "command", lambda _: [sys.executable, "-P", "-c", spoil])
    with pytest.raises(UnsupportedModelError, match="packaged model"):
        prepare_file(lightgbm_bytes(), training_rows=table()[0][:10])


def test_what_is_a_file():
    """Paths and bytes are opened elsewhere; estimators are not files."""
    assert all(is_file(each) for each in ("a", b"a", bytearray(b"a"), memoryview(b"a")))
    assert not is_file(object())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\x80\x04.", UnsafeModelError, "pickle"),
        (gemm(3, 1, op="Evil", domain="com.evil"), UnsafeModelError, "domain 'com.evil'"),
        (lightgbm_bytes()[:3000], UnsupportedModelError, "LightGBM"),
        (gemm(MAX_FEATURES + 1, 1), UnsupportedModelError, f"at most {MAX_FEATURES} features"),
        (gemm(3, MAX_OUTPUTS + 1), UnsupportedModelError, f"at most {MAX_OUTPUTS} scores"),
    ],
    ids=["pickle", "foreign domain", "cut", "too wide", "too many scores"],
)
def test_refusals_are_the_files_own(data, error, message):
    """What `prepare` refuses is refused with its class and text."""
    with pytest.raises(error, match=message) as caught:
        prepare_file(data)
    assert type(caught.value) is error


def test_a_file_that_eats_memory_is_refused():
    """A kilobyte of file that asks for 8 GiB of weights is refused; the caller's memory is never asked for them."""
    with pytest.raises(UnsupportedModelError, match=r"(?i)memory|allocate|bad_alloc"):
        prepare_file(gemm(50_000, 40_000), memory_bytes=3 << 30)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "process that opened it crashed with SIGSEGV"),
        ("import time; time.sleep(60)", "took longer than its 1 s"),
        ("print('{\"result\": {}}')", "something else"),
        (
            "import os; os.mkdir('prepared'); open('prepared/model.json', 'w').write('[]'); print('{\"result\": {}}')",
            "else",
        ),
    ],
)
def test_a_file_that_takes_its_process_down_is_refused(monkeypatch, script, message):
    """A crash, a hang and an answer that is none are errors of the file; this process goes on."""
    monkeypatch.setattr(scratch, "command", lambda _: [sys.executable, "-P", "-c", script])
    with pytest.raises(UnsupportedModelError, match=message):
        prepare_file(lightgbm_bytes(), timeout_s=1)


def test_the_model_is_the_one_that_was_handed_over(monkeypatch):
    """A process that swaps the model for another changes nothing: its bytes come from here."""
    swap = (
        "import json, sys\nfrom pathlib import Path\nfrom tiercel.models import canary, scratch\n"
        "def work(job, stage):\n    made = canary.open_model(job, stage)\n"
        "    (Path(job['directory']) / 'prepared' / 'model.txt').write_bytes(b'another')\n    return made\n"
        "scratch.answer(work)"
    )
    monkeypatch.setattr(scratch, "command", lambda _: [sys.executable, "-P", "-c", swap])
    assert prepare_file(lightgbm_bytes()).artifacts["model.txt"] == lightgbm_bytes()


def trees_of_feature(feature):
    """A tree ensemble whose input has no width, over one feature of that number."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[feature, 0, 0],
        nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_absurd_shapes_are_refused_before_memory_is_taken():
    """Neither a width that a file states nor one that follows from its nodes makes anybody allocate a row of it."""
    assert read_model(trees_of_feature(MAX_FEATURES - 1), "onnx").body.n_features == MAX_FEATURES
    for data in (trees_of_feature(MAX_FEATURES), trees_of_feature(2**31 - 2), gemm(3, 1, n_shape=2**40)):
        with pytest.raises(UnsupportedModelError, match="features"):
            read_model(data, detect_format(data))
    with pytest.raises(UnsupportedModelError, match="at most"):
        OnnxScorer(trees_of_feature(3), n_features=MAX_FEATURES + 1)
    text = lightgbm_bytes().replace(b"max_feature_idx=5", b"max_feature_idx=%d" % MAX_FEATURES)
    with pytest.raises(UnsupportedModelError, match="max_feature_idx"):
        read_model(text, "lightgbm")


def test_wide_models_are_compared_on_fewer_rows(monkeypatch):
    """Comparing a wide model takes megabytes, not gigabytes; a missing value is still tried in every column."""
    monkeypatch.setattr(preparing, "MAX_PROBE_CELLS", 1 << 20)
    monkeypatch.setattr(preparing, "_MISSING_CELLS", 1 << 18)
    n_features = 2000
    model = onnx.load_from_string(gemm(n_features, 1, op="MatMul"))
    weights = np.zeros((n_features, 1), np.float32)
    model.graph.node[0].CopyFrom(helper.make_node("Identity", ["v"], ["w"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "v"))
    prepared = prepare(model.SerializeToString())
    assert prepared.engine == "onnxruntime"
    assert prepared.parity.n_rows == (1 << 20) // n_features
    assert not prepared.signature.accepts_missing


def test_a_missing_value_is_tried_in_every_column(monkeypatch):
    """A model that copes with missing values in all columns but the last does not accept them, in whatever pieces."""
    monkeypatch.setattr(preparing, "_MISSING_CELLS", 30)
    rows = np.ones((2, 10), np.float32)
    asked = []

    def score(probe):
        asked.append(probe)
        return np.where(np.isnan(probe[:, -1:]), np.nan, 1.0)

    assert not preparing._survives_missing(score, rows)
    assert [len(each) for each in asked] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.isnan(np.concatenate(asked)), np.eye(10, dtype=bool))
    assert preparing._survives_missing(lambda probe: np.ones((len(probe), 1)), rows)
