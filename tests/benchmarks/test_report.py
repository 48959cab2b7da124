"""What the program writes: tables, promises, charts, and where in a README they go."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from benchmarks.contenders.contender import BY_NAME
from benchmarks.loadgen.histogram import Histogram
from benchmarks.loadgen.run import Run
from benchmarks.measuring import Rounds
from rich.console import Console

from benchmarks import record, report


def a_run(scale_us, *, n=10_000, failed=0, late=0):
    """A run whose p50 is about `scale_us` and whose p99 is about 4.6 / 0.69 times that."""
    latency = Histogram.of((np.random.default_rng(1).exponential(scale_us / 0.693, n) * 1000).astype(np.uint64))
    return Run(
        latency,
        latency,
        Histogram.of([100] * n),
        n,
        n - failed,
        failed,
        late,
        0,
        n / 2,
        "bad_status 1" if failed else "",
    )


def rounds_of(name, rate, cpu_us, p50):
    found = Rounds(
        BY_NAME[name], rss={"rss": 100.0, "worker": 90.0, "anonymous": 50.0, "worker_anonymous": 40.0, "processes": 1}
    )
    for factor in (0.5, 1.0, 1.1):  # the median is what counts, not the mean
        found.closed.append({"per_second": rate * factor, "p50": p50, "p99": 5 * p50, "cpu_us": cpu_us, "failed": 0})
        found.single.append(a_run(p50))
        found.open.setdefault(0.5, []).append(a_run(2 * p50))
    found.rate[0.5] = rate / 2
    return found


@pytest.fixture
def made(tmp_path):
    found = {
        "floor": rounds_of("floor", 160_000, 6.0, 60),
        "tiercel": rounds_of("tiercel", 110_000, 9.0, 66),
        "handwritten": rounds_of("handwritten", 17_000, 58.0, 160),
    }
    disturbed = [{"what": "a | swap", "figure": "p999_swap", "value": 3.0, "told": "5 times", "failed": 2}]
    in_turns = [(a_run(50, n=n, failed=1), a_run(50, n=1000)) for n in (900, 1020, 1300)]
    return record.record(
        found, cache=tmp_path, floor_at_rate=[a_run(100)] * 3, beside_json=in_turns,
        not_measured={"fastapi": "could not | be installed"}, disturbances=disturbed,
        settings={"rows": 10, "features": 23, "model": "100 x 31", "rounds": 3, "turns": 5, "seconds": 1.0},
    )  # fmt: skip


def test_a_ratio_is_of_rounds_that_took_turns():
    """A minute in which everybody is half as fast moves no ratio."""
    ours = [{"p50": value} for value in (10.0, 20.0, 10.0, 20.0)]
    floor = [{"p50": value} for value in (8.0, 16.0, 8.0, 16.0)]
    assert record.ratio_of(ours, floor, "p50") == pytest.approx(1.25)
    assert record.ratio_of(ours, [*floor[1:], {"p50": 1.0}], "p50") == pytest.approx(1.5625)


def test_figures_are_multiples(made):
    """Shares and multiples of what was measured in the same rounds; a figure whose part is missing is not there."""
    figures = made["figures"]
    assert figures["of_floor"] == pytest.approx(110 / 160)
    assert figures["cpu_x_floor"] == pytest.approx(1.5)
    assert figures["x_handwritten"] == pytest.approx(110 / 17)
    assert figures["p99_x_floor"] == pytest.approx(1.32, rel=0.01)
    assert figures["msgpack_x_json"] == pytest.approx(1.02)
    assert "x_fastapi" not in figures
    assert figures["failed"] == 2 + 3


def test_promises_say_what_holds(made):
    """Each promise holds, does not hold, or was not measured; failed requests break one."""
    verdict = {each["figure"]: each["holds"] for each in made["promises"]}
    assert verdict["of_floor"] is True
    assert verdict["p999_swap"] is False
    assert verdict["failed"] is False
    assert verdict["x_fastapi"] is None
    assert set(verdict) == {name for _, name, _, _ in record.PROMISES}


def test_markdown_tables_are_whole(made):
    """Every row of every table has as many cells as its head, whatever text was put into it."""
    width = None
    for line in [*report.markdown(made).splitlines(), "", *report.short_markdown(made).splitlines()]:
        cells = line.replace(r"\|", "").count("|")
        if not line.startswith("|"):
            width = None
            continue
        width = width or cells
        assert cells == width, line
    assert "not measured: could not" in report.markdown(made)


def test_a_late_generator_is_marked(made):
    """A row whose schedule was not kept carries the mark, and the note is there; otherwise neither."""
    assert "~" not in report.markdown(made)
    made["contenders"][1]["open"]["0.5"]["kept_schedule"] = False
    assert " ~ |" in report.markdown(made)
    assert report.LATE_NOTE in report.markdown(made)


def test_percentiles_deeper_than_the_sample_are_left_out(made):
    """A p99.9 of a few thousand requests is not printed."""
    made["contenders"][1]["open"]["0.5"]["ok"] = 4_000
    assert report._marked(made["contenders"][1]["open"]["0.5"], "p99.9") == ""
    assert report._marked(made["contenders"][1]["open"]["0.5"], "p99") != ""


def test_text_goes_between_the_markers_and_nowhere_else(tmp_path):
    """Inserting twice leaves what stands around the markers, and one copy between them; no markers is an error."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN.format('http')}\nold\n{report.END.format('http')}\nafter\n")
    for text in ("new", "newer"):
        report.insert(readme, "http", text)
    assert readme.read_text() == f"before\n{report.BEGIN.format('http')}\nnewer\n{report.END.format('http')}\nafter\n"
    with pytest.raises(ValueError, match="Expected the markers"):
        report.insert(readme, "other", "text")


def test_files_and_screen_are_written(made, tmp_path):
    """JSON that reads back, Markdown, both charts; the screen names every contender and promise."""
    written = report.write(made, tmp_path / "out")
    assert {path.name for path in written} == {"http.json", "http.md", "http.svg", "http.png"}
    assert json.loads((tmp_path / "out" / "http.json").read_text()) == json.loads(json.dumps(made))
    assert all(path.stat().st_size > 500 for path in written)
    screen = io.StringIO()
    report.print_screen(made, Console(file=screen, width=160))
    for text in ("floor", "tiercel", "handwritten", "not measured: FastAPI", "does not hold"):
        assert text in screen.getvalue()
