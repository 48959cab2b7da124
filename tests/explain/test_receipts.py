"""A receipt's line: canonical, and everything in it comes back bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiercel.errors import ReceiptCorruptError
from tiercel.explain.receipts import Receipt

TEXT = st.text(max_size=12)
KEYS = st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1), TEXT)


@st.composite
def receipts(draw):
    """Any receipt, with any numbers."""
    n, p = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    n_keys = draw(st.integers(0, 2))
    return Receipt(
        id=draw(TEXT),
        model=draw(TEXT),
        version=draw(st.integers(1, 1 << 40)),
        tier="realtime",
        service=draw(st.none() | TEXT),
        service_fingerprint=None,
        base=draw(st.none() | TEXT),
        bindings=draw(
            st.dictionaries(TEXT, st.none() | TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False))
        ),
        received_us=draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        now_us=0,
        path="compiled",
        arm="champion",
        degraded=None,
        degrade_reason=None,
        is_shadow=draw(st.booleans()),
        is_many=False,
        request_kind=draw(st.none() | st.sampled_from(["json", "question"])),
        request=draw(st.none() | st.binary(max_size=50)),
        request_header=-1,
        request_absent=draw(st.none() | TEXT),
        first_row=0,
        request_rows=n,
        features=tuple(f"f{i}" for i in range(p)),
        rows=draw(hnp.arrays(np.float32, (n, p), elements=st.floats(width=32))),
        scores=draw(hnp.arrays(np.float64, (n, 1), elements=st.floats())),
        join_keys=tuple(f"k{i}" for i in range(n_keys)),
        keys=draw(st.tuples(*[st.tuples(*[KEYS] * n_keys)] * n)),
    )


@given(receipt=receipts())
def test_a_line_gives_back_its_receipt(receipt):
    """Every field and every bit of every number but NaN's payload comes back, and the line again is the same bytes."""
    line = receipt.to_line()
    assert b"\n" not in line
    again = Receipt.from_line(line)
    assert again.to_line() == line
    for name in Receipt.__dataclass_fields__:
        if name not in {"rows", "scores"}:
            assert getattr(again, name) == getattr(receipt, name)
    for mine, other in ((again.rows, receipt.rows), (again.scores, receipt.scores)):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        bits = f"u{mine.dtype.itemsize}"
        assert ((mine.view(bits) == other.view(bits)) | (np.isnan(mine) & np.isnan(other))).all()


@given(receipt=receipts())
def test_a_line_is_canonical(receipt):
    """Keys are sorted, there is no white space outside of texts, and all is ASCII."""
    line = receipt.to_line()
    assert line.isascii()
    assert json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode() == line


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"null", b"{}", b'{"format":"tiercel-receipt-1"}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_receipt_is_refused(line):
    """Any other text is said to be none."""
    with pytest.raises(ReceiptCorruptError, match="Expected a receipt"):
        Receipt.from_line(line)
