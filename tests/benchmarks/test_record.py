"""What the HTTP benchmark records."""

from __future__ import annotations

from benchmarks.record import answered


def test_a_contender_that_refused_everything_has_no_row():
    """No figure is made of a contender none of whose replies was good; the reason is kept."""
    good = {"name": "floor", "closed": {"per_second": 1.0}}
    bad = {"name": "peer", "closed": {"per_second": 0.0}, "single": {"why": "bad_status 3, last_status 400"}}
    rows, refused = answered([good, bad])
    assert rows == [good]
    assert "last_status 400" in refused["peer"]
