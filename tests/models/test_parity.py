"""Comparing within a time: which rows, how many, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tiercel.models import ParityReport, prepare, preparing
from tiercel.models.parity import Bound, compare_in_time

EXACT = Bound(0, single_precision=False)
ROWS = np.arange(2000, dtype=np.float32)[:, None]


class Slow:
    """A scorer that takes so long per row, on a clock of its own; notes what it is asked."""

    def __init__(self, row_s, wrong_at=None):
        self.row_s, self.wrong_at = row_s, wrong_at
        self.now_s, self.blocks = 100.0, []

    def clock(self):
        return self.now_s

    def score(self, rows):
        self.now_s += self.row_s * len(rows)
        self.blocks.append(rows[:, 0].astype(int).tolist())
        return np.where(rows == self.wrong_at, np.nan, rows).astype(np.float64)

    def compare(self, rows=ROWS, **options):
        def predict(block):
            return block.astype(np.float64)

        return compare_in_time(self.score, predict, rows, EXACT, "slow 1.0", clock=self.clock, **options)


@pytest.mark.parametrize(
    ("row_s", "n_rows"),
    [(0.0, 2000), (0.009, 2000), (0.011, 1024), (0.019, 1024), (0.021, 256), (0.077, 256), (0.08, 64), (100.0, 64)],
)
def test_rows_are_compared_while_there_is_time(row_s, n_rows):
    """Blocks end at 64, 256, 1024 or all rows, always the first ones; none is begun that would not be done in 20 s."""
    slow = Slow(row_s)
    report = slow.compare()
    assert report.passed
    assert (report.n_rows, report.n_skipped) == (n_rows, 2000 - n_rows)
    assert [row for block in slow.blocks for row in block] == list(range(n_rows))
    assert slow.now_s - 100.0 <= max(20.0, 64 * row_s)


def test_a_difference_is_found_in_whatever_block():
    """Each block counts, and the worst row is the row itself."""
    for at in (0, 63, 64, 255, 256, 1999):
        report = Slow(0.0, wrong_at=at).compare()
        assert not report.passed
        assert report.worst_row == (float(at),)


def test_few_rows_are_compared_at_once():
    """Fewer rows than the least are all of them."""
    slow = Slow(1000.0)
    assert slow.compare(ROWS[:10]).n_rows == 10
    assert len(slow.blocks) == 1


def test_what_was_left_out_is_said():
    """Words and JSON have the number of rows that were left out, and nothing where none were."""
    some, whole = Slow(0.08).compare(), Slow(0.0).compare()
    assert some.compared == "64 rows (1936 more would have taken too long)"
    assert whole.compared == "2000 rows"
    assert ParityReport.from_json(some.to_json()) == some
    assert ParityReport.from_json(whole.to_json()) == whole
    assert "n_skipped" not in whole.to_json()


def test_large_networks_are_compared_on_fewer_rows(monkeypatch):
    """How many follows from the file's size alone, so that the same file is the same version; never fewer than 64."""
    weights = numpy_helper.from_array(np.ones((3, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["v"]), helper.make_node("Tanh", ["v"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        initializer=[weights],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = np.zeros((10, 3), np.float32)
    for most, n_random in ((500, 500), (3, 64), (10**9, 20_480)):
        monkeypatch.setattr(preparing, "MAX_PROBE_BYTES", most * len(data))
        prepared = prepare(data, golden_rows=rows)
        assert prepared.engine == "onnxruntime"
        assert (prepared.parity.n_rows, prepared.parity.n_skipped) == (10 + n_random, 0)
        assert prepare(data, golden_rows=rows).artifacts == prepared.artifacts
