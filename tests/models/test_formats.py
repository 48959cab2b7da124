"""Formats are told by content; pickles and archives are refused with advice."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import pickle
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.trained import lightgbm_bytes, xgboost_bytes

from tiercel.errors import UnsafeModelError, UnsupportedModelError
from tiercel.models import detect_format, prepare


def test_real_files_are_recognised_without_a_name():
    """Each supported format is told by its bytes."""
    assert detect_format(lightgbm_bytes()) == "lightgbm"
    assert detect_format(xgboost_bytes(raw_format="ubj")) == "xgboost-ubj"
    assert detect_format(xgboost_bytes(raw_format="json")) == "xgboost-json"
    assert detect_format(b"\x08\x08\x12\x04test") == "onnx"


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


PICKLES = [
    *[
        pytest.param(pickle.dumps({"a": [1]}, protocol=protocol), id=f"protocol {protocol}")
        for protocol in (2, 3, 4, 5)
    ],
    pytest.param(gzip.compress(pickle.dumps(1)), id="gzip"),
    pytest.param(zlib.compress(pickle.dumps(1)), id="zlib, as joblib"),
    pytest.param(bz2.compress(pickle.dumps(1)), id="bzip2"),
    pytest.param(lzma.compress(pickle.dumps(1)), id="xz"),
    pytest.param(zipped(), id="zip"),
    pytest.param(b"csklearn.linear_model\nRidge\n.", id="protocol 0"),
]


@pytest.mark.parametrize("data", PICKLES)
def test_pickles_are_refused_with_advice(data):
    """A pickle in any wrapping is never opened, and the error says what to do instead."""
    with pytest.raises(UnsafeModelError, match="Pass the fitted estimator"):
        detect_format(data)
    with pytest.raises(UnsafeModelError):
        prepare(data)


@pytest.mark.parametrize("name", ["model.pkl", "MODEL.JOBLIB", "m.pickle"])
def test_pickle_names_are_refused(name):
    """A file named like a pickle is refused whatever it holds."""
    with pytest.raises(UnsafeModelError):
        detect_format(lightgbm_bytes(), name)


def test_missing_and_empty_files(tmp_path):
    """No file and an empty file are errors that name the path."""
    with pytest.raises(UnsupportedModelError, match=r"nothing\.onnx"):
        prepare(tmp_path / "nothing.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="no bytes"):
        prepare(tmp_path / "empty.onnx")


@given(data=st.binary(max_size=64))
def test_any_bytes_get_an_answer(data):
    """Detection returns a format or refuses; it never fails in another way."""
    with contextlib.suppress(UnsafeModelError, UnsupportedModelError):
        assert detect_format(data) in ("onnx", "lightgbm", "xgboost-json", "xgboost-ubj")
