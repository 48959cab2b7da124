"""Which stage took too long: by what the version's requests take, and by its measured profile."""

from __future__ import annotations

import pytest
from tests.monitor.recorders import PREFIX, SIGNATURE, make_recorder, rows_of

from tiercel.monitor.lookup import find_record
from tiercel.monitor.stage_times import LEAST_REQUESTS, Quantiles, stage_times
from tiercel.monitor.totals import read_totals

USUAL_NS = (1_000, 2_000, 3_000, 4_000, 5_000)


@pytest.fixture
def times_of(tmp_path):
    """Stage times of one request among usual ones."""

    def ask(stage_ns=USUAL_NS, total_ns=None, n_usual=1000, measured=None, **request):
        recorder = make_recorder(tmp_path)
        plan = recorder.for_plan("late", 1, SIGNATURE)
        rows, scores = rows_of(1)
        total_ns = sum(stage_ns) if total_ns is None else total_ns
        plan.add(rows, scores, number=1, stage_ns=stage_ns, total_ns=total_ns, **request)
        if n_usual:
            plan.add(rows, scores, number=2, stage_ns=USUAL_NS, total_ns=15_000, repeat=n_usual)
        recorder.close()
        counts = read_totals(tmp_path / "counters").by_version()["late", 1, "realtime"]
        return stage_times(find_record(tmp_path / "journal", PREFIX + "1"), counts, measured)

    return ask


def test_stages_stand_beside_their_versions_quantiles(times_of):
    """Every stage and the total have their own time and what they usually take."""
    found = times_of()
    assert [(stage.stage, stage.time_us) for stage in found.stages] == [
        ("parse", 1.0), ("read", 2.0), ("compute", 3.0), ("score", 4.0), ("reply", 5.0), ("total", 15.0)
    ]  # fmt: skip
    assert [stage.counted.p50_us for stage in found.stages] == pytest.approx([1, 2, 3, 4, 5, 15], rel=0.016)
    assert found.n_counted == 1001


def test_a_usual_request_has_nothing_out_of_line(times_of):
    """A request that took what requests take is not blamed on any stage."""
    assert times_of().out_of_line is None


def test_the_largest_excess_is_named(times_of):
    """Of two stages beyond their p99 the one with more time beyond it is named, not the one with the larger ratio."""
    worst = times_of((101_000, 2_000, 3_000, 304_000, 5_000)).out_of_line
    assert (worst.stage, worst.against) == ("score", "counted")
    assert worst.p99_us == pytest.approx(4, rel=0.016)
    assert worst.ratio == pytest.approx(76, rel=0.016)
    assert worst.excess_us == pytest.approx(300, rel=0.001)
    assert worst.share == pytest.approx(0.75, rel=0.001)


def test_waiting_outside_of_the_stages_is_named(times_of):
    """A request whose stages were quick and whose total was not has waited."""
    found = times_of(total_ns=500_000)
    assert found.stages[-2].stage == found.out_of_line.stage == "outside"
    assert found.out_of_line.excess_us == pytest.approx(485, rel=0.01)


def test_few_requests_are_not_judged_by(times_of):
    """A p99 of few requests says nothing; a measured profile does."""
    slow = (1_000, 2_000, 3_000, 400_000, 5_000)
    assert times_of(slow, n_usual=LEAST_REQUESTS - 2).out_of_line is None


def test_the_profile_is_asked_when_traffic_is_in_line(times_of):
    """When a stage is slow in all requests, the measured profile still tells; stages it lacks are not guessed."""
    measured = {"score": Quantiles(1.0, 2.0), "total": Quantiles(5.0, 9.0)}
    found = times_of(measured=measured)
    assert (found.out_of_line.stage, found.out_of_line.against, found.out_of_line.p99_us) == ("score", "measured", 2.0)
    assert [stage.stage for stage in found.stages if stage.measured] == ["score", "total"]


def test_a_hairs_breadth_is_not_out_of_line(times_of):
    """Quantiles are known within 1.6 %: what is beyond by less, or by less than a microsecond, is not named."""
    assert times_of((1_000, 2_000, 3_000, 4_000, 5_900)).out_of_line is None


def test_times_without_anything_to_compare_with(tmp_path):
    """A record whose version has neither counts nor a profile has its times, and no verdict."""
    recorder = make_recorder(tmp_path)
    recorder.for_plan("late", 1, SIGNATURE).add(*rows_of(1), number=1, stage_ns=USUAL_NS, total_ns=15_000)
    recorder.close()
    found = stage_times(find_record(tmp_path / "journal", PREFIX + "1"))
    assert (found.n_counted, found.out_of_line, len(found.stages)) == (0, None, 6)
    assert all(stage.counted is None and stage.measured is None for stage in found.stages)


EXPLAINED = {"request": b'{"entities": {}, "explain": "full"}', "request_kind": 1}
WITH_EXPLANATION_NS = (1_000, 2_000, 3_000, 4_000, 305_000)


def test_an_explanation_is_not_compared_with_replies_without_one(times_of):
    """Neither the reply of an explained request nor its total is beside quantiles; a slow stage before it is named all the same."""
    found = times_of(WITH_EXPLANATION_NS, measured={"total": Quantiles(5.0, 9.0)}, **EXPLAINED)
    assert (found.is_explained, found.out_of_line) == (True, None)
    assert [each.stage for each in found.stages if each.counted is None] == ["reply", "total"]
    assert not any(each.measured for each in found.stages)


def test_what_else_was_slow_beside_an_explanation_is_named(times_of):
    """By its own p99, and with the whole share."""
    worst = times_of((*WITH_EXPLANATION_NS[:3], 404_000, 305_000), **EXPLAINED).out_of_line
    assert (worst.stage, worst.share) == ("score", 1.0)


def test_a_wait_beside_an_explanation_is_named(times_of):
    """The explanation's time counts for no wait, and hides none."""
    worst = times_of(WITH_EXPLANATION_NS, total_ns=815_000, **EXPLAINED).out_of_line
    assert worst.stage == "outside"
    assert worst.excess_us == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize("request_of", [{}, {"request": b'{"entities": {}}', "request_kind": 1}])
def test_a_slow_reply_without_an_explanation_is_named(times_of, request_of):
    """As ever, whether the record says that nothing was to be explained or says nothing."""
    found = times_of(WITH_EXPLANATION_NS, **request_of)
    assert found.out_of_line.stage == "reply"
    assert found.is_explained is (False if request_of else None)
