"""What it costs to have every prediction say why, in the same call: one server, one worker, one core.

    python -m benchmarks.bench_explained_calls [--seconds S] [--rounds N] [--rows N] [--smoke]

The workload's forest (100 x 31, 23 stored features), registered with a reference set of 100 training rows and no policy, so
every feature is a reason. Closed loop over 32 connections: requests/s with nothing asked, with `"explain": "reasons"` and with
`"full"`, round by round in turn. Then open loop at half of what it answers with reasons: the tail. Of every run 200 replies are
looked at (of "full" 50 before them): an explained one has the method "exact", at most four reasons, and contributions that with
the expected margin are the score's log odds to one part in a million. One that was put off ("later") is right, and counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import tiers, workload
from benchmarks.loadgen.run import Requests, Run
from benchmarks.machine import describe
from tiercel import Project
from tiercel.explain.version_files import make_explanation_files
from tiercel.models import measure

MODES = (None, "reasons", "full")
#: What is promised of one core with reasons on: requests/s, and milliseconds of the tail at half of what it can do.
WANTED_PER_SECOND, WANTED_P999_MS = 15_000, 10.0
ADDITIVITY = 1e-6
CONNECTIONS = 32


def body(user: int, mode: str | None) -> bytes:
    """A question about one user."""
    question: dict[str, Any] = {"entities": {"user_id": user}}
    return json.dumps(question if mode is None else {**question, "explain": mode}).encode()


class Later:
    """How many of the replies that were looked at put the explanation off."""

    n = 0


def is_right(mode: str | None, _user: int, reply: bytes) -> bool:
    """Whether a reply says what was asked."""
    told = json.loads(reply)
    if mode is None:
        return "explanation" not in told
    explanation = told["explanation"]
    if explanation["method"] == "later":
        Later.n += 1
        return "reasons" not in told
    reasons = told["reasons"]
    if explanation["method"] != "exact" or not 1 <= len(reasons) <= 4:
        return False
    if mode == "reasons":
        return "contributions" not in explanation
    margin = explanation["expected"] + sum(explanation["contributions"].values())
    expected = math.log(told["score"]) - math.log1p(-told["score"])
    largest = max(abs(margin), *map(abs, explanation["contributions"].values()))
    return abs(margin - expected) <= ADDITIVITY * max(1.0, largest)


def requests_of(mode: str | None, n_rows: int) -> Requests:
    """Every user once."""
    return Requests.make(
        path=f"/predict/{tiers.TREE}",
        content_type="application/json",
        body=partial(body, mode=mode),
        n_rows=n_rows,
        seed=7,
    )


def show(name: str, run: Run) -> str:
    """A run's tail."""
    found = run.latency.summary_us()
    typical = run.typical_us()["p99.9"]
    inside = "" if typical is None else f", p99.9 of the median tenth of a second {typical / 1000:.3f} ms"
    late = "" if run.kept_schedule else "; the generator was late"
    return (
        f"{name:<12} {run.per_second:9,.0f}/s  p50 {found['p50'] / 1000:.3f}  p99 {found['p99'] / 1000:.3f}  "
        f"p99.9 {found['p99.9'] / 1000:.3f} ms{inside}, failed {run.failed} {run.why}{late}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows = (0.3, 1, 1000) if options.smoke else (options.seconds, options.rounds, options.rows)
    print(describe())
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as name:
        directory = Path(name)
        made = tiers.prepare(directory, n_rows, ())
        _with_reference(made)
        requests = {mode: requests_of(mode, n_rows) for mode in MODES}
        with tiers.serving(made, directory) as server:
            _check(server.port)
            load = tiers.Load(server, n_rows, {}, seconds)
            found: dict[str | None, list[Run]] = {mode: [] for mode in MODES}
            cpu_us: dict[str | None, list[float]] = {mode: [] for mode in MODES}
            for _ in range(rounds):
                for mode in MODES:
                    before_s = server.cpu_s()
                    run = load.run(requests[mode], connections=CONNECTIONS, check=partial(is_right, mode))
                    found[mode].append(run)
                    cpu_us[mode].append(1e6 * (server.cpu_s() - before_s) / max(1, run.sent))
            print(f"\nclosed loop, {CONNECTIONS} connections, {rounds} rounds in turn (median)")
            per_second = {mode: statistics.median(run.per_second for run in runs) for mode, runs in found.items()}
            for mode, runs in found.items():
                failed = sum(run.failed for run in runs)
                print(
                    f"{mode or 'nothing':<12} {per_second[mode]:9,.0f}/s  {statistics.median(cpu_us[mode]):6.2f} us of CPU each, "
                    f"{sum(run.checked for run in runs)} looked at, failed {failed} {runs[0].why}"
                )
            rate = per_second["reasons"] / 2
            print(f"\nopen loop at half of what it answers with reasons, {rate:,.0f}/s")
            tail = [load.run(requests["reasons"], rate=rate, check=partial(is_right, "reasons")) for _ in range(rounds)]
            for run in tail:
                print(show("reasons", run))
            p999_ms = statistics.median(run.latency.summary_us()["p99.9"] for run in tail) / 1000
        print(f"\nof the replies that were looked at {Later.n} put the explanation off")
        print(f"wanted: {WANTED_PER_SECOND:,} requests/s with reasons, got {per_second['reasons']:,.0f}")
        print(f"wanted: p99.9 under {WANTED_P999_MS:g} ms at half of that, got {p999_ms:.3f} ms (median of {rounds})")


def _check(port: int) -> None:
    """That 50 users are told what is asked, in each mode; those of "full" are longer than what the generator keeps.

    Raises:
        SystemExit: they are not.
    """
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"content-type": "application/json"}) as client:
        for mode in MODES:
            for user in range(50):
                for _ in range(20):  # a busy machine may leave no time for one of them
                    reply = client.post(f"/predict/{tiers.TREE}", content=body(user, mode)).raise_for_status().content
                    if is_right(mode, user, reply):
                        break
                else:
                    raise SystemExit(f"Expected an explained reply for user {user}, got {reply!r:.500}")


def _with_reference(made: workload.Workload) -> None:
    """Register the champion again with a reference set: the workload's helper has no training set to draw one from."""
    rows = np.random.default_rng(0).normal(size=(5000, workload.N_FEATURES)).astype(np.float32)
    with Project(made.project) as project:
        champion = project.registry.get(tiers.TREE, "champion")
        artifacts = dict(project.registry.load_artifacts(champion))
        artifacts |= make_explanation_files(champion.facts.signature, policy=None, rows=rows)
        profile = measure(artifacts)
        print(f"explaining one row, measured when registering: {profile.explain}")
        version = project.registry.register(tiers.TREE, artifacts, champion.facts, reuse=False)
        project.promote(tiers.TREE, version.version)


if __name__ == "__main__":
    main()
