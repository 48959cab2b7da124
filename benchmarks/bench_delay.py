"""How many predictions until a change of meaning is found, at one budget of false alarms for everybody.

    python -m benchmarks delay [--null 40] [--changed 20] [--no-peers] [--smoke]

Streams of 6,000 labelled predictions, half of which have another concept from the middle on: river's generators (SEA, Agrawal,
LED, Hyperplane), scored by a LightGBM model of the concept before, and NannyML's US Census data (2015, then any of 2016 to
2018, where nobody knows what changed). Everybody may look at scores and labels; Evidently and NannyML look at chunks, of 250
and of 1,000 rows, river and tiercel row by row. The knob of each is set to the most sensitive one with which at most one in
fifty of half of the unchanging streams has an alarm; the other half tells what it costs, and the changed ones how late it is. A
stream whose change is not found counts with all its rows. `tiercel as shipped` is the monitor as the watch runs it, at its own
far smaller budget; `every fiftieth stream` alarms at random within the budget: the dummy. Data drift by features alone is
`bench_drift`'s: of the generators only labels change.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import lightgbm
import numpy as np

from benchmarks.bench_drift import window_of
from benchmarks.contenders import environment
from benchmarks.machine import describe
from tiercel.monitor.concept_state import TRUSTED, WARM_UP, watching
from tiercel.monitor.detectors import Detector
from tiercel.monitor.drift import drift_report
from tiercel.monitor.error_streams import StreamScale
from tiercel.monitor.reference import Reference
from tiercel.types import Task

HERE = Path(__file__).parent
REQUIREMENTS = {
    "river": ("river==0.26.1",),
    "nannyml": ("nannyml==0.13.1", "statsmodels"),
    "evidently": ("evidently==0.7.21", "pandas<3"),
}
#: Share of unchanging streams that may have an alarm.
BUDGET = 0.02
N_ROWS = 6_000
CHUNKS = (250, 1_000)
#: Of ADWIN and of Page-Hinkley, moved together: from the most to the least sensitive. None: as shipped.
KNOBS = ((0.2, 25.0), (0.1, 29.0), (0.05, 33.0), (0.03, 36.0), (0.02, 40.0), (0.01, 50.0), (0.005, 60.0), None)

#: First alarm of a stream before its middle, and from there on.
Alarms = tuple[int | None, int | None]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null", type=int, default=40, help="streams without a change, of each set")
    parser.add_argument("--changed", type=int, default=20)
    parser.add_argument("--no-peers", action="store_true", help="NannyML's data and river's generators alone")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    print(describe("lightgbm", "numpy"))
    if options.smoke:
        options.null, options.changed = 4, 2
        missing = [name for name, wanted in REQUIREMENTS.items() if not is_there(name, wanted)]
        if missing:
            print(f"--smoke installs nothing, and the streams and their peers need {', '.join(missing)}")
            return
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        try:
            streams = make_streams(directory, options.null, options.changed)
        except environment.InstallError as error:
            print(f"Streams need river and NannyML, which cannot be installed here: {error}")
            return
        found = {"tiercel": tiercel(streams)} | chance(streams)
        for size in CHUNKS[: 1 if options.smoke else None]:
            statistics = drift(directory, streams, size)
            found[f"tiercel drift, any column, {size} rows"] = by_limits(statistics, size)
        if not options.no_peers:
            found |= river(directory, streams)
            for name in ("evidently", "nannyml"):
                for size in CHUNKS[: 1 if options.smoke else None]:
                    found |= by_chunks(directory, name, size)
        show(found, sorted({name.partition("/")[0] for name in streams}, key=list(dict.fromkeys(sets(streams))).index))


def is_there(name: str, requirements: tuple[str, ...]) -> bool:
    """Whether a peer's environment has been made."""
    return (environment.directory(environment.default_cache(), name, requirements) / "versions.json").exists()


def sets(streams: Iterable[str]) -> list[str]:
    return [name.partition("/")[0] for name in streams]


# -- streams


def ask(name: str, script: str, *arguments: object) -> None:
    """Run a script with a peer's interpreter.

    Raises:
        InstallError: it is not there, or the script failed; the text is what was said last.
    """
    python = environment.ensure(environment.default_cache(), name, REQUIREMENTS[name])
    command = [str(python), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise environment.InstallError((done.stderr.strip().splitlines() or ["-"])[-1])


def make_streams(directory: Path, n_null: int, n_changed: int) -> dict[str, dict[str, np.ndarray]]:
    """X, score and y of each stream, by name; written to `streams.npz` as well."""
    numbers = n_null, n_changed, N_ROWS
    ask("river", "delay_streams_peer.py", directory / "made.npz", *numbers)
    ask("nannyml", "delay_chunk_peer.py", "census", directory / "census.npz", *numbers)
    streams: dict[str, dict[str, np.ndarray]] = {}
    for path in ("made.npz", "census.npz"):
        loaded = np.load(directory / path)
        for key in loaded.files:
            name, _, what = key.rpartition("/")
            streams.setdefault(name, {})[what] = loaded[key]
    for name in [name for name in streams if name.endswith("/train")]:
        rows, kind = streams.pop(name), name.partition("/")[0]
        options = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 1, "seed": 1}
        model = lightgbm.train(options, lightgbm.Dataset(rows["X"], rows["y"]), 60)
        for other, stream in streams.items():
            if other.startswith(f"{kind}/"):
                stream["score"] = model.predict(stream["X"], num_threads=1)
    np.savez(directory / "streams.npz", **{f"{n}/{what}": each for n, s in streams.items() for what, each in s.items()})
    return {name: each for name, each in streams.items() if not name.endswith("/reference")}


# -- contenders: knob -> stream -> its first alarms


def tiercel(streams: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Alarms]]:
    """The trusted detectors of the concept monitor over its three streams of errors."""
    found: dict[str, dict[str, Alarms]] = {}
    for knob in KNOBS:
        adwin, page_hinkley = knob or (None, None)
        for name, stream in streams.items():
            scores, labels = stream["score"], stream["y"]
            scale = StreamScale.of(labels[:WARM_UP], scores[:WARM_UP])
            values = scale.streams(Task.BINARY, 0.5, scores[WARM_UP:], labels[WARM_UP:])
            places: list[int] = []
            for key, detector in watching(adwin=adwin, page_hinkley=page_hinkley).items():
                if key in TRUSTED:
                    places += [WARM_UP + place for place in alarms_of(detector, values[key.partition(" ")[0]])]
            found.setdefault(str(knob or "as shipped"), {})[name] = first_alarms(places)
    return found


def alarms_of(detector: Detector, values: np.ndarray) -> list[int]:
    places = []
    for place, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.has_drifted:
            places.append(place)
    return places


def first_alarms(places: Iterable[int]) -> Alarms:
    places = list(places)
    before, after = ([p for p in places if (p >= N_ROWS // 2) == late] for late in (False, True))
    return min(before, default=None), min(after, default=None)


def chance(streams: Iterable[str]) -> dict[str, dict[str, dict[str, Alarms]]]:
    """One alarm somewhere in every fiftieth stream."""
    rng = np.random.default_rng(0)
    found = {}
    for name in streams:
        place = int(rng.integers(0, N_ROWS))
        found[name] = first_alarms([place] if rng.random() < BUDGET else [])
    return {"at random": {"": found}}


def river(directory: Path, streams: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, dict[str, Alarms]]]:
    errors = {name: (s["score"] >= 0.5) != (s["y"] > 0.5) for name, s in streams.items()}
    np.savez(directory / "errors.npz", **errors)
    try:
        ask("river", "delay_river_peer.py", directory / "errors.npz", directory / "river.json")
    except environment.InstallError as error:
        print(f"river is left out: {error}")
        return {}
    found = json.loads((directory / "river.json").read_text())
    version = found.pop("version")
    return {f"river {version} {name}": each for name, each in found.items()}


def by_chunks(directory: Path, name: str, size: int) -> dict[str, dict[str, dict[str, Alarms]]]:
    """What a peer's statistics of chunks find; the knob is the limit, one for each set, which differ in what is usual."""
    try:
        ask(name, "delay_chunk_peer.py", name, directory / "streams.npz", directory / "peer.json", size)
    except environment.InstallError as error:
        print(f"{name} is left out: {error}")
        return {}
    ways = json.loads((directory / "peer.json").read_text())
    version = ways.pop("version")
    found: dict[str, dict[str, dict[str, Alarms]]] = {}
    for way, of_streams in ways.items():
        found[f"{name} {version} {way}, {size} rows"] = by_limits(of_streams, size)
    return found


def by_limits(of_streams: Mapping[str, list[float]], size: int) -> dict[str, dict[str, Alarms]]:
    """First alarms by limits that ever fewer of the unchanging streams pass."""
    usual = {
        kind: np.sort([max(v) for n, v in of_streams.items() if n.startswith(f"{kind}/null/") and is_for_setting(n)])
        for kind in dict.fromkeys(sets(of_streams))
    }
    knobs: dict[str, dict[str, Alarms]] = {}
    for n_over in range(4, -1, -1):
        limits = {kind: most[max(0, len(most) - 1 - n_over)] for kind, most in usual.items()}
        knobs[str(n_over)] = {
            n: first_alarms((i + 1) * size - 1 for i, v in enumerate(values) if v > limits[n.partition("/")[0]])
            for n, values in of_streams.items()
        }
    return knobs


def drift(directory: Path, streams: Mapping[str, Mapping[str, np.ndarray]], size: int) -> dict[str, list[float]]:
    """The most improbable feature or score of each chunk, beside the set's reference, as the drift report has it."""
    loaded = np.load(directory / "streams.npz")
    references: dict[str, Reference] = {}
    found: dict[str, list[float]] = {}
    for name, stream in streams.items():
        kind, scores = name.partition("/")[0], stream["score"][:, None]
        if kind not in references:
            X, score = loaded[f"{kind}/reference/X"], loaded[f"{kind}/reference/score"]
            references[kind] = Reference.build(X, score[:, None], [f"f{i}" for i in range(X.shape[1])])
        for at in range(0, len(scores) - size + 1, size):
            part = slice(at, at + size)
            report = drift_report(
                references[kind], window_of(references[kind], stream["X"][part], scores[part]), least_effect=0
            )
            p_values = [each.p_value for each in (*report.features, *report.scores) if np.isfinite(each.p_value)]
            found.setdefault(name, []).append(-min(p_values))
    return found


# -- the table


def is_for_setting(name: str) -> bool:
    """Whether an unchanging stream is one of those that knobs are set on; the others are counted."""
    return int(name.rpartition("/")[2]) % 2 == 0


def share(found: Mapping[str, Alarms], *, for_setting: bool) -> tuple[int, int]:
    """Unchanging streams with an alarm, and all."""
    chosen = [each for name, each in found.items() if "/null/" in name and is_for_setting(name) is for_setting]
    return sum(each != (None, None) for each in map(tuple, chosen)), len(chosen)


def show(found: Mapping[str, Mapping[str, Mapping[str, Alarms]]], kinds: list[str]) -> None:
    print(
        f"\nRows until a change is found (mean; not found: {N_ROWS // 2:,}), budget {BUDGET:.0%} of unchanging streams"
    )
    print(f"  {'':46}{'knob':>16}{'false alarms':>15}" + "".join(f"{kind:>12}" for kind in kinds) + f"{'all':>9}")
    for name, knobs in found.items():
        within = [
            k
            for k, each in knobs.items()
            if share(each, for_setting=True)[0] <= BUDGET * share(each, for_setting=True)[1]
        ]
        chosen = within[0] if within else list(knobs)[-1]
        line(name if within else f"{name} (never within)", chosen, knobs[chosen], kinds)
        if "as shipped" in knobs and chosen != "as shipped":
            line(f"{name} as shipped", "", knobs["as shipped"], kinds)


def line(name: str, knob: str, found: Mapping[str, Alarms], kinds: list[str]) -> None:
    delays = {
        kind: np.array([
            N_ROWS // 2 if after is None else after - N_ROWS // 2
            for stream, (_, after) in found.items() if stream.startswith(f"{kind}/change/")
        ])
        for kind in kinds
    }  # fmt: skip
    n_false, n = share(found, for_setting=False)
    means = [float(each.mean()) for each in delays.values()]
    print(
        f"  {name:46}{knob:>16}{f'{n_false} of {n}':>15}" + "".join(f"{mean:>12,.0f}" for mean in means)
        + f"{np.mean(means):>9,.0f}"
    )  # fmt: skip


if __name__ == "__main__":
    main()
