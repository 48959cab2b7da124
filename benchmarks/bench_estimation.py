"""Estimates before labels: how far from what was realized, beside NannyML's CBPE and beside assuming that nothing changes.

    python -m benchmarks estimation [--chunk 2000] [--late 35] [--nannyml PYTHON] [--no-peer] [--smoke]

Everybody learns from the same labelled reference and estimates the same chunks of scores, whose labels only this script sees.
Cases: simulated scores whose inputs move while their meaning stays (and one in which it does not, where every estimate of
this kind must fail), and the two binary data sets in NannyML's wheel. A figure is the mean of |realized - estimated|
over chunks; `dummy` takes the reference's own figure for each chunk. `as it runs` is what `tiercel performance` does: each chunk
by a calibration of the newest labels known by then, which come `--late` chunks after their predictions; NannyML's reference is
fixed when it is fitted. NannyML runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.contenders import environment
from benchmarks.machine import describe
from tiercel.monitor.calibration import Calibration
from tiercel.monitor.classification import binary_metrics
from tiercel.monitor.estimation import MAX_REFERENCE_ROWS, estimate_metrics
from tiercel.monitor.intervals import Estimate

#: statsmodels: 0.13.1 imports it and does not require it.
REQUIREMENTS = ("nannyml==0.13.1", "statsmodels")
PEER = Path(__file__).with_name("nannyml_peer.py")
#: NannyML's name -> ours.
METRICS = {"roc_auc": "auc", "f1": "f1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}


def simulated(n: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Known meanings of scores, inputs that move over the chunks."""
    rng = np.random.default_rng(seed)
    moved = np.linspace(0, 3, n)

    def sharper(scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + ((1 - scores) / scores) ** 2)

    cases = {}
    for name, meaning, a in (
        ("no change", lambda s, _: s, 2.0 + 0 * moved),
        ("inputs move", lambda s, _: s, 2.0 + moved),
        ("inputs move, timid scores", lambda s, _: sharper(s), 2.0 + moved),
        ("meaning changes", lambda s, t: np.where(t > 1.5, 0.5 * s + 0.2, s), 2.0 + moved),
    ):
        reference = rng.beta(2, 4, 20_000)
        scores = rng.beta(a, 4)
        cases[name] = {
            "reference_scores": reference,
            "reference_labels": (rng.random(20_000) < meaning(reference, np.zeros(20_000))).astype(float),
            "scores": scores,
            "labels": (rng.random(n) < meaning(scores, moved)).astype(float),
        }
    return cases


def chunks(n: int, size: int) -> list[slice]:
    return [slice(at, at + size) for at in range(0, n - size + 1, size)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk", type=int, default=2000)
    parser.add_argument("--late", type=int, default=35, help="chunks until a label comes; 35 are a year of the census")
    parser.add_argument("--nannyml", type=Path, help="an interpreter that has NannyML; default: made on demand")
    parser.add_argument("--no-peer", action="store_true", help="without NannyML, and without its data")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    print(describe())
    n = 5 * options.chunk if options.smoke else 40 * options.chunk
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for name, case in simulated(n).items():
            np.savez(directory / f"{name}.npz", **case)
        peer = {} if options.no_peer or options.smoke else ask_nannyml(directory, options)
        for path in sorted(directory.glob("*.npz")):
            compare(path.stem, dict(np.load(path)), options.chunk, options.late, peer.get(path.stem))


def ask_nannyml(directory: Path, options: argparse.Namespace) -> dict[str, object]:
    try:
        python = options.nannyml or environment.ensure(environment.default_cache(), "nannyml", REQUIREMENTS)
        subprocess.run([str(python), str(PEER), str(directory), str(options.chunk)], check=True, capture_output=True)
    except (environment.InstallError, subprocess.CalledProcessError, OSError) as error:
        print(f"NannyML is left out: {getattr(error, 'stderr', None) or error}")
        return {}
    found = json.loads((directory / "nannyml.json").read_text())
    print(f"nannyml {found['version']}")
    return found


def followed(case: dict[str, np.ndarray], parts: list[slice], late: int) -> list[dict[str, Estimate]]:
    """Estimates as they are made while serving: each from the newest labels that had come by then."""
    found = []
    for i, part in enumerate(parts):
        known = parts[i - late].start if i >= late else 0
        scores, labels = (
            np.concatenate([case[f"reference_{each}"], case[each][:known]])[-MAX_REFERENCE_ROWS:]
            for each in ("scores", "labels")
        )
        found.append(estimate_metrics(Calibration.fit(scores, labels), case["scores"][part]))
    return found


def compare(
    name: str, case: dict[str, np.ndarray], size: int, late: int, peer: dict[str, list[float | None]] | None
) -> None:
    start = time.perf_counter()
    calibration = Calibration.fit(case["reference_scores"], case["reference_labels"])
    parts = chunks(len(case["scores"]), size)
    estimates = [estimate_metrics(calibration, case["scores"][part]) for part in parts]
    seconds = time.perf_counter() - start
    following = followed(case, parts, late)
    realized = [binary_metrics(case["scores"][part], case["labels"][part]) for part in parts]
    usual = binary_metrics(case["reference_scores"], case["reference_labels"])
    theirs_s = "" if peer is None else f", nannyml {peer['seconds']:.2f} s"
    print(
        f"\n{name}: {len(parts)} chunks of {size}, calibration {calibration.method}; tiercel {seconds:.2f} s{theirs_s}"
    )
    print(
        f"  {'|realized - estimated|':<24}{'tiercel':>10}{'as it runs':>12}{'nannyml':>10}{'dummy':>10}   inside tiercel's 95 % interval"
    )
    for theirs, ours in METRICS.items():
        rows = [(e[ours], r[ours].value, i) for i, (e, r) in enumerate(zip(estimates, realized, strict=True))]
        rows = [(e, r, i) for e, r, i in rows if e.value is not None and r is not None]
        if not rows:
            continue
        mine = np.mean([abs(r - e.value) for e, r, _ in rows])
        running = np.mean([abs(r - value) for _, r, i in rows if (value := following[i][ours].value) is not None])
        dummy = np.mean([abs(r - usual[ours].value) for _, r, _ in rows])
        other = "-"
        if peer is not None:
            gaps = [abs(r - peer[theirs][i]) for _, r, i in rows if peer[theirs][i] is not None]
            other = f"{np.mean(gaps):.5f}"
        inside = sum(e.covers(r) for e, r, _ in rows)
        print(f"  {ours:<24}{mine:>10.5f}{running:>12.5f}{other:>10}{dummy:>10.5f}   {inside} of {len(rows)}")


if __name__ == "__main__":
    main()
