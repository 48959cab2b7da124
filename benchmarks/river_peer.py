"""river's side of bench_concept, run by river's own interpreter.

    python river_peer.py STREAMS.npz RESULT.json

Each array is a stream of 0 and 1. The result holds, per detector and stream, where it alarmed, and seconds per detector.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from river import drift
from river.drift import binary

KINDS = {
    "adwin": drift.ADWIN,
    "page_hinkley": drift.PageHinkley,
    "ddm": binary.DDM,
    "eddm": binary.EDDM,
    "kswin": lambda: drift.KSWIN(seed=1),
}


def main() -> None:
    streams = np.load(sys.argv[1])
    found: dict[str, object] = {"version": metadata.version("river")}
    for kind, make in KINDS.items():
        alarms, seconds = {}, 0.0
        for name in streams.files:
            values = streams[name].astype(int).tolist() if kind in {"ddm", "eddm"} else streams[name].tolist()
            values = values[:2000] if kind == "kswin" else values
            detector = make()
            places = []
            start = time.perf_counter()
            for i, value in enumerate(values):
                detector.update(value)
                if detector.drift_detected:
                    places.append(i)
            seconds += time.perf_counter() - start
            alarms[name] = places
        found[kind] = {"alarms": alarms, "seconds": seconds}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
