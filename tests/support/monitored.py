"""State directories with traffic, drift, labels, money and a history, made in a moment; for pages and their benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.support.projects import write_project

from tiercel import Project
from tiercel.monitor.alerts import AlertClass, AlertStore, Finding, Look, TopFeature
from tiercel.monitor.concept_state import ConceptState, ConceptStore
from tiercel.monitor.drift import find_compared
from tiercel.monitor.drift_metrics import save_reports
from tiercel.monitor.labels import LabelStore
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.recording import Recorder
from tiercel.monitor.reference import REFERENCE_FILE, Reference
from tiercel.monitor.watch_state import WatchState
from tiercel.monitor.windows import WindowStore
from tiercel.registry import Registry, VersionFacts
from tiercel.settings import JournalSettings, MonitorSettings
from tiercel.types import Signature, Task, Tier, TrainingSnapshot

MINUTE_US, HOUR_US = 60_000_000, 3_600_000_000
CHALLENGER, SHADOW = 8, 16  # flags of a record
DAY_US = 24 * HOUR_US


@dataclass
class Version:
    """A registered version that can answer."""

    name: str
    number: int
    signature: Signature
    reference: Reference | None
    rows: np.ndarray
    scores: np.ndarray


def register(
    registry, name, *, features, seed=0, task=Task.BINARY, service=None, fingerprint=None, tier=None, author="ann"
):
    """A version with a reference, of features of several kinds."""
    rng = np.random.default_rng(seed)
    n = 2000
    columns = []
    for i in range(len(features)):
        kind = i % 4
        column = (
            rng.gamma(2, 3 + i, n) if kind == 0 else rng.normal(10 * i, 4, n) if kind == 1
            else rng.integers(0, 7, n).astype(float) if kind == 2 else rng.exponential(100, n)
        )  # fmt: skip
        columns.append(np.where(rng.random(n) < 0.02 * (i % 3), np.nan, column))
    rows = np.stack(columns, axis=1).astype(np.float32)
    scores = rng.beta(2, 5, (n, 1)) if task is Task.BINARY else rng.gamma(2, 15, (n, 1))
    reference = Reference.build(rows, scores, features)
    signature = Signature(tuple(features), task, ("no", "yes") if task is Task.BINARY else ())
    facts = VersionFacts(
        snapshot=TrainingSnapshot("data/training.parquet", n, "ab" * 32, 1_700_000_000_000_000, 1_760_000_000_000_000),
        signature=signature, author=author, engine="forest", service=service, service_fingerprint=fingerprint, tier=tier,
        metrics={"auc": 0.781, "log_loss": 0.412}, hyperparameters={"num_leaves": 31, "learning_rate": 0.05, "n_trees": 100},
        code_commit="0123456789abcdef" * 2,
    )  # fmt: skip
    version = registry.register(name, {"model": f"{name} {seed}".encode(), REFERENCE_FILE: reference.to_bytes()}, facts)
    return Version(name, version.version, signature, reference, rows, scores)


def answer(plan, version, n, *, rng, shift=0.0, missing=0.0, typical_ns=60_000, flags=0):
    """Answer n requests: `shift` moves the first feature and the scores, `missing` leaves out the second."""
    picks = rng.integers(0, len(version.rows), n)
    rows = version.rows[picks].copy()
    scores = np.clip(version.scores[picks] + shift * 0.1, 0, None)
    rows[:, 0] *= 1 + shift
    if missing:
        rows[rng.random(n) < missing, 1] = np.nan
    totals = (typical_ns * rng.lognormal(0, 0.45, n) * np.where(rng.random(n) < 0.002, 12, 1)).astype(np.int64)
    shares = np.array([0.12, 0.24, 0.08, 0.4, 0.1])
    for row, score, total in zip(rows, scores, totals.tolist(), strict=True):
        plan.add(
            row[None], score[None], total_ns=total, stage_ns=tuple((shares * total).astype(int).tolist()), flags=flags,
            oldest_age_us=int(rng.integers(60, 4000)) * 1_000_000,
        )  # fmt: skip


def seed_windows(state_dir, plans, *, now_us, n_windows=60, per_window=40, seed=0):
    """A window a minute up to now. plans: (version, tier, options of `answer`, share of the requests)."""
    rng = np.random.default_rng(seed)
    worker = Recorder(state_dir, 0, "0" * 16, JournalSettings(enabled=False))
    store = WindowStore(state_dir)
    made = [
        (worker.for_plan(v.name, v.number, v.signature, reference=v.reference, tier=tier), v, options, share)
        for v, tier, options, share in plans
    ]
    for minute in range(n_windows):
        for plan, version, options, share in made:
            n = max(1, int(per_window * share * (1 + 0.4 * np.sin(minute / 7)) * rng.uniform(0.8, 1.2)))
            answer(plan, version, n, rng=rng, **options)
        store.record(now_us - (n_windows - 1 - minute) * MINUTE_US)
    return worker


def seed_drift(state_dir, registry, versions, *, now_us):
    """The newest reports, as the control process leaves them."""
    store = WindowStore(state_dir)
    reports = []
    for version in versions:
        compared = find_compared(
            store,
            version.reference,
            version.name,
            version.number,
            begin_us=now_us - HOUR_US,
            end_us=now_us,
            or_latest=True,
        )
        if compared is not None:
            reports.append(compared.report())
    save_reports(state_dir, reports)


def seed_outcomes(state_dir, plans, *, now_us, days=7, per_day=400, seed=0, monitor=None):
    """Journaled predictions over some days with labels an hour or two later. plans: (version, share, arm flags, skill)."""
    rng = np.random.default_rng(seed)
    prefix = "feed00000000cafe"
    worker = Recorder(state_dir, 1, prefix, JournalSettings(segment_bytes=1 << 22))
    events, number = [], 0
    for version, share, flags, skill in plans:
        plan = worker.for_plan(version.name, version.number, version.signature)
        n = int(days * per_day * share)
        times = np.sort(now_us - DAY_US // 24 - rng.integers(0, days * DAY_US, n))
        picks = rng.integers(0, len(version.rows), n)
        for time_us, pick in zip(times.tolist(), picks.tolist(), strict=True):
            number += 1
            score = float(version.scores[pick, 0])
            plan.add(
                version.rows[pick : pick + 1], np.array([[score]]), number=number, received_us=time_us, now_us=time_us,
                total_ns=60_000, stage_ns=(1, 1, 1, 1, 1), flags=flags,
            )  # fmt: skip
            delay_us = int(rng.exponential(HOUR_US))
            if rng.random() < 0.85 and time_us + delay_us < now_us and not flags & SHADOW:
                chance = skill * score + (1 - skill) * 0.28
                is_binary = version.signature.task is Task.BINARY
                label = float(rng.random() < chance) if is_binary else score + float(rng.normal(0, 8))
                events.append({"id": f"{prefix}{number:x}", "label": label, "time": time_us + delay_us})
    worker.close()
    monitor = monitor or MonitorSettings()
    table = PredictionTable(state_dir, monitor)
    table.convert(now_us)
    labels = LabelStore(state_dir)
    labels.append(events, now_us)
    labels.collect(monitor, now_us)
    labels.close()
    return len(events)


def seed_concept(state_dir, *, now_us, model="late", version=2, n=3000):
    """A stream of errors as the watch leaves it, whose scores mean less from its middle on."""
    rng = np.random.default_rng(0)
    scores = rng.random(n)
    chance = np.where(np.arange(n) < n // 2, scores, 0.35 + 0.3 * scores)
    state = ConceptState(version, "champion", 4 * HOUR_US, "binary 0.4", until_us=now_us - 4 * HOUR_US)
    times = now_us - DAY_US + np.arange(n, dtype=np.int64) * (20 * HOUR_US // n)
    state.add(Task.BINARY, 0.4, times, scores, (rng.random(n) < chance).astype(float))
    ConceptStore(state_dir).save(model, state)


def seed_alerts(state_dir, *, now_us, model="late", version=2):
    """Three alerts: one that pages, one of the population, and one that somebody took care of; and a watch that looked."""
    store = AlertStore(state_dir)
    common = {"model": model, "version": version, "begin_us": now_us - HOUR_US, "end_us": now_us, "n": 3702}
    findings = [
        Finding(
            cause="population:late:2", alert_class=AlertClass.POPULATION, subject="others are asking than it was trained on",
            effect=0.179, effect_name="Jensen-Shannon distance", threshold=0.1,
            features=(TopFeature("dep_delay_30d", 0.179, "50.7 % of the values are 6.516 or more, 35.1 % in training"),),
            message="dep_delay_30d and the score are distributed otherwise than in training.",
            command=f"tiercel drift {model}:{version} --window 1h", **common,
        ),
        Finding(
            cause="pipeline:source:weather", alert_class=AlertClass.PIPELINE, subject="the source weather",
            effect=0.35, effect_name="share of missing values", threshold=0.04,
            features=(TopFeature("wind_speed", 0.35, "Missing in 35.2 % of rows, 2.0 % in training"),
                      TopFeature("visibility", 0.33, "Missing in 33.0 % of rows, 1.9 % in training")),
            message="Two features of the view weather are missing far more often than in training.",
            command=f"tiercel drift {model}:{version} --window 1h", **common,
        ),
    ]  # fmt: skip
    for back in (2, 1):
        store.update([Look("hour", tuple(findings))], now_us - back * MINUTE_US)
    first = store.find_all()[-1]
    store.acknowledge(first.id, by="ann", note="winter timetable; retraining on Thursday", now_us=now_us)
    state = WatchState.load(state_dir)
    state.turns, state.last_turn_us = 412, now_us - 20_000_000
    state.save(state_dir)


def small_project(directory, *, now_us):
    """A project of five models and a feature service, in all states a page can show."""
    write_project(directory)
    features = (
        (directory / "features.py").read_text().replace("source=orders,", "source=orders, ttl=timedelta(days=90),")
    )
    (directory / "features.py").write_text(f"from datetime import timedelta\n{features}")
    (directory / "tiercel.toml").write_text(SETTINGS)
    state = directory / ".tiercel"
    with Project(directory) as project:
        project.apply()
        project.materialize()
        schema = project.service("checkout")
    flights = [
        f"{name}"
        for name in (
            "dep_delay_30d",
            "distance",
            "weekday",
            "wind_speed",
            "hour",
            "visibility",
            "seats",
            "carrier_rate",
        )
    ]
    clock = iter(range(now_us - 40 * DAY_US, now_us, DAY_US))
    with Registry.for_state(state) as registry:
        registry._clock_us = lambda: next(clock)
        register(registry, "late", features=flights, seed=1)
        registry.promote("late", 1, actor="ann", reason="first champion")
        late2 = register(registry, "late", features=flights, seed=2, author="bob")
        registry.promote("late", 2, actor="bob", reason="AUC 0.781 against 0.764 on November, same latency")
        late3 = register(registry, "late", features=flights, seed=3)
        registry.promote("late", 3, alias="challenger", actor="ann", reason="fewer trees; 10 % of the traffic")
        minutes = register(registry, "arrival-minutes", features=flights[:5], seed=4, task=Task.REGRESSION)
        registry.promote("arrival-minutes", 1, actor="cem", reason="replaces the timetable's buffer")
        fraud = register(registry, "card-fraud", features=[f"f{i}" for i in range(12)], seed=5, tier="near-realtime")
        registry.promote("card-fraud", 1, actor="dee", reason="go live")
        register(registry, "churn", features=["tenure", "calls"], seed=6)
        basket = register(
            registry, "basket", features=schema.features, seed=7, service="checkout", fingerprint=schema.fingerprint
        )
        registry.promote("basket", 1, actor="ann", reason="first")
    worker = seed_windows(
        state,
        [
            (late2, Tier.REALTIME, {"shift": 0.35, "typical_ns": 95_000}, 1.0),
            (late3, Tier.REALTIME, {"typical_ns": 70_000}, 0.12),
            (minutes, Tier.REALTIME, {"typical_ns": 900_000}, 0.4),
            (basket, Tier.REALTIME, {"shift": 0.4, "typical_ns": 40_000}, 0.5),
            (fraud, Tier.NEAR_REALTIME, {"typical_ns": 11_000_000, "missing": 0.35}, 0.25),
        ],
        now_us=now_us,
        per_window=60,
    )
    with Registry.for_state(state) as registry:
        seed_drift(state, registry, [late2, late3, minutes, fraud, basket], now_us=now_us)
    seed_alerts(state, now_us=now_us)
    seed_outcomes(
        state,
        [(late2, 1.0, 0, 0.95), (late3, 0.12, CHALLENGER, 0.9), (minutes, 0.4, 0, 1.0)],
        now_us=now_us,
        per_day=500,
    )
    seed_concept(state, now_us=now_us)
    return worker


SETTINGS = """
[project]
name = "flights"
[monitor]
enabled = false
[models.late.value]
threshold = 0.4
unit = "EUR"
true_positive = 20.0
false_positive = -5.0
true_negative = 1.0
false_negative = -40.0
"""
