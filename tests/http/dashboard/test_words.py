"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from tiercel.http.dashboard import words
from tiercel.http.dashboard.charts import bin_labels
from tiercel.http.dashboard.overview import Latency
from tiercel.http.dashboard.spark import HEIGHT, WIDTH, spark
from tiercel.monitor.intervals import Estimate


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.time_of(84.4), "84 µs"), (words.time_of(7.62), "7.6 µs"), (words.time_of(1_463), "1.46 ms"),
        (words.time_of(31_250), "31.2 ms"), (words.time_of(298_000), "298 ms"), (words.time_of(2_100_000), "2.1 s"),
        (words.time_of(math.nan), words.NOTHING), (words.time_of(None), words.NOTHING),
        (words.count(947), "947"), (words.count(12_345), "12.3 k"), (words.count(999_999), "1,000 k"),
        (words.count(4_560_000), "4.56 M"), (words.count(3e9), "3 G"),
        (words.rate(0), "0"), (words.rate(0.123), "0.12"), (words.rate(33.44), "33.4"), (words.rate(15_105), "15.1 k"),
        (words.share(0.0), "0 %"), (words.share(0.815), "81.5 %"), (words.share(0.00001), "<0.01 %"), (words.share(1), "100 %"),
        (words.age(0.2), "0 s"), (words.age(75), "1 min 15 s"), (words.age(12_000), "3 h 20 min"), (words.age(90_000), "1 d 1 h"),
        (words.age(40 * 86_400), "40 d"), (words.age(-90), "1 min 30 s ahead"),
        (words.number(0.0), "0"), (words.number(0.69412), "0.694"), (words.number(-15_012.3), "-15,012"),
        (words.number(1.2e9), "1.2e+09"), (words.number(0.00123), "0.00123"), (words.number(math.inf), words.NOTHING),
        (words.money(-15_012.3, "EUR"), "-15,012 EUR"), (words.money(0.5, ""), "0.500"),
        (words.interval(Estimate(0.7, 0.672, 0.715, 9)), "[0.672, 0.715]"), (words.interval(Estimate.missing("no labels")), ""),
        (words.moment(1_767_225_600_000_000), "2026-01-01 00:00"), (words.moment(2**62), "9999-12-31 23:59"),
        (words.moment(-5), "1970-01-01 00:00"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_carry_their_unit(shown, expected):
    """Three digits or so, in the unit that fits; what is not known, or no number, is a dash."""
    assert shown == expected


def test_every_value_has_a_bin_with_a_name():
    """There is one name more than edges: below the first, between them, and from the last on; of single values the value."""
    import numpy as np

    edges = np.array([1.0, 2.0, 4.0])
    assert bin_labels(edges, has_values=False) == ["<1", "1 to 2", "2 to 4", "≥4"]
    assert bin_labels(edges, has_values=True) == ["<1", "1", "2", ">2"]


@pytest.mark.parametrize(
    ("p99_us", "p999_us", "state"),
    [(300, 900, "good"), (300, 12_000, "warn"), (10_001, 12_000, "bad"), (math.nan, math.nan, "none")],
)
def test_a_promise_is_kept_or_not(p99_us, p999_us, state):
    """One late request in a thousand is a warning, one in a hundred is bad, none answered is neither."""
    assert Latency(100, p99_us, p999_us, 10_000).state == state


def test_the_promise_stands_at_four_fifths():
    """A thousandth of the promise is where the bar begins, the promise at four fifths, and nothing leaves the bar."""
    latency = Latency(10, 100, 1000, 10_000)
    assert [round(latency.at(us), 3) for us in (1, 10, 10_000, 1e9)] == [0.0, 0.0, 0.8, 1.0]
    assert 0 < latency.at(100) < latency.at(1000) < 0.8


def test_a_spark_stays_in_its_box():
    """Points go from the left edge to the right one, the largest near the top; fewer than two values are no line."""
    line = spark([0, 5, 10]).line
    points = [tuple(map(float, point.split(","))) for point in line.removeprefix("M").split("L")]
    assert [x for x, _ in points] == [0, WIDTH / 2, WIDTH]
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert all(0 <= y <= HEIGHT for _, y in points)
    assert spark([1]).line == spark([0, 0]).line == ""
