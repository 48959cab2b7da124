"""river's detectors on streams of errors, run by river's own interpreter for bench_delay.

    python delay_river_peer.py STREAMS.npz RESULT.json

Each array is a stream of 0 and 1. The result holds, per detector and setting of its knob, where it alarmed first in each half
of each stream: the false alarm and the true one. KSWIN tests by SciPy at each row and is left out.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from river import drift
from river.drift import binary

#: Detector -> how it is made of its knob, what it takes, and the knob's settings from the most to the least sensitive.
DETECTORS = {
    "ADWIN": (lambda knob: drift.ADWIN(delta=knob), float, (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 1e-3, 3e-4, 1e-5)),
    "PageHinkley": (lambda knob: drift.PageHinkley(threshold=knob), float, (15, 20, 25, 30, 40, 50, 60, 80, 100, 150)),
    "DDM": (lambda knob: binary.DDM(drift_threshold=knob), int, (2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 9)),
    "EDDM": (lambda knob: binary.EDDM(beta=knob), int, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
    "HDDM_A": (lambda knob: binary.HDDMA(drift_confidence=knob), bool, (1e-3, 1e-4, 1e-5, 1e-6)),
    "HDDM_W": (lambda knob: binary.HDDMW(drift_confidence=knob), bool, (1e-4, 1e-6, 1e-8, 1e-10)),
}  # fmt: skip


def first_alarms(detector: object, values: list) -> list[int | None]:
    """Where it alarms first before the middle, and from it on."""
    found: list[int | None] = [None, None]
    for place, value in enumerate(values):
        detector.update(value)
        half = int(place >= len(values) // 2)
        if detector.drift_detected and found[half] is None:
            found[half] = place
            if half:
                break
    return found


def main() -> None:
    streams = np.load(sys.argv[1])
    found: dict[str, object] = {"version": metadata.version("river")}
    for name, (make, kind, knobs) in DETECTORS.items():
        values = {key: streams[key].astype(kind).tolist() for key in streams.files}
        found[name] = {
            str(knob): {key: first_alarms(make(knob), each) for key, each in values.items()} for knob in knobs
        }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
