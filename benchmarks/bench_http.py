"""One row per request over HTTP: key -> stored row -> forest -> reply, beside the floor, hand-written servers and peers.

    python -m benchmarks.bench_http [--quick] [--smoke] [--peers all|none|a,b] [--seconds S] [--rounds N] [--rows N]
                                    [--out DIR] [--cache DIR] [--readme]

The server runs on the first core, the load generator on the last. In order: every contender's answers are compared with
the model's own; closed loop with 32 connections (capacity, CPU per request) and with one; open loop at 50, 70 and 90 % of
each one's capacity; then tiercel is disturbed while it serves. `tiercel bench` is the same.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import disturbance, record, report, workload
from benchmarks.contenders import environment
from benchmarks.contenders.contender import BY_NAME, CONTENDERS, FLOOR, PEERS, Contender
from benchmarks.measuring import Bench, Plan

HERE = Path(__file__).parent
SMOKE = ("floor", "tiercel", "tiercel_msgpack", "handwritten")


def parser() -> argparse.ArgumentParser:
    """The options, for `tiercel bench` too."""
    found = argparse.ArgumentParser(
        prog="tiercel bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--quick", action="store_true", help="one short round without peers: about two minutes")
    found.add_argument("--smoke", action="store_true", help="a moment of each, to show that it runs")
    found.add_argument("--peers", default="none", help=f"all, none (default), or some of {','.join(PEERS)}")
    found.add_argument("--only", default="", help="these contenders alone, by name")
    found.add_argument("--seconds", type=float, help="length of one run (default 8; quick 1.5)")
    found.add_argument("--rounds", type=int, help="how often (default 3; quick 1)")
    found.add_argument("--rows", type=int, default=200_000, help="stored rows")
    found.add_argument("--out", type=Path, default=HERE / "results", help="where http.json, http.md and the chart go")
    found.add_argument(
        "--cache", type=Path, default=environment.default_cache(), help="peers' environments, compiled parts"
    )
    found.add_argument("--workload", type=Path, help="keep the workload here and use it again")
    found.add_argument("--readme", action="store_true", help="write the tables into benchmarks/README.md and README.md")
    found.add_argument("--no-disturbances", action="store_true", help="leave out the disturbed runs")
    return found


def chosen(options: argparse.Namespace) -> list[Contender]:
    """Who is measured, in the order of the report.

    Raises:
        SystemExit: a name is not known.
    """
    if options.only or options.smoke:
        names = list(SMOKE) if options.smoke else options.only.split(",")
    else:
        peers = {"all": list(PEERS), "none": []}.get(options.peers, options.peers.split(","))
        names = [each.name for each in CONTENDERS if not each.is_peer] + peers
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise SystemExit(f"Expected contenders among {', '.join(BY_NAME)}; got {', '.join(unknown)}")
    order = list(BY_NAME)
    return [BY_NAME[name] for name in sorted(set(names), key=order.index)]


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    # Ended from outside, it still ends the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    short = options.quick or options.smoke
    seconds = options.seconds or (0.3 if options.smoke else 1.5 if options.quick else 8.0)
    rounds = options.rounds or (1 if short else 3)
    n_rows = min(options.rows, 2_000) if options.smoke else options.rows
    plan = Plan(
        rounds, seconds, (0.5,) if options.smoke else (0.5, 0.7, 0.9), 0.1 if options.smoke else 0.3, not options.smoke
    )
    contenders = chosen(options)
    status = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary, status.status("building the workload") as spinner:
        scratch = Path(temporary)
        work = prepare(options.workload or scratch / "work", n_rows, with_challenger=not options.smoke)

        def say(text: str) -> None:
            spinner.update(text)
            if not status.is_terminal and not options.smoke:
                print(text, file=sys.stderr, flush=True)

        bench = Bench(work, options.cache, scratch, plan, say)
        loops = {"own": 0.0} if options.smoke else bench.choose_loop(FLOOR)
        found = bench.measure(contenders)
        disturbed = []
        if "tiercel" in found and not (options.no_disturbances or options.smoke):
            disturbed = disturbance.run_all(bench, found["tiercel"])
    settings = {
        "rows": n_rows, "features": workload.N_FEATURES, "model": "100 x 31", "rounds": rounds, "turns": bench.turns,
        "seconds": seconds,
        "closed_loop": plan.loop, "closed_loop_floor_per_second": loops,
    }  # fmt: skip
    made = record.record(
        found, cache=options.cache, floor_at_rate=bench.floor_at_rate, beside_json=bench.beside_json,
        not_measured=bench.not_measured, disturbances=disturbed, settings=settings,
    )  # fmt: skip
    report.print_screen(made, Console(width=None if sys.stdout.isatty() else 120))
    if options.smoke:
        failed = sum(row["failed"] for row in made["contenders"])
        if failed or bench.not_measured:
            raise SystemExit(f"{failed} requests failed; not measured: {bench.not_measured or 'nothing'}")
        return
    for path in report.write(made, options.out):
        status.print(f"wrote {path}")
    if options.readme:
        report.insert(HERE / "README.md", "http", report.markdown(made))
        report.insert(HERE.parent / "README.md", "http", report.short_markdown(made))


def prepare(directory: Path, n_rows: int, *, with_challenger: bool) -> workload.Workload:
    """The workload, made unless it is there from an earlier run."""
    if (directory / "complete").exists() and (directory / "complete").read_text() == str(n_rows):
        return workload.Workload(directory, n_rows)
    if directory.exists() and any(directory.iterdir()):
        raise SystemExit(f"Expected a workload of {n_rows} rows, or nothing, in {directory}; found something else")
    made = workload.build(directory, n_rows, with_onnx=True, with_challenger=with_challenger)
    (directory / "complete").write_text(str(n_rows))
    return made


if __name__ == "__main__":
    main()
