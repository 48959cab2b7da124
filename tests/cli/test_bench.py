"""`tiercel bench`: the benchmarks of a source checkout."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from tiercel.cli import bench, main

ROOT = Path(__file__).parents[2]


def test_bench_runs_the_checkouts_benchmarks(monkeypatch):
    """In a folder of a clone, the options are the benchmark's own."""
    monkeypatch.chdir(ROOT / "tests")
    result = CliRunner().invoke(main, ["bench", "--help"])
    assert result.exit_code == 0
    assert "--peers" in result.output


def test_bench_outside_a_checkout_says_what_to_do(tmp_path, monkeypatch):
    """Elsewhere, with the package installed and no clone around, one line says where to run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "tiercel" / "cli" / "bench.py"))
    (tmp_path / "benchmarks").mkdir()  # somebody else's
    result = CliRunner().invoke(main, ["bench", "--quick"])
    assert result.exit_code == 1
    assert "Expected a source checkout of tiercel" in result.output
